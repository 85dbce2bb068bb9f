"""Run a rule's page as its test: `onnxfix rules test`.

For each case: the rule acts (or declines, with the reason given, or leaves the model alone); what comes out is what the
page says, up to names; the checker passes; a second run changes nothing; numbers agree at the rule's grade, on zeros,
denormal numbers and whole ranges of integers too, and on infinities and NaN unless the page has a section on them; and
the real parser says what the page says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from onnxfix import engine, matrix, page, prove, shapes
from onnxfix.backends import feeds, hard
from onnxfix.backends.ort import UnsupportedError
from onnxfix.errors import RuleError
from onnxfix.graph import Graph, Node, attribute_value
from onnxfix.model import Model, one_line
from onnxfix.report import Safety, Status
from onnxfix.rule import Rule

DEFAULT_TARGET = "trt-8.2"


@dataclass(frozen=True)
class CaseResult:
    rule: str
    case: str
    line: int
    problems: tuple[str, ...]  # empty: passed
    not_run: tuple[str, ...] = ()  # proofs that could not run here, and why


def run_page(rule: Rule, catalog: Mapping[str, Rule]) -> Iterator[CaseResult]:
    """Run all cases of a rule's page. Raises RuleError for a page that cannot be read."""
    assert rule.page is not None
    for case in page.read(rule.page).cases:
        problems: list[str] = []
        not_run: list[str] = []
        try:
            _run_case(rule, case, catalog, problems, not_run)
        except RuleError as error:
            problems.append(str(error))
        yield CaseResult(rule.id, case.title, case.block.line, tuple(problems), tuple(not_run))


def _model(block: page.Block, path: Path) -> Model:
    try:
        return Model(onnx.parser.parse_model(block.text))
    except onnx.parser.ParseError as error:
        detail = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise RuleError(f"{path}:{block.line}: not ONNX text: {one_line(detail)}") from None


def _run_case(
    rule: Rule, case: page.Case, catalog: Mapping[str, Rule], problems: list[str], not_run: list[str]
) -> None:
    assert rule.page is not None
    before = _model(case.block, rule.page)
    model = _model(case.block, rule.page)
    for name in case.others:
        if name not in catalog:
            raise RuleError(f"{rule.page}:{case.block.line}: no rule '{name}'")
    rules = [*(catalog[o] for o in case.others), rule]
    outcome = _apply(model, rules, case)
    acted = any(c.rule == rule.id for c in outcome.changes)
    _parser("before", before, case.block, "any", problems, not_run)
    if case.block.kind == "unchanged":
        if acted:
            problems.append("the rule acted, and the page says unchanged")
        return
    if case.block.kind == "skipped":
        reasons = [s.reason for s in outcome.skipped if s.rule == rule.id]
        if acted or not any(case.reason in r for r in reasons):
            problems.append(
                f"expected a skip because '{case.reason}'; got {reasons or ('a change' if acted else 'nothing')}"
            )
        return
    if not acted:
        reasons = [s.reason for s in outcome.skipped]
        problems.append("the rule did not act" + (f": {'; '.join(reasons)}" if reasons else ""))
        return
    assert case.after is not None
    expected = _model(case.after, rule.page)
    difference = same_graph(expected, model)
    if difference:
        problems.append(
            f"not what the page says: {difference}; got: {one_line(onnx.printer.to_text(model.proto.graph))}"
        )
    try:
        onnx.checker.check_model(model.proto, full_check=True)
    except Exception as error:  # the checker raises several unrelated types
        problems.append(f"the checker refuses the result: {one_line(error)}")
    again = Model(onnx.ModelProto.FromString(model.proto.SerializeToString()))
    if any(c.rule == rule.id for c in _apply(again, rules, case).changes):
        problems.append("a second run changes it again")
    safety = max((c.safety for c in outcome.changes), key=lambda s: s.rank)
    _parity(before, model, rule, safety, case, problems, not_run)
    _parser("after", model, case.after, "accepted", problems, not_run)


def _apply(model: Model, rules: list[Rule], case: page.Case) -> engine.Outcome:
    target = matrix.target(case.target or DEFAULT_TARGET)
    graph = shapes.index(model)
    return engine.run(
        graph, rules, target, lambda n: matrix.judge(n, target), allow=Safety.LOSSY, options=case.options
    )


def _parity(
    before: Model,
    after: Model,
    rule: Rule,
    safety: Safety,
    case: page.Case,
    problems: list[str],
    not_run: list[str],
) -> None:
    samples: list[feeds.Feeds] = []
    tolerance = case.block.options.get("tolerance") or (case.after and case.after.options.get("tolerance"))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, "before.onnx"), Path(folder, "after.onnx")]
        for path, model in zip(paths, (before, after), strict=True):
            path.write_bytes(model.proto.SerializeToString())
        check = prove.parity(
            *paths,
            safety=safety,
            tolerances={safety.value: float(tolerance)} if tolerance else {},
            samples_to=samples,
        )
    if check.status is Status.FAILED:
        problems.append(f"numbers differ: {check.detail}")
    elif check.status is Status.NOT_RUN:
        not_run.append(f"parity: {check.detail}")
    elif samples and not tolerance:
        problems += _on_harder_inputs(before, after, rule, safety, samples[0])


def _on_harder_inputs(before: Model, after: Model, rule: Rule, safety: Safety, sample: feeds.Feeds) -> Iterator[str]:
    """Where the models differ on inputs that a proof does not draw, and the page does not say so."""
    assert rule.page is not None
    told = page.read(rule.page).tells_of_special
    models = before.proto.SerializeToString(), after.proto.SerializeToString()
    try:
        for outcome in hard.outcomes(*models, sample, safety):
            if outcome.differs and not (told and outcome.special):
                yield f"numbers differ on {outcome.inputs}: {outcome.how}"
    except UnsupportedError:
        return  # the reference evaluator stood in for the proof


def _parser(which: str, model: Model, block: page.Block, default: str, problems: list[str], not_run: list[str]) -> None:
    wanted = block.options.get("parser", default)
    if wanted == "any":
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(model.proto.SerializeToString())
        check = prove.parse(path)
    if check.status is Status.NOT_RUN:
        not_run.append(f"parser: {check.detail}")
    elif (check.status is Status.PASSED) != (wanted == "accepted"):
        problems.append(f"the real parser must have the model {which} {wanted}, but: {check.detail}")


# ---- the same graph, up to names ----


def same_graph(expected: Model, actual: Model) -> str:
    """ "" when both compute the same thing the same way, else what differs. Values declared without data match any."""
    a, b = Graph.of(expected), Graph.of(actual)
    for role in ("input", "output"):
        left, right = ([_interface(v) for v in getattr(m.proto.graph, role)] for m in (expected, actual))
        if left != right:
            return f"graph {role}s are {right}, expected {left}"
    return _same_scopes(a, b, {})


def _interface(info: onnx.ValueInfoProto) -> str:
    return f"{info.name}: {one_line(info.type)}"


def _same_scopes(a: Graph, b: Graph, seen: dict[str, str]) -> str:
    seen = {**seen, **dict(zip(a.input_names, b.input_names, strict=False))}
    for x, y in zip(a.output_names, b.output_names, strict=True):
        difference = _same_value(a, b, x, y, seen)
        if difference:
            return difference
    count_a, count_b = (sum(1 for n in g.nodes() if n.op != "Constant") for g in (a, b))
    return "" if count_a == count_b else f"{count_b} nodes, expected {count_a}"


def _same_value(a: Graph, b: Graph, x: str, y: str, seen: dict[str, str]) -> str:
    if x in seen or not x or not y:
        return "" if seen.get(x, x) == y else f"'{y}' where '{seen.get(x, x) or 'nothing'}' is expected"
    seen[x] = y
    left, right = a.const(x), b.const(y)
    p, q = a.producer(x), b.producer(y)
    if left is not None:
        return _same_array(x, y, left, right)
    if p is None:  # declared without data: any constant
        return "" if right is not None else f"'{y}' should be a constant"
    if right is not None:
        return f"'{y}' is a constant, expected a {p.op}"
    if q is None:
        return f"'{y}' should come from a {p.op}"
    if (p.op, p.domain) != (q.op, q.domain):
        return f"'{y}' comes from {q.op}, expected {p.op}"
    if p.outputs.index(x) != q.outputs.index(y):
        return f"'{y}' is another output of {q.op}"
    return _same_attributes(p, q) or _same_bodies(p, q, seen) or _same_inputs(a, b, p, q, seen)


def _same_inputs(a: Graph, b: Graph, p: Node, q: Node, seen: dict[str, str]) -> str:
    if len(p.inputs) != len(q.inputs):
        return f"{q.op} has {len(q.inputs)} inputs, expected {len(p.inputs)}"
    for x, y in zip(p.inputs, q.inputs, strict=True):
        difference = _same_value(a, b, x, y, seen)
        if difference:
            return difference
    return ""


def _same_array(x: str, y: str, left: np.ndarray, right: np.ndarray | None) -> str:
    if right is None:
        return f"'{y}' should be a constant"
    if left.dtype != right.dtype or left.shape != right.shape:
        return f"constant '{y}' is {right.dtype}{list(right.shape)}, expected {left.dtype}{list(left.shape)}"
    if left.dtype.kind in "OSU":
        same = bool((left == right).all())
    else:
        same = np.allclose(left.astype(np.float64), right.astype(np.float64), rtol=1e-6, atol=1e-12, equal_nan=True)
    return (
        "" if same else f"constant '{y}' is {right.reshape(-1)[:8].tolist()}, expected {left.reshape(-1)[:8].tolist()}"
    )


def _same_attributes(p: Node, q: Node) -> str:
    left, right = _attributes(p), _attributes(q)
    if left.keys() != right.keys():
        return f"{q.op} has attributes {sorted(right)}, expected {sorted(left)}"
    for name, value in left.items():
        other = right[name]
        same = bool(np.allclose(value, other, rtol=1e-6)) if isinstance(value, float) else value == other
        if not same:
            return f"{q.op}: {name}={other}, expected {value}"
    return ""


def _attributes(node: Node) -> dict[str, Any]:
    return {a.name: attribute_value(a) for a in node.proto.attribute if a.type != AttributeProto.GRAPH}


def _same_bodies(p: Node, q: Node, seen: dict[str, str]) -> str:
    for name, body in p.bodies.items():
        if name not in q.bodies:
            return f"{q.op} has no {name}"
        difference = _same_scopes(body, q.bodies[name], seen)
        if difference:
            return f"in {name}: {difference}"
    return ""
