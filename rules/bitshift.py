from onnx import TensorProto

from onnxfix.lowering import bits
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class BitShift(Rule):
    ops = ("BitShift",)

    def match(self, node: Node, ctx: Context) -> int | None:
        own = node.graph.dtype(node.input(0))
        if own not in bits.WIDTHS:
            return None
        if ctx.target.narrows(TensorProto.INT64):
            raise Skip("shifting is multiplying and dividing in INT64, which the target cuts to INT32")
        return own

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        value = bits.shifted(edit, node.input(0), node.input(1), found, str(node.attr("direction")))
        edit.replace_node(node, value)
