from onnxfix.rule import Context, Edit, Node, Rule, Skip


class UnusedOutput(Rule):
    ops = ("LayerNormalization", "MaxPool")

    def match(self, node: Node, ctx: Context) -> bool | None:
        extra = [o for o in node.outputs[1:] if o]
        if not extra:
            return None
        if all(node.graph.unused(o) for o in extra):
            return True
        if node.op == "MaxPool":
            raise Skip("its Indices are used, and TensorRT has no counterpart: change the network to do without")
        return None

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        attributes = {a.name: node.attr(a.name) for a in node.proto.attribute}
        edit.replace_node(node, edit.add(node.op, node.inputs, **attributes))
