"""Node makers that know which form of an operator the model's opset has.

Each adds nodes in front of the edit's anchor and returns the name of the result. Axes are non-negative integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from onnxfix.errors import Skip
from onnxfix.graph import Edit


def ints(values: Sequence[int]) -> np.ndarray:
    """A 1-D INT64 array, the form of axes, shapes and pads."""
    return np.asarray(list(values), np.int64)


def cast(edit: Edit, x: str, dtype: int) -> str:
    """`x` as another TensorProto.DataType; `x` itself when it has it already."""
    return x if edit.graph.dtype(x) == dtype else str(edit.add("Cast", [x], to=dtype))


def reshape(edit: Edit, x: str, shape: Sequence[int]) -> str:
    return str(edit.add("Reshape", [x, ints(shape)]))


def transpose(edit: Edit, x: str, perm: Sequence[int]) -> str:
    """`x` with its axes permuted; `x` itself for the identity permutation."""
    return x if list(perm) == sorted(perm) else str(edit.add("Transpose", [x], perm=list(perm)))


def unsqueeze(edit: Edit, x: str, axes: Sequence[int]) -> str:
    if edit.graph.opset() >= 13:
        return str(edit.add("Unsqueeze", [x, ints(axes)]))
    return str(edit.add("Unsqueeze", [x], axes=list(axes)))


def squeeze(edit: Edit, x: str, axes: Sequence[int]) -> str:
    if edit.graph.opset() >= 13:
        return str(edit.add("Squeeze", [x, ints(axes)]))
    return str(edit.add("Squeeze", [x], axes=list(axes)))


def reduce(edit: Edit, op: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
    """ReduceSum, ReduceMean, ReduceMax …: axes became an input at opset 13 for ReduceSum, at 18 for the others."""
    if edit.graph.opset() >= (13 if op == "ReduceSum" else 18):
        return str(edit.add(op, [x, ints(axes)], keepdims=keepdims))
    return str(edit.add(op, [x], axes=list(axes), keepdims=keepdims))


def slice_(
    edit: Edit,
    x: str,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int] | None = None,
) -> str:
    if edit.graph.opset() >= 10:
        inputs: list[str | np.ndarray] = [x, ints(starts), ints(ends), ints(axes)]
        return str(edit.add("Slice", inputs if steps is None else [*inputs, ints(steps)]))
    if steps is not None and any(s != 1 for s in steps):
        raise Skip("Slice has no steps before opset 10; export at a newer opset")
    return str(edit.add("Slice", [x], starts=list(starts), ends=list(ends), axes=list(axes)))


def pad(edit: Edit, x: str, begins: Sequence[int], ends: Sequence[int], value: np.ndarray | None = None) -> str:
    """Constant padding of all axes; `value` is a scalar array of x's dtype, zero when None."""
    pads = [*begins, *ends]
    if edit.graph.opset() >= 11:
        inputs: list[str | np.ndarray] = [x, ints(pads)]
        return str(edit.add("Pad", inputs if value is None else [*inputs, value], mode="constant"))
    return str(edit.add("Pad", [x], pads=pads, value=0.0 if value is None else float(value), mode="constant"))


def split(edit: Edit, x: str, sizes: Sequence[int], axis: int) -> list[str]:
    """`x` cut along `axis` into parts of these sizes."""
    if len(sizes) == 1:
        return [x]
    if edit.graph.opset() >= 13:
        return list(edit.add("Split", [x, ints(sizes)], outputs=len(sizes), axis=axis))
    return list(edit.add("Split", [x], outputs=len(sizes), axis=axis, split=list(sizes)))


def clip(edit: Edit, x: str, low: np.ndarray | None, high: np.ndarray | None) -> str:
    """Bounds are scalar arrays of x's dtype."""
    if edit.graph.opset() >= 11:
        inputs: list[str | np.ndarray] = [x, "" if low is None else low]
        return str(edit.add("Clip", inputs if high is None else [*inputs, high]))
    return str(
        edit.add("Clip", [x], min=None if low is None else float(low), max=None if high is None else float(high))
    )


def concat(edit: Edit, parts: Sequence[str | np.ndarray], axis: int) -> str:
    """The parts along `axis`; a single part as it is."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return str(edit.add("Concat", parts, axis=axis))


def scalar(edit: Edit, value: float, like: str) -> np.ndarray:
    """A rank-0 array of the dtype of the value `like`. Raises Skip when that dtype is unknown."""
    from onnx.helper import tensor_dtype_to_np_dtype

    dtype = edit.graph.dtype(like)
    if dtype == TensorProto.UNDEFINED:
        raise Skip(f"the dtype of '{like}' is not known")
    return np.asarray(value, tensor_dtype_to_np_dtype(dtype))
