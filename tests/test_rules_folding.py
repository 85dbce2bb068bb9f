"""Folding, inlining, lists and decompositions: what the rules' pages cannot show."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfix import catalog, engine, folding, matrix, shapes
from onnxfix import model as model_module
from onnxfix.backends import ort
from onnxfix.model import Model
from onnxfix.report import Safety

RULES = catalog.load_folder(catalog.shipped())


def apply(source: str | onnx.ModelProto | Model, *ids: str, target: str = "trt-8.2", **options: Any):
    """Run the rules of these ids; returns the model and what was done. The result must pass the checker."""
    if isinstance(source, Model):
        model = source
    else:
        model = Model(onnx.parser.parse_model(source) if isinstance(source, str) else source)
    chosen = matrix.target(target)
    outcome = engine.run(
        shapes.index(model),
        [RULES[i] for i in ids],
        chosen,
        lambda node: matrix.judge(node, chosen),
        allow=Safety.LOSSY,
        options={k.replace("_", "-"): v for k, v in options.items()},
    )
    if model.path is None:
        onnx.checker.check_model(model.proto, full_check=True)
    return model.proto, outcome


def ops(proto: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in proto.graph.node]


def same(text: str, feeds: dict[str, np.ndarray], *ids: str, tolerance: float = 0.0, **settings: Any) -> onnx.ModelProto:
    """Apply the rules and compare all outputs before and after; returns the result."""
    before = onnx.parser.parse_model(text)
    expected = ort.evaluate(before.SerializeToString(), feeds)
    after, outcome = apply(text, *ids, **settings)
    assert outcome.changes, [s.reason for s in outcome.skipped]
    actual = ort.evaluate(after.SerializeToString(), feeds)
    for name, value in expected.items():
        assert value.shape == actual[name].shape and value.dtype == actual[name].dtype
        np.testing.assert_allclose(actual[name], value, rtol=tolerance, atol=tolerance)
    return after


def chain(length: int, *, constant: bool) -> onnx.ModelProto:
    """`length` Neg nodes in a row, from a constant or from the input, and a Mul with the input at the end."""
    start = "w" if constant else "x"
    nodes = [helper.make_node("Neg", [start if i == 0 else f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    nodes.append(helper.make_node("Mul", ["x", f"v{length}"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


# ---- folding ----


def test_a_constant_chain_folds_in_one_change() -> None:
    proto, outcome = apply(chain(200, constant=True), "constant-fold")
    assert ops(proto) == ["Mul"]
    assert len(outcome.changes) == 1 and len(outcome.changes[0].removed) == 200
    assert "200 nodes are computed beforehand: 'v200'" in outcome.changes[0].message
    assert len(proto.graph.initializer) == 1  # the constant it began with is no longer read


def test_nodes_that_cannot_fold_are_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "evaluate", lambda *_: pytest.fail("a node that reads an input was evaluated"))
    proto, outcome = apply(chain(50, constant=False), "constant-fold", "shape-fold")
    assert not outcome.changes and len(ops(proto)) == 51


def test_two_chains_that_meet_are_folded_together() -> None:
    proto, _ = apply(
        """<ir_version: 8, opset_import: ["": 13]> g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 4}> {
        c = Exp(a)  d = Neg(b)  e = Add(c, d)  y = Mul(x, e) }""",
        "constant-fold",
    )
    assert ops(proto) == ["Mul"]
    stored = numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_allclose(stored, np.exp([1.0, 2.0]) - [3, 4], rtol=1e-6)


def test_a_value_that_bodies_read_is_replaced_in_them() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[2] x, bool c) => (float[2] y) <float[2] a = {1, 2}> {
        k = Exp(a)
        y = If(c) <
          then_branch = t () => (float[2] p) {
            p = If(c) <then_branch = u () => (float[2] q) { q = Add(x, k) }, else_branch = v () => (float[2] r) { r = Sub(x, k) }>
          },
          else_branch = e () => (float[2] s) { s = Mul(x, k) }> }"""
    for condition in (True, False):
        feeds = {"x": np.ones(2, np.float32), "c": np.asarray(condition)}
        assert ops(same(text, feeds, "constant-fold")) == ["If"]


def test_large_results_are_refused_before_they_are_computed() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[8] x) => (float[1000000000000, 8] y)
        <int64[2] shape = {1000000000000, 8}, float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> { e = Expand(w, shape)  y = Add(x, e) }"""
    _, outcome = apply(text, "constant-fold")
    assert not outcome.changes and "raise 'max_mib'" in outcome.skipped[0].reason


def test_the_budget_is_an_option() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[1000] x) => (float[1000] y) <int64[1] n = {1000}> {
        e = ConstantOfShape(n)  y = Add(x, e) }"""
    _, outcome = apply(text, "constant-fold", constant_fold={"max_mib": 0.001})
    assert not outcome.changes and outcome.skipped
    proto, _ = apply(text, "constant-fold")
    assert ops(proto) == ["Add"]


def test_large_external_data_is_not_read(tmp_path: Path) -> None:
    weights = np.arange(1 << 20, dtype=np.float32)
    proto = chain(1, constant=True)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = len(weights)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = model_module.load(path)
    (tmp_path / "w.bin").unlink()  # reading it would be an error
    _, outcome = apply(model, "constant-fold", "constant-node", constant_fold={"max_mib": 1})
    assert not outcome.changes and "external data" in outcome.skipped[0].reason


def test_shapes_of_a_dynamic_model_fold_where_they_are_fixed() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[N, 3, 4] x) => (float[A, B] y, int64[3] s)
        <int64 one = {1}, int64[1] at = {0}, int64[1] rest = {-1}> {
        s = Shape(x)  c = Gather<axis = 0>(s, one)  d = Mul(c, c)  e = Unsqueeze(d, at)
        t = Concat<axis = 0>(rest, e)  z = Concat<axis = 0>(x, x, x)  y = Reshape(z, t) }"""
    for batch in (1, 3):
        after = same(text, {"x": np.ones((batch, 3, 4), np.float32)}, "shape-fold", "constant-fold")
        assert sorted(ops(after)) == ["Concat", "Reshape", "Shape"]


def test_negative_zero_survives() -> None:
    """x + 0 is not x where x is -0."""
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[2] x) => (float[2] y) <float zero = {0}, float minus = {-0.0}> {
        a = Add(x, zero)  b = Add(a, minus)  c = Sub(b, zero)  y = Sub(c, minus) }"""
    after = same(text, {"x": np.asarray([-0.0, 1.0], np.float32)}, "noop-node")
    assert ops(after) == ["Add", "Sub"]  # the second Add and the first Sub change nothing


@pytest.mark.parametrize("shape", ["N, 2", "0, 2", "N, M"])
def test_a_reshape_stays_where_elements_could_move(shape: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 13]> g (float[{shape}] x) => (float[A, B] y) <int64[2] t = {{-1, 2}}> {{
        a = Relu(x)  y = Reshape(a, t) }}"""
    proto, _ = apply(text, "noop-node")
    assert ("Reshape" in ops(proto)) is (shape == "N, M")


def test_doc_strings_of_constants_survive() -> None:
    node = helper.make_node("Constant", [], ["k"], value_float=2.0, doc_string="the factor")
    graph = helper.make_graph(
        [node, helper.make_node("Mul", ["x", "k"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    proto, _ = apply(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), "constant-node")
    assert [(t.name, t.doc_string) for t in proto.graph.initializer] == [("k", "the factor")]


# ---- branches, iterations, functions ----


def test_inlining_keeps_names_apart() -> None:
    """Both Ifs have branches with the same names, and a body within redefines one of its surroundings."""
    branch = """then_branch = t () => (float[2] r) <float[2] k = {2, 3}> {
        v = Mul(x, k)
        r = Loop(trips, go, v) <body = b (int64 i, bool c, float[2] w) => (bool c2, float[2] q) <float[2] m = {5, 7}> {
            c2 = Identity(c)  h = Add(w, m)  q = Add(h, k) }>
      }, else_branch = e () => (float[2] r) { r = Relu(x) }"""
    text = f"""<ir_version: 8, opset_import: ["": 13]> g (float[2] x) => (float[2] y)
        <bool go = {{1}}, int64 trips = {{2}}> {{ a = If(go) <{branch}>  b = If(go) <{branch}>  y = Sub(a, b) }}"""
    after = same(text, {"x": np.asarray([1, 2], np.float32)}, "if-constant")
    assert sorted(ops(after)) == ["Loop", "Loop", "Mul", "Mul", "Sub"]
    names = [o for n in after.graph.node for o in n.output] + [t.name for t in after.graph.initializer]
    assert len(set(names)) == len(names)


def test_branches_that_return_constants_and_outer_values() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[2] x) => (float[2] y, float[2] z, float[2] w) <bool yes = {1}> {
        a = Relu(x)
        y, z, w = If(yes) <
          then_branch = t () => (float[2] p, float[2] q, float[2] r) <float[2] k = {2, 3}> {
            p = Identity(k)  q = Identity(a)  r = Identity(q) },
          else_branch = e () => (float[2] s, float[2] t1, float[2] u) { s = Relu(x)  t1 = Relu(x)  u = Relu(x) }> }"""
    after = same(text, {"x": np.asarray([-1, 2], np.float32)}, "if-constant", "identity")
    assert "If" not in ops(after)


@pytest.mark.parametrize("trips", [1, 4])
def test_loops_unroll_with_their_counter_and_collected_outputs(trips: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 15]> g (float[3] x, double like) => (float[3] y, float z, double[A, 3] scan)
        <bool go = {{1}}, int64 trips = {{{trips}}}, float start = {{0}}> {{
        y, z, scan = Loop(trips, go, x, start) <body = b (int64 i, bool c, float[3] v, float s) => (bool c, float[3] w, float t, double[3] o) {{
            f = Cast<to = 1>(i)  w = Add(v, f)  t = Add(s, f)  o = CastLike(w, like) }}> }}"""
    after = same(text, {"x": np.asarray([1, 2, 3], np.float32), "like": np.asarray(0.0)}, "loop-constant", "constant-fold")
    assert "Loop" not in ops(after)


def test_a_loop_that_never_runs_passes_its_values_on() -> None:
    text = """<ir_version: 8, opset_import: ["": 15]> g (float[3] x, float like) => (float[3] y) <bool go = {0}, int64 trips = {5}> {
        a = Relu(x)
        y = Loop(trips, go, a) <body = b (int64 i, bool c, float[3] v) => (bool c, float[3] o) { o = CastLike(v, like) }> }"""
    after = same(text, {"x": np.asarray([1, -2, 3], np.float32), "like": np.asarray(0, np.float32)}, "loop-constant", "identity")
    assert ops(after) == ["Relu"]


def test_a_loop_too_long_is_left_alone() -> None:
    text = """<ir_version: 8, opset_import: ["": 15]> g (float[3] x, float like) => (float[3] y) <bool go = {1}, int64 trips = {1000}> {
        y = Loop(trips, go, x) <body = b (int64 i, bool c, float[3] v) => (bool c, float[3] o) { w = Exp(v)  o = CastLike(w, like) }> }"""
    _, outcome = apply(text, "loop-constant", loop_constant={"max_nodes": 100})
    assert not outcome.changes and "unrolled it would be 2000 nodes" in outcome.skipped[0].reason


FUNCTION = """<ir_version: 8, opset_import: ["": 13, "mine": 1]> g (float[2] x) => (float[2] y) { y = mine.f(x) }
<domain: "mine", opset_import: ["": 13, "mine": 1]> f (a) => (b) { c = mine.h(a)  b = Exp(c) }
<domain: "mine", opset_import: ["": 13]> h (a) => (b) { b = Relu(a) }
<domain: "mine", opset_import: ["": 13]> spare (a) => (b) { b = Relu(a) }"""


def test_functions_that_nothing_calls_any_more_go_and_others_stay() -> None:
    proto, _ = apply(FUNCTION, "local-function")
    assert ops(proto) == ["Relu", "Exp"]
    assert [f.name for f in proto.functions] == ["spare"]
    proto, outcome = apply(FUNCTION, "local-function", target="trt-10.3")
    assert not outcome.changes and len(proto.functions) == 3


def test_an_optional_input_left_out_is_left_out_in_the_body() -> None:
    text = """<ir_version: 8, opset_import: ["": 13, "mine": 1]> g (float[2] x) => (float[2] y) { y = mine.f(x) }
        <domain: "mine", opset_import: ["": 13]> f (a, low) => (b) { b = Clip(a, low) }"""
    proto, _ = apply(text, "local-function")
    assert list(proto.graph.node[0].input) == ["x"]


# ---- decompositions ----


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("fmod", [0, 1])
def test_mod_has_the_sign_the_standard_says(dtype: str, fmod: int) -> None:
    pairs = np.asarray([(a, b) for a, b in itertools.product(range(-7, 8), range(-4, 5)) if b], dtype)
    text = f"""<ir_version: 8, opset_import: ["": 13]> g ({dtype}[{len(pairs)}] a, {dtype}[{len(pairs)}] b) => ({dtype}[{len(pairs)}] y)
        {{ y = Mod<fmod = {fmod}>(a, b) }}"""
    same(text, {"a": pairs[:, 0].copy(), "b": pairs[:, 1].copy()}, "mod-integer")


def test_infinities_and_nan() -> None:
    x = np.asarray([np.inf, -np.inf, np.nan, 0, np.finfo(np.float32).max, np.finfo(np.float32).min], np.float32)
    for negative, positive in ((1, 1), (0, 1), (1, 0)):
        text = f"""<ir_version: 8, opset_import: ["": 13]> g (float[6] x) => (bool[6] y)
            {{ y = IsInf<detect_negative = {negative}, detect_positive = {positive}>(x) }}"""
        same(text, {"x": x}, "isinf")
    text = '<ir_version: 8, opset_import: ["": 14]> g (float[2, 3] x) => (float[2, 3] y) { y = Trilu(x) }'
    same(text, {"x": x.reshape(2, 3)}, "trilu")


@pytest.mark.parametrize(
    ("equation", "dims"),
    [
        ("bhid,bhjd->bhij", ["2,3,4,5", "2,3,6,5"]),
        ("bid,de->bie", ["2,4,5", "5,6"]),
        ("abc,bd,cd->ad", ["2,3,4", "3,5", "4,5"]),
        ("i,j", ["2", "3"]),
        ("ij,ij->", ["3,4", "3,4"]),
        ("biib->b", ["2,3,3,2"]),
        ("...ij,...jk->...ik", ["2,3,4,5", "1,5,6"]),
        ("ij,jk->ik", ["2,1", "3,4"]),
        ("ba,ab->", ["1,3", "3,2"]),
    ],
)
@pytest.mark.parametrize("opset", [12, 13])
def test_einsum(equation: str, dims: list[str], opset: int) -> None:
    shapes_ = [[int(d) for d in s.split(",")] for s in dims]
    random = np.random.default_rng(0)
    feeds = {f"a{i}": random.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes_)}
    expected = np.einsum(equation, *feeds.values())
    inputs = ", ".join(f"float[{d}] a{i}" for i, d in enumerate(dims))
    result = "float" + (str(list(expected.shape)) if expected.ndim else "")
    text = f"""<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({result} y) {{
        y = Einsum<equation = "{equation}">({", ".join(feeds)}) }}"""
    after, outcome = apply(text, "einsum", target="trt-7.1")
    assert outcome.changes and "Einsum" not in ops(after)
    actual = ort.evaluate(after.SerializeToString(), feeds)["y"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("image", ["2, 3, 5, 7", "N, 3, H, W"])
def test_gridsample(mode: str, padding: str, align: int, image: str) -> None:
    random = np.random.default_rng(0)
    grid = random.uniform(-1.6, 1.6, (2, 4, 6, 2)).astype(np.float32)
    grid[0, 0, :3] = [[1, -1], [0, 0], [50, -1e6]]
    feeds = {"x": random.standard_normal((2, 3, 5, 7)).astype(np.float32), "grid": grid}
    text = f"""<ir_version: 8, opset_import: ["": 16]> g (float[{image}] x, float[2, 4, 6, 2] grid) => (float[2, 3, 4, 6] y)
        {{ y = GridSample<mode = "{mode}", padding_mode = "{padding}", align_corners = {align}>(x, grid) }}"""
    if (mode == "bicubic" and padding != "zeros") or (padding == "reflection" and "H" in image):
        _, outcome = apply(text, "gridsample")
        assert not outcome.changes and outcome.skipped
        return
    same(text, feeds, "gridsample", tolerance=1e-5)


@pytest.mark.parametrize("low, high", [((0, 0), (2, 4)), ((1, 1), (3, 3)), ((0, 2), (3, 4)), ((2, 0), (3, 1))])
def test_scatternd_of_a_box(low: tuple[int, int], high: tuple[int, int]) -> None:
    places = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1).astype(np.int64)
    update = np.random.default_rng(0).standard_normal((*places.shape[:2], 2)).astype(np.float32)
    flat = ", ".join(map(str, places.reshape(-1).tolist()))
    text = f"""<ir_version: 8, opset_import: ["": 11]> g (float[3, 4, 2] x, float{list(update.shape)} u) => (float[3, 4, 2] y)
        <int64{list(places.shape)} i = {{{flat}}}> {{ y = ScatterND(x, i, u) }}"""
    after = same(text, {"x": np.zeros((3, 4, 2), np.float32), "u": update}, "scatternd-box", target="trt-7.1")
    assert "ScatterND" not in ops(after)


def test_a_newer_opset_is_lowered_with_all_its_nodes() -> None:
    """Resize writes defaults of attributes that opset 17 lacks; the reduction in the body needs the older opset."""
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[1, 2, 4, 4] x, bool c) => (float[1, 2, 8, 8] y, float[1, 2] z)
        <float[4] scales = {1, 1, 2, 2}, int64[2] axes = {2, 3}> {
        y = Resize<mode = "nearest", antialias = 0, keep_aspect_ratio_policy = "stretch">(x, , scales)
        z = If(c) <then_branch = t () => (float[1, 2] a) { a = ReduceMax<keepdims = 0>(x, axes) },
                   else_branch = e () => (float[1, 2] b) { b = ReduceMean<keepdims = 0>(x, axes) }> }"""
    feeds = {"x": np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4), "c": np.asarray(True)}
    after = same(text, feeds, "opset-newer-form")
    assert after.opset_import[0].version == 17
    assert [a.name for a in after.graph.node[0].attribute] == ["mode"]


def test_standard_bodies_agree_with_the_operators() -> None:
    """Each operator with a body, in a node test of the standard's own, on a target that lacks nearly everything."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 3, 4, 4)).astype(np.float32)
    for opset, node in [(14, "HardSwish(x)"), (18, "Mish(x)"), (20, "Gelu(x)"), (20, 'Gelu<approximate = "tanh">(x)'),
                        (18, "Shrink<bias = 0.1, lambd = 0.3>(x)"), (13, "MeanVarianceNormalization(x)"),
                        (24, "Swish<alpha = 0.7>(x)")]:  # fmt: skip
        text = f"""<ir_version: 10, opset_import: ["": {opset}]> g (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y) {{ y = {node} }}"""
        after = same(text, {"x": x}, "function-body", "function-exact", "constant-fold", tolerance=1e-5)
        assert node.split("(")[0].split("<")[0] not in ops(after)
