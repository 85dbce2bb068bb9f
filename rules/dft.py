from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise, fourier
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


@dataclass
class _Transform:
    shape: tuple[int | str | None, ...]  # of the input; its last axis holds the parts of a number
    axis: int
    taken: int
    matrix: np.ndarray  # as fourier.matrix


class Dft(Rule):
    ops = ("DFT",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Transform:
        graph = node.graph
        shape = graph.shape(node.input(0))
        if shape is None or len(shape) < 2:
            raise Skip(f"the shape of '{node.input(0)}' is not known")
        axis = elementwise.axis_of(self._axis(node), len(shape))
        size, parts = shape[axis], shape[-1]
        if not isinstance(size, int) or parts not in (1, 2) or axis == len(shape) - 1:
            raise Skip("the length of its axis is not known; freeze the dynamic axes")
        if elementwise.dtype_of(graph, node.input(0)) not in (np.float32, np.float16):
            raise Skip("only FLOAT and FLOAT16 are transformed")
        inverse, onesided = bool(node.attr("inverse")), bool(node.attr("onesided"))
        if onesided and (parts == 2) != inverse:
            raise Skip("one-sided transforms are those of real numbers")
        length = self._length(node, 2 * (size - 1) if onesided and inverse else size)
        taken = min(size, length // 2 + 1 if onesided and inverse else length)
        if taken < 1 or taken * length * parts * 2 > fourier.LARGEST:
            raise Skip(f"a transform of {length} numbers is too large for a matrix")
        matrix = fourier.matrix(taken, length, parts, inverse=inverse, onesided=onesided)
        return _Transform(shape, axis, taken, matrix)

    @staticmethod
    def _axis(node: Node) -> int:
        if node.opset < 20:
            return int(node.attr("axis"))
        axis = node.graph.const(node.input(2)) if node.input(2) else np.int64(-2)
        if axis is None:
            raise Skip("its axis is computed")
        return int(axis)

    @staticmethod
    def _length(node: Node, default: int) -> int:
        if not node.input(1):
            return default
        length = node.graph.const(node.input(1))
        if length is None:
            raise Skip("the length of the transform is computed")
        return int(length)

    def rewrite(self, node: Node, found: _Transform, edit: Edit, ctx: Context) -> None:
        x, rank, axis = node.input(0), len(found.shape), found.axis
        dtype = elementwise.dtype_of(node.graph, x)
        _, parts, results, parts_after = found.matrix.shape
        if found.taken < int(found.shape[axis] or 0):
            x = emit.slice_(edit, x, [0], [found.taken], [axis])
        # The axis goes to the end, so that a product of matrices sums over it and over the parts of its numbers.
        last = [*(i for i in range(rank - 1) if i != axis), axis, rank - 1]
        flat = self._rows(edit, emit.transpose(edit, x, last), rank - 2, [found.taken * parts])
        product = edit.add("MatMul", [flat, found.matrix.reshape(found.taken * parts, -1).astype(dtype)])
        shaped = self._rows(edit, product, rank - 2, [results, parts_after])
        edit.replace_node(node, emit.transpose(edit, shaped, np.argsort(last).tolist()))

    @staticmethod
    def _rows(edit: Edit, x: str, kept: int, rest: list[int]) -> str:
        """`x` with all but its first `kept` axes made into `rest`."""
        return emit.reshape(edit, x, [*[0] * kept, *rest])
