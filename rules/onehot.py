import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.lowering.dtypes import whole_range
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class OneHot(Rule):
    ops = ("OneHot",)
    options = {"max_depth": 65536}  # noqa: RUF012

    def match(self, node: Node, ctx: Context) -> int | None:
        graph = node.graph
        elementwise.rank_of(graph, node.input(0))
        elementwise.dtype_of(graph, node.input(0))
        elementwise.dtype_of(graph, node.input(2))
        if whole_range(graph, node.input(0)) is None:
            raise Skip("its indices may be fractions")
        depth = graph.const(node.input(1))
        if depth is None:
            raise Skip("the depth is computed; export it as a constant")
        size = int(depth.reshape(-1)[0])
        if not 0 < size <= int(self.option(ctx, "max_depth")):
            raise Skip(f"a depth of {size} is more than 'max_depth' ({self.option(ctx, 'max_depth')})")
        return size

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        graph, indices, values = node.graph, node.input(0), node.input(2)
        rank = elementwise.rank_of(graph, indices)
        axis = elementwise.axis_of(node.attr("axis"), rank + 1)
        wide = emit.unsqueeze(edit, emit.cast(edit, indices, TensorProto.INT64), [axis])
        classes = np.arange(found, dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(rank + 1)])
        hot = edit.add("Equal", [wide, classes])
        if not elementwise.never_negative(graph, indices):
            # An index from -depth to -1 counts from the end.
            hot = edit.add("Or", [hot, edit.add("Equal", [wide, classes - found])])
        edit.replace_node(node, self._choose(edit, hot, values))

    @staticmethod
    def _choose(edit: Edit, hot: str, values: str) -> str:
        graph = edit.graph
        pair = graph.const(values)
        dtype = graph.dtype(values)
        if pair is not None and pair.tolist() == [0, 1]:
            return emit.cast(edit, hot, dtype) if dtype != TensorProto.BOOL else hot
        if dtype == TensorProto.BOOL:
            raise Skip("boolean values other than false and true")
        if pair is not None:
            off, on = edit.const(pair[0], "off"), edit.const(pair[1], "on")
        else:
            off, on = (emit.squeeze(edit, emit.slice_(edit, values, [i], [i + 1], [0]), [0]) for i in (0, 1))
        return str(edit.add("Where", [hot, on, off]))
