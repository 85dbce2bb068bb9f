from onnx import TensorProto

from onnxfix import folding
from onnxfix.rule import Context, Edit, Node, Rule


class ShapeFold(Rule):
    ops = (
        *("Shape", "Size", "Gather", "Slice", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Concat", "Range", "Where"),
        *("Add", "Sub", "Mul", "Div", "Max", "Min", "ReduceProd", "ConstantOfShape"),
    )
    when = "always"
    options = {"max_mib": 16}  # noqa: RUF012

    def match(self, node: Node, ctx: Context) -> folding.Fold | None:
        graph, result = node.graph, node.output(0)
        dtype, rank = graph.dtype(result), graph.rank(result)
        if dtype not in (TensorProto.INT64, TensorProto.INT32) or rank not in (0, 1) or folding.constant_inputs(node):
            return None
        values = [v for v in graph.known(result) or [None] if v is not None]
        if not values or len(values) != len(graph.known(result) or ()):
            return None
        if graph.is_output(result) and not graph.uses(result):
            return None  # a shape that is asked for stays a shape
        array = folding.array_of(values, dtype, rank)
        return folding.fold(node, int(self.option(ctx, "max_mib") * (1 << 20)), {result: array})

    def rewrite(self, node: Node, found: folding.Fold, edit: Edit, ctx: Context) -> None:
        found.apply(edit)
