import math
from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise, window
from onnxfix.rule import Context, Edit, Node, Rule, Skip


@dataclass
class _Indexed:
    window: window.Window
    shape: tuple[int, ...]


class MaxPoolIndices(Rule):
    ops = ("MaxPool",)

    def match(self, node: Node, ctx: Context) -> _Indexed | None:
        if not node.output(1) or node.graph.unused(node.output(1)):
            return None
        if elementwise.dtype_of(node.graph, node.input(0)).kind != "f":
            raise Skip("the Indices of whole numbers are not written out")
        shape = elementwise.static(node.graph, node.input(0))
        geometry = window.ceiled(node, window.read(node))
        if 0 in shape:
            raise Skip(f"'{node.input(0)}' is empty")
        return _Indexed(geometry, shape)

    def rewrite(self, node: Node, found: _Indexed, edit: Edit, ctx: Context) -> None:
        x, geometry = node.input(0), found.window
        if geometry.padded:
            least = np.asarray(-np.inf, elementwise.dtype_of(node.graph, x))
            x = emit.pad(edit, x, [0, 0, *geometry.begins], [0, 0, *geometry.ends], least)
        rank = len(found.shape)
        taken = emit.concat(edit, [self._tap(edit, x, offsets, geometry) for offsets in window.taps(geometry)], rank)
        value = edit.add("MaxPool", node.inputs, **{a.name: node.attr(a.name) for a in node.proto.attribute})
        which = edit.add("ArgMax", [taken], axis=rank, keepdims=0)  # the first of equals, as the standard has it
        steps = self._steps(node, found)
        jumps = np.array([sum(o * s for o, s in zip(offsets, steps, strict=True)) for offsets in window.taps(geometry)])
        corners = self._corners(edit.graph.static_shape(which) or (), found, steps)
        places = edit.add("Add", [edit.add("Gather", [jumps, which], axis=0), corners])
        edit.replace_node(node, value, places)

    @staticmethod
    def _tap(edit: Edit, x: str, offsets: tuple[int, ...], geometry: window.Window) -> str:
        """What lies at one place of every window, with a last axis to line up along."""
        for axis, offset, span, stride in zip(geometry.axes, offsets, geometry.spans, geometry.strides, strict=True):
            x = window.tap(edit, x, offset, span, stride, axis)
        return emit.unsqueeze(edit, x, [len(geometry.axes) + 2])

    @staticmethod
    def _steps(node: Node, found: _Indexed) -> list[int]:
        """How far apart in the flat tensor neighbours along each spatial axis are."""
        sizes = found.shape[2:]
        if node.attr("storage_order"):
            return [math.prod(sizes[:i]) for i in range(len(sizes))]
        return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]

    @staticmethod
    def _corners(pooled: tuple[int, ...], found: _Indexed, steps: list[int]) -> np.ndarray:
        """The flat number of each window's first element: INT64, negative where padding comes first."""
        total = np.zeros((), np.int64)
        planes = math.prod(found.shape[2:])
        for axis, size in enumerate(pooled):
            if axis < 2:
                along = np.arange(size) * planes * (found.shape[1] if axis == 0 else 1)
            else:
                stride, begin = found.window.strides[axis - 2], found.window.begins[axis - 2]
                along = (np.arange(size) * stride - begin) * steps[axis - 2]
            total = total[..., None] + along
        return total
