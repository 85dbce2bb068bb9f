"""The index and its edits: reading, changing, undoing, committing, keeping all that was not touched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxfix import shapes
from onnxfix.graph import FROM_KEY, RULE_KEY, Edit, Graph
from onnxfix.model import Model


def graph_of(text: str) -> Graph:
    return shapes.index(Model(onnx.parser.parse_model(text)))


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes()]


CHAIN = """<ir_version: 10, opset_import: ["": 18]>
g (float[2, N] x) => (float[2, N] y) <float[1] c = {2}>
{ a = Relu(x) b = Mul(a, c) d = Mul(a, b) y = Sigmoid(d) }"""

BODIES = """<ir_version: 10, opset_import: ["": 18]>
g (float[2] x, bool c) => (float[2] y)
{
  a = Relu(x)
  y = If(c) <
    then_branch = t () => (float[2] ty) { ty = Sigmoid(a) },
    else_branch = e () => (float[2] ey) {
      ey = If(c) <then_branch = tt () => (float[2] p) { p = Neg(a) }, else_branch = ee () => (float[2] q) { q = Abs(a) }>
    }
  >
}"""


def node(graph: Graph, op: str):
    return next(n for n in graph.nodes() if n.op == op)


def test_reading() -> None:
    graph = graph_of(CHAIN)
    assert graph.producer("b") is node(graph, "Mul")
    assert [(n.op, i) for n, i in graph.uses("a")] == [("Mul", 0), ("Mul", 0)]
    assert graph.is_const("c") and not graph.is_const("a")
    assert graph.const("c").tolist() == [2.0]
    assert graph.shape("b") == (2, "N") and graph.dtype("b") == TensorProto.FLOAT
    assert graph.is_input("x") and graph.is_output("y") and not graph.is_output("d")
    assert node(graph, "Relu").where().index == 0


def test_a_use_in_a_body_is_a_use_by_its_owner() -> None:
    graph = graph_of(BODIES)
    owner = node(graph, "If")
    assert graph.uses("a") == [(owner, -1)]
    inner = owner.bodies["else_branch"]
    assert inner.uses("a") == [(node(inner, "If"), -1)]
    assert inner.producer("a") is node(graph, "Relu")
    assert [s.path for s in graph.walk()] == ["", "y/then_branch", "y/else_branch", "y/else_branch/ey/then_branch",
                                             "y/else_branch/ey/else_branch"]  # fmt: skip
    assert inner.shape("ey") == (2,)


def test_a_body_that_no_longer_uses_a_value_frees_it() -> None:
    graph = graph_of(BODIES)
    for scope in list(graph.walk()):
        for user, index in list(scope.uses("a")):
            if index >= 0:
                edit = Edit(scope, user, "test")
                edit.set_input(user, index, "x")
                edit.finish()
    assert graph.uses("a") == [] and "Relu" not in ops(graph)
    assert graph.uses("x") == [(node(graph, "If"), -1)]
    graph.commit()
    onnx.checker.check_model(graph.model.proto)


def test_replace_reaches_into_bodies() -> None:
    graph = graph_of(BODIES)
    relu = node(graph, "Relu")
    edit = Edit(graph, relu, "test")
    edit.replace_node(relu, edit.add("Max", ["x", np.zeros(1, np.float32)]))
    edit.finish()
    graph.commit()
    onnx.checker.check_model(graph.model.proto, full_check=True)
    assert ops(graph) == ["Max", "If"]
    assert node(graph, "Max").outputs == ["a"], "a replacement takes over the tensor's name"


def test_insert_after_keeps_the_name_for_the_last() -> None:
    graph = graph_of(CHAIN)
    mul = graph.producer("b")
    edit = Edit(graph, mul, "test")
    edit.replace("b", edit.add("Clip", ["b"]))
    edit.finish()
    graph.commit()
    clip = graph.producer("b")
    assert clip.op == "Clip" and graph.producer(clip.input(0)).op == "Mul"
    assert graph.producer("d").inputs == ["a", "b"]
    onnx.checker.check_model(graph.model.proto, full_check=True)


def test_outputs_keep_their_names() -> None:
    graph = graph_of(CHAIN)
    sigmoid = node(graph, "Sigmoid")
    edit = Edit(graph, sigmoid, "test")
    edit.replace_node(sigmoid, "x")  # an input cannot be renamed: an Identity carries it
    edit.finish()
    graph.commit()
    assert ops(graph) == ["Identity"] and graph.producer("y").inputs == ["x"]
    assert not graph.model.proto.graph.initializer, "what only the removed nodes needed is gone"
    onnx.checker.check_model(graph.model.proto, full_check=True)


@pytest.mark.parametrize("text", [CHAIN, BODIES])
def test_rollback_restores_everything(text: str) -> None:
    graph = graph_of(text)
    before = graph.model.proto.SerializeToString(deterministic=True)
    index = _index(graph)
    relu = node(graph, "Relu")
    edit = Edit(graph, relu, "test")
    one = edit.add("Abs", ["x"])
    two = edit.add("Add", [one, np.ones(2, np.float32)])
    edit.set_attr(graph.producer(two), "made_up", 3)
    edit.replace_node(relu, two)
    edit.rollback()
    assert _index(graph) == index
    graph._dirty = True
    graph.commit()
    assert graph.model.proto.SerializeToString(deterministic=True) == before


def _index(graph: Graph) -> list[object]:
    return [
        (s.path, sorted(s.producers), {k: [(n.op, i) for n, i in sorted(v, key=lambda u: (u[0].outputs, u[1]))]
         for k, v in sorted(s._uses.items())}, sorted(s.initializers))
        for s in graph.walk()
    ]  # fmt: skip


def test_provenance() -> None:
    graph = graph_of(CHAIN)
    relu = node(graph, "Relu")
    relu.proto.name = "layer/relu"
    relu.proto.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="net.py:87")
    edit = Edit(graph, relu, "some-rule")
    edit.replace_node(relu, edit.add("Max", ["x", np.zeros(1, np.float32)]))
    edit.finish()
    graph.commit()
    kept = {m.key: m.value for m in graph.model.proto.graph.node[0].metadata_props}
    assert kept == {RULE_KEY: "some-rule", FROM_KEY: "layer/relu", "pkg.torch.onnx.stack_trace": "net.py:87"}
    assert graph.model.proto.graph.node[0].name == "layer/relu/some-rule/Max"


def test_nodes_out_of_order_are_sorted_not_refused() -> None:
    model = onnx.parser.parse_model(CHAIN)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    graph = shapes.index(Model(model))
    graph._dirty = True
    graph.commit()
    assert ops(graph) == ["Relu", "Mul", "Mul", "Sigmoid"]


def test_a_cycle_is_an_error() -> None:
    graph = graph_of(CHAIN)
    relu = node(graph, "Relu")
    edit = Edit(graph, relu, "test")
    edit.set_input(relu, 0, "d")
    edit.finish()
    with pytest.raises(RuntimeError, match="cycle"):
        graph.commit()


def test_partly_known_shapes() -> None:
    graph = graph_of("""<ir_version: 10, opset_import: ["": 18]>
    g (float[N, 3, 8, W] x) => (int64[4] s) <int64[2] lo = {1, 2}, int64[1] at = {1}, int64[1] end = {9}, int64[1] two = {2}>
    { a = Shape(x) b = Gather(a, lo) c = Slice(a, at, end) d = Mul(b, two) e = Concat<axis=0>(a, d) s = Identity(a) }""")
    assert graph.known("a") == [None, 3, 8, None]
    assert graph.known("b") == [3, 8]
    assert graph.known("c") == [3, 8, None]
    assert graph.known("e") == [None, 3, 8, None, 6, 16]


def test_inline_renames_bodies() -> None:
    graph = graph_of(CHAIN)
    function = onnx.parser.parse_function("""<domain: "d", opset_import: ["": 18]> f <alpha> (p) => (q) {
      z = Constant<value = float {0.0}>()
      c = Greater(z, z)
      q = If(c) <then_branch = t () => (r) { r = Elu<alpha: float = @alpha>(p) }, else_branch = e () => (r) { r = Neg(p) }>
    }""")
    relu = node(graph, "Relu")
    edit = Edit(graph, relu, "test")
    names = edit.inline(function.node, {"p": "x"}, {"alpha": onnx.helper.make_attribute("alpha", 0.25)})
    edit.replace_node(relu, names["q"])
    edit.finish()
    graph.commit()
    onnx.checker.check_model(graph.model.proto, full_check=True)
    branch = node(graph, "If").bodies["then_branch"]
    assert [n.inputs for n in branch.nodes()] == [["x"]]
    assert next(branch.nodes()).attr("alpha") == 0.25
