"""The worklist: order, safety, skips, errors, and that nothing is dropped."""

from __future__ import annotations

from typing import Any, ClassVar

import onnx
import pytest

from onnxfix import catalog, engine, shapes
from onnxfix.errors import RuleError
from onnxfix.model import Model
from onnxfix.report import Effect, Safety
from onnxfix.rule import Rule, Skip


class Refused:
    effect, reason, evidence = Effect.REFUSED, "refused", "test"


class Target:
    name = release = "test"

    def supports(self, op: str, domain: str = "") -> bool:
        return True


def run(text: str | onnx.ModelProto, *rules: Rule, refuse: tuple[str, ...] = (), **options: Any):
    model = Model(onnx.parser.parse_model(text) if isinstance(text, str) else text)
    for rule in rules:
        rule.id = rule.id or type(rule).__name__.lower()
    graph = shapes.index(model)
    outcome = engine.run(graph, rules, Target(), lambda n: Refused() if n.op in refuse else None, **options)
    return model.proto, outcome


def swap(before: str, after: str, when: str = "refused", safety: Safety = Safety.EXACT) -> Rule:
    class Swap(Rule):
        ops = (before,)

        def match(self, node, ctx):
            return True

        def rewrite(self, node, found, edit, ctx):
            edit.replace_node(node, edit.add(after, node.inputs))

    rule = Swap()
    rule.id, rule.when, rule.safety = f"{before}-{after}".lower(), when, safety
    return rule


TEXT = """<ir_version: 10, opset_import: ["": 18]>
g (float[2] x) => (float[2] y) { a = Relu(x) b = Abs(a) y = Neg(b) }"""


def test_only_refused_nodes_are_rewritten() -> None:
    proto, outcome = run(TEXT, swap("Relu", "Exp"), swap("Abs", "Sqrt"), refuse=("Abs",))
    assert [n.op_type for n in proto.graph.node] == ["Relu", "Sqrt", "Neg"]
    assert [(c.rule, c.where.op, c.where.index) for c in outcome.changes] == [("abs-sqrt", "Abs", 1)]


def test_a_grade_that_is_not_allowed_is_a_skip() -> None:
    rule = swap("Relu", "Exp", when="always", safety=Safety.LOSSY)
    _, outcome = run(TEXT, rule, allow=Safety.CLOSE)
    assert not outcome.changes and "only close is allowed" in outcome.skipped[0].reason
    _, outcome = run(TEXT, rule, allow=Safety.LOSSY)
    assert len(outcome.changes) == 1


def test_rules_that_chase_each_other_are_named() -> None:
    with pytest.raises(RuleError, match=r"'abs-relu', 'relu-abs'|'relu-abs', 'abs-relu'"):
        run(TEXT, swap("Relu", "Abs", "always"), swap("Abs", "Relu", "always"))


def test_a_failing_rule_is_named_with_its_node() -> None:
    class Broken(Rule):
        ops: ClassVar = ("Abs",)
        when = "always"

        def match(self, node, ctx):
            raise ZeroDivisionError("oh")

    with pytest.raises(RuleError, match=r"rule 'broken' failed at Abs #1 -> b: ZeroDivisionError: oh"):
        run(TEXT, Broken())


def test_a_skip_in_rewrite_leaves_no_trace() -> None:
    class Late(Rule):
        ops: ClassVar = ("Abs",)
        when = "always"

        def match(self, node, ctx):
            return True

        def rewrite(self, node, found, edit, ctx):
            edit.replace_node(node, edit.add("Sqrt", node.inputs))
            raise Skip("changed my mind")

    proto, outcome = run(TEXT, Late())
    assert proto == onnx.parser.parse_model(TEXT)
    assert [s.reason for s in outcome.skipped] == ["changed my mind"]


def test_bodies_and_functions_are_walked() -> None:
    text = """<ir_version: 10, opset_import: ["": 18, "local": 1]>
    g (float[2] x, bool c) => (float[2] y) {
      a = local.f(x)
      y = If(c) <then_branch = t () => (float[2] p) { p = Relu(a) }, else_branch = e () => (float[2] q) { q = Abs(a) }>
    }
    <domain: "local", opset_import: ["": 18]> f (v) => (w) { w = Relu(v) }"""
    proto, outcome = run(text, swap("Relu", "Exp", "always"))
    assert sorted(c.where.graph for c in outcome.changes) == ["function local::f", "y/then_branch"]
    assert proto.functions[0].node[0].op_type == "Exp"


def test_nothing_untouched_is_dropped() -> None:
    proto = onnx.parser.parse_model(TEXT)
    proto.doc_string, proto.model_version, proto.domain = "a model", 7, "org.example"
    proto.producer_name, proto.producer_version = "pytest", "1"
    proto.metadata_props.add(key="author", value="someone")
    proto.graph.doc_string = "a graph"
    proto.graph.node[0].name, proto.graph.node[0].doc_string = "layer/relu", "from net.py:3"
    proto.graph.node[0].metadata_props.add(key="k", value="v")
    proto.graph.input[0].doc_string = "the image"
    proto.graph.value_info.add(name="a").type.CopyFrom(proto.graph.input[0].type)
    proto.graph.quantization_annotation.add(tensor_name="a")
    # Field 3999 is no field of NodeProto or ModelProto: what a newer ONNX may add must survive.
    unknown = bytes([0xFA, 0xF9, 0x01, 0x03]) + b"new"
    data = proto.SerializeToString() + unknown
    proto = onnx.ModelProto.FromString(data)
    node = proto.graph.node[0].SerializeToString() + unknown
    proto.graph.node[0].ParseFromString(node)
    before = onnx.ModelProto.FromString(proto.SerializeToString())
    after, outcome = run(proto, swap("Abs", "Sqrt", "always"))
    assert len(outcome.changes) == 1
    assert after.SerializeToString().count(unknown) == 2
    after.graph.node[1].CopyFrom(before.graph.node[1])
    assert after == before


def test_types_that_become_known_bring_another_look() -> None:
    """A rule that needs a static shape gets it once another rule has made it known."""

    class NeedsShape(Rule):
        ops: ClassVar = ("Abs",)
        when = "always"

        def match(self, node, ctx):
            if node.graph.static_shape(node.input(0)) is None:
                raise Skip("shape unknown")
            return True

        def rewrite(self, node, found, edit, ctx):
            edit.replace_node(node, edit.add("Sqrt", node.inputs))

    class KnowShape(Rule):
        ops: ClassVar = ("Mystery",)
        when = "always"

        def match(self, node, ctx):
            return True

        def rewrite(self, node, found, edit, ctx):
            edit.replace_node(node, edit.add("Relu", node.inputs))

    text = """<ir_version: 10, opset_import: ["": 18, "x": 1]>
    g (float[2] x) => (float[M] y) { a = Mystery(x) b = Abs(a) y = Neg(b) }"""
    proto, outcome = run(text, NeedsShape(), KnowShape())
    assert [n.op_type for n in proto.graph.node] == ["Relu", "Sqrt", "Neg"]
    assert not outcome.skipped


def test_shipped_rules_load() -> None:
    rules = catalog.load_folder(catalog.shipped())
    assert "identity" in rules
    for rule in rules.values():
        assert rule.summary and len(rule.summary) < 600, f"{rule.id}: its page needs a summary of a paragraph"
