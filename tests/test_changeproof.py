"""Each change proved on its own: right ones pass, a wrong one is named and undone, and its neighbours are left alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix import catalog, changeproof, engine, matrix, shapes
from onnxfix.backends import ort
from onnxfix.catalog import RuleSet
from onnxfix.errors import RequestError
from onnxfix.model import Model
from onnxfix.report import Safety, Status
from onnxfix.rule import Context, Edit, Node, Rule
from tests.models import fixture_models

pytest.importorskip("onnxruntime")
TARGET = matrix.target("trt-8.2")

CHAIN = """<ir_version: 8, opset_import: ["": 14]>
g (float[2, 3, 4] x) => (float[2, 3, 4] y) {
  a = Neg(x)
  b = Abs(a)
  c = Sqrt(b)
  y = Neg(c)
}"""


class Rewriting(Rule):
    """Replaces nodes of one operator by what `make` adds."""

    when = "always"

    def __init__(self, op: str, make: Any, safety: Safety = Safety.EXACT, identity: str = "test-rule") -> None:
        self.ops = (op,)  # type: ignore[misc]
        self.safety = safety  # type: ignore[misc]
        self.id = identity
        self.make = make

    def match(self, node: Node, ctx: Context) -> bool | None:
        return True

    def rewrite(self, node: Node, found: Any, edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, self.make(edit, node))


def minus(edit: Edit, node: Node) -> Any:
    return edit.add("Sub", [np.float32(0), node.input(0)])


def wrong_minus(edit: Edit, node: Node) -> Any:
    return edit.add("Sub", [np.float32(0.001), node.input(0)])


def prove(text: str, *rules: Rule, **options: Any) -> tuple[list[changeproof.Proof], engine.Outcome]:
    data = onnx.parser.parse_model(text).SerializeToString()
    recorder = changeproof.Recorder()
    outcome = engine.run(
        shapes.index(Model(onnx.ModelProto.FromString(data))), rules, TARGET, lambda n: None, observer=recorder
    )
    return changeproof.prove(lambda: Model(onnx.ModelProto.FromString(data)), recorder, **options), outcome


def test_right_changes_are_equal_bit_for_bit() -> None:
    proofs, outcome = prove(CHAIN, Rewriting("Neg", minus))
    assert [p.verdict for p in proofs] == ["equal", "equal"] and len(outcome.changes) == 2
    assert changeproof.check(proofs).status is Status.PASSED


def test_a_wrong_change_is_named_with_its_error_and_no_other() -> None:
    def only_first_wrong(edit: Edit, node: Node) -> Any:
        return wrong_minus(edit, node) if node.input(0) == "x" else minus(edit, node)

    proofs, _ = prove(CHAIN, Rewriting("Neg", only_first_wrong))
    assert [p.verdict for p in proofs] == ["differs", "equal"]
    assert proofs[0].value == "a" and proofs[0].max_abs == pytest.approx(0.001, rel=1e-3)
    check = changeproof.check(proofs)
    assert check.status is Status.FAILED and "change 1 (test-rule at Neg" in check.detail


def test_a_change_of_what_a_wrong_change_made_is_innocent() -> None:
    proofs, outcome = prove(
        CHAIN,
        Rewriting("Abs", lambda e, n: e.add("Max", [n.input(0), e.add("Sub", [np.float32(0.5), n.input(0)])])),
        Rewriting("Sub", lambda e, n: e.add("Add", [n.input(0), e.add("Neg", [n.input(1)])]), identity="sub"),
    )
    assert [(p.change.rule, p.verdict) for p in proofs] == [("test-rule", "differs"), ("sub", "equal")]
    assert len(outcome.changes) == 2


@pytest.mark.parametrize(("safety", "verdict"), [(Safety.EXACT, "differs"), (Safety.CLOSE, "within")])
def test_the_tolerance_is_that_of_the_grade(safety: Safety, verdict: str) -> None:
    rule = Rewriting("Abs", lambda e, n: e.add("Mul", [e.add("Abs", [n.input(0)], hint="in"), np.float32(1 + 4e-6)]), safety)
    rule.match = lambda node, ctx: True if node.input(0) == "a" and "in" not in node.output(0) else None  # type: ignore[method-assign]
    proofs, _ = prove(CHAIN, rule)
    assert proofs[0].verdict == verdict and 1e-6 < proofs[0].max_rel < 1e-5


def test_a_stated_tolerance_holds_and_a_lossy_change_without_one_is_only_measured() -> None:
    def rule(safety: Safety) -> Rule:
        return Rewriting("Sqrt", lambda e, n: e.add("Pow", [n.input(0), np.float32(0.501)]), safety)

    assert prove(CHAIN, rule(Safety.CLOSE))[0][0].verdict == "differs"
    assert prove(CHAIN, rule(Safety.CLOSE), tolerances={"close": 0.1})[0][0].verdict == "within"
    data = onnx.parser.parse_model(CHAIN).SerializeToString()
    recorder = changeproof.Recorder()
    graph = shapes.index(Model(onnx.ModelProto.FromString(data)))
    engine.run(graph, [rule(Safety.LOSSY)], TARGET, lambda n: None, allow=Safety.LOSSY, observer=recorder)
    proof = changeproof.prove(lambda: Model(onnx.ModelProto.FromString(data)), recorder)[0]
    assert proof.verdict == "lossy" and proof.max_rel > 0


BODY = """<ir_version: 8, opset_import: ["": 14]>
g (float[3] x, bool c) => (float[3] y) {
  y = If (c) <
    then_branch = t () => (float[3] p) { q = Neg(x)  p = Abs(q) },
    else_branch = e () => (float[3] r) { r = Neg(x) }
  >
}"""


@pytest.mark.parametrize(("make", "verdicts"), [(minus, ["equal", "equal"]), (wrong_minus, ["differs"])])
def test_changes_inside_bodies_are_proved_at_the_node_around_them(make: Any, verdicts: list[str]) -> None:
    found = [p.verdict for p in prove(BODY, Rewriting("Neg", make))[0]]
    assert len(found) == 2 and set(verdicts) <= set(found)


FUNCTION = """<ir_version: 8, opset_import: ["": 14, "mine": 1]>
g (float[3] x) => (float[3] y) { y = mine.outer(x) }
<domain: "mine", opset_import: ["": 14, "mine": 1]> outer (a) => (b) { m = mine.inner(a)  b = Abs(m) }
<domain: "mine", opset_import: ["": 14]> inner (s) => (t) { t = Neg(s) }"""


@pytest.mark.parametrize(("make", "verdict"), [
    (minus, "equal"),
    (lambda e, n: e.add("Sub", [e.add("Constant", [], value=onnx.numpy_helper.from_array(np.float32(2))), n.input(0)]), "differs"),
])  # fmt: skip
def test_changes_inside_functions_are_proved_at_a_call(make: Any, verdict: str) -> None:
    assert [p.verdict for p in prove(FUNCTION, Rewriting("Neg", make))[0]] == [verdict]


def test_a_change_that_hands_on_a_wrong_value_is_not_accused() -> None:
    """The first takes the sequence apart in the wrong order; the second reads its parts in the sequence's place."""
    text = """<ir_version: 8, opset_import: ["": 14]> g (float[2, 2] x) => (float[2] y) <int64 zero = {0}, int64 one = {1}>
    { l = SplitToSequence<axis = 1, keepdims = 0>(x) a = SequenceAt(l, zero) b = SequenceAt(l, one) y = Div(a, b) }"""
    parts: list[str] = []

    def split(edit: Edit, node: Node) -> Any:
        columns = [edit.add("Gather", [node.input(0), np.int64(i)], axis=1) for i in (1, 0)]
        parts.extend(columns)
        return edit.add("SequenceConstruct", columns)

    known = Rewriting("SequenceAt", lambda e, n: parts[int(n.input(1) == "one")], identity="known")
    proofs, _ = prove(text, Rewriting("SplitToSequence", split), known)
    # The last one takes the sequence away, too: what it replaces and what it hands on are of the same origin.
    assert [p.verdict for p in proofs] == ["differs", "not run", "equal"]
    assert "it rests on SplitToSequence" in proofs[1].detail


def test_random_numbers_prove_nothing() -> None:
    text = CHAIN.replace("b = Abs(a)", "b = RandomUniformLike(a)")
    proofs, _ = prove(text, Rewriting("RandomUniformLike", lambda e, n: e.add("Abs", [n.input(0)])))
    assert proofs[0].verdict == "not run" and "RandomUniformLike draws" in proofs[0].detail
    assert changeproof.check(proofs).status is Status.NOT_RUN


def test_what_does_not_run_is_wrong_when_what_was_there_did() -> None:
    proofs, _ = prove(CHAIN, Rewriting("Abs", lambda e, n: e.add("Reshape", [n.input(0), np.array([5], np.int64)])))
    assert proofs[0].verdict == "differs" and "does not run" in proofs[0].detail


def test_the_users_inputs_are_used(tmp_path: Path) -> None:
    """A fault that shows only for large numbers, which seeded inputs don't have."""
    clipped = Rewriting("Abs", lambda e, n: e.add("Min", [e.add("Relu", [e.add("Mul", [n.input(0), np.float32(-1)])]), np.float32(50)]))
    text = CHAIN.replace("float[2, 3, 4]", "float[2]")
    np.savez(tmp_path / "small.npz", x=np.array([1, 2], np.float32))
    np.savez(tmp_path / "large.npz", x=np.array([1, 200], np.float32))
    assert prove(text, clipped, inputs=tmp_path / "small.npz")[0][0].verdict == "equal"
    assert prove(text, clipped, inputs=tmp_path / "large.npz")[0][0].verdict == "differs"
    with pytest.raises(RequestError, match="no such file"):
        prove(text, clipped, inputs=tmp_path / "none.npz")


def test_small_batches_prove_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [Rewriting("Abs", lambda e, n: e.add("Max", [n.input(0), e.add("Sub", [np.float32(0), n.input(0)])])),
             Rewriting("Sub", lambda e, n: e.add("Add", [n.input(0), e.add("Neg", [n.input(1)])]), identity="sub")]  # fmt: skip
    monkeypatch.setattr(changeproof, "BATCH_BYTES", 1)
    assert [p.verdict for p in prove(CHAIN, *rules)[0]] == ["equal", "equal"]


def test_on_several_processors_they_prove_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [Rewriting("Neg", one_wrong),
             Rewriting("Abs", lambda e, n: e.add("Max", [n.input(0), e.add("Sub", [np.float32(0), n.input(0)])])),
             Rewriting("Sub", lambda e, n: e.add("Add", [n.input(0), e.add("Neg", [n.input(1)])]), identity="sub")]  # fmt: skip
    rules[0].match = lambda node, ctx: True if node.input(0) in ("x", "c") else None  # type: ignore[method-assign]
    rules[2].match = lambda node, ctx: True if node.input(1) == "a" else None  # type: ignore[method-assign]
    together = prove(CHAIN, *rules)[0]
    monkeypatch.setattr(changeproof, "THOROUGH_BYTES", -1)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    apart = prove(CHAIN, *rules)[0]
    assert [(p.change.rule, p.verdict) for p in apart] == [(p.change.rule, p.verdict) for p in together]
    assert sorted(p.verdict for p in apart) == ["differs", "equal", "equal", "equal"]


def test_in_many_batches_no_node_of_the_original_runs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    make = ort.Session.__init__

    def counted(self: ort.Session, model: bytes, folder: Path, *, exact: bool) -> None:
        if not exact:
            ran.append(len(onnx.ModelProto.FromString(model).graph.node))
        make(self, model, folder, exact=exact)

    monkeypatch.setattr(ort.Session, "__init__", counted)
    monkeypatch.setattr(changeproof, "BATCH_BYTES", 1)
    proofs, _ = prove(CHAIN, Rewriting("Neg", minus), Rewriting("Sqrt", lambda e, n: e.add("Pow", [n.input(0), np.float32(0.5)])))
    assert {p.verdict for p in proofs} <= {"equal", "within"} and len(proofs) == 3
    assert len(ran) > 1 and sum(ran) == 3, "Neg, Abs, Sqrt; nothing reads what the last node makes"


def test_a_change_wrong_at_another_size_only_is_found() -> None:
    """Summing over an axis of 1 is no change."""
    proofs, _ = prove(
        CHAIN.replace("float[2, 3, 4]", "float[N, 4]"),
        Rewriting("Abs", lambda e, n: e.add("ReduceSum", [e.add("Relu", [e.add("Neg", [n.input(0)])]), np.int64([0])])),
        Rewriting("Sqrt", lambda e, n: e.add("Pow", [n.input(0), np.float32(0.5)])),
    )
    assert proofs[0].verdict == "differs" and "before" in proofs[0].detail
    assert proofs[1].verdict in ("equal", "within")


def test_a_change_of_what_does_not_run_is_not_accused() -> None:
    def broken(edit: Edit, node: Node) -> Any:
        return edit.add("Sub", [edit.add("Reshape", [node.input(0), np.array([5], np.int64)]), np.float32(0)])

    proofs, _ = prove(
        CHAIN,
        Rewriting("Abs", broken),
        Rewriting("Sub", lambda e, n: e.add("Add", [n.input(0), e.add("Neg", [n.input(1)])]), identity="sub"),
    )
    assert [p.verdict for p in proofs] == ["differs", "not run"]
    assert "comes from an earlier change" in proofs[1].detail


def test_the_reference_evaluator_takes_dtypes_that_numpy_has_not() -> None:
    """ONNX Runtime has no ReduceMax of bfloat16."""
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[2,4] x) => (float[2,1] y) <int64[1] axis = {1}>
    { b = Cast<to = 16>(x) m = ReduceMax(b, axis) y = Cast<to = 1>(m) }"""
    maximum = Rewriting("ReduceMax", lambda e, n: e.add("Identity", [e.add("ReduceMax", [n.input(0), n.input(1)])]))
    maximum.match = lambda node, ctx: True if node.output(0) == "m" else None  # type: ignore[method-assign]
    assert [p.verdict for p in prove(text, maximum)[0]] == ["equal"]


# ---- in apply ----


def save(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(CHAIN), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def one_wrong(edit: Edit, node: Node) -> Any:
    return wrong_minus(edit, node) if node.input(0) == "x" else minus(edit, node)


def test_apply_undoes_a_wrong_change_and_goes_on(tmp_path: Path) -> None:
    report = onnxfix.apply(save(tmp_path), rules=RuleSet("test", (Rewriting("Neg", one_wrong),)), output=tmp_path / "o.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node] == ["Neg", "Abs", "Sqrt", "Sub"]
    check = report.check("changes")
    assert check is not None and check.status is Status.PASSED and "undone: test-rule at Neg" in check.detail
    assert [s.reason.partition(":")[0] for s in report.skipped] == ["undone, for its numbers were wrong"]
    assert check.figures["undone"][0]["max_abs"] == pytest.approx(0.001, rel=1e-3)
    parity = report.check("parity")
    assert parity is not None and parity.status is Status.PASSED


@pytest.mark.parametrize(("mode", "written"), [("stop", False), ("keep", True)])
def test_apply_stops_or_keeps_when_asked(tmp_path: Path, mode: str, written: bool) -> None:
    rules = RuleSet("test", (Rewriting("Sqrt", lambda e, n: e.add("Pow", [n.input(0), np.float32(0.5001)])),),
                    tolerances={"exact": 1e-6, "y": 1.0})  # fmt: skip
    report = onnxfix.apply(save(tmp_path), rules=rules, output=tmp_path / "o.onnx", on_mismatch=mode)
    check = report.check("changes")
    assert check is not None and check.status is Status.FAILED
    assert (tmp_path / "o.onnx").exists() is written
    assert (onnxfix.exit_status(report) == 0) is written
    with pytest.raises(RequestError, match="on_mismatch is 'pray'"):
        onnxfix.apply(save(tmp_path), rules=rules, output=tmp_path / "o.onnx", on_mismatch="pray")


@pytest.mark.parametrize("name", ["fastsegformer_dynamic", "yolov5s_1class_camera"])
def test_every_change_of_a_real_network_is_proved(tmp_path: Path, name: str) -> None:
    path = fixture_models()[name]
    rules = catalog.load_set("jetson.yml")
    goal = matrix.target(rules.target)
    recorder = changeproof.Recorder()
    model = Model(onnx.load(path), path)
    outcome = engine.run(
        shapes.index(model), rules.rules, goal, lambda n: matrix.judge(n, goal), options=rules.options, observer=recorder
    )
    proofs = changeproof.prove(lambda: Model(onnx.load(path), path), recorder)
    assert len(proofs) == len(outcome.changes) > 5
    assert {p.verdict for p in proofs} <= {"equal", "within"}, changeproof.check(proofs).detail
