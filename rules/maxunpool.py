import math

import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class MaxUnpool(Rule):
    ops = ("MaxUnpool",)

    def match(self, node: Node, ctx: Context) -> tuple[int, ...]:
        graph = node.graph
        shape = elementwise.static(graph, node.input(0))
        elementwise.dtype_of(graph, node.input(0))
        axes = len(shape) - 2
        kernel, strides = node.attr("kernel_shape"), node.attr("strides") or [1] * axes
        pads = node.attr("pads") or [0] * 2 * axes
        sizes = [(shape[i + 2] - 1) * strides[i] - pads[i] - pads[axes + i] + kernel[i] for i in range(axes)]
        unpooled = (*shape[:2], *sizes)
        if node.input(2):
            asked = graph.const(node.input(2))
            if asked is None:
                raise Skip("the shape of its output is computed; freeze the dynamic axes")
            if tuple(asked.tolist()) != unpooled:
                raise Skip("its output is larger than what was pooled: runtimes disagree on what the indices count")
        return unpooled

    def rewrite(self, node: Node, found: tuple[int, ...], edit: Edit, ctx: Context) -> None:
        dtype = elementwise.dtype_of(node.graph, node.input(0))
        values, places = (emit.reshape(edit, name, [-1]) for name in node.inputs[:2])
        nothing = np.zeros(math.prod(found), dtype)
        flat = edit.add("ScatterElements", [nothing, places, values], axis=0)
        edit.replace_node(node, emit.reshape(edit, flat, found))
