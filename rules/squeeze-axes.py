from onnxfix import emit
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class SqueezeAxes(Rule):
    ops = ("Squeeze", "Unsqueeze")

    def match(self, node: Node, ctx: Context) -> list[int] | None:
        if not node.input(1):
            return None
        shape = node.graph.shape(node.output(0))
        if shape is None:
            raise Skip(f"the rank of '{node.output(0)}' is not known")
        dims = [d if isinstance(d, int) else -1 for d in shape]
        if dims.count(-1) > 1:
            raise Skip(f"{dims.count(-1)} of the dimensions that come out are not known; freeze the dynamic axes")
        if 0 in dims:
            raise Skip("it is empty, and Reshape reads a 0 otherwise")
        return dims

    def rewrite(self, node: Node, dims: list[int], edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, emit.reshape(edit, node.input(0), dims))
