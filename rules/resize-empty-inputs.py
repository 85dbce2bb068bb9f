from onnxfix.rule import Context, Edit, Node, Rule


class ResizeEmptyInputs(Rule):
    ops = ("Resize",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> list[int] | None:
        if node.opset < 13:
            return None  # until then both inputs are mandatory
        crops = node.attr("coordinate_transformation_mode") == "tf_crop_and_resize"
        optional = [i for i in (1, 2) if node.input(i) and not (crops and i == 1)]
        # A roi that is not used may go whatever it holds.
        gone = [i for i in optional if i == 1 or _empty(node, node.input(i))]
        return gone or None

    def rewrite(self, node: Node, found: list[int], edit: Edit, ctx: Context) -> None:
        edit.set_inputs(node, ["" if i in found else name for i, name in enumerate(node.inputs)])


def _empty(node: Node, name: str) -> bool:
    return node.graph.static_shape(name) == (0,)
