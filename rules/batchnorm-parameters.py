from onnxfix.lowering import norm
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class BatchNormParameters(Rule):
    ops = ("BatchNormalization",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> int | None:
        graph = node.graph
        if node.attr("training_mode") or any(node.outputs[1:]) or all(graph.is_const(i) for i in node.inputs[1:]):
            return None
        if node.opset < 9 and node.attr("spatial") == 0:
            raise Skip("it normalises each place by itself (spatial=0)")
        rank = graph.rank(node.input(0))
        if rank is None:
            raise Skip(f"the rank of '{node.input(0)}' is not known")
        if len({graph.dtype(i) for i in node.inputs}) > 1 or not graph.dtype(node.input(0)):
            raise Skip("input and parameters are of several dtypes")
        return rank

    def rewrite(self, node: Node, rank: int, edit: Edit, ctx: Context) -> None:
        x, scale, bias, mean, variance = node.inputs
        epsilon = norm.constant(node.attr("epsilon"), node.graph.dtype(x))
        factor = edit.add("Div", [scale, edit.add("Sqrt", [edit.add("Add", [variance, epsilon])])])
        centred = edit.add("Sub", [x, norm.per_channel(edit, mean, rank)])
        scaled = edit.add("Mul", [centred, norm.per_channel(edit, factor, rank)])
        edit.replace_node(node, edit.add("Add", [scaled, norm.per_channel(edit, bias, rank)]))
