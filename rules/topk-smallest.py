from onnx import TensorProto

from onnxfix.rule import Context, Edit, Node, Rule, Skip


class TopKSmallest(Rule):
    ops = ("TopK",)

    def match(self, node: Node, ctx: Context) -> bool | None:
        if node.attr("largest") != 0:
            return None
        if node.graph.dtype(node.input(0)) not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            raise Skip("integers can't all be negated; cast the input to FLOAT")
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        mirrored = edit.add("Neg", [node.input(0)])
        kept = {a.name: node.attr(a.name) for a in node.proto.attribute if a.name != "largest"}
        values, indices = edit.add("TopK", [mirrored, node.input(1)], outputs=2, largest=1, **kept)
        edit.replace_node(node, edit.add("Neg", [values]) if node.output(0) else values, indices)
