import math

import numpy as np

from onnxfix.lowering import norm, window
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class PoolLp(Rule):
    ops = ("LpPool",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> window.Window:
        geometry = window.read(node)
        if not window.rounds_down(node, geometry):
            raise Skip("ceil_mode adds a last window here; export with ceil_mode=False or freeze the sizes")
        if any(d != 1 for d in geometry.dilations):
            window.channels(node)  # raises Skip when they are not known
        norm.working_dtype(node.graph, node.input(0))
        return geometry

    def rewrite(self, node: Node, geometry: window.Window, edit: Edit, ctx: Context) -> None:
        p, dtype = node.attr("p"), node.graph.dtype(node.input(0))
        y = edit.add("Abs", [node.input(0)])
        if p == 2:
            y = edit.add("Mul", [y, y])
        elif p != 1:
            y = edit.add("Pow", [y, norm.constant(p, dtype)])
        y = self.total(node, y, geometry, edit)
        if p == 2:
            y = edit.add("Sqrt", [y])
        elif p != 1:
            y = edit.add("Pow", [y, norm.constant(1 / p, dtype)])
        edit.replace_node(node, y)

    def total(self, node: Node, x: str, geometry: window.Window, edit: Edit) -> str:
        """The sum of each window; padding counts as 0."""
        zero = norm.constant(0, node.graph.dtype(node.input(0)))
        if any(d != 1 for d in geometry.dilations):
            return window.weighted(edit, x, geometry, window.channels(node), zero.dtype, 1.0)
        mean = edit.add(
            "AveragePool",
            [x],
            kernel_shape=list(geometry.kernel),
            strides=list(geometry.strides),
            pads=geometry.pads,
            count_include_pad=1,
        )
        return str(edit.add("Mul", [mean, np.asarray(math.prod(geometry.kernel), zero.dtype)]))
