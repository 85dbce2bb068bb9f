import math

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import pad
from onnxfix.rule import Context, Edit, Node, Rule

_CAST_FIRST = (TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16)  # rule pad-dtype
_LARGE = 1 << 16  # elements above which a block is expanded at run time instead of stored


class PadConstant(Rule):
    ops = ("Pad",)

    def match(self, node: Node, ctx: Context) -> pad.Padding | None:
        if (node.attr("mode") or "constant") != "constant" or node.input(3):
            return None
        if node.graph.dtype(node.input(0)) in _CAST_FIRST:
            return None
        padding = pad.read(node)
        pad.cropped(node.graph, node.input(0), padding)
        return padding if _blocks(padding) or any(p < 0 for p in (*padding.begins, *padding.ends)) else None

    def rewrite(self, node: Node, padding: pad.Padding, edit: Edit, ctx: Context) -> None:
        sizes = pad.cropped(node.graph, node.input(0), padding)
        begins, ends = ([max(0, p) for p in side] for side in (padding.begins, padding.ends))
        blocks = _blocks(padding)
        x = pad.crop(edit, node.input(0), padding)
        for axis in blocks:
            parts: list[str | np.ndarray] = [x]
            if begins[axis]:
                parts.insert(0, _block(edit, x, sizes, axis, begins[axis], padding.value))
            if ends[axis]:
                parts.append(_block(edit, x, sizes, axis, ends[axis], padding.value))
            x = emit.concat(edit, parts, axis)
            size = sizes[axis]
            sizes[axis] = None if size is None else size + begins[axis] + ends[axis]
            begins[axis] = ends[axis] = 0
        if any((*begins, *ends)):
            x = emit.pad(edit, x, begins, ends)
        edit.replace_node(node, x)


def _blocks(padding: pad.Padding) -> list[int]:
    """The axes to be grown by Concat: all but zeros on the last two, which every release pads itself."""
    own = range(padding.rank - 2, padding.rank) if padding.value == 0 else range(0)
    return [a for a in range(padding.rank) if max(padding.begins[a], padding.ends[a]) > 0 and a not in own]


def _block(edit: Edit, x: str, sizes: list[int | None], axis: int, count: int, value: np.ndarray) -> str | np.ndarray:
    """The value `count` times along `axis`, of x's size along the others."""
    known = [count if a == axis else s for a, s in enumerate(sizes)]
    fixed = [s for s in known if s is not None]
    if len(fixed) == len(known) and math.prod(fixed) <= _LARGE:
        return np.full(fixed, value, value.dtype)
    if len(fixed) == len(known):
        shape: str | np.ndarray = emit.ints(fixed)
    else:
        whole = edit.add("Shape", [x])
        parts: list[str | np.ndarray] = []
        if axis:
            parts.append(emit.slice_(edit, whole, [0], [axis], [0]))
        parts.append(emit.ints([count]))
        if axis < len(sizes) - 1:
            parts.append(emit.slice_(edit, whole, [axis + 1], [len(sizes)], [0]))
        shape = emit.concat(edit, parts, 0)
    return str(edit.add("Expand", [value.reshape([1] * len(sizes)), shape]))
