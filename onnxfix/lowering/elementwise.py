"""Small pieces of arithmetic that several rules write."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Graph
from onnxfix.lowering.dtypes import whole_range

INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})


def never_negative(graph: Graph, name: str) -> bool:
    """Whether a value provably holds whole numbers from 0 on."""
    found = whole_range(graph, name)
    return found is not None and found[0] >= 0


def full(edit: Edit, like: str, value: float) -> np.ndarray:
    """A rank-0 constant of the dtype of a value. Raises Skip when that dtype is not known."""
    return emit.scalar(edit, value, like)


def static(graph: Graph, name: str) -> tuple[int, ...]:
    """The shape of a value. Raises Skip when it is not fully known."""
    shape = graph.static_shape(name)
    if shape is None:
        raise Skip(f"the shape of '{name}' is not fully known; freeze the dynamic axes")
    return shape


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < rank:
        raise Skip(f"axis {axis} is out of range for rank {rank}")
    return axis % rank


def rank_of(graph: Graph, name: str) -> int:
    """The rank of a value. Raises Skip when it is not known."""
    rank = graph.rank(name)
    if rank is None:
        raise Skip(f"the rank of '{name}' is not known")
    return rank


def dtype_of(graph: Graph, name: str) -> np.dtype:
    """The NumPy dtype of a value. Raises Skip when it is not known."""
    dtype = graph.dtype(name)
    if dtype == TensorProto.UNDEFINED:
        raise Skip(f"the dtype of '{name}' is not known")
    return helper.tensor_dtype_to_np_dtype(dtype)
