from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


@dataclass
class _Box:
    bounds: list[tuple[int, int]]  # first and last + 1, for each axis that the indices cover
    shape: tuple[int, ...]


class ScatterNDBox(Rule):
    ops = ("ScatterND",)

    def match(self, node: Node, ctx: Context) -> _Box | None:
        graph = node.graph
        if node.attr("reduction") not in (None, "none"):
            raise Skip("it adds to what is there (or multiplies, or compares) instead of replacing it")
        indices = graph.const(node.input(1))
        if indices is None:
            raise Skip("its indices are computed; export a slice assignment with fixed bounds")
        shape = elementwise.static(graph, node.input(0))
        depth = indices.shape[-1]
        places = indices.reshape(-1, depth)
        places = np.where(places < 0, places + np.asarray(shape[:depth]), places)
        if not len(places):
            raise Skip("it replaces nothing")
        bounds = [(int(low), int(high) + 1) for low, high in zip(places.min(0), places.max(0), strict=True)]
        grid = np.meshgrid(*(np.arange(low, high) for low, high in bounds), indexing="ij")
        box = np.stack(grid, -1).reshape(-1, depth)
        if box.shape != places.shape or (box != places).any():
            raise Skip("what its indices select is no box in row order: it has steps, gaps or repetitions")
        return _Box(bounds, shape)

    def rewrite(self, node: Node, found: _Box, edit: Edit, ctx: Context) -> None:
        sizes = [high - low for low, high in found.bounds]
        updates = emit.reshape(edit, node.input(2), [*sizes, *found.shape[len(sizes) :]])
        edit.replace_node(node, self._replaced(edit, node.input(0), updates, found, 0))

    def _replaced(self, edit: Edit, data: str, updates: str, box: _Box, axis: int) -> str:
        """`data`, already cut to the box on the axes before `axis`, with the box replaced."""
        if axis == len(box.bounds):
            return updates
        (low, high), size = box.bounds[axis], box.shape[axis]
        rest = box.bounds[axis + 1 :]
        whole = all(bounds == (0, box.shape[axis + 1 + i]) for i, bounds in enumerate(rest))
        middle = updates
        if not whole:
            cut = data if (low, high) == (0, size) else emit.slice_(edit, data, [low], [high], [axis])
            middle = self._replaced(edit, cut, updates, box, axis + 1)
        before = [emit.slice_(edit, data, [0], [low], [axis])] if low else []
        after = [emit.slice_(edit, data, [high], [size], [axis])] if high < size else []
        return emit.concat(edit, [*before, middle, *after], axis)
