from onnxfix import emit
from onnxfix.lowering import norm
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class LayerNormMissing(Rule):
    ops = ("LayerNormalization",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> int | None:
        if ctx.supports(node.op) and all(node.graph.unused(o) for o in node.outputs[1:]):
            return None  # refused for outputs that nothing reads: rule unused-output
        rank = node.graph.rank(node.input(0))
        if rank is None:
            raise Skip(f"the rank of '{node.input(0)}' is not known")
        norm.working_dtype(node.graph, node.input(0))
        return rank

    def rewrite(self, node: Node, rank: int, edit: Edit, ctx: Context) -> None:
        x, scale, bias = (*node.inputs, "")[:3]
        dtype = node.graph.dtype(x)
        work = norm.working_dtype(node.graph, x)
        # The defaults are given: exporters write the operator into models of older opsets, which have no schema of it.
        axes = range(node.attr("axis", -1) % rank, rank)
        parts = norm.standardize(edit, emit.cast(edit, x, work), axes, node.attr("epsilon", 1e-5), work, ctx)
        y = edit.add("Mul", [emit.cast(edit, parts.result, dtype), scale])
        if bias:
            y = edit.add("Add", [y, bias])
        spread = edit.add("Reciprocal", [parts.root]) if node.output(2) else ""
        edit.replace_node(node, y, parts.mean, spread)
