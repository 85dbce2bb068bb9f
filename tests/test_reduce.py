"""The smallest model that still fails: with the real parser, ONNX Runtime in its child, and judges made up."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import NodeProto, helper, numpy_helper

from onnxfix import backends, cli, cutting, judges, prove, reduce
from onnxfix.backends import trt
from onnxfix.errors import RequestError
from onnxfix.graph import Graph
from onnxfix.judges import Failure
from onnxfix.model import load
from onnxfix.trial import Worker

pytestmark = pytest.mark.usefixtures("only_rtx")
needs_rtx = pytest.mark.skipif(bool(backends.absent("tensorrt_rtx")), reason=backends.absent("tensorrt_rtx"))
needs_signals = pytest.mark.skipif(os.name == "nt", reason="stops and kills a process by POSIX signals")

HEAD = '<ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>\n'


def write(folder: Path, text: str, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(onnx.parser.parse_model(HEAD + text), path)
    return path


def ops(path: str | Path) -> list[str]:
    """All operators, those of bodies too."""
    return [n.op for scope in Graph.of(load(path)).scopes() for n in scope.nodes()]


def big(folder: Path, count: int, odd: dict[int, NodeProto]) -> Path:
    """A chain with branches of `count` nodes, some of them given; they read v{i - 1} and make v{i}."""
    nodes = []
    for i in range(count):
        if i in odd:
            nodes.append(odd[i])
        elif i % 7 == 3:
            nodes.append(helper.make_node("Add", [f"v{i - 1}", f"v{max(i - 5, -1)}"], [f"v{i}"], f"n{i}"))
        else:
            nodes.append(helper.make_node("Mul" if i % 5 else "Relu", [f"v{i - 1}", "w"][: 2 if i % 5 else 1], [f"v{i}"], f"n{i}"))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("v-1", 1, [1, 3, 64, 64])],
        [helper.make_tensor_value_info(f"v{count - 1}", 1, None)],
        [numpy_helper.from_array(np.full((3, 64, 64), 1.5, np.float32), "w"),
         numpy_helper.from_array(np.ones(4, np.float32), "s")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "big.onnx")
    return folder / "big.onnx"


def resize(i: int) -> NodeProto:
    return helper.make_node("Resize", [f"v{i - 1}", "", "s"], [f"v{i}"], f"n{i}", mode="linear", antialias=1)


# ---- parse ----


@needs_rtx
@pytest.mark.parametrize("at", [0, 617, 999])
def test_one_refused_node_of_a_thousand(tmp_path: Path, at: int) -> None:
    path = big(tmp_path, 1000, {at: resize(at)})
    found = reduce.reduce(path, "parse")
    assert (found.nodes_before, found.nodes) == (1000, 1)
    assert found.trials < 60
    before, after = prove.parse(path).findings[0], prove.parse(Path(found.output)).findings[0]
    assert (before.where.op, before.reason, before.limit) == (after.where.op, after.reason, after.limit)
    assert found.bytes < 500 and "Resize" in found.text


@needs_rtx
def test_values_of_unknown_type_are_cut_further_up(tmp_path: Path) -> None:
    """Nothing infers what com.microsoft's operators make, and no value_info declares it."""
    foreign = {i: helper.make_node("Gelu", [f"v{i - 1}"], [f"v{i}"], f"n{i}", domain="com.microsoft") for i in (49, 48)}
    path = big(tmp_path, 100, {**foreign, 50: resize(50)})
    assert not load(path).proto.graph.value_info
    found = reduce.reduce(path, "parse", node="Resize")
    assert found.nodes == 3 and "Resize" in ops(found.output)
    assert found.trials < 60


@needs_rtx
def test_the_node_that_is_asked_for(tmp_path: Path) -> None:
    other = helper.make_node("Resize", ["v19", "", "s"], ["v21"], "n21", mode="linear", antialias=1)
    path = big(tmp_path, 60, {20: helper.make_node("Det", ["v19"], ["d"], "det"), 21: other})
    assert ops(reduce.reduce(path, "parse", node="n21").output) == ["Resize"]
    assert ops(reduce.reduce(path, "parse", node="Det").output) == ["Det"]
    with pytest.raises(RequestError, match="not at 'Relu'"):
        reduce.reduce(path, "parse", node="Relu")


@needs_rtx
def test_a_refused_node_in_a_body_comes_out_of_it(tmp_path: Path) -> None:
    path = write(tmp_path, """g (float[1,3,8,8] x, bool c) => (float[1,3,8,8] y) <float[4] s = {1, 1, 1, 1}>
{ a = Relu(x) b = Neg(a)
  y = If(c) <
    then_branch = t () => (float[1,3,8,8] o) { q = Neg(b) [bad] o = Resize<mode = "linear", antialias = 1>(q, , s) },
    else_branch = e () => (float[1,3,8,8] p) { p = Identity(b) } > }""")
    assert ops(reduce.reduce(path, "parse").output) == ["Resize"]


@needs_rtx
def test_external_data_and_functions(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18, "f": 1]>
g (float[1,64] x) => (float[1,64] z) { a = MatMul(x, w) y = f.F(a) z = Neg(y) }
<domain: "f", opset_import: ["": 18]> F (a) => (b) { c = Relu(a) d = Det(c) b = Neg(d) }""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    found = reduce.reduce(path, "parse", node="Det")
    assert ops(found.output) == ["Det"]


@needs_rtx
def test_shapes_get_small_and_weights_are_not_the_models_own(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(HEAD + "g (float[1,128,128] x) => (y) { a = Relu(x) y = Conv<dilations = [0]>(a, w) }")
    secret = np.random.default_rng(5).normal(size=(128, 128, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(secret, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)

    def judge(tried: Path) -> list[Failure]:
        return [Failure("refused", "no", "Conv")] if "Conv" in ops(tried) else []

    found = reduce.reduce(path, "parse", judge=judge)
    (weight,) = load(found.output).proto.graph.initializer
    assert max(weight.dims) < 128 and not np.isin(numpy_helper.to_array(weight), secret).any()
    assert any("random" in note for note in found.notes)


# ---- judges made up ----


def needing(*sets: Sequence[str], calls: list[int] | None = None) -> Callable[[Path], list[Failure]]:
    """Fails when all nodes of one of the sets are there."""

    def judge(path: Path) -> list[Failure]:
        if calls is not None:
            calls.append(1)
        names = {n.name for scope in Graph.of(load(path)).scopes() for n in scope.nodes()}
        return [Failure("build", "no implementation")] if any(set(s) <= names for s in sets) else []

    return judge


def test_nodes_that_fail_only_together(tmp_path: Path) -> None:
    path = big(tmp_path, 300, {})
    rng = random.Random(3)
    for _ in range(8):
        pair = [f"n{i}" for i in rng.sample(range(300), 2)]
        found = reduce.reduce(path, "build", judge=needing(pair))
        assert sorted(n.name for n in load(found.output).proto.graph.node) == sorted(pair)
        assert found.trials <= 120


def test_what_fails_only_in_a_body_stays_in_it(tmp_path: Path) -> None:
    path = write(tmp_path, """g (float[2] x, bool c) => (float[2] y)
{ a = Relu(x) b = Neg(a)
  [if] z = If(c) <
    then_branch = t () => (float[2] o) { [one] q = Neg(b) [two] k = Abs(q) [three] o = Neg(k) },
    else_branch = e () => (float[2] p) { [four] p = Identity(b) } >
  y = Neg(z) }""")

    def judge(tried: Path) -> list[Failure]:
        scopes = [s for s in Graph.of(load(tried)).walk() if s.parent is not None]
        inside = any(n.op == "Abs" for s in scopes for n in s.nodes())
        return [Failure("refused", "no Abs in a branch", "Abs")] if inside else []

    found = reduce.reduce(path, "parse", judge=judge)
    proto = load(found.output).proto
    assert [n.op_type for n in proto.graph.node] == ["If"]
    assert "Abs" in ops(found.output) and found.nodes <= 4  # an Identity stands for an output that was cut
    onnx.checker.check_model(proto)


def test_every_cut_of_a_model_with_bodies_is_a_model(tmp_path: Path) -> None:
    path = write(tmp_path, """g (float[2] x, bool c, int64 n) => (float[2] y, float[2] l)
{ a = Relu(x) b = Neg(a)
  z = If(c) <then_branch = t () => (float[2] o) { q = Neg(b) o = Add(q, a) }, else_branch = e () => (float[2] p) { p = Identity(b) }>
  l = Loop(n, , z) <body = u (int64 i, bool going, float[2] s) => (bool more, float[2] r) { more = Identity(going) h = Add(s, b) r = Mul(h, h) }>
  y = Neg(z) }""")
    from onnxfix import shapes

    graph = shapes.index(load(path))
    nodes = cutting.all_nodes(graph)
    rng = random.Random(1)
    for _ in range(200):
        keep = rng.sample(nodes, rng.randint(1, len(nodes)))
        proto = cutting.cut(graph, keep)
        assert proto is not None
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(proto, strict_mode=True)


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_a_dying_parser_is_a_failure_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = big(tmp_path, 200, {77: helper.make_node("Selu", ["v76"], ["v77"], "killer")})
    words = {"crash": "crashed (SIGSEGV) during parse", "hang": "did not finish parse within 60 s"}[how]

    def parse(_self: trt.TensorRT, tried: Path, **_: float) -> trt.Parsed:
        if "Selu" in ops(tried):
            raise trt.DiedError(f"TensorRT {words}, at node killer [Selu]; its last words: {tried}")
        return trt.Parsed((), 1, ())

    about = trt.About("tensorrt_rtx", "1.7", "0.53", "", ())
    monkeypatch.setattr(trt.TensorRT, "about", lambda _self: about)
    monkeypatch.setattr(trt.TensorRT, "parse", parse)
    found = reduce.reduce(path, "parse")
    assert (found.failure.kind, found.failure.op, ops(found.output)) == (how, "Selu", ["Selu"])


# ---- ONNX Runtime ----


def test_two_nodes_of_unlike_types_in_onnx_runtime(tmp_path: Path) -> None:
    half = helper.make_node("Cast", ["v49"], ["v50"], "half", to=onnx.TensorProto.FLOAT16)
    mixed = helper.make_node("Mul", ["v50", "v20"], ["v51"], "mixed")
    rest = {i: helper.make_node("Identity", [f"v{i - 1}"], [f"v{i}"], f"n{i}") for i in range(52, 60)}
    path = big(tmp_path, 60, {50: half, 51: mixed, **rest})
    found = reduce.reduce(path, "ort")
    assert found.failure.kind == "load" and "mixed" in found.failure.reason
    assert "Mul" in ops(found.output) and found.nodes <= 2 and found.trials < 60


def test_a_model_that_loads_but_does_not_run(tmp_path: Path) -> None:
    text = """g (float[2,3] x, int64[1] n) => (y)
{ a = Relu(x) b = Neg(a) k = Abs(n) [bad] r = Reshape(b, k) c = Exp(r) y = Neg(c) }"""
    found = reduce.reduce(write(tmp_path, text), "ort")
    assert found.failure.kind == "run" and ops(found.output) == ["Reshape"]


@needs_signals
def test_the_child_of_onnx_runtime_dies_and_comes_back(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with Worker() as worker:
        judge = judges.ort_judge(judges.Asking(worker, tmp_path, 1.0))
        assert judge(path) == []
        pid = worker.pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        assert [f.kind for f in judge(path)] == ["hang"]
        judge = judges.ort_judge(judges.Asking(worker, tmp_path, 30.0))
        assert judge(path) == []
        pid = worker.pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, lambda: (os.kill(pid, signal.SIGSEGV), os.kill(pid, signal.SIGCONT))).start()
        (failure,) = judge(path)
        assert (failure.kind, failure.code) == ("crash", "SIGSEGV")
        assert judge(path) == []


# ---- parity ----


def test_parity_against_another_model(tmp_path: Path) -> None:
    text = """g (float[2,16] x) => (float[2,16] y) <float[16] w = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}>
{ a = Relu(x) b = Neg(a) c = Add(b, w) d = Softmax(c) e = Neg(d) y = Tanh(e) }"""
    path = write(tmp_path, text)
    other = write(tmp_path, text.replace("d = Softmax(c)", "k = Identity(c) d = Softmax<axis = 0>(k)"), "other.onnx")
    found = reduce.reduce(path, "parity", against=other)
    assert ops(found.output) == ["Softmax"]
    twin = tmp_path / "model.reduced.against.onnx"
    assert prove.parity(Path(found.output), twin).status.value == "failed"
    assert "model.reduced.against.onnx" in found.command


def test_parity_of_what_rules_do(tmp_path: Path) -> None:
    rules = tmp_path / "wrong.yml"
    rules.write_text(RULES)
    path = write(tmp_path, "g (float[2,4] x) => (float[2,4] y) { a = Relu(x) b = Abs(a) c = Softplus(b) d = Neg(c) y = Exp(d) }")
    found = reduce.reduce(path, "parity", rules=str(rules))
    assert ops(found.output) == ["Softplus"] and "onnxfix apply" in found.command


@pytest.mark.parametrize("how", ["against", "rules"])
def test_parity_on_inputs_that_alone_show_the_difference(tmp_path: Path, how: str) -> None:
    """Something is cut off at 50, which is more than drawn inputs reach."""
    text = "g (float[2,4] x) => (float[2,4] y) <float top = {50}> { a = Relu(x) b = Abs(a) y = Neg(b) }"
    path = write(tmp_path, text)
    other = write(tmp_path, text.replace("b = Abs(a)", "k = Abs(a) b = Min(k, top)"), "other.onnx")
    rules = tmp_path / "wrong.yml"
    cut_off = "{ n = Neg(x) m = Max(x, n) top = Constant<value_float = 50.0>() y = Min(m, top) }"
    rules.write_text(RULES.replace("{ y = Softplus(x) }", "{ y = Abs(x) }").replace("{ y = Relu(x) }", cut_off))
    data = tmp_path / "data.npz"
    np.savez(data, x=np.full((2, 4), 100, np.float32))
    side = {"against": str(other)} if how == "against" else {"rules": str(rules)}
    with pytest.raises(RequestError, match="does not fail"):
        reduce.reduce(path, "parity", **side)  # type: ignore[arg-type]
    found = reduce.reduce(path, "parity", inputs=data, **side)  # type: ignore[arg-type]
    assert ops(found.output) == ["Abs"]
    assert "--inputs model.reduced.inputs.json" in found.command
    if how == "against":
        twin = tmp_path / "model.reduced.against.onnx"
        check = prove.parity(Path(found.output), twin, inputs=tmp_path / "model.reduced.inputs.json")
        assert check.status.value == "failed"
    with pytest.raises(RequestError, match="no such file"):
        reduce.reduce(path, "parity", inputs=tmp_path / "none.npz", **side)  # type: ignore[arg-type]


@needs_rtx
def test_trials_leave_nothing_beside_the_model(tmp_path: Path) -> None:
    path = big(tmp_path, 30, {20: resize(20)})
    (tmp_path / "big.plan").write_text("the user's own")
    reduce.reduce(path, "build")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"big.onnx", "big.plan", "big.reduced.onnx"}
    assert (tmp_path / "big.plan").read_text() == "the user's own"


RULES = """\
target: rtx-1.7
allow: close
rules:
  - {id: wrong, before: "(x) => (y) { y = Softplus(x) }", after: "(x) => (y) { y = Relu(x) }", when: always}
"""


# ---- the request and the command line ----


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[2] x) => (float[2] y) { y = Relu(x) }")
    for settings, words in (
        ({"fails": "parity"}, "--against"),
        ({"fails": "ort", "rules": "jetson.yml"}, "only parity"),
        ({"fails": "soon"}, "no failure called"),
        ({"fails": "ort"}, "does not fail"),
        ({"fails": "ort", "output": path}, "input itself"),
        ({"fails": "ort", "inputs": "x.npz"}, "for the comparison of numbers"),
    ):
        with pytest.raises(RequestError, match=words):
            reduce.reduce(path, **settings)  # type: ignore[arg-type]


@needs_rtx
def test_the_command_line_writes_the_model_and_an_issue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = big(tmp_path, 50, {20: resize(20)})
    small = tmp_path / "small.onnx"
    assert cli.main(["reduce", str(path), "--fails", "parse", "-o", str(small)]) == 0
    shown = capsys.readouterr().out
    assert "50 nodes" in shown and "1 node" in shown
    page = small.with_suffix(".md").read_text()
    assert "Antialiasing is not supported" in page and "small.onnx" in page and "Resize" in page
    assert str(tmp_path) not in page
    assert cli.main(["reduce", str(path), "--fails", "ort"]) == 2
