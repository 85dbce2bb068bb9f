"""The support matrix as tables: what one target takes, and what a move from one to another changes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onnxfix import matrix
from onnxfix.boards import PRECISIONS
from onnxfix.errors import RequestError
from onnxfix.matrix import Target

EFFECTS = {
    "reject": "refused",
    "ignored": "silently wrong",
    "build_fail": "build fails",
    "plugin": "needs a plugin",
    "info": "note",
}
TAKEN, LIMITED, MISSING, PLUGIN = "taken", "limited", "refused", "needs a plugin"


@dataclass(frozen=True)
class LimitRow:
    """One limit of an operator."""

    id: str  # as in verdicts: "resize/mode"
    effect: str  # what becomes of a node that breaks it: one of EFFECTS
    text: str
    opsets: str  # "", "13..", "..12" or "13..17"
    decided: bool  # whether it can be decided from the model
    basis: str
    key: str  # equal for limits that say the same


@dataclass(frozen=True)
class OpRow:
    """What a release does with an operator."""

    op: str  # "Add", "ai.onnx.ml::Scaler"
    support: str  # TAKEN, LIMITED, MISSING or PLUGIN
    limits: tuple[LimitRow, ...]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """One release, for `onnxfix matrix show`."""

    target: str
    release: str
    source: str
    facts: tuple[tuple[str, str], ...]
    rows: tuple[OpRow, ...]


@dataclass(frozen=True)
class OpChange:
    """What a move changes for one operator."""

    op: str
    before: str
    after: str
    freed: tuple[str, ...]  # limits that go
    bound: tuple[str, ...]  # limits that come


@dataclass(frozen=True)
class Diff:
    """What a move from one target to another changes."""

    before: str
    after: str
    facts: tuple[tuple[str, str, str], ...]  # fact, before, after
    freed: tuple[OpChange, ...]  # operators it is easier with
    bound: tuple[OpChange, ...]  # operators it is harder with
    mixed: tuple[OpChange, ...]

    @property
    def changed(self) -> int:
        return len(self.freed) + len(self.bound) + len(self.mixed)


def table(target: Target, op: str = "") -> Table:
    """All rows of the target's release, or the row of one operator.

    Raises RequestError for an operator the matrix has never heard of.
    """
    data = matrix.data_of(target)
    rows = tuple(_rows(data))
    if op:
        wanted = op.removeprefix("ai.onnx::").lower()
        rows = tuple(r for r in rows if r.op.lower() == wanted or r.op.lower().rpartition("::")[2] == wanted)
        if not rows:
            known = [r.op for r in _rows(data)]
            close = difflib.get_close_matches(op, known, 3, 0.6)
            hint = f"did you mean {' or '.join(close)}?" if close else "`onnxfix matrix show` lists all rows"
            raise RequestError(f"the matrix of {target.label} has no row for {op}; {hint}")
    return Table(target.label, target.by, _source(data["source"]), tuple(_facts(data, target)), rows)


def diff(before: Target, after: Target) -> Diff:
    """What a move from one target to another changes, operator by operator."""
    old, new = matrix.data_of(before), matrix.data_of(after)
    old_rows, new_rows = ({r.op: r for r in _rows(data)} for data in (old, new))
    changes = [c for op in sorted({*old_rows, *new_rows}) if (c := _change(op, old_rows.get(op), new_rows.get(op)))]
    easier = [c for c in changes if not c.bound and _rank(c.after) >= _rank(c.before)]
    harder = [c for c in changes if not c.freed and _rank(c.after) <= _rank(c.before) and c not in easier]
    mixed = [c for c in changes if c not in easier and c not in harder]
    facts_before, facts_after = dict(_facts(old, before)), dict(_facts(new, after))
    facts = [
        (name, facts_before.get(name, ""), facts_after.get(name, ""))
        for name in dict.fromkeys((*facts_before, *facts_after))
        if facts_before.get(name) != facts_after.get(name)
    ]
    return Diff(before.label, after.label, tuple(facts), tuple(easier), tuple(harder), tuple(mixed))


def _rank(support: str) -> int:
    return 0 if support in (MISSING, "unknown") else 1 if support == PLUGIN else 2


def _change(op: str, old: OpRow | None, new: OpRow | None) -> OpChange | None:
    before, after = (row.support if row else "unknown" for row in (old, new))
    had = {x.key: x for x in (old.limits if old else ()) if x.effect != "note"}
    has = {x.key: x for x in (new.limits if new else ()) if x.effect != "note"}
    if _rank(before) != _rank(after) and 0 in (_rank(before), _rank(after)):
        had = {} if _rank(before) == 0 else had  # a new row's limits are no loss
        has = {} if _rank(before) == 0 or _rank(after) == 0 else has
    freed = tuple(_said(x) for key, x in had.items() if key not in has)
    bound = tuple(_said(x) for key, x in has.items() if key not in had)
    if _rank(before) == _rank(after) and not freed and not bound:
        return None
    if _rank(after) == 0:
        freed = ()
    return OpChange(op, before, after, freed, bound)


def _said(limit: LimitRow) -> str:
    opsets = f" (opset {limit.opsets})" if limit.opsets else ""
    return f"{limit.effect}: {limit.text}{opsets}"


def _rows(data: Mapping[str, Any]) -> Iterator[OpRow]:
    shared = data["shared"]
    for op, row in sorted(data["ops"].items()):
        own = op.rpartition("::")[2].lower()
        limits = tuple(_limit(shared[x] if isinstance(x, str) else x, own) for x in row.get("limits", ()))
        never = any(x.effect == "refused" and '"never"' in x.key for x in limits)
        support = MISSING if never else LIMITED if any(x.effect != "note" for x in limits) else TAKEN
        yield OpRow(op, support, limits, row.get("note", ""))
    plugins = set(data["rules"]["plugins"])
    for op in data["unsupported"]:
        yield OpRow(op, PLUGIN if op in plugins else MISSING, ())


def _limit(data: Mapping[str, Any], own: str) -> LimitRow:
    low, high = data.get("opset_min", ""), data.get("opset_max", "")
    key = json.dumps([data["effect"], data["need"], data.get("when"), low, high, "" if data["need"] else data["text"]])
    return LimitRow(
        f"{own}/{data['id']}",
        EFFECTS[data["effect"]],
        data["text"],
        f"{low}..{high}" if low or high else "",
        data["need"] is not None,
        data["basis"],
        key,
    )


def _facts(data: Mapping[str, Any], target: Target) -> Iterator[tuple[str, str]]:
    rules = data["rules"]
    if data["opset"]:
        low, high = data["opset"]
        yield "opsets", f"{low} to {high}" + (" (inferred)" if data.get("opset_inferred") else "")
    yield "refused dtypes", ", ".join(sorted(rules["dtypes_refused"]))
    yield "narrowed dtypes", ", ".join(f"{a} to {b}" for a, b in sorted(rules["dtypes_narrowed"].items()))
    yield "dtypes at the border only", ", ".join(sorted(rules["dtypes_interface_only"]))
    yield "most dimensions", str(rules["rank_max"])
    yield "model-local functions", "taken" if rules["functions"] else "refused"
    yield "evidence", data["evidence"]
    for name in ("compute_capability", "memory_gb", "dla_cores"):
        if name in target.facts:
            unsure = name in target.facts.get("unverified_board", ())
            yield name.replace("_", " "), f"{target.facts[name]}" + (" (unverified)" if unsure else "")


def _source(data: Mapping[str, Any]) -> str:
    if "repo" in data:
        return f"{data['repo']}@{data['commit'][:10]}"
    measured = data.get("measured", {})
    text = f"{data['package']} {data['version']}"
    if "models" in measured and "date" in measured:
        text += f", measured {measured['date']} with {measured['models']} models"
    return text


# ---- targets ----


@dataclass(frozen=True)
class TargetRow:
    """A target, and the facts of its board."""

    name: str
    kind: str  # "board", "JetPack" or "TensorRT"
    label: str
    release: str
    opsets: str
    jetpack: str = ""
    compute_capability: str = ""
    memory_gb: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()  # facts no page of NVIDIA's confirms


def targets() -> list[TargetRow]:
    """All targets: boards, JetPacks, releases."""
    return [_target(matrix.target(name)) for name in matrix.targets()]


def _target(goal: Target) -> TargetRow:
    facts = goal.facts
    opsets = f"{goal.opsets[0]} to {goal.opsets[1]}" if goal.opsets else "not said"
    if goal.board:
        return TargetRow(
            goal.name,
            "board",
            goal.label,
            goal.by,
            opsets,
            goal.jetpack,
            facts["compute_capability"],
            tuple(facts["memory_gb"]),
            tuple(p for p in PRECISIONS if p == "fp32" or facts[p]),
            tuple(facts.get("unverified_board", ())),
        )
    kind = "JetPack" if goal.jetpack else "TensorRT"
    unverified = tuple(facts.get("unverified", ()))
    return TargetRow(goal.name, kind, goal.label, goal.by, opsets, goal.jetpack, unverified=unverified)
