import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class CompressConstant(Rule):
    ops = ("Compress",)

    def match(self, node: Node, ctx: Context) -> np.ndarray:
        condition = node.graph.const(node.input(1))
        if condition is None:
            raise Skip("how much is left is only known when the model runs; TensorRT needs it beforehand")
        chosen = np.flatnonzero(condition)
        if not len(chosen):
            raise Skip("nothing is left")
        if node.attr("axis") is not None:
            elementwise.axis_of(node.attr("axis"), elementwise.rank_of(node.graph, node.input(0)))
        return chosen

    def rewrite(self, node: Node, found: np.ndarray, edit: Edit, ctx: Context) -> None:
        x, axis = node.input(0), node.attr("axis")
        if axis is None:
            x, axis = emit.reshape(edit, x, [-1]), 0
        edit.replace_node(node, edit.add("Gather", [x, found], axis=axis))
