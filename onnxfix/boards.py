"""What the board itself adds to the parser's limits: precisions, memory, and the DLA.

Facts of boards stand in `data/targets.json`, those of the DLA in `data/dla.json`; many are not confirmed by a page of
NVIDIA's, and what follows from such a one says so.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnxfix.errors import RequestError
from onnxfix.graph import Graph, Node
from onnxfix.limits import Check, Facts, check_of
from onnxfix.matrix import DATA, Target
from onnxfix.report import Effect, Finding, Where

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "fp4")
_UNVERIFIED = "; not confirmed by a page of NVIDIA's"


def board_findings(target: Target, *, precision: str = "", model_bytes: int = 0) -> list[Finding]:
    """What the board of a target cannot do: a precision it has no units for, a model its memory does not hold.

    `model_bytes` are those of the weights. Empty for a target without board. Raises RequestError for a precision
    that does not exist.
    """
    if precision and precision not in PRECISIONS:
        raise RequestError(f"no precision '{precision}'; there are {', '.join(PRECISIONS)}")
    if not target.board:
        return []
    facts, found = target.facts, []
    if precision not in ("", "fp32") and not facts[precision]:
        can = ", ".join(p for p in PRECISIONS if p == "fp32" or facts[p]).upper()
        reason = f"{facts['name']} has no {precision.upper()}: engines of it do not build; it has {can}"
        found.append(_finding(target, Effect.BUILD_FAILS, reason, precision))
    sizes = facts["memory_gb"]
    gigabytes = model_bytes / 1e9
    if gigabytes > max(sizes):
        reason = f"the weights alone take {gigabytes:.1f} GB, {facts['name']} has {max(sizes)} GB for everything"
        found.append(_finding(target, Effect.BUILD_FAILS, reason, "memory_gb"))
    elif gigabytes > min(sizes) / 2:
        reason = (
            f"the weights take {gigabytes:.1f} GB, and building an engine needs them more than once: {facts['name']} "
            f"has {' or '.join(map(str, sizes))} GB for everything"
        )
        found.append(_finding(target, Effect.UNDECIDED, reason, "memory_gb"))
    return found


def _finding(target: Target, effect: Effect, reason: str, fact: str) -> Finding:
    unsure = fact in target.facts.get("unverified_board", ())
    evidence = f"{target.board} {fact}, compute capability {target.facts['compute_capability']}"
    where = Where("", "board", outputs=(target.board,))
    return Finding(where, effect, reason, f"board {target.board}", evidence + (_UNVERIFIED if unsure else ""))


# ---- DLA ----


@dataclass(frozen=True)
class Placed:
    """Where a node runs when an engine is built for the DLA with fallback to the GPU."""

    where: Where
    runs: str  # "DLA", "GPU", or "undecided"
    reason: str = ""  # why not on the DLA
    verified: bool = True  # whether the limits that decided it are confirmed


@dataclass(frozen=True)
class Split:
    """A model on a board with DLA, node by node; nodes that fold away are left out."""

    cores: str  # how many, "" when none
    placed: tuple[Placed, ...]
    notes: tuple[str, ...]

    def count(self, runs: str) -> int:
        return sum(p.runs == runs for p in self.placed)

    @property
    def changes(self) -> int:
        """How often the data goes from the one to the other, in the order of the nodes."""
        order = [p.runs == "DLA" for p in self.placed]
        return sum(a != b for a, b in itertools.pairwise(order))


def dla_split(graph: Graph, target: Target) -> Split:
    """Which nodes of the main graph the DLA of the target's board would take, and why not the others.

    Without a DLA all run on the GPU. Raises RequestError for a target without board. Cost: linear.
    """
    if not target.board:
        raise RequestError(f"{target.label} is no board: --dla needs one, such as jetson-agx-orin")
    data = _dla()
    cores = target.facts["dla_cores"]
    notes = []
    if "dla_cores" in target.facts.get("unverified_board", ()):
        notes.append("the number of DLA cores is not confirmed by a page of NVIDIA's")
    if cores and _newer(target.release, data["uncertain_after"]):
        notes.append(data["uncertain"])
    if not cores:
        notes.append(f"{target.facts['name']} has no DLA: everything runs on the GPU")
    orin = target.facts["soc"] == "tegra234"
    facts = Facts()
    placed = []
    for node in graph.nodes():
        if node.op == "Constant" or facts.folds(node):
            continue
        runs, reason, verified = _place(node, facts, orin) if cores else ("GPU", "no DLA", True)
        placed.append(Placed(node.where(), runs, reason, verified))
    if any(not p.verified for p in placed):
        notes.append("some of the limits are not confirmed by a page of NVIDIA's: marked (unverified)")
    shown = " or ".join(f"{n} ({size})" for size, n in cores.items()) if isinstance(cores, dict) else str(cores or "")
    return Split(shown, tuple(placed), tuple(notes))


def _newer(release: str, than: str) -> bool:
    return tuple(map(int, release.split("."))) > tuple(map(int, than.split(".")))


def _place(node: Node, facts: Facts, orin: bool) -> tuple[str, str, bool]:
    """(where it runs, why not on the DLA, whether that is confirmed)"""
    limits = _limits().get(node.op) if node.domain == "" else None
    if limits is None:
        return "GPU", f"the DLA has no {node.op}", True
    if node.op in _dla()["orin_only"] and not orin:
        return "GPU", f"{node.op} runs on the DLA of Orin only", False
    open_question = ""
    unverified = any(not limit.verified for limit in limits) or node.op in _dla()["orin_only"]
    for limit in limits:
        if any(c(node, facts)[0] is False for c in limit.when):
            continue
        taken, found = limit.need(node, facts) if limit.need else (None, "")
        if taken is False:
            return "GPU", f"{limit.text} (here: {found})" if found else limit.text, limit.verified
        if taken is None and not open_question:
            open_question = limit.text
    return ("undecided", open_question, not unverified) if open_question else ("DLA", "", not unverified)


@dataclass(frozen=True)
class _DlaLimit:
    text: str
    verified: bool
    need: Check | None
    when: tuple[Check, ...]


@functools.cache
def _dla() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((DATA / "dla.json").read_text(encoding="utf-8"))
    return data


@functools.cache
def _limits() -> dict[str, tuple[_DlaLimit, ...]]:
    data = _dla()
    general = tuple(_general(data))
    return {op: (*general, *map(_limit, own)) for op, own in data["ops"].items()}


def _general(data: dict[str, Any]) -> Iterator[_DlaLimit]:
    return (_limit(limit) for limit in data["general"])


def _limit(data: dict[str, Any]) -> _DlaLimit:
    need = check_of(data["need"]) if data["need"] else None
    return _DlaLimit(data["text"], data["verified"], need, tuple(check_of(c) for c in data.get("when", ())))
