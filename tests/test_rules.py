"""Every rule's page, run as its test, against ONNX Runtime and the real parser."""

from __future__ import annotations

import pytest

from onnxfix import catalog, ruletest

RULES = catalog.load_folder(catalog.shipped())


@pytest.mark.parametrize("rule_id", RULES)
def test_page(rule_id: str) -> None:
    results = list(ruletest.run_page(RULES[rule_id], RULES))
    problems = [f"{r.rule}.md:{r.line} ({r.case}): {p}" for r in results for p in r.problems]
    assert not problems, "\n".join(problems)
    not_run = [f"{r.case}: {p}" for r in results for p in r.not_run]
    if not_run:
        pytest.skip("passed, but not run: " + "; ".join(not_run))
