"""Structural difference: exact where only names and order differ, in words where more does."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnxfix import difference
from onnxfix.model import Model

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'

BASE = """g (float[2,3] x, bool c) => (float[2,3] y, float[2,3] z) <float[3] w = {1, 2, 3}, float[3] v = {1, 2, 3}>
{
  [first] a = Add(x, w)
  [second] b = Mul(a, v)
  [soft] s = Softmax<axis = 1>(b)
  [twin] t = Neg(a)
  [gone] dead = Neg(t)
  y = If(c) <
    then_branch = t1 () => (float[2,3] o) { q = Relu(s) o = Add(q, a) },
    else_branch = e1 () => (float[2,3] o) { o = Identity(t) }
  >
  z = Sub(t, s)
}"""


def model(text: str = BASE) -> Model:
    return Model(onnx.parser.parse_model(HEAD + text))


def words(one: Model, other: Model, **settings: bool) -> list[str]:
    return [e.text for e in difference.diff(one, other, **settings).entries]


def scrambled(source: Model, seed: int, interface: bool) -> Model:
    """The same graph under other names, its nodes and weights in another (still topological) order."""
    rng = random.Random(seed)
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    fixed = set() if interface else {v.name for v in (*proto.graph.input, *proto.graph.output)}

    def rename(graph: onnx.GraphProto, outer: dict[str, str]) -> None:
        names = dict(outer)
        own = [*(v.name for v in graph.input), *(t.name for t in graph.initializer)]
        own += [o for n in graph.node for o in n.output if o]
        for name in dict.fromkeys(own):
            names[name] = name if name in fixed else f"n{rng.getrandbits(40)}"
        for thing in (*graph.input, *graph.output, *graph.initializer):
            thing.name = names[thing.name]
        del graph.value_info[:]
        for node in graph.node:
            node.name = f"k{rng.getrandbits(40)}"
            node.input[:] = [names[n] if n else "" for n in node.input]
            node.output[:] = [names[n] if n else "" for n in node.output]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g, names)
        waiting, ready, order = list(graph.node), set(outer.values()), []
        ready |= {v.name for v in (*graph.input, *graph.initializer)} | {""}

        def reads(node: onnx.NodeProto) -> set[str]:
            inner = [n for a in node.attribute for b in a.g.node for n in reads(b)]
            mine = {o for a in node.attribute for b in a.g.node for o in b.output}
            return {*node.input, *inner} - mine

        while waiting:
            free = [n for n in waiting if reads(n) <= ready]
            node = rng.choice(free)
            waiting.remove(node)
            ready |= set(node.output)
            order.append(node)
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
        del graph.node[:]
        graph.node.extend(copies)
        tensors = [onnx.TensorProto.FromString(t.SerializeToString()) for t in graph.initializer]
        rng.shuffle(tensors)
        del graph.initializer[:]
        graph.initializer.extend(tensors)

    rename(proto.graph, {})
    return Model(proto)


@pytest.mark.parametrize("interface", [False, True])
def test_names_and_order_are_no_difference(interface: bool) -> None:
    for seed in range(20):
        other = scrambled(model(), seed, interface)
        found = difference.diff(model(), other)
        assert found.same, found.entries
        assert any("other names" in n for n in found.notes)
        assert any("is called" in n for n in found.notes) == interface
        assert difference.diff(model(), other, names=True).same != interface


def test_the_same_file_is_the_same_without_notes() -> None:
    found = difference.diff(model(), model())
    assert (found.same, found.entries, found.notes) == (True, (), ())


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("[second] b = Mul(a, v)", "[second] b = Mul(v, a)", "Mul second -> b: input 0 is"),
        ("[second] b = Mul(a, v)", "[second] b = Mul(a, w)", "input 1 is the initializer w"),
        ("axis = 1", "axis = 0", "attribute axis is 0 instead of 1"),
        ("v = {1, 2, 3}", "v = {1, 2, 4}", "initializer v: is [1.0, 2.0, 4.0] instead of [1.0, 2.0, 3.0]"),
        ("float[3] v = {1, 2, 3}", "double[3] v = {1, 2, 3}", "initializer v: is double[3] instead of float[3]"),
        ("[twin] t = Neg(a)", "[twin] t = Abs(a)", "Neg twin -> t: is Abs now"),
        ("[twin] t = Neg(a)", "[twin] k = Neg(a) t = Abs(k)", "node added: Abs #4 -> t, reads k"),
        ("[gone] dead = Neg(t)", "", "node removed: Neg gone -> dead"),
        ("[gone] dead = Neg(t)", "[gone] dead = Neg(s)", "Neg gone -> dead: input 0"),
        ("q = Relu(s)", "q = Relu(a)", "in y/then_branch: input 0 is a"),
        ("o = Identity(t)", "o = Identity(s)", "in y/else_branch: input 0 is s"),
        ("float[2,3] x, bool c", "float[N,3] x, bool c", "input x is float[N, 3] instead of float[2, 3]"),
        ("float[2,3] x, bool c", "float[2,3] x, bool c, float u", "input added: u (float[])"),
        ("z = Sub(t, s)", "z = Sub(s, t)", "input 0 is s"),
    ],
)
def test_differences_are_told_in_words(before: str, after: str, expected: str) -> None:
    assert before in BASE
    found = words(model(), model(BASE.replace(before, after)))
    assert any(expected in text for text in found), found


def test_one_shared_and_two_equal_nodes_are_told_apart() -> None:
    shared = "g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(x) c = Neg(a) d = Neg(a) y = Add(c, d) e = Abs(b) }"
    apart = shared.replace("d = Neg(a)", "d = Neg(b)")
    assert not difference.diff(model(shared), model(apart)).same
    assert difference.diff(model(shared), model(shared.replace("c", "k").replace("a = ", "m = ").replace("(a)", "(m)"))).same


def test_a_default_written_out_is_no_difference() -> None:
    text = "g (float[2,3] x) => (float[2,3] y) { y = Softmax(x) }"
    assert difference.diff(model(text), model(text.replace("Softmax", "Softmax<axis = -1>"))).same
    assert not difference.diff(model(text), model(text.replace("Softmax", "Softmax<axis = 0>"))).same


def test_opsets_metadata_and_functions() -> None:
    one, other = model(), model()
    other.proto.opset_import[0].version = 19
    other = Model(other.proto)
    other.proto.metadata_props.add(key="task", value="detect")
    found = words(one, other)
    assert "opset ai.onnx is 19 instead of 18" in found
    assert "metadata added: task = detect" in found


def test_functions_are_compared_inside() -> None:
    text = """<ir_version: 8, opset_import: ["": 18, "f": 1]> g (float[2] x) => (float[2] y) { y = f.F(x) }
<domain: "f", opset_import: ["": 18]> F (a) => (b) { c = Relu(a) b = Neg(c) }"""
    one = Model(onnx.parser.parse_model(text))
    assert difference.diff(one, Model(onnx.parser.parse_model(text.replace("c =", "k =").replace("(c)", "(k)")))).same
    found = words(one, Model(onnx.parser.parse_model(text.replace("Relu(a)", "Abs(a)"))))
    assert found == ["Relu #0 -> c in function f::F: is Abs now"]


def test_external_data_is_compared_by_value(tmp_path: Path) -> None:
    def write(name: str, value: float) -> Path:
        weight = np.arange(64, dtype=np.float32).reshape(8, 8)
        weight[1, 1] += value
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
            [helper.make_tensor_value_info("x", 1, [1, 8])], [helper.make_tensor_value_info("y", 1, [1, 8])],
            [numpy_helper.from_array(weight, "w")],
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(made, tmp_path / name, save_as_external_data=True, location=f"{name}.bin", size_threshold=0)
        return tmp_path / name

    one = write("one.onnx", 0)
    assert difference.diff(one, write("two.onnx", 0)).same
    (entry,) = difference.diff(one, write("three.onnx", 0.5)).entries
    assert entry.text == "initializer w: 1 of 64 values differ, by up to 0.5"


def test_ten_thousand_nodes_in_seconds() -> None:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(10000)]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("v0", 1, [2])], [helper.make_tensor_value_info("v10000", 1, [2])],
    )  # fmt: skip
    one = Model(helper.make_model(graph, ir_version=8))
    proto = onnx.ModelProto()
    proto.CopyFrom(one.proto)
    proto.graph.node[5000].op_type = "Abs"
    found = words(one, Model(proto))
    assert found == ["Relu #5000 -> v5001: is Abs now"]
