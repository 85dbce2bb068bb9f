import numpy as np
from onnx import TensorProto

from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class IsInf(Rule):
    ops = ("IsInf",)

    def match(self, node: Node, ctx: Context) -> bool | None:
        if node.graph.dtype(node.input(0)) not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            raise Skip("only FLOAT, FLOAT16 and DOUBLE can be computed otherwise")
        if not node.attr("detect_negative") and not node.attr("detect_positive"):
            raise Skip("it looks for neither infinity")
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        x = node.input(0)
        largest = float(np.finfo(elementwise.dtype_of(node.graph, x)).max)
        if not node.attr("detect_positive"):
            result = edit.add("Less", [x, elementwise.full(edit, x, -largest)])
        else:
            size = edit.add("Abs", [x]) if node.attr("detect_negative") else x
            result = edit.add("Greater", [size, elementwise.full(edit, x, largest)])
        edit.replace_node(node, result)
