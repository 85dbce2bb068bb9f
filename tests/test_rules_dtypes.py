"""Integers of every dtype through the rules that widen them, against NumPy, the ends of each range included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxfix import catalog, engine, matrix, shapes
from onnxfix.model import Model
from onnxfix.report import Safety

SET = catalog.load_set("rtx.yml")  # where UINT64 may travel as the bits of INT64
TARGET = matrix.target("rtx-1.7")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NEWEST = onnx.defs.onnx_opset_version()
FED = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float)": np.float32}
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Less": np.less,
    "Equal": np.equal,
    "Max": np.maximum,
    "Min": np.minimum,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}


def drawn(dtype: str, seed: int = 0, count: int = 200) -> np.ndarray:
    """Numbers of a dtype's whole range, with its ends and small ones among them."""
    limits, rng = np.iinfo(dtype), np.random.default_rng(seed)
    values = rng.integers(limits.min, limits.max, count, dtype=dtype, endpoint=True)
    values[:4] = limits.min, limits.max, 0, 1
    values[4:40] = rng.integers(max(limits.min, -20), 20, 36).astype(dtype)
    return np.asarray(rng.permutation(values))


def kind(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def rewritten(
    op: str, given: list[np.ndarray], out: Any, target: matrix.Target = TARGET, **attributes: Any
) -> np.ndarray:
    """What one node gives after all rules, in ONNX Runtime, as `out`; nothing that the target refuses may be left."""
    import onnxruntime

    names = [f"x{i}" for i in range(len(given))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info(n, kind(v.dtype), v.shape) for n, v in zip(names, given, strict=True)],
        [helper.make_tensor_value_info("y", kind(out), None)],
    )
    opset = max(23, onnx.defs.get_schema(op).since_version)
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))
    index = shapes.index(model)
    judge = lambda node: matrix.judge(node, target)  # noqa: E731
    engine.run(index, SET.rules, target, judge, allow=Safety.CLOSE, options=SET.options)
    assert not list(matrix.judge_graph(index, target))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model.proto.opset_import[0].version = 23  # what is left is as old
    session = onnxruntime.InferenceSession(model.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: v.astype(FED.get(i.type, v.dtype)) for i, v in zip(session.get_inputs(), given, strict=True)}
    return np.asarray(session.run(None, feeds)[0]).astype(out)


# Max and Min of INT64 the target takes as they are, and ONNX Runtime's own kernels for them are not always right.
@pytest.mark.parametrize(
    ("op", "dtype"), [(o, d) for o in OPERATORS for d in INTEGERS if d != "int64" or o not in ("Max", "Min")]
)
def test_two_operands(op: str, dtype: str) -> None:
    a, b = drawn(dtype, 1), drawn(dtype, 2)
    expected = OPERATORS[op](a, b)
    assert np.array_equal(rewritten(op, [a, b], expected.dtype), expected)


@pytest.mark.parametrize("release", ("trt-8.2", "trt-8.5"))
@pytest.mark.parametrize("dtype", ("int8", "uint8", "int16", "uint16"))
def test_two_small_operands_where_there_is_no_mod_and_uint8_converts_to_float_alone(dtype: str, release: str) -> None:
    a, b = drawn(dtype, 1), drawn(dtype, 2)
    for op, function in OPERATORS.items():
        expected = function(a, b)
        assert np.array_equal(rewritten(op, [a, b], expected.dtype, matrix.target(release)), expected), op


@pytest.mark.parametrize("dtype", ("uint8", "uint16", "uint32", "uint64"))
def test_division(dtype: str) -> None:
    a, b = drawn(dtype, 1), np.maximum(drawn(dtype, 2), 1)
    assert np.array_equal(rewritten("Div", [a, b], dtype), a // b)
    assert np.array_equal(rewritten("Mod", [a, b], dtype), a % b)


@pytest.mark.skipif(NEWEST < 28, reason="this ONNX shifts unsigned integers only")
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("direction", ("LEFT", "RIGHT"))
def test_shifts(direction: str, dtype: str) -> None:
    x, width = drawn(dtype), np.iinfo(dtype).bits
    counts = np.random.default_rng(3).integers(-2 if np.iinfo(dtype).min else 0, width + 3, x.size)
    inside = (counts >= 0) & (counts < width)
    by = np.where(inside, counts, 0).astype(dtype)
    shifted = np.left_shift(x, by) if direction == "LEFT" else np.right_shift(x, by)
    rest = np.where((x < 0) & (direction == "RIGHT"), -1, 0).astype(dtype)
    found = rewritten("BitShift", [x, counts.astype(dtype)], dtype, direction=direction)
    assert np.array_equal(found, np.where(inside, shifted, rest))


@pytest.mark.parametrize("dtype", ("uint32", "uint64"))
def test_to_float_rounds_once(dtype: str) -> None:
    x = drawn(dtype)
    assert np.array_equal(rewritten("Cast", [x], np.float32, to=TensorProto.FLOAT), x.astype(np.float32))


@pytest.mark.skipif(NEWEST < 26, reason="this ONNX has no BitCast")
@pytest.mark.parametrize(
    ("before", "after"), [("int32", "float32"), ("float32", "int32"), ("int16", "float16"), ("float16", "int16")]
)
def test_bits_of_floating_point(before: str, after: str) -> None:
    whole = before if before.startswith("int") else after
    bits = drawn(whole, count=4000)
    infinity = np.asarray(np.inf, after if whole == before else before).view(whole)
    bits[:6] = infinity, np.iinfo(whole).min, infinity - 1, 1, -1, np.iinfo(whole).min + 1
    x = bits.view(before)
    x = x[~np.isnan(x.view(after if whole == before else before))]  # a NaN keeps no particular bits
    found = rewritten("BitCast", [x], after, to=kind(after))
    assert np.array_equal(found.view(whole), x.view(whole))


def test_uint64_that_travels_as_bits_is_reported_as_that() -> None:
    text = '<ir_version: 8, opset_import: ["": 13]>\ng (uint64[2] x, uint8[2] n) => (uint64[2] y) { y = Identity(x) }'
    model = Model(onnx.parser.parse_model(text))
    judge = lambda node: matrix.judge(node, TARGET)  # noqa: E731
    outcome = engine.run(shapes.index(model), SET.rules, TARGET, judge, allow=Safety.CLOSE, options=SET.options)
    told = [line for line in outcome.interface if "UINT64" in line]
    assert len(told) == 2 and all("the same 64 bits" in line for line in told)
    left = Model(onnx.parser.parse_model(text))
    outcome = engine.run(shapes.index(left), SET.rules, TARGET, judge, allow=Safety.CLOSE)
    assert not any("UINT64" in line for line in outcome.interface)
    assert any("of which no dtype that is taken holds all numbers" in s.reason for s in outcome.skipped)
