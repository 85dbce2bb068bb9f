import math
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise, sampling, window
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


@dataclass
class _Deformed:
    window: window.Window
    shape: tuple[int, ...]  # of the image
    weights: tuple[int, ...]
    output: tuple[int, int]  # height and width
    groups: int  # of offsets


class DeformConv(Rule):
    ops = ("DeformConv",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Deformed:
        graph = node.graph
        shape, weights, offset = (elementwise.static(graph, node.input(i)) for i in range(3))
        if graph.dtype(node.input(0)) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            raise Skip("only FLOAT and FLOAT16 are written out")
        if len(shape) != 4:
            raise Skip("only images of two dimensions are written out")
        if 0 in (*shape, *offset) or math.prod(shape[2:]) >= sampling.LARGEST:
            raise Skip("the image is empty or has too many pixels")
        return _Deformed(window.read(node), shape, weights, offset[2:], node.attr("offset_group"))

    def rewrite(self, node: Node, found: _Deformed, edit: Edit, ctx: Context) -> None:
        (batch, channels, height, width), groups = found.shape, found.groups
        count, points = math.prod(found.window.kernel), math.prod(found.output)
        image = emit.reshape(edit, node.input(0), [batch * groups, channels // groups, height * width])
        taken = sampling.bilinear(edit, image, self._places(node, found, edit), (height, width))
        if node.input(4):
            taken = edit.add("Mul", [taken, emit.reshape(edit, node.input(4), [batch * groups, 1, count * points])])
        columns = emit.reshape(edit, taken, [batch, channels * count, *found.output])
        weights = emit.reshape(edit, node.input(1), [found.weights[0], found.weights[1] * count, 1, 1])
        inputs = [columns, weights, *node.inputs[3:4]]
        edit.replace_node(
            node, edit.add("Conv", inputs if inputs[-1] else inputs[:2], kernel_shape=[1, 1], group=node.attr("group"))
        )

    @staticmethod
    def _places(node: Node, found: _Deformed, edit: Edit) -> tuple[str, str]:
        """Rows and columns that each element of each window looks at: FLOAT [batch * groups, 1, elements * points]."""
        batch, count = found.shape[0], math.prod(found.window.kernel)
        offsets = emit.reshape(edit, node.input(2), [batch * found.groups, count, 2, *found.output])
        regular = np.zeros((2, count, *found.output), np.float32)
        for axis, (out, stride, begin) in enumerate(
            zip(found.output, found.window.strides, found.window.begins, strict=True)
        ):
            starts = (np.arange(out) * stride - begin).reshape((-1, 1) if axis == 0 else (1, -1))
            regular[axis] = np.array([taps[axis] for taps in window.taps(found.window)]).reshape(-1, 1, 1) + starts
        places = []
        for axis, part in enumerate(emit.split(edit, offsets, [1, 1], 2)):
            moved = edit.add("Add", [emit.cast(edit, part, TensorProto.FLOAT), regular[axis][:, None]])
            places.append(emit.reshape(edit, moved, [batch * found.groups, 1, -1]))
        return places[0], places[1]
