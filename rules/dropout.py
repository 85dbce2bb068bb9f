from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix import emit, folding
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class Dropout(Rule):
    ops = ("Dropout",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool | None:
        graph = node.graph
        if self._training(node) and not self._keeps_all(node):
            raise Skip("it drops at random: training mode; export the model in evaluation mode")
        if not graph.unused(node.output(1)) and (node.opset < 12 or not ctx.refused(node)):
            raise Skip("its mask is used")
        if folding.passes(node, node.input(0)):
            return True
        return True if ctx.refused(node) and not folding.returned(graph, node.output(0)) else None

    @staticmethod
    def _training(node: Node) -> bool:
        if node.opset < 7:
            return not node.attr("is_test")
        if not node.input(2):
            return False
        mode = node.graph.const(node.input(2))
        if mode is None:
            raise Skip("its training mode is computed; export the model in evaluation mode")
        return bool(mode)

    @staticmethod
    def _keeps_all(node: Node) -> bool:
        if node.opset < 12:
            return node.attr("ratio") == 0
        ratio = node.graph.const(node.input(1)) if node.input(1) else None
        return ratio is not None and float(ratio) == 0

    def rewrite(self, node: Node, found: Any, edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, node.input(0), "" if node.graph.unused(node.output(1)) else self._mask(node, edit))

    @staticmethod
    def _mask(node: Node, edit: Edit) -> str:
        """What keeps everything: true, in the shape of the input."""
        shape = node.graph.static_shape(node.input(0))
        if shape is not None:
            return edit.const(np.ones(shape, np.bool_))
        ones = edit.add("Expand", [np.float32(1), edit.add("Shape", [node.input(0)])])
        return emit.cast(edit, ones, TensorProto.BOOL)
