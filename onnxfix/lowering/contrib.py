"""What the operators of ONNX Runtime (domain com.microsoft) stand for, in operators of the standard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Node
from onnxfix.lowering import norm

DOMAIN = "com.microsoft"

# Activations that are an operator of their own, and the names of its attributes in the order of the parameters.
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "Softsign": (),
    "Elu": ("alpha",),
    "LeakyRelu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "HardSwish": (),
}


def known_activation(name: str) -> None:
    """Raises Skip for an activation that `activate` can't write."""
    if name and name != "Clip" and name not in _ACTIVATIONS:
        raise Skip(f"the fused activation {name} is not known; save the model without ONNX Runtime's optimisation")


def activate(edit: Edit, x: str, name: str, parameters: list[float]) -> str:
    """`x` through the activation a fused operator names; "" is none."""
    known_activation(name)
    if not name:
        return x
    if name == "Clip":
        low, high = (np.asarray(p, np.float32) for p in parameters)
        return emit.clip(edit, x, low, high)
    if name == "HardSwish" and edit.graph.opset() < 14:  # x * clip(x / 6 + 1 / 2, 0, 1)
        return str(edit.add("Mul", [x, edit.add("HardSigmoid", [x], alpha=1 / 6, beta=0.5)]))
    attributes: dict[str, Any] = dict(zip(_ACTIVATIONS[name], parameters, strict=False))
    return str(edit.add(name, [x], **attributes))


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
# Operators whose float inputs and output have one dtype, by whatever domain.
_ONE_DTYPE = frozenset((
    "Add", "BatchNormalization", "Concat", "Conv", "ConvTranspose", "Div", "FusedConv", "FusedGemm", "FusedMatMul",
    "Gelu", "Gemm", "LayerNormalization", "MatMul", "MaxPool", "Mul", "QuickGelu", "Relu", "Reshape", "Sigmoid", "Sub",
    "Transpose",
))  # fmt: skip


def dtype_of(node: Node) -> int:
    """The float dtype a node computes in, from whatever input tells, or what made it. Raises Skip when nothing does.

    Shape inference stops at ONNX Runtime's operators, so behind a chain of them weights tell more than types.
    """
    for name in node.inputs:
        dtype = _float_dtype(node, name) if name else 0
        if dtype:
            return dtype
    raise Skip(f"the dtype of '{node.input(0)}' is not known")


def _float_dtype(node: Node, name: str) -> int:
    """The dtype of a float value, 0 when it isn't one or that can't be told. Follows first inputs upwards."""
    graph = node.graph
    for _ in range(16):
        if dtype := graph.dtype(name):
            return dtype if dtype in _FLOATS else 0
        maker = graph.producer(name)
        if maker is None or maker.op not in _ONE_DTYPE:
            return 0
        found = next((d for i in maker.inputs if i and (d := graph.dtype(i)) in _FLOATS), 0)
        if found:
            return found
        name = maker.input(0)
    return 0


def number(value: float, dtype: int) -> np.ndarray:
    """A rank-0 array."""
    return np.asarray(value, helper.tensor_dtype_to_np_dtype(dtype))


def gelu(edit: Edit, x: str, dtype: int) -> str:
    """x / 2 * (1 + erf(x / sqrt 2))."""
    erf = edit.add("Erf", [edit.add("Mul", [x, number(math.sqrt(0.5), dtype)])])
    half = edit.add("Mul", [x, number(0.5, dtype)])
    return str(edit.add("Mul", [half, edit.add("Add", [erf, number(1, dtype)])]))


def fast_gelu(edit: Edit, x: str, dtype: int) -> str:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))."""
    root = math.sqrt(2 / math.pi)
    square = edit.add("Mul", [x, x])
    slope = edit.add("Add", [edit.add("Mul", [square, number(root * 0.044715, dtype)]), number(root, dtype)])
    tanh = edit.add("Tanh", [edit.add("Mul", [x, slope])])
    half = edit.add("Mul", [x, number(0.5, dtype)])
    return str(edit.add("Mul", [half, edit.add("Add", [tanh, number(1, dtype)])]))


def layer_norm(edit: Edit, x: str, scale: str, bias: str, epsilon: float, dtype: int) -> str:
    """Over the last axis: the operator where the opset has it, else its steps."""
    if edit.graph.opset() >= 17:
        return str(edit.add("LayerNormalization", [x, scale, *([bias] if bias else [])], axis=-1, epsilon=epsilon))
    work = int(TensorProto.FLOAT) if dtype == TensorProto.FLOAT16 else dtype
    y = norm.standardize(edit, emit.cast(edit, x, work), [-1], epsilon, work).result
    y = str(edit.add("Mul", [emit.cast(edit, y, dtype), scale]))
    return str(edit.add("Add", [y, bias])) if bias else y


def rms_norm(edit: Edit, x: str, scale: str, epsilon: float, dtype: int) -> str:
    """x / sqrt(mean of squares + epsilon) over the last axis."""
    work = int(TensorProto.FLOAT) if dtype == TensorProto.FLOAT16 else dtype
    wide = emit.cast(edit, x, work)
    mean = emit.reduce(edit, "ReduceMean", str(edit.add("Mul", [wide, wide])), [-1])
    root = edit.add("Sqrt", [edit.add("Add", [mean, number(epsilon, work)])])
    return str(edit.add("Mul", [emit.cast(edit, str(edit.add("Div", [wide, root])), dtype), scale]))


def unread(node: Node, *outputs: int) -> None:
    """Raises Skip when one of these outputs is read."""
    for index in outputs:
        if node.output(index) and not node.graph.unused(node.output(index)):
            raise Skip(f"its output {index} ('{node.output(index)}') is read; only the first output is rewritten")
