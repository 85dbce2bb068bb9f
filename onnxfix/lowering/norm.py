"""What the normalisations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Graph

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


def standardize(edit: Edit, x: str, axes: Sequence[int], epsilon: float, dtype: int) -> Standardized:
    """(x - mean) / sqrt(variance + epsilon), mean and variance taken over `axes`; x is of `dtype`.

    The mean goes first, then the squares: E[x²] - E[x]² would cancel where the mean is large.
    """
    mean = emit.reduce(edit, "ReduceMean", x, axes)
    centred = edit.add("Sub", [x, mean])
    variance = emit.reduce(edit, "ReduceMean", edit.add("Mul", [centred, centred]), axes)
    root = edit.add("Sqrt", [edit.add("Add", [variance, constant(epsilon, dtype)])])
    return Standardized(str(edit.add("Div", [centred, root])), mean, variance, str(root))


def per_channel(edit: Edit, value: str, rank: int) -> str:
    """A vector with one entry for each channel, shaped to fit a tensor of that rank."""
    return emit.unsqueeze(edit, value, [0, *range(2, rank)]) if rank > 2 else value
