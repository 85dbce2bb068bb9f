"""Quantised models against ONNX Runtime, number for number, and what rule pages cannot express."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxfix import catalog, engine, matrix, shapes
from onnxfix.graph import Graph
from onnxfix.lowering import dtypes
from onnxfix.model import Model
from onnxfix.rule import Rule

ort = pytest.importorskip("onnxruntime")

HEAD = '<ir_version: 8, opset_import: ["": 13, "com.microsoft": 1]>\n'


def rules() -> Mapping[str, Rule]:
    return catalog.load_folder(catalog.shipped())


def fixed(text: str, target: str = "rtx-1.7", **constants: np.ndarray) -> tuple[onnx.ModelProto, Model, engine.Outcome]:
    """The model before, the model after all rules, and what they did. `constants` become initializers."""
    before = onnx.parser.parse_model(text)
    before.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in constants.items())
    after = Model(onnx.ModelProto.FromString(before.SerializeToString()))
    at = matrix.target(target)
    outcome = engine.run(shapes.index(after), list(rules().values()), at, lambda n: matrix.judge(n, at))
    return before, after, outcome


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """In one thread, as the model stands: some kernels quantise by thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[np.ndarray] = ort.InferenceSession(model.SerializeToString(), options).run(None, dict(feeds))
    return found


def refused(model: Model, target: str = "rtx-1.7") -> list[str]:
    at = matrix.target(target)
    return [
        f"{n.op}: {v.reason}" for n, v in matrix.judge_graph(shapes.index(model), at) if v.effect.value == "refused"
    ]


def index(text: str) -> Graph:
    return shapes.index(Model(onnx.parser.parse_model(HEAD + text)))


# ---- products and sums of integers ----


@pytest.mark.parametrize("weights", [np.uint8, np.int8])
@pytest.mark.parametrize(
    "attributes",
    [
        "pads = [0, 0, 0, 0]",
        "pads = [1, 2, 0, 1]",
        "strides = [2, 1], dilations = [1, 2]",
        'auto_pad = "SAME_UPPER"',
        "group = 2",
    ],
)
def test_integer_convolutions_are_equal(weights: Any, attributes: str) -> None:
    random = np.random.default_rng(0)
    inputs = 2 if "group" in attributes else 4
    low, high = np.iinfo(weights).min, np.iinfo(weights).max
    w = random.integers(low, high, (6, inputs, 3, 3), endpoint=True).astype(weights)
    before, after, _ = fixed(
        HEAD
        + f"""g (float[1, 4, 9, 8] x) => (float[1, 6, h, v] y) {{
          q, s, z = DynamicQuantizeLinear(x)
          sums = ConvInteger <{attributes}>(q, w, z, wz)
          f = Cast <to = 1>(sums)
          y = Mul(f, s)
        }}""",
        w=w,
        wz=np.asarray(3, weights),
    )
    assert refused(after) == []
    for scale in (0.01, 1.0, 300.0):
        feeds = {"x": (random.standard_normal((1, 4, 9, 8)) * scale).astype(np.float32)}
        np.testing.assert_array_equal(run(before, feeds)[0], run(after.proto, feeds)[0])


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.full((2, 3), 5.0), np.full((2, 3), -5.0), np.eye(2, 3) * 1e-30])
def test_dynamic_quantisation_of_one_sided_and_flat_tensors(x: np.ndarray) -> None:
    text = HEAD + "g (float[2, 3] x) => (uint8[2, 3] q, float s, uint8 z) { q, s, z = DynamicQuantizeLinear(x) }"
    before, after, _ = fixed(text)
    feeds = {"x": x.astype(np.float32)}
    for expected, got in zip(run(before, feeds), run(after.proto, feeds), strict=True):
        np.testing.assert_array_equal(expected, got)


# The kernels of other processors round sums that lie halfway between two numbers otherwise.
needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ONNX Runtime's kernel of x86")


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("op", ["QLinearMul", pytest.param("QLinearAdd", marks=needs_x86)])
def test_all_pairs_of_quantised_numbers(op: str, kind: str) -> None:
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    every = np.arange(low, high + 1)
    feeds = {"a": np.repeat(every, 256).astype(kind), "b": np.tile(every, 256).astype(kind)}
    for seed in range(4):
        random = np.random.default_rng(seed)
        s, t = random.uniform(0.01, 0.2, 2).astype(np.float32)
        u = np.float32(s * t * 60 if op == "QLinearMul" else s + t)
        za, zb, zy = random.integers(low, high, 3)
        before, after, _ = fixed(
            HEAD
            + f"""g ({kind}[65536] a, {kind}[65536] b) => ({kind}[65536] y)
            <float s = {{{s}}}, float t = {{{t}}}, float u = {{{u}}}, {kind} za = {{{za}}}, {kind} zb = {{{zb}}}, {kind} zy = {{{zy}}}> {{
              y = com.microsoft.{op}(a, s, za, b, t, zb, u, zy)
            }}"""
        )
        assert not any(n.op_type == op for n in after.proto.graph.node)
        np.testing.assert_array_equal(run(before, feeds)[0], run(after.proto, feeds)[0])


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_convolutions_are_equal(per_channel: bool) -> None:
    random = np.random.default_rng(1)
    before, after, _ = fixed(
        HEAD
        + """g (uint8[1, 4, 9, 8] x) => (uint8[1, 6, 9, 8] y) {
          y = QLinearConv <pads = [1, 1, 1, 1]>(x, xs, xz, w, ws, wz, ys, yz, b)
        }""",
        xs=np.float32(0.031),
        xz=np.uint8(117),
        w=random.integers(-128, 127, (6, 4, 3, 3)).astype(np.int8),
        ws=random.uniform(0.001, 0.02, 6 if per_channel else ()).astype(np.float32),
        wz=np.zeros(6 if per_channel else (), np.int8),
        ys=np.float32(0.11),
        yz=np.uint8(131),
        b=random.integers(-9000, 9000, 6).astype(np.int32),
    )
    assert not any(n.op_type == "QLinearConv" for n in after.proto.graph.node)
    feeds = {"x": random.integers(0, 255, (1, 4, 9, 8)).astype(np.uint8)}
    np.testing.assert_array_equal(run(before, feeds)[0], run(after.proto, feeds)[0])


def test_rounding_without_round_is_half_to_even() -> None:
    text = HEAD + "g (float[n] x) => (int8[n] y) <float s = {1}, int8 z = {3}> { y = QuantizeLinear(x, s, z) }"
    before = onnx.parser.parse_model(text)
    after = Model(onnx.ModelProto.FromString(before.SerializeToString()))
    at = matrix.target("trt-8.0")  # no Round
    engine.run(shapes.index(after), [rules()["quant-linear"]], at, lambda n: matrix.judge(n, at))
    ops = [n.op_type for n in after.proto.graph.node]
    assert "Floor" in ops and "Round" not in ops
    nearly = np.nextafter(np.float32(0.5), np.float32(0))
    feeds = {"x": np.asarray([-3.5, -2.5, -0.5, -nearly, 0, nearly, 0.5, 1.5, 2.5, 126.5, 1e9, -1e9], np.float32)}
    np.testing.assert_array_equal(run(before, feeds)[0], run(after.proto, feeds)[0])


# ---- LSTM ----


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("batch", [1, 3])
def test_dynamically_quantised_lstm(direction: str, batch: int) -> None:
    random = np.random.default_rng(2)
    ways, hidden = (2 if direction == "bidirectional" else 1), 5
    before, after, _ = fixed(
        HEAD
        + f"""g (float[t, {batch}, 7] x, float[{ways}, {batch}, {hidden}] h, float[{ways}, {batch}, {hidden}] c)
        => (float[t, {ways}, {batch}, {hidden}] y, float[{ways}, {batch}, {hidden}] yh, float[{ways}, {batch}, {hidden}] yc) {{
          y, yh, yc = com.microsoft.DynamicQuantizeLSTM <hidden_size = {hidden}, direction = "{direction}">
            (x, w, r, b, , h, c, , ws, wz, rs, rz)
        }}""",
        w=random.integers(0, 255, (ways, 7, 4 * hidden)).astype(np.uint8),
        r=random.integers(0, 255, (ways, hidden, 4 * hidden)).astype(np.uint8),
        b=random.standard_normal((ways, 8 * hidden)).astype(np.float32),
        ws=random.uniform(0.005, 0.01, ways).astype(np.float32),
        wz=np.full(ways, 120, np.uint8),
        rs=random.uniform(0.005, 0.01, ways).astype(np.float32),
        rz=np.full(ways, 131, np.uint8),
    )
    assert refused(after) == []
    shape = (ways, batch, hidden)
    feeds = {n: random.standard_normal(shape).astype(np.float32) for n in "hc"}
    feeds["x"] = random.standard_normal((9, batch, 7)).astype(np.float32)
    for expected, got in zip(run(before, feeds), run(after.proto, feeds), strict=True):
        np.testing.assert_allclose(expected, got, rtol=0, atol=1e-6)


# ---- dtypes ----


def test_bounds_follow_the_operators() -> None:
    graph = index(
        """g (float[2, 3] x, uint8[2, 3] u, float[3, 4] v) => (float[2, 4] y)
        <float low = {-3}, float high = {5}, float part = {0.5}> {
          r = Round(x)
          c = Clip(r, low, high)
          d = Add(c, c)
          f = Cast <to = 1>(u)
          e = Sub(d, f)
          o = Mul(e, part)
          t = Transpose <perm = [1, 0]>(u)
          y = MatMul(e, v)
        }"""
    )
    bounds = {name: dtypes.whole_range(graph, name) for name in ("x", "c", "d", "e", "o", "t", "y")}
    assert bounds == {"x": None, "c": (-3, 5), "d": (-6, 10), "e": (-261, 10), "o": None, "t": (0, 255), "y": None}
    assert dtypes.whole_range(graph, "r") == (-np.inf, np.inf)


def test_integer_arithmetic_that_may_wrap_proves_nothing() -> None:
    graph = index("g (int8[4] a) => (int8[4] y) <int8 k = {100}> { b = Add(a, k) y = Relu(b) }")
    assert dtypes.whole_range(graph, "b") == (-128, 127)


@pytest.mark.parametrize("kind", ["int16", "uint16"])
def test_arithmetic_of_small_integers_wraps_around(kind: str) -> None:
    text = HEAD.replace("13", "14") + (
        f"g ({kind}[n] x, {kind}[n] z) => (float[n] y) {{ a = Add(x, z) b = Mul(a, z) c = Sub(b, x) y = Cast <to = 1>(c) }}"
    )
    _, after, _ = fixed(text)
    assert refused(after) == []
    random = np.random.default_rng(6)
    limits = np.iinfo(kind)
    x, z = random.integers(limits.min, limits.max, (2, 10000), endpoint=True).astype(kind)
    with np.errstate(over="ignore"):
        expected = (x + z) * z - x
    feeds = {"x": x.astype(np.int32), "z": z.astype(np.int32)}
    np.testing.assert_array_equal(run(after.proto, feeds)[0], expected.astype(np.float32))


def test_interface_changes_are_reported() -> None:
    text = (
        HEAD
        + "g (uint16[4] x, double[4] d) => (double[4] y, uint16[4] m) { f = Cast <to = 11>(x) y = Add(f, d) m = Max(x, x) }"
    )
    _, after, outcome = fixed(text)
    assert sorted(outcome.interface) == [
        "input 'd': DOUBLE -> FLOAT",
        "input 'x': UINT16 -> INT32",
        "output 'm': UINT16 -> INT32",
        "output 'y': DOUBLE -> FLOAT",
    ]
    x, d = np.asarray([0, 1, 700, 65535]), np.asarray([0.5, 1, 2, 3])
    y, m = run(after.proto, {"x": x.astype(np.int32), "d": d.astype(np.float32)})
    np.testing.assert_allclose(y, x + d)
    np.testing.assert_array_equal(m, x)
    assert refused(after) == []


def test_double_in_branches_and_their_constants() -> None:
    text = (
        HEAD
        + """g (float[4] x, bool c) => (float[4] y) {
      d = Cast <to = 11>(x)
      e = If (c) <
        then_branch = a () => (double[4] p) { k = Constant <value = double {2.5}>() p = Mul(d, k) },
        else_branch = b () => (double[4] q) { q = Neg(d) }
      >
      y = Cast <to = 1>(e)
    }"""
    )
    before, after, _ = fixed(text)
    assert TensorProto.DOUBLE not in {
        t.type.tensor_type.elem_type for n in after.proto.graph.node for a in n.attribute for t in a.g.output
    }
    for c in (True, False):
        feeds = {"x": np.asarray([1, -2, 0.1, 1e6], np.float32), "c": np.asarray(c)}
        np.testing.assert_allclose(run(before, feeds)[0], run(after.proto, feeds)[0], rtol=1e-6)


# ---- whole models, as ONNX Runtime's own tools make them ----


def small_network() -> onnx.ModelProto:
    random = np.random.default_rng(3)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]>'
        """g (float[1, 3, 16, 16] x) => (float[1, 5] y) {
          a = Conv <pads = [1, 1, 1, 1]>(x, w, b)
          r = Relu(a)
          p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(r)
          c = Conv(p, w2, b2)
          s = Sigmoid(c)
          m = Mul(c, s)
          f = Flatten(m)
          y = Gemm(f, k, kb)
        }"""
    )
    for name, shape in {
        "w": (8, 3, 3, 3),
        "b": (8,),
        "w2": (8, 8, 3, 3),
        "b2": (8,),
        "k": (288, 5),
        "kb": (5,),
    }.items():
        array = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("form", ["dynamic", "qdq-u8s8", "qdq-s8s8", "qoperator-u8u8", "qoperator-u8s8", "optimised"])
def test_models_from_onnxruntimes_tools(form: str, tmp_path: Any) -> None:
    pytest.importorskip("onnxruntime.quantization")
    before = derived(small_network(), form, tmp_path)
    after = Model(onnx.ModelProto.FromString(before.SerializeToString()))
    at = matrix.target("rtx-1.7")
    outcome = engine.run(shapes.index(after), list(rules().values()), at, lambda n: matrix.judge(n, at))
    assert outcome.changes
    assert refused(after) == []
    onnx.checker.check_model(after.proto, full_check=True)
    random = np.random.default_rng(5)
    for _ in range(3):
        feeds = {"x": random.standard_normal((1, 3, 16, 16)).astype(np.float32)}
        expected, got = run(before, feeds)[0], run(after.proto, feeds)[0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def derived(model: onnx.ModelProto, form: str, folder: Any) -> onnx.ModelProto:
    """The model as quantised, or as optimised, by ONNX Runtime."""
    from onnxruntime import quantization as q

    source, result = str(folder / "float.onnx"), str(folder / "derived.onnx")
    onnx.save(model, source)
    if form == "optimised":
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = result
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    elif form == "dynamic":
        q.quantize_dynamic(source, result, weight_type=q.QuantType.QUInt8)
    else:
        way, kinds = form.split("-")
        types = {"u": q.QuantType.QUInt8, "s": q.QuantType.QInt8}
        q.quantize_static(
            source,
            result,
            _Samples(),
            quant_format=q.QuantFormat.QDQ if way == "qdq" else q.QuantFormat.QOperator,
            activation_type=types[kinds[0]],
            weight_type=types[kinds[2]],
        )
    return onnx.load(result)


class _Samples:
    """Calibration data, in the form ONNX Runtime's quantiser asks for."""

    def __init__(self) -> None:
        random = np.random.default_rng(4)
        self.left = [random.standard_normal((1, 3, 16, 16)).astype(np.float32) for _ in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"x": self.left.pop()} if self.left else None
