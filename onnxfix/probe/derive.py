"""From outcomes to a matrix file: which limits explain what a parser refused.

Cases of one base and one question differ in a single value. A value is refused when it never was taken where its
siblings were; a value taken anywhere is taken. What is refused so becomes one predicate (`onnxfix.limits`): dtypes,
values of an attribute, constness, outputs, ranks, fixed dimensions. Versions of an operator that answer alike share a
limit; where they differ it gets its opsets. What a question about one thing at a time cannot show (two settings
together, what is accepted but ignored, what only fails in a build) comes from a file of curated limits, each with its
reason.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from onnx import TensorProto
from onnx.defs import OpSchema

from onnxfix.graph import schema
from onnxfix.limits import DTYPE
from onnxfix.probe.ask import Outcome
from onnxfix.probe.models import CAST, FOLDED, INTEGER, RUN_TIME, STORED, Case, versions

Limit = dict[str, Any]
Verdicts = dict[Any, bool]  # value -> taken
_MOST_RANK = 8  # more is a rule for all operators

# Which dtypes a row may name, in the order of a sentence.
_ORDER = [DTYPE[d] for d in (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8,
    TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT8E4M3FN,
    TensorProto.INT4, TensorProto.FLOAT4E2M1,
)]  # fmt: skip


def rows(
    cases: Iterable[Case],
    outcomes: Mapping[str, Outcome],
    importers: Mapping[str, bool],
    refused: frozenset[str],
    border: frozenset[str],
) -> tuple[dict[str, list[Limit]], list[str], list[str]]:
    """Limits by operator, the operators without importer, and those taken at a border dtype.

    `importers` is what the parser claims of itself, operator by operator; `refused` are the dtypes taken nowhere and
    `border` those taken at the border of a network, both rules of their own.
    """
    by_op: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.name in outcomes:
            by_op[case.spec.key].append(case)
    found: dict[str, list[Limit]] = {}
    missing, at_border = [], []
    for op, asked in sorted(by_op.items()):
        answers = [outcomes[c.name] for c in asked]
        if not any(a.taken for a in answers):
            if not importers.get(op, True) or all(a.no_importer for a in answers):
                missing.append(op)
            else:
                found[op] = [_never(asked[0].spec.op, answers)]
            continue
        found[op] = list(_limits(asked, outcomes, refused | border))
        near = [outcomes[c.name].taken for c in asked if c.about == "dtype 0 at run time" and c.value in border]
        if near and all(near):
            at_border.append(op)
    return found, missing, at_border


def dtypes_refused(cases: Iterable[Case], outcomes: Mapping[str, Outcome]) -> frozenset[str]:
    """The dtypes that no case got through with."""
    seen: dict[str, bool] = defaultdict(bool)
    for case in cases:
        if case.name in outcomes and case.about.startswith("dtype "):
            seen[case.value] |= outcomes[case.name].taken
    return frozenset(d for d, taken in seen.items() if not taken)


def _never(op: str, answers: list[Outcome]) -> Limit:
    plugin = any("plugin" in a.words.lower() for a in answers)
    text = f"it needs the plugin {op}, and there is no plugin library" if plugin else "no form that was tried is taken"
    identity = "plugin" if plugin else "never"
    return {"id": identity, "effect": "reject", "need": {"never": True}, "text": text, "basis": "probe"}


# ---- one operator ----


def _limits(asked: list[Case], outcomes: Mapping[str, Outcome], general: frozenset[str]) -> Iterator[Limit]:
    spec = asked[0].spec
    groups: dict[tuple[str, int, str], Verdicts] = defaultdict(dict)
    for case in asked:
        groups[case.about, _version(case), case.base][case.value] = outcomes[case.name].taken
    plain = {(v, b): next(iter(said.values())) for (about, v, b), said in groups.items() if about == "base"}
    answers: dict[str, dict[int, Verdicts]] = defaultdict(lambda: defaultdict(dict))
    for (about, version, base), said in groups.items():
        if any(said.values()) or plain.get((version, base)):
            merged = answers[about][version]
            for value, taken in said.items():
                merged[value] = merged.get(value, False) or taken
    oldest = _oldest(plain)
    if oldest:
        text = f"the form of opset {oldest - 1} and older is refused"
        yield {"id": "opset", "effect": "reject", "need": {"opset_min": oldest}, "text": text, "basis": "probe"}
    _settle_dtypes(answers, general)
    for about in sorted(answers):
        kind, _, subject = about.partition(" ")
        build = _BUILD.get(kind)
        if build is None:
            continue
        for number, (low, high, said) in enumerate(_spans(answers[about], versions(spec.op, spec.domain))):
            limit = build(spec.op, spec.domain, subject, said)
            if limit is None:
                continue
            if kind == "attribute" and limit["id"] == "dtype":
                limit["id"] = "dtype-asked"
            if number:
                limit["id"] += f"-{low}"
            bounds = {"opset_min": low} if low else {}
            if high:
                bounds["opset_max"] = high
            yield {"id": limit.pop("id"), "effect": "reject", **bounds, **limit, "basis": "probe"}


def _oldest(plain: Mapping[tuple[int, str], bool]) -> int:
    """The oldest version of which some base was taken where all older ones were refused; 0 where none was."""
    asked = sorted({version for version, _ in plain})
    taken = [v for v in asked if any(said for (version, _), said in plain.items() if version == v)]
    return taken[0] if taken and taken[0] != asked[0] else 0


def _settle_dtypes(answers: dict[str, dict[int, Verdicts]], general: frozenset[str]) -> None:
    """Leave of the answers about dtypes what is the variable's own: no general rule, no mere difference to another."""
    for about in [a for a in answers if a.startswith("dtype ")]:
        plain = about.removesuffix(" at run time")
        for version, said in answers[about].items() if plain == about else answers.pop(about).items():
            kept = answers[plain][version]
            for value, taken in list(said.items()):
                kept[value] = kept.get(value, False) or taken
                if value in general:
                    del kept[value]
    for about in [a for a in answers if a.startswith("together ")]:
        for variable in about.split()[1:]:
            for version, together in answers[about].items():
                alone = answers.get(f"dtype {variable}", {}).get(version, {})
                only_together = [v for v, taken in alone.items() if not taken and together.get(v)]
                for value in only_together:
                    alone[value] = True
                if only_together:
                    answers[f"alike {about.partition(' ')[2]}"][version]["differ"] = False


def _version(case: Case) -> int:
    found = schema(case.spec.op, case.spec.domain, case.spec.opset)
    return found.since_version if found else case.spec.opset


def _spans(by_version: Mapping[int, Verdicts], known: tuple[int, ...]) -> Iterator[tuple[int, int, Verdicts]]:
    """(lowest opset or 0, highest or 0, verdicts) of the runs of versions that do not contradict each other."""
    runs: list[tuple[list[int], Verdicts]] = []
    for version in sorted(by_version):
        said = by_version[version]
        if runs and all(runs[-1][1].get(value, taken) == taken for value, taken in said.items()):
            runs[-1][0].append(version)
            runs[-1][1].update(said)
        else:
            runs.append(([version], dict(said)))
    for number, (inside, said) in enumerate(runs):
        low = inside[0] if number else 0
        high = runs[number + 1][0][0] - 1 if number + 1 < len(runs) else 0
        yield low, high, said


def _split(said: Verdicts) -> tuple[list[Any], list[Any]]:
    return [v for v, taken in said.items() if taken], [v for v, taken in said.items() if not taken]


def _dtype(op: str, domain: str, subject: str, said: Verdicts) -> Limit | None:
    _, refused = _split(said)
    if not refused:
        return None
    listed = [d for d in _ORDER if d in refused] + sorted(set(refused) - set(_ORDER))
    bound = inputs_of(op, domain, int(subject))
    several = len(bound) > 1 or _variadic(op, domain, bound[0])
    name = "inputs" if several else "the input" if bound[0] == 0 else formal(op, domain, bound[0])
    which: Any = "any" if several and bound == all_inputs(op, domain) else bound if several else bound[0]
    return {
        "id": "dtype" if bound[0] == 0 else f"{identity(formal(op, domain, bound[0]))}-dtype",
        "need": {"input": which, "dtype_not_in": listed},
        "if_unknown": "taken",
        "text": f"{name} may not be {names(listed)}",
    }


def _alike(op: str, domain: str, subject: str, said: Verdicts) -> Limit | None:
    bound = [int(i) for i in subject.split()]
    called = names([formal(op, domain, i) for i in bound]).replace(" or ", " and ")
    need = {"input": bound, "same_dtype": True}
    return {"id": "same-dtype", "need": need, "if_unknown": "taken", "text": f"{called} must have the same dtype"}


def _attribute(op: str, domain: str, subject: str, said: Verdicts) -> Limit | None:
    taken, refused = _split(said)
    if not refused:
        return None
    own = identity(subject)
    if not taken:
        return {"id": own, "need": {"attr": subject, "absent": True}, "text": f"{subject} is refused"}
    if set(said) <= set(DTYPE.values()):
        listed = [d for d in _ORDER if d in taken] + sorted(set(taken) - set(_ORDER))
        return {
            "id": own,
            "need": {"attr": subject, "dtype_in": listed},
            "text": f"{subject} may only be {names(listed)}",
        }
    values = [_number(v) for v in taken]
    if len(values) > 1 and any(isinstance(v, float) for v in values):
        return None  # a bound somewhere between the numbers tried
    if subject == "pads":
        return _pads(taken)
    if any(str(v).startswith("[") for v in said):
        return {"id": own, "need": {"attr": subject, "each_in": [1]}, "text": f"{subject} other than 1 are refused"}
    text = f"{subject} may only be {names(values)}" if len(values) > 1 else f"{subject} must be {values[0]}"
    return {"id": own, "need": {"attr": subject, "in": values}, "text": text}


def _pads(taken: list[str]) -> Limit | None:
    only_begin = [v for v in taken if _list(v)[0] and not _list(v)[len(_list(v)) // 2]]
    only_end = [v for v in taken if not _list(v)[0] and _list(v)[len(_list(v)) // 2]]
    if only_begin or only_end:
        return None
    need = {"attr": "pads", "pads": "symmetric"}
    return {"id": "pads", "need": need, "text": "begin and end pads must be equal on each axis"}


def _list(text: str) -> list[int]:
    return [int(x) for x in text.strip("[]").split(",")]


def _number(text: Any) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _input(op: str, domain: str, subject: str, said: Verdicts) -> Limit | None:
    index, name = int(subject), formal(op, domain, int(subject))
    own = "constant" if index == 0 else identity(name)
    if said.get(RUN_TIME) and said.get(STORED) is False and index == 0:
        return {"id": own, "need": {"input": 0, "constant": "never"}, "text": "the input may not be an initializer"}
    if said.get(RUN_TIME, True) or not said.get(STORED):
        return None
    for how, kind, text in (
        (INTEGER, "shape", "must be constant, or computed from shapes or integer inputs"),
        (FOLDED, "foldable", "must be known when the engine is built"),
        (CAST, "cast", "must be an initializer, or one behind Identity or Cast"),
        (STORED, "initializer", "must be an initializer"),
    ):
        if said.get(how):
            return {"id": own, "need": {"input": index, "constant": kind}, "text": f"{name} {text}"}
    return None


def _outputs(op: str, domain: str, subject: str, said: Verdicts) -> Limit | None:
    taken, refused = _split(said)
    if not refused or not taken or min(refused) < max(taken):
        return None
    text = "only the first output is taken" if max(taken) == 1 else f"only the first {max(taken)} outputs are taken"
    return {"id": "outputs", "need": {"outputs_max": max(taken)}, "text": text}


def _rank(op: str, domain: str, subject: str, said: Verdicts) -> Limit | None:
    taken, refused = _split({rank: found for rank, found in said.items() if rank <= _MOST_RANK})
    if not refused or not taken:
        return None
    more = {"if_unknown": "taken"}
    if max(refused) < min(taken):
        text = f"the input needs at least {min(taken)} dimensions"
        return {"id": "rank", "need": {"input": 0, "rank_min": min(taken)}, **more, "text": text}
    if min(refused) > max(taken):
        text = f"the input may have at most {max(taken)} dimensions"
        return {"id": "rank", "need": {"input": 0, "rank_max": max(taken)}, **more, "text": text}
    text = f"the input must have rank {names(sorted(taken))}"
    return {"id": "rank", "need": {"input": 0, "rank_in": sorted(taken)}, **more, "text": text}


def _dims(op: str, domain: str, subject: str, said: Verdicts) -> Limit | None:
    if not said.get("fixed") or said.get("first free", True) or said.get("last free", True):
        return None
    return {"id": "static", "need": {"input": 0, "static": True}, "text": "the shape of the input must be fixed"}


def _left(op: str, domain: str, subject: str, said: Verdicts) -> Limit | None:
    if said.get("left out", True) or not said.get("given"):
        return None
    index = int(subject.split()[-1])
    name = formal(op, domain, index)
    need = {"input": index, "present": True}
    return {"id": f"{identity(name)}-present", "need": need, "text": f"{name} must be given"}


_BUILD: dict[str, Callable[[str, str, str, Verdicts], Limit | None]] = {
    "dtype": _dtype,
    "alike": _alike,
    "attribute": _attribute,
    "input": _input,
    "outputs": _outputs,
    "rank": _rank,
    "dims": _dims,
    "left": _left,
}


@functools.cache
def inputs_of(op: str, domain: str, index: int) -> list[int]:
    """The inputs that share the type of this one, in the operator's newest schema."""
    found = schema(op, domain, versions(op, domain)[-1])
    formals = list(found.inputs) if found else []
    if index >= len(formals):
        return [index]
    return [i for i, f in enumerate(formals) if f.type_str == formals[index].type_str]


def _variadic(op: str, domain: str, index: int) -> bool:
    found = schema(op, domain, versions(op, domain)[-1])
    formals = list(found.inputs) if found else []
    return bool(formals) and formals[min(index, len(formals) - 1)].option == OpSchema.FormalParameterOption.Variadic


def all_inputs(op: str, domain: str) -> list[int]:
    """The positions of all inputs of an operator's newest schema."""
    found = schema(op, domain, versions(op, domain)[-1])
    return list(range(len(found.inputs))) if found else []


def identity(text: str) -> str:
    """Words as a limit's id."""
    return text.replace("_", "-").lower()


@functools.cache
def formal(op: str, domain: str, index: int) -> str:
    """The name that an operator's newest schema gives an input."""
    found = schema(op, domain, versions(op, domain)[-1])
    if found is None or not found.inputs:
        return f"input {index}"
    return str(found.inputs[min(index, len(found.inputs) - 1)].name)


def names(values: Iterable[Any]) -> str:
    """ "a", "a or b", "a, b or c"."""
    listed = [str(v) for v in values]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} or {listed[-1]}"
