"""`inspect`: what the file says, what the target refuses, and how little it costs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfix import inspection, matrix, model, shapes
from onnxfix.errors import ModelError, RuleError, Skip
from onnxfix.inspection import ExternalFile, OpCount, Value, inspect_model
from onnxfix.model import Model
from onnxfix.render import json as render_json
from onnxfix.report import Effect, Safety
from onnxfix.rule import Rule
from tests.models import fixture_models, package_models

TEXT = """
<ir_version: 10, opset_import: ["": 18, "local": 1], producer_name: "by hand", producer_version: "3",
 domain: "org.example", model_version: 7, doc_string: "a model", metadata_props: ["task": "test", "empty": ""]>
g (float[N, 3, 8, 8] x, bool c, float[2] d) => (float[N, 3, 16, 16] y, seq(float[?]) s)
<float[4] scales = {1, 1, 2, 2}, float[2] d = {5, 6}, int64[3] k = {1, 2, 3}> {
  [up] r = Resize <mode = "cubic"> (x, , scales)
  two = Constant <value = float[2] {1, 2}> ()
  [choose] z = If (c) <
    then_branch = t () => (float[N, 3, 16, 16] a) <float[1] w = {1}> { b = Relu(r) a = Add(b, w) },
    else_branch = e () => (float[N, 3, 16, 16] a) {
      [inner] a = If (c) <
        then_branch = tt () => (float[N, 3, 16, 16] q) { q = Relu(r) },
        else_branch = ee () => (float[N, 3, 16, 16] q) { q = local.f(r) }
      >
    }
  >
  y = Identity(z)
  s = SequenceConstruct(two)
}
<domain: "local", opset_import: ["": 18]>
f (v) => (w) { u = Relu(v) w = Relu(u) }
"""


def text_model(text: str = TEXT) -> Model:
    return Model(onnx.parser.parse_model(text))


def test_the_protobuf_as_it_is() -> None:
    loaded = text_model()
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sp", TensorProto.DOUBLE, [2], [1.0, 2.0]),
        helper.make_tensor("sp_at", TensorProto.INT64, [2], [0, 3]),
        [5],
    )
    loaded.proto.graph.sparse_initializer.append(sparse)
    found = inspect_model(loaded)

    assert (found.ir_version, found.opsets) == (10, {"": 18, "local": 1})
    assert (found.producer, found.producer_version, found.domain) == ("by hand", "3", "org.example")
    assert (found.model_version, found.doc, found.graph) == (7, "a model", "g")
    assert found.metadata == {"task": "test", "empty": ""}
    assert found.inputs == (
        Value("x", "FLOAT", ("N", 3, 8, 8), (0,)),
        Value("c", "BOOL", ()),
        Value("d", "FLOAT", (2,), initialized=True),
    )
    assert found.outputs == (
        Value("y", "FLOAT", ("N", 3, 16, 16), (0,)),
        Value("s", "sequence(FLOAT)", None),
    )
    assert [(a.dtype, a.count, a.bytes) for a in found.initializers] == [
        ("INT64", 2, 40), ("FLOAT", 3, 28), ("DOUBLE", 1, 16),
    ]  # fmt: skip
    assert [(a.dtype, a.count, a.bytes) for a in found.in_nodes] == [("FLOAT", 1, 8)]
    assert found.bytes == loaded.proto.ByteSize()
    assert (found.target, found.verdict, found.findings) == ("", "", ())


def test_nodes_are_counted_in_all_scopes() -> None:
    found = inspect_model(text_model())
    assert found.ops == (
        OpCount("", "Relu", 4, (0, 3, 1)),
        OpCount("", "If", 2, (1, 1)),
        OpCount("", "Add", 1, (0, 1)),
        OpCount("", "Constant", 1, (1,)),
        OpCount("", "Identity", 1, (1,)),
        OpCount("", "Resize", 1, (1,)),
        OpCount("", "SequenceConstruct", 1, (1,)),
        OpCount("local", "f", 1, (0, 0, 1)),
    )
    assert [(s.path, s.kind, s.depth, s.nodes, s.initializers) for s in found.scopes] == [
        ("", "graph", 0, 5, 3),
        ("choose/then_branch", "body", 1, 2, 1),
        ("choose/else_branch", "body", 1, 1, 0),
        ("choose/else_branch/inner/then_branch", "body", 2, 1, 0),
        ("choose/else_branch/inner/else_branch", "body", 2, 1, 0),
        ("function local::f", "function", 1, 2, 0),
    ]
    assert found.nodes == sum(c.count for c in found.ops) == 12
    (function,) = found.functions
    assert (function.domain, function.name, function.inputs, function.outputs) == ("local", "f", ("v",), ("w",))
    assert (function.nodes, function.calls, function.opsets) == (2, 1, {"": 18})


def test_the_largest_tensors_come_first() -> None:
    sizes = [3, 50, 7, 7, 1, 9, 8, 40, 2, 6, 5, 4]
    arrays = [numpy_helper.from_array(np.zeros(n, np.int16), f"t{i}") for i, n in enumerate(sizes)]
    constant = helper.make_node("Constant", [], ["deep"], value=numpy_helper.from_array(np.zeros(45, np.int16)))
    graph = helper.make_graph([constant], "g", [], [], arrays)
    found = inspect_model(Model(helper.make_model(graph)))
    assert [(t.name, t.bytes) for t in found.largest] == [
        ("t1", 100), ("deep", 90), ("t7", 80), ("t5", 18), ("t6", 16),
        ("t2", 14), ("t3", 14), ("t9", 12), ("t10", 10), ("t11", 8),
    ]  # fmt: skip
    assert len(found.largest) == inspection.LARGEST


@pytest.mark.parametrize("name", [*fixture_models(), *package_models()])
def test_real_models_are_counted_whole(name: str) -> None:
    path = {**fixture_models(), **package_models()}[name]
    loaded = model.load(path)

    def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        bodies = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
        return [*graph.node, *(n for b in bodies for n in nodes(b))]

    expected = nodes(loaded.proto.graph) + [n for f in loaded.proto.functions for n in f.node]
    found = inspect_model(loaded)
    assert found.nodes == len(expected)
    assert {(c.domain, c.op): c.count for c in found.ops} == {
        key: sum(1 for n in expected if (n.domain, n.op_type) == key)
        for key in {(n.domain, n.op_type) for n in expected}
    }
    stored = sum(a.count for a in (*found.initializers, *found.in_nodes))
    sparse = len(loaded.proto.graph.sparse_initializer)
    assert stored == sum(1 for _ in loaded.tensors()) + 2 * sparse


def test_json_has_every_field() -> None:
    found = inspect_model(text_model(), matrix.target("jetson-nano"), [Helps()])
    value = json.loads(render_json.dumps(found))
    assert set(value) == {f.name for f in dataclasses.fields(found)}
    assert len(value["findings"]) == len(found.findings)
    assert value["findings"][0]["effect"] in {e.value for e in Effect}
    assert value["inputs"][0]["shape"] == ["N", 3, 8, 8]


# ---- external data ----


def external(folder: Path, **fields: str) -> Model:
    """A saved model with one 24-byte external tensor, described by `fields`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=value)
    relu = helper.make_node("Relu", ["w"], ["y"])
    graph = helper.make_graph([relu], "g", [], [helper.make_tensor_value_info("y", 1, [2, 3])], [tensor])
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return model.load(path)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"location": "w.bin"}, ""),
        ({"location": "w.bin", "offset": "76", "length": "24"}, ""),
        ({"location": "w.bin", "offset": "80", "length": "24"}, "too short: 100 bytes of 104"),
        ({"location": "w.bin", "offset": "-5", "length": "x"}, ""),
        ({"location": "gone.bin"}, "missing"),
        ({"location": "n" * 5000}, "missing"),
        ({"location": "a\0b"}, "outside"),
        ({"location": "."}, "missing"),
        ({}, "outside"),
        ({"location": "../secret"}, "outside"),
        ({"location": "/etc/passwd"}, "outside"),
        ({"location": "C:\\secret"}, "outside"),
        ({"location": "link"}, "outside"),
    ],
)
def test_external_data_is_looked_for(tmp_path: Path, fields: dict[str, str], problem: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(100))
    (tmp_path / "link").symlink_to("/etc/passwd")
    found = inspect_model(external(tmp_path, **fields))
    (file,) = found.external
    assert file == ExternalFile(fields.get("location", ""), 1, 24, file.problem)
    assert file.problem.startswith(problem) and bool(file.problem) == bool(problem)
    assert found.largest[0].file == fields.get("location", "")


GIBIBYTE = 1 << 30


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("target", ["", "jetson-nano"])
def test_a_gibibyte_of_external_data_is_never_read(tmp_path: Path, target: str) -> None:
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(GIBIBYTE)
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[16384, 16384], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="w.bin")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, [1, 16384])], [helper.make_tensor_value_info("y", 1, [1, 16384])],
        [tensor],
    )  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString())
    code = f"""
        import re, sys, time
        from onnxfix import api
        opened = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
        start = time.perf_counter()
        found = api.inspect("m.onnx", target={target!r} or None)
        spent = time.perf_counter() - start
        assert found.external[0].bytes == {GIBIBYTE} and not found.external[0].problem
        assert not any("w.bin" in name for name in opened), opened
        # Not ru_maxrss: a child inherits that from the process that started it.
        print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1], spent)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kibibytes, seconds = map(float, done.stdout.split())
    assert kibibytes / 1024 < 150
    assert seconds < 1


def test_inspecting_costs_little_more_than_loading(tmp_path: Path) -> None:
    """20,000 nodes within 3x of onnx.load and one walk, in the same run."""
    nodes = [
        helper.make_node("Conv", [f"v{i}", f"w{i}"], [f"v{i + 1}"], f"n{i}", kernel_shape=[1, 1], pads=[0] * 4)
        if i % 2
        else helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], f"n{i}")
        for i in range(20_000)
    ]
    weights = [numpy_helper.from_array(np.zeros((4, 4, 1, 1), np.float32), f"w{i}") for i in range(1, 20_000, 2)]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("v0", 1, [1, 4, 8, 8])], [helper.make_tensor_value_info("v20000", 1, None)],
        weights,
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)

    def baseline() -> None:
        seen: dict[tuple[str, str], int] = {}
        for node in onnx.load(path).graph.node:
            seen[node.domain, node.op_type] = seen.get((node.domain, node.op_type), 0) + 1

    def best(action: Any) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(lambda: inspect_model(model.load(path))) < 3 * best(baseline)


# ---- the target's verdict ----


class Helps(Rule):
    ops: ClassVar[tuple[str, ...]] = ("Resize",)
    safety = Safety.LOSSY
    id = "helps"

    def match(self, node: Any, ctx: Any) -> Any:
        assert ctx.refused(node)
        return True


class Declines(Helps):
    id = "declines"

    def match(self, node: Any, ctx: Any) -> Any:
        raise Skip("the sizes are not known")


class NotThisOne(Helps):
    id = "not-this-one"

    def match(self, node: Any, ctx: Any) -> Any:
        return None


class OtherOp(Helps):
    id = "other-op"
    ops: ClassVar[tuple[str, ...]] = ("Pad",)


class WholeGraph(Helps):
    id = "whole-graph"
    ops: ClassVar[tuple[str, ...]] = ("<graph>",)

    def match(self, node: Any, ctx: Any) -> Any:
        return node.kind == "graph" or None


class Broken(Helps):
    id = "broken"

    def match(self, node: Any, ctx: Any) -> Any:
        raise ZeroDivisionError("oh\nno")


def test_findings_name_the_rules_that_would_help() -> None:
    rules = [NotThisOne(), Helps(), Declines(), OtherOp(), WholeGraph()]
    found = inspect_model(text_model(), matrix.target("jetson-nano"), rules)
    resize = next(f for f in found.findings if f.where.op == "Resize")
    assert (resize.effect, resize.where.node, resize.by) == (Effect.REFUSED, "up", "matrix trt-8.2")
    assert "cubic" in resize.reason and resize.evidence
    assert resize.rules == ("helps",)
    assert [(s.rule, s.where.node, s.reason) for s in found.skipped] == [
        ("declines", "up", "the sizes are not known")
    ]
    assert found.graph_rules == ("whole-graph",)
    assert found.rules == {"helps": Safety.LOSSY, "declines": Safety.LOSSY, "whole-graph": Safety.LOSSY}
    assert found.verdict == "refused"
    assert found.refused == sum(1 for f in found.findings if f.effect is Effect.REFUSED) > 0
    assert any("opset 18" in note for note in found.notes)
    graph = shapes.index(text_model())
    assert tuple(inspection.findings(graph, matrix.target("jetson-nano"), rules)) == found.findings


def test_a_rule_that_waits_for_a_refusal_is_not_asked_about_what_is_undecided() -> None:
    class Waits(Broken):
        ops = ("mine::Resize",)

    class Always(Waits):
        id = "always"
        when = "always"

        def match(self, node: Any, ctx: Any) -> Any:
            return True

    # An operator of another domain by a name that TensorRT knows: nobody can say what becomes of it.
    text = '<ir_version: 8, opset_import: ["": 13, "mine": 1]> g (float[2] x) => (float[2] y) { y = mine.Resize(x) }'
    found = inspect_model(text_model(text), matrix.target("trt-8.2"), [Waits(), Always()])
    assert {f.effect for f in found.findings} == {Effect.UNDECIDED}
    assert {f.rules for f in found.findings} == {("always",)}
    assert (found.verdict, found.refused) == ("unverified", 0)


def test_a_failing_rule_is_named() -> None:
    with pytest.raises(RuleError, match=r"rule 'broken' failed at Resize up .*ZeroDivisionError: oh no"):
        inspect_model(text_model(), matrix.target("jetson-nano"), [Broken()])


def test_a_model_the_target_takes() -> None:
    text = '<ir_version: 8, opset_import: ["": 13]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    found = inspect_model(text_model(text), matrix.target("jetson-nano"), [Helps(), WholeGraph()])
    assert (found.verdict, found.findings, found.graph_rules, found.notes) == ("accepted", (), (), ())


def test_without_a_target_nothing_is_inferred(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object, **__: object) -> Any:
        raise AssertionError("inferred")

    monkeypatch.setattr(shapes, "infer", no)
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", no)
    monkeypatch.setattr(Model, "array", no)
    inspect_model(text_model())
    with pytest.raises(AssertionError, match="inferred"):
        inspect_model(text_model(), matrix.target("jetson-nano"))


@pytest.mark.parametrize("text", [b"up", b"Resize", b"scales", b"by hand", b"task", b"choose", b"local", b"mode", b"N"])
def test_a_name_that_is_no_text_is_a_damaged_model(text: bytes) -> None:
    data = text_model().proto.SerializeToString()
    damaged = data.replace(text, b"\xff" + text[1:])
    assert damaged != data
    with pytest.raises(ModelError, match="not text"):
        model.parse(damaged)
