import math
from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise, scatter
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_NUMBERS = 1 << 24  # more are not put side by side


@dataclass
class _Blocks:
    size: int  # of one block
    count: int  # of blocks
    image: tuple[int, ...]
    sources: np.ndarray  # for each pixel, which elements of the columns add up to it, as scatter.contributors


class Col2Im(Rule):
    ops = ("Col2Im",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Blocks:
        graph = node.graph
        image, block = graph.const(node.input(1)), graph.const(node.input(2))
        shape = graph.shape(node.input(0))
        if image is None or block is None:
            raise Skip("the shape of the image or of its blocks is computed")
        if shape is None or len(shape) != 3 or not isinstance(shape[1], int) or not isinstance(shape[2], int):
            raise Skip(f"the channels of '{node.input(0)}' and the number of its blocks are not known")
        elementwise.dtype_of(graph, node.input(0))
        places, blocks = self._places(node, image, block)
        size = math.prod(block.tolist())
        if blocks != shape[2] or shape[1] % size or 0 in shape[1:]:
            raise Skip("its columns don't belong to this image")
        pixels = math.prod(image.tolist())
        inside = places < pixels
        sources = scatter.contributors(places[inside], pixels)
        sources = np.append(np.flatnonzero(inside), len(places))[sources]  # numbers among all elements of the columns
        if sources.size * shape[1] // size > _NUMBERS:
            raise Skip("the image is too large to add it up at once")
        return _Blocks(size, blocks, tuple(image.tolist()), sources)

    @staticmethod
    def _places(node: Node, image: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, int]:
        """The pixel that each element of a channel's columns falls on, the number of pixels where it falls outside."""
        ones = [1] * len(image)
        strides, dilations = node.attr("strides") or ones, node.attr("dilations") or ones
        pads = node.attr("pads") or [0] * 2 * len(image)
        grids = []
        for i, (size, k, s, d) in enumerate(zip(image, block, strides, dilations, strict=True)):
            count = (size + pads[i] + pads[len(image) + i] - d * (k - 1) - 1) // s + 1
            grids.append(np.arange(k)[:, None] * d + np.arange(count) * s - pads[i])  # [element of block, block]
        blocks = math.prod(g.shape[1] for g in grids)
        place, inside = np.zeros(1, np.int64), np.ones(1, bool)
        for size, grid in zip(image, grids, strict=True):
            # All elements of blocks so far, times those of this axis; the blocks stay behind the elements.
            place = place[..., None] * size + np.clip(grid, 0, size - 1).reshape(-1)
            inside = inside[..., None] & ((grid >= 0) & (grid < size)).reshape(-1)
        axes = [n for g in grids for n in g.shape]
        order = [*range(0, len(axes), 2), *range(1, len(axes), 2)]
        flat = np.where(inside, place, math.prod(image.tolist())).reshape(axes).transpose(order)
        return flat.reshape(-1), blocks

    def rewrite(self, node: Node, found: _Blocks, edit: Edit, ctx: Context) -> None:
        x, shape = node.input(0), node.graph.shape(node.input(0)) or ()
        channels = int(shape[1]) // found.size
        flat = emit.reshape(edit, x, [0, channels, found.size * found.count])
        if (found.sources == found.size * found.count).any():
            flat = emit.pad(edit, flat, [0, 0, 0], [0, 0, 1])  # a zero for pixels that fewer blocks cover
        if len(found.sources) == 1:
            total = edit.add("Gather", [flat, found.sources[0]], axis=2)
        else:
            total = emit.reduce(edit, "ReduceSum", edit.add("Gather", [flat, found.sources], axis=2), [2], keepdims=0)
        edit.replace_node(node, emit.reshape(edit, total, [0, channels, *found.image]))
