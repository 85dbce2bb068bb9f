"""docs/patterns.md: every pattern has its line, and every rule it names exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxfix import catalog

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "patterns.md").read_text(encoding="utf-8")
PATTERNS = {"A": 46, "B": 10, "C": 14, "D": 10, "E": 10, "F": 9, "G": 10, "H": 7}
COMMANDS = {"apply", "inspect"}
LINES = re.findall(r"^\| ([A-H]\d+) \| (.+?) \| (.+?) \|$", TEXT, re.M)


def test_all_patterns_are_there_once_and_in_order() -> None:
    assert sum(PATTERNS.values()) == 116
    assert [name for name, _, _ in LINES] == [f"{g}{i}" for g, n in PATTERNS.items() for i in range(1, n + 1)]


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, _, answer in LINES])
def test_each_has_an_answer(name: str, answer: str) -> None:
    words = ("rule", "finding", "proof", "none", "--freeze", "--set-shape", "the error says")
    assert any(w in answer for w in words), f"{name}: {answer}"


@pytest.mark.parametrize("rule", sorted(set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+|[a-z]{4,})`", TEXT)) - COMMANDS))
def test_rules_that_are_named_exist(rule: str) -> None:
    assert (ROOT / "rules" / f"{rule}.md").is_file(), f"docs/patterns.md names rule '{rule}', which does not exist"


# What a release reads over without an error, by the matrix' names, and the rules that write it otherwise; none: a finding.
SILENT = {
    "axes-input": ("opset-newer-form", "reduce-axes", "reduce-noop", "squeeze-axes"),
    "noop-with-empty-axes": ("reduce-noop",),
    "layout": ("rnn-layout",),
    "select-last-index": ("argmax-last-index",),
    "reduction": ("scatter-reduction",),
    "start": ("shape-range",),
    "end": ("shape-range",),
    "num-outputs": ("split-count", "opset-newer-form"),
    "largest": ("topk-smallest",),
    "mode": ("opset-newer-form", "gridsample"),
    "opset": ("groupnorm-missing",),
    "training-mode": ("batchnorm-training",),
    "antialias": ("resize-unsupported-interpolation",),
    "exclude-outside": ("resize-unsupported-interpolation",),
    "keep-aspect-ratio-policy": ("resize-form", "resize-unsupported-interpolation", "resize-unsupported-nearest"),
    "shrink-opset-10": ("resize-unsupported-nearest",),
    "seed": (),
    "padded-output": (),
}


def silent() -> Iterator[tuple[str, str]]:
    """(operator, limit) of all that some release ignores."""
    for path in sorted((ROOT / "onnxfix" / "data" / "matrix").glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        for op, row in data["ops"].items():
            for limit in row.get("limits", ()):
                found = data["shared"][limit] if isinstance(limit, str) else limit
                if found["effect"] == "ignored" and op != "Scatter":  # which is gone since opset 11, before `reduction`
                    yield op, found["id"]


def test_whatever_is_ignored_in_silence_has_an_answer() -> None:
    known = catalog.load_folder(catalog.shipped())
    seen = set(silent())
    assert {name for _, name in seen} == set(SILENT)
    for op, name in seen:
        rules = [known[r] for r in SILENT[name]]
        assert not rules or any({op, "*", "<graph>"} & set(r.ops) for r in rules), f"no rule for {name} of {op}"
        assert all(f"`{r.id}`" in TEXT for r in rules)
