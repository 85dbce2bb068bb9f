"""Reading Pad in all its forms, and what rules build instead of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Graph, Node

_LAST = np.iinfo(np.int64).max  # "to the end", as an end of Slice


@dataclass(frozen=True)
class Padding:
    """A Pad with known amounts, one of `begins` and of `ends` for each axis; negative amounts crop."""

    mode: str
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    value: np.ndarray  # rank 0; of the data's dtype unless that is not known

    @property
    def rank(self) -> int:
        return len(self.begins)

    @property
    def moved(self) -> list[int]:
        """The axes whose size changes at either end."""
        return [a for a in range(self.rank) if self.begins[a] or self.ends[a]]


def read(node: Node) -> Padding:
    """The amounts, mode and value of a Pad. Raises Skip when they are not known before the model runs."""
    amounts = _amounts(node)
    axes = _axes(node)
    mode = node.attr("mode") or "constant"
    half = len(amounts) // 2
    begins, ends = amounts[:half], amounts[half:]
    if axes is not None:
        rank = node.graph.rank(node.input(0))
        if rank is None:
            raise Skip(f"the rank of '{node.input(0)}' is not known, so its padded axes are not")
        begins, ends = widen(begins, axes, rank), widen(ends, axes, rank)
    return Padding(mode, tuple(begins), tuple(ends), _value(node))


def _amounts(node: Node) -> list[int]:
    if node.opset < 11:
        listed = node.attr("pads")
        if listed is None:
            raise Skip("the pads of this opset are not read; convert the model to opset 7 or newer")
        return [int(p) for p in listed]
    known = node.graph.known(node.input(1))
    amounts = [p for p in known or () if p is not None]
    if known is None or len(amounts) < len(known):
        raise Skip("the amounts to pad are computed from what is not fixed; freeze the dynamic axes")
    return amounts


def _axes(node: Node) -> list[int] | None:
    if not node.input(3):
        return None
    known = node.graph.known(node.input(3))
    axes = [a for a in known or () if a is not None]
    if known is None or len(axes) < len(known):
        raise Skip("the axes to pad are computed; make them constant")
    return axes


def widen(amounts: Sequence[int], axes: Sequence[int], rank: int) -> list[int]:
    """The amounts of the listed axes, spread over all axes."""
    full = [0] * rank
    for axis, amount in zip(axes, amounts, strict=True):
        full[axis] = amount
    return full


def _value(node: Node) -> np.ndarray:
    graph = node.graph
    number = graph.dtype(node.input(0))
    dtype = tensor_dtype_to_np_dtype(number) if number else np.dtype(np.float32)
    if node.opset < 11:
        return np.asarray(node.attr("value") or 0.0, dtype)
    if not node.input(2):
        return np.zeros((), dtype)
    value = graph.const(node.input(2))
    if value is None or value.size != 1:
        raise Skip("the value to pad with is computed; make it constant")
    return value.reshape(())


# ---- building ----


def crop(edit: Edit, x: str, padding: Padding) -> str:
    """`x` without what negative amounts take away."""
    axes = [a for a in range(padding.rank) if padding.begins[a] < 0 or padding.ends[a] < 0]
    if not axes:
        return x
    starts = [max(0, -padding.begins[a]) for a in axes]
    ends = [min(0, padding.ends[a]) or _LAST for a in axes]
    return emit.slice_(edit, x, starts, ends, axes)


def cropped(graph: Graph, name: str, padding: Padding) -> list[int | None]:
    """The sizes of `name` after `crop`, None each unknown. Raises Skip when nothing is left of an axis."""
    shape = graph.shape(name) or (None,) * padding.rank
    sizes = [d if isinstance(d, int) else None for d in shape]
    left = [
        None if size is None else size + min(0, begin) + min(0, end)
        for size, begin, end in zip(sizes, padding.begins, padding.ends, strict=True)
    ]
    if any(size is not None and size <= 0 for size in left):
        raise Skip("the pads crop an axis to nothing")
    return left


def repeat(edit: Edit, x: str, mode: str, axis: int, begin: int, end: int, size: int | None) -> str:
    """`x` grown along one axis by its own elements: reflect, edge or wrap.

    `size` is the axis' length, None where it is not known, which only reflect and edge take.
    """
    if size is not None:
        index = np.pad(np.arange(size), (begin, end), mode=mode)  # type: ignore[call-overload]
        return str(edit.add("Gather", [x, index.astype(np.int64)], axis=axis))
    parts = [x]
    if begin:
        parts.insert(0, _before(edit, x, mode, axis, begin))
    if end:
        parts.append(_behind(edit, x, mode, axis, end))
    return emit.concat(edit, parts, axis)


def _before(edit: Edit, x: str, mode: str, axis: int, count: int) -> str:
    index = range(count, 0, -1) if mode == "reflect" else [0] * count
    return str(edit.add("Gather", [x, emit.ints(index)], axis=axis))


def _behind(edit: Edit, x: str, mode: str, axis: int, count: int) -> str:
    if mode == "reflect":
        tail = emit.slice_(edit, x, [-count - 1], [-1], [axis])
        return str(edit.add("Gather", [tail, emit.ints(range(count - 1, -1, -1))], axis=axis))
    tail = emit.slice_(edit, x, [-1], [_LAST], [axis])
    return str(edit.add("Gather", [tail, emit.ints([0] * count)], axis=axis))


# ---- what is known of values ----

_FLOOR = dict.fromkeys(("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Sqrt", "Abs", "Softplus"), 0.0)
_FLOOR |= dict.fromkeys(("Tanh", "Softsign", "Sin", "Cos"), -1.0)
_KEEPS = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Expand"})
_KEEPS |= {"Split", "Tile", "DepthToSpace", "SpaceToDepth"}


def floor_of(graph: Graph, name: str, steps: int = 16) -> float:
    """A bound that no element of the value is below; -inf when none can be shown. Looks back over `steps` nodes."""
    node = graph.producer(name)
    if node is None or node.domain or not steps:
        return -math.inf
    if node.op in _FLOOR:
        return _FLOOR[node.op]
    if node.op == "Clip":
        low, high = (_bound(node, name, i) for i, name in ((1, "min"), (2, "max")))
        if high is None:
            return -math.inf
        # Where the bounds cross, the result is the upper one.
        below = floor_of(node.graph, node.input(0), steps - 1)
        return min(below if low is None else max(low, below), high)
    if node.op in _KEEPS:
        return floor_of(node.graph, node.input(0), steps - 1)
    if node.op == "Concat":
        return min(floor_of(node.graph, i, steps // len(node.inputs)) for i in node.inputs)
    return -math.inf


def _bound(node: Node, name: str, index: int) -> float | None:
    """A bound of Clip, infinite when left out, None when it is computed."""
    if node.opset >= 11 and node.input(index):
        array = node.graph.const(node.input(index))
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None
    value = node.attr(name) if node.opset < 11 else None
    return float(value) if value is not None else (-math.inf if name == "min" else math.inf)


def lowest(dtype: np.dtype[Any]) -> float:
    """The smallest finite number of a dtype."""
    if dtype.kind in "iu":
        return float(np.iinfo(dtype).min)
    if dtype.kind == "f":
        return float(np.finfo(dtype).min)
    import ml_dtypes  # comes with onnx; bfloat16 and its kin

    info: Any = ml_dtypes.finfo
    return float(info(dtype).min)
