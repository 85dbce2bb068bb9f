"""Every limit of every shipped file, with a node on each side of it.

A limit whose predicate is `never` speaks of all nodes of its operator, so no node of that release is on the other side.
Its other side is the same node on a release that has the operator without such a limit; where there is none, no
release takes the operator at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxfix import matrix
from onnxfix.report import Effect
from tests.synthesis import Undecided, synthesise

FILES = sorted((matrix.DATA / "matrix").glob("*.json"))
NEVER = {"never": True}
EFFECTS = {
    "reject": Effect.REFUSED,
    "ignored": Effect.WRONG,
    "build_fail": Effect.BUILD_FAILS,
    "plugin": Effect.PLUGIN,
}


def limits_of(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(operator, limit) of one file, without those that are no verdict or no predicate."""
    data = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for op, row in data["ops"].items():
        for limit in row.get("limits", ()):
            limit = data["shared"][limit] if isinstance(limit, str) else limit
            if limit["need"] is not None and limit["effect"] in EFFECTS:
                found.append((op, limit))
    return found


def hit(op: str, limit: dict[str, Any], target: matrix.Target, *, fits: bool) -> Effect | None:
    """What the target says by this very limit about a node on one side of it."""
    verdict = matrix.judge(synthesise(op, limit, fits=fits), target)
    wanted = f"{op.rpartition('::')[2].lower()}/{limit['id']}"
    everything = (verdict, *verdict.also) if verdict else ()
    return next((v.effect for v in everything if v.limit == wanted), None)


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_each_limit_has_two_sides(path: Path) -> None:
    target = matrix.target(path.stem)
    wrong, one_sided = [], []
    limits = limits_of(path)
    for op, limit in limits:
        if (said := hit(op, limit, target, fits=False)) is not EFFECTS[limit["effect"]]:
            wrong.append(f"{op}/{limit['id']}: a node that breaks {limit['need']} is {said}")
        try:
            if (said := hit(op, limit, target, fits=True)) is not None:
                wrong.append(f"{op}/{limit['id']}: a node that keeps {limit['need']} is {said}")
        except Undecided:
            one_sided.append(limit["need"])
    assert not wrong, "\n".join(wrong)
    assert len(limits) > 50 and all(need == NEVER for need in one_sided)


# On every release these either need a plugin or have no importer.
TAKEN_NOWHERE = {"RoiAlign", "DeformConv", "CausalConvWithState", "LinearAttention"}


def on_every_node() -> list[tuple[str, dict[str, Any], Path]]:
    """(operator, limit, file) of the limits that no node keeps."""
    return [(op, limit, path) for path in FILES for op, limit in limits_of(path) if limit["need"] == NEVER]


def test_what_no_node_keeps_is_taken_by_another_release() -> None:
    bound = {(op, path) for op, _, path in on_every_node()}
    others: dict[str, set[str]] = {op: set() for op, _ in bound}
    for op, limit, _ in on_every_node():
        node = synthesise(op, limit, fits=False)
        for path in FILES:
            verdict = matrix.judge(node, matrix.target(path.stem))
            if (op, path) not in bound and matrix.target(path.stem).supports(op):
                assert hit(op, limit, matrix.target(path.stem), fits=False) is None
                others[op].add(path.stem)
            else:
                assert verdict is not None and verdict.effect in (*EFFECTS.values(), Effect.UNKNOWN)
    assert {op for op, releases in others.items() if not releases} == TAKEN_NOWHERE
