"""A matrix file from the outcomes of a probe and the curated limits of the release."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxfix import matrix, shapes
from onnxfix.errors import ModelError
from onnxfix.model import Model
from onnxfix.probe.ask import Outcome
from onnxfix.probe.derive import Limit, dtypes_refused, rows
from onnxfix.probe.models import Case
from onnxfix.report import Effect

CURATED = Path(matrix.__file__).parent / "data" / "curated"
REFUSING = frozenset({Effect.REFUSED, Effect.PLUGIN, Effect.UNKNOWN})


@dataclass
class Agreement:
    """How a matrix fares against the parser it describes: (verdict, taken by the parser) -> how many models."""

    counts: dict[tuple[str, bool], int] = field(default_factory=lambda: defaultdict(int))
    differ: list[tuple[str, str, Outcome, str]] = field(default_factory=list)  # model, verdict, outcome, limit

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def right(self) -> int:
        """Models on which the verdict is the parser's; an undecided one is right about nothing."""
        return self.counts["refused", False] + self.counts["taken", True]

    @property
    def agree(self) -> float:
        return self.right / max(self.total, 1)

    @property
    def false_taken(self) -> float:
        """Share of the models called taken that the parser refuses."""
        return self.counts["taken", False] / max(self.total, 1)

    @property
    def undecided(self) -> float:
        return (self.counts["undecided", True] + self.counts["undecided", False]) / max(self.total, 1)


def judge_as_one(model: Any, target: matrix.Target) -> tuple[str, str]:
    """("taken" | "refused" | "undecided", limit) of a model as a whole: what the parser makes of it.

    Where it is open whether an engine can be built, or whether something is ignored, the parser takes the model.
    """
    judged = matrix.judge_model(shapes.index(model if isinstance(model, Model) else Model(model)), target)
    found = [each for _, verdict in judged for each in (verdict, *verdict.also)]
    for each in found:
        if each.effect in REFUSING:
            return "refused", each.limit
    for each in found:
        if each.effect is Effect.UNDECIDED and each.at_worst not in (Effect.BUILD_FAILS, Effect.WRONG):
            return "undecided", each.limit
    return "taken", ""


def agreement(models: Iterable[tuple[str, Any]], outcomes: Mapping[str, Outcome], target: matrix.Target) -> Agreement:
    """Compare the verdicts of a matrix with the outcomes of its parser."""
    result = Agreement()
    for name, model in models:
        outcome = outcomes.get(name)
        if outcome is None:
            continue
        try:
            verdict, limit = judge_as_one(model, target)
        except ModelError:
            continue
        result.counts[verdict, outcome.taken] += 1
        if verdict == "undecided" or (verdict == "refused") == outcome.taken:
            result.differ.append((name, verdict, outcome, limit))
    return result


def curated(release: str) -> dict[str, Any]:
    """The curated limits of a release; empty where there are none.

    Where no file holds them, the shipped matrix of the release stands in: what is known from its source.
    """
    name = release if release.startswith("rtx") else f"trt-{release.removeprefix('trt-')}"
    places = (CURATED / f"{name}.json", matrix.DATA / "matrix" / f"{name}.json")
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        return {}
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    shared = data.get("shared", {})
    for row in data.get("ops", {}).values():
        row["limits"] = [dict(shared[x]) if isinstance(x, str) else x for x in row.get("limits", ())]
    return data


# What the probe's models, of one node each, do not ask about; of a release nothing is known of.
_RULES: dict[str, Any] = {"dtypes_narrowed": {}, "dtypes_interface_only": ["UINT8"], "functions": False, "plugins": []}


def assemble(
    release: str,
    cases: list[Case],
    outcomes: Mapping[str, Outcome],
    importers: Mapping[str, bool],
    by_hand: Mapping[str, Any],
    source: Mapping[str, Any],
    against: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """The data of a matrix file, and the derived limits that other outcomes contradict.

    `against` are further models by name, with outcomes: a derived limit that refuses one the parser took is left out.
    """
    rules = {**_RULES, **by_hand.get("rules", {})}
    border = frozenset(rules.get("dtypes_interface_only", ()))
    refused = dtypes_refused(cases, outcomes)
    found, missing, at_border = rows(cases, outcomes, importers, refused, border)
    rules["dtypes_refused"] = sorted(refused | {"STRING"})
    ranks = [c.value for c in cases if c.about == "rank" and c.spec.op == "Relu" and outcomes[c.name].taken]
    rules["rank_max"] = max(ranks, default=rules.get("rank_max", 8))
    if at_border:
        rules["border_ops"] = sorted({"Cast", "CastLike", *at_border})
    data: dict[str, Any] = {
        "release": release,
        "product": "TensorRT-RTX" if release.startswith("rtx") else "TensorRT",
        "version": release.removeprefix("rtx-").removeprefix("trt-"),
        "opset": by_hand.get("opset"),
        "opset_inferred": bool(by_hand.get("opset_inferred", False)),
        "evidence": "probe",
        "source": dict(source),
        "rules": rules,
    }
    ops = {op: _merged(limits, by_hand.get("ops", {}).get(op, {})) for op, limits in found.items()}
    for op, row in by_hand.get("ops", {}).items():
        if op not in ops and op not in missing and (importers.get(op, True) or row.get("support")):
            ops[op] = _merged([], row)
    for op, claimed in importers.items():
        if claimed and op not in ops:
            ops[op] = []
        elif not claimed and op not in ops:
            missing.append(op)
    unsupported = sorted({*missing, *by_hand.get("unsupported", ())} - set(ops))
    dropped = _drop_contradicted({**data, "unsupported": unsupported}, ops, cases, outcomes, against)
    return _packed(data, ops, unsupported), dropped


def _merged(derived: list[Limit], row: Mapping[str, Any]) -> list[Limit]:
    """Derived limits and those by hand; one by hand takes the place of a derived one of its id, or that it names."""
    by_hand = list(row.get("limits", ()))
    replaced = {x["id"] for x in by_hand} | set(row.get("instead_of", ()))
    words = row.get("words", {})
    kept = [{**x, "text": words.get(x["id"], x["text"])} for x in derived if x["id"] not in replaced]
    return [*kept, *by_hand]


def _drop_contradicted(
    data: dict[str, Any],
    ops: dict[str, list[Limit]],
    cases: list[Case],
    outcomes: Mapping[str, Outcome],
    against: Mapping[str, Any],
) -> list[str]:
    models = [(c.name, c.model) for c in cases] + list(against.items())
    taken = [(n, m) for n, m in models if n in outcomes and outcomes[n].taken]
    target = matrix.of_data(_packed(data, ops, data["unsupported"]))
    wrong: dict[str, int] = defaultdict(int)
    for _, model in taken:
        for _, verdict in matrix.judge_graph(shapes.index(Model(model)), target):
            for each in (verdict, *verdict.also):
                if each.effect in REFUSING:
                    wrong[each.limit] += 1
    dropped = []
    for op, limits in ops.items():
        own = op.rsplit("::")[-1].lower()
        for limit in list(limits):
            if wrong.get(f"{own}/{limit['id']}") and limit["basis"] == "probe" and "why" not in limit:
                limits.remove(limit)
                dropped.append(f"{own}/{limit['id']}")
    return dropped


def _packed(data: Mapping[str, Any], ops: Mapping[str, list[Limit]], unsupported: list[str]) -> dict[str, Any]:
    """Limits that several operators have stand in `shared`, once."""
    uses: dict[str, list[str]] = defaultdict(list)
    for op, limits in ops.items():
        for limit in limits:
            uses[json.dumps(limit, sort_keys=True)].append(op)
    shared: dict[str, Limit] = {}
    keys: dict[str, str] = {}
    packed: dict[str, Any] = {}
    for op in sorted(ops):
        row: list[Any] = []
        for limit in ops[op]:
            text = json.dumps(limit, sort_keys=True)
            if len(uses[text]) > 1 and text not in keys:
                key, number = limit["id"], 2
                while key in shared:
                    key, number = f"{limit['id']}-{number}", number + 1
                shared[key], keys[text] = limit, key
            row.append(keys.get(text, limit))
        packed[op] = {"support": "restricted", "limits": row} if row else {"support": "yes"}
    return {**data, "shared": shared, "ops": packed, "unsupported": unsupported}


def written(data: Mapping[str, Any]) -> str:
    """A matrix file's text: one line for each operator and shared limit."""
    lines = []
    for key, value in data.items():
        if key in ("shared", "ops") and value:
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
            lines.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
