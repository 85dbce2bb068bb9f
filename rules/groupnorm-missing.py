from onnxfix import emit
from onnxfix.lowering import norm
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class GroupNormMissing(Rule):
    ops = ("GroupNormalization",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> int:
        rank = node.graph.rank(node.input(0))
        if rank is None:
            raise Skip(f"the rank of '{node.input(0)}' is not known")
        norm.working_dtype(node.graph, node.input(0))
        return rank

    def rewrite(self, node: Node, rank: int, edit: Edit, ctx: Context) -> None:
        x, scale, bias = node.inputs
        graph, groups = node.graph, node.attr("num_groups")
        dtype = graph.dtype(x)
        work = norm.working_dtype(graph, x)
        y = emit.reshape(edit, emit.cast(edit, x, work), [0, groups, -1])
        y = norm.standardize(edit, y, [2], node.attr("epsilon"), work, ctx).result
        y = emit.cast(edit, y, dtype)
        if node.opset < 21:  # one scale and one bias for each group
            y = self.scaled(edit, y, scale, bias, 3)
        shape = [d if isinstance(d, int) else None for d in (graph.shape(x) or ())]
        if sum(d is None for d in shape[1:]) <= 1:
            y = emit.reshape(edit, y, [0, *(-1 if d is None else d for d in shape[1:])])
        else:
            y = edit.add("Reshape", [y, edit.add("Shape", [x])])
        if node.opset >= 21:  # one for each channel
            y = self.scaled(edit, y, scale, bias, rank)
        edit.replace_node(node, y)

    def scaled(self, edit: Edit, y: str, scale: str, bias: str, rank: int) -> str:
        y = edit.add("Mul", [y, norm.per_channel(edit, scale, rank)])
        return str(edit.add("Add", [y, norm.per_channel(edit, bias, rank)]))
