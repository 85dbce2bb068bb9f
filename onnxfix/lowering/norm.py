"""What the normalisations share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper
from onnx.helper import tensor_dtype_to_np_dtype

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Graph, Node
from onnxfix.report import Effect
from onnxfix.rule import Context

_SHORT = (TensorProto.FLOAT16, TensorProto.BFLOAT16)  # too short for sums of squares: normalised in FLOAT


def working_dtype(graph: Graph, name: str) -> int:
    """The dtype to normalise in. Raises Skip when the value's own is not known."""
    dtype = graph.dtype(name)
    if not dtype:
        raise Skip(f"the dtype of '{name}' is not known")
    return TensorProto.FLOAT if dtype in _SHORT else dtype


def constant(value: float, dtype: int) -> np.ndarray:
    return np.asarray(value, tensor_dtype_to_np_dtype(dtype))


class Standardized(NamedTuple):
    """Names of values; all but `result` keep the reduced axes with size 1."""

    result: str
    mean: str
    variance: str
    root: str  # sqrt(variance + epsilon)


def mean(edit: Edit, x: str, axes: Sequence[int], ctx: Context | None) -> str:
    """The mean over `axes`, which keep size 1, in a form the target reads.

    From opset 18 on ReduceMean has its axes as an input, which TensorRT before 10 does not look at; without a `ctx` to
    ask, it is used all the same.
    """
    graph, rank = edit.graph, edit.graph.rank(x)
    if ctx is None or graph.opset() < 18:
        return emit.reduce(edit, "ReduceMean", x, axes)
    newer = ctx.judge(Node(helper.make_node("ReduceMean", [x, "axes"], ["mean"]), graph))
    if newer is None or newer.effect is not Effect.WRONG:
        return emit.reduce(edit, "ReduceMean", x, axes)
    if rank is not None and rank > 2 and list(axes) == list(range(2, rank)):
        return str(edit.add("GlobalAveragePool", [x]))
    shape = graph.shape(x) or ()
    sizes = [shape[a] for a in axes if a < len(shape)]
    counts = [s for s in sizes if isinstance(s, int)]
    if len(counts) < len(list(axes)) or 0 in counts:
        return emit.reduce(edit, "ReduceMean", x, axes)
    total = emit.reduce(edit, "ReduceSum", x, axes)
    return str(edit.add("Mul", [total, constant(1 / math.prod(counts), graph.dtype(x))]))


def standardize(
    edit: Edit, x: str, axes: Sequence[int], epsilon: float, dtype: int, ctx: Context | None = None
) -> Standardized:
    """(x - mean) / sqrt(variance + epsilon), mean and variance taken over `axes`; x is of `dtype`.

    The mean goes first, then the squares: E[x²] - E[x]² would cancel where the mean is large.
    """
    middle = mean(edit, x, axes, ctx)
    centred = edit.add("Sub", [x, middle])
    variance = mean(edit, edit.add("Mul", [centred, centred]), axes, ctx)
    root = edit.add("Sqrt", [edit.add("Add", [variance, constant(epsilon, dtype)])])
    return Standardized(str(edit.add("Div", [centred, root])), middle, variance, str(root))


def per_channel(edit: Edit, value: str, rank: int) -> str:
    """A vector with one entry for each channel, shaped to fit a tensor of that rank."""
    if rank <= 2:
        return value
    shape = [-1, *[1] * (rank - 2)]
    array = edit.graph.const(value)
    return emit.reshape(edit, value, shape) if array is None else edit.const(array.reshape(shape), "channels")
