"""Attention as ONNX Runtime fuses it (Attention, QAttention, MultiHeadAttention), in matrix products and Softmax.

B is the batch, S the queries, T the keys with those of the past, N the heads, h the size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Node
from onnxfix.lowering import contrib


def to_heads(edit: Edit, x: str, heads: int) -> str:
    """B x S x N*h as B x N x S x h."""
    return emit.transpose(edit, emit.reshape(edit, x, [0, 0, heads, -1]), [0, 2, 1, 3])


def from_heads(edit: Edit, x: str, width: int) -> str:
    """B x N x S x h as B x S x `width` (N*h, or -1 where it isn't known)."""
    return emit.reshape(edit, emit.transpose(edit, x, [0, 2, 1, 3]), [0, 0, width])


def attend(edit: Edit, q: str, k: str, v: str, scale: float, masks: Sequence[str | np.ndarray], dtype: int) -> str:
    """softmax(q k' * scale + masks) v, all B x N x S x h."""
    scores = str(edit.add("MatMul", [q, emit.transpose(edit, k, [0, 1, 3, 2])]))
    scores = str(edit.add("Mul", [scores, contrib.number(scale, dtype)]))
    for mask in masks:
        scores = str(edit.add("Add", [scores, mask]))
    return str(edit.add("MatMul", [edit.add("Softmax", [scores], axis=3), v]))


class Lengths:
    """How many queries and keys there are: numbers where the shapes tell, else values of the graph."""

    def __init__(
        self, edit: Edit, q: str, k: str, queries: int | None, keys: int | None, queries_axis: int = 2
    ) -> None:
        self.edit, self.queries, self.keys = edit, queries, keys
        self._q, self._k, self._axis = q, k, queries_axis

    def _size(self, of: str, axis: int = 2) -> str:
        """The size of an axis, by default that of S or T in B x N x S x h, as a rank-0 INT64."""
        edit = self.edit
        return str(edit.add("Gather", [edit.add("Shape", [of]), np.asarray(axis, np.int64)], axis=0))

    def key_places(self) -> str | np.ndarray:
        """0 to T - 1."""
        if self.keys is not None:
            return np.arange(self.keys, dtype=np.int64)
        zero, one = np.asarray(0, np.int64), np.asarray(1, np.int64)
        return str(self.edit.add("Range", [zero, self._size(self._k), one]))

    def causal(self, dtype: int, window: int = -1) -> str | np.ndarray:
        """S x T: zero up to a query's own place, the lowest number behind it, and before its last `window` places."""
        lowest = np.asarray(np.finfo(contrib.number(0, dtype).dtype).min, contrib.number(0, dtype).dtype)
        if self.queries is not None and self.keys is not None:
            rows, columns = np.arange(self.keys - self.queries, self.keys)[:, None], np.arange(self.keys)[None]
            hidden = columns > rows if window < 0 else (columns > rows) | (columns <= rows - window)
            return np.where(hidden, lowest, np.zeros_like(lowest))
        edit, one = self.edit, np.asarray(1, np.int64)
        keys = self._size(self._k)
        first = str(edit.add("Sub", [keys, self._size(self._q, self._axis)]))
        rows_at = emit.unsqueeze(edit, str(edit.add("Range", [first, keys, one])), [1])
        places = self.key_places()
        columns_at = emit.unsqueeze(edit, places if isinstance(places, str) else edit.const(places), [0])
        out = edit.add("Less", [rows_at, columns_at])
        if window >= 0:
            since = edit.add("Sub", [rows_at, np.asarray(window - 1, np.int64)])
            out = edit.add("Or", [out, edit.add("Less", [columns_at, since])])
        return str(edit.add("Where", [out, lowest, np.zeros_like(lowest)]))


def padding(edit: Edit, mask: str, filter_value: float, lengths: Lengths, dtype: int, batch: int | None) -> str:
    """What to add to the scores for a mask of ONNX Runtime's: zero for keys that count, `filter_value` for others.

    By its rank: 1, how many keys of each sequence count (or ends, then starts); 2 and 3, B x T and B x S x T, which do.
    """
    graph = edit.graph
    shape = graph.shape(mask)
    if shape is None or len(shape) not in (1, 2, 3):
        raise Skip(f"the shape of its mask '{mask}' is not known, or of a form only GPUs have; feed a mask of rank 2")
    if len(shape) == 1:
        counted = _by_length(edit, mask, shape[0], lengths, batch)
        axes = [1, 2]
    else:
        zero = np.asarray(0, np.int32)
        counted = str(edit.add("Greater", [emit.cast(edit, mask, TensorProto.INT32), zero]))
        axes = [1, 2] if len(shape) == 2 else [1]
    values = edit.add("Where", [counted, contrib.number(0, dtype), contrib.number(filter_value, dtype)])
    return emit.unsqueeze(edit, str(values), axes)


def _by_length(edit: Edit, mask: str, size: object, lengths: Lengths, batch: int | None) -> str:
    """B x T: whether a key lies before its sequence's end, and not before its start."""
    if not isinstance(size, int) or batch is None or size not in (batch, 2 * batch):
        raise Skip(f"it can't be told whether its mask '{mask}' holds ends alone or starts too; freeze the batch size")
    places = lengths.key_places()
    columns = emit.unsqueeze(edit, places if isinstance(places, str) else edit.const(places), [0])
    wide = emit.cast(edit, mask, TensorProto.INT64)
    ends = wide if size == batch else emit.slice_(edit, wide, [0], [batch], [0])
    counted = str(edit.add("Less", [columns, emit.unsqueeze(edit, ends, [1])]))
    if size != batch:
        starts = emit.unsqueeze(edit, emit.slice_(edit, wide, [batch], [2 * batch], [0]), [1])
        counted = str(edit.add("And", [counted, edit.add("Not", [edit.add("Less", [columns, starts])])]))
    return counted


def part(edit: Edit, x: str, index: int, axis: int) -> str:
    """`x` at one index of an axis, which goes."""
    return str(edit.add("Gather", [x, np.asarray(index, np.int64)], axis=axis))


def cut(edit: Edit, x: str, sizes: Sequence[int], axis: int) -> list[str]:
    """`x` in parts along `axis`; constants are cut here."""
    array = edit.graph.const(x)
    if array is None:
        return emit.split(edit, x, sizes, axis)
    ends = np.cumsum(sizes)[:-1]
    return [edit.const(np.ascontiguousarray(p), "part") for p in np.split(array, ends, axis)]


def dim(node: Node, name: str, axis: int) -> int | None:
    shape = node.graph.shape(name) if name else None
    size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    return size if isinstance(size, int) else None


def scale_of(node: Node, head: int) -> float:
    return float(node.attr("scale", 0.0)) or 1 / math.sqrt(head)
