from onnxfix.rule import Context, Edit, Node, Rule, Skip


class ReshapeAllowZero(Rule):
    ops = ("Reshape",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool | None:
        if node.attr("allowzero") != 1:
            return None
        shape = node.graph.known(node.input(1))
        if shape is None or None in shape:
            raise Skip("the target shape is computed, and may hold a 0")
        if 0 in shape:
            raise Skip("the target shape has a 0, which allowzero makes an empty dimension")
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        edit.set_attr(node, "allowzero", None)
        edit.note = "allowzero is dropped: the target shape has no 0"
