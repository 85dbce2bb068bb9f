from onnxfix.lowering import reduce
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_COPY = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")


class ReduceNoop(Rule):
    ops = reduce.OPERATORS

    def match(self, node: Node, ctx: Context) -> str | None:
        axes = reduce.axes(node)
        if not axes and node.attr("noop_with_empty_axes"):
            if node.op not in _COPY:
                raise Skip(f"runtimes differ on what {node.op} over no axis is; name the axes, or take the node out")
            return "nothing"
        if axes and node.input(1) and len(axes) == node.graph.rank(node.input(0)):
            return "everything"
        return None

    def rewrite(self, node: Node, found: str, edit: Edit, ctx: Context) -> None:
        if found == "nothing":
            edit.replace_node(node, edit.add("Identity", [node.input(0)]))
        else:
            edit.set_attr(node, "noop_with_empty_axes", None)
            edit.set_inputs(node, [node.input(0)])
