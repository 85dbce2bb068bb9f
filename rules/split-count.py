from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class SplitCount(Rule):
    ops = ("Split",)

    def match(self, node: Node, ctx: Context) -> list[int] | None:
        parts, shape = node.attr("num_outputs"), node.graph.shape(node.input(0))
        if not parts or node.input(1):
            return None
        if shape is None:
            raise Skip(f"the rank of '{node.input(0)}' is not known")
        size = shape[elementwise.axis_of(node.attr("axis"), len(shape))]
        if not isinstance(size, int):
            raise Skip("the size of the axis is not known; freeze the dynamic axes")
        step = -(-size // parts)
        return [max(min(step, size - i * step), 0) for i in range(parts)]

    def rewrite(self, node: Node, found: list[int], edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, *emit.split(edit, node.input(0), found, node.attr("axis")))
