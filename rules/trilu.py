import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class Trilu(Rule):
    ops = ("Trilu",)
    options = {"max_mib": 16}  # noqa: RUF012

    def match(self, node: Node, ctx: Context) -> int | None:
        graph = node.graph
        elementwise.dtype_of(graph, node.input(0))
        elementwise.rank_of(graph, node.input(0))
        offset = graph.const(node.input(1)) if node.input(1) else np.asarray(0)
        if offset is None:
            raise Skip("the diagonal k is computed")
        return int(offset.reshape(-1)[0])

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        source = node.input(0)
        mask = self._mask(node, found, edit, self.option(ctx, "max_mib") * (1 << 20))
        if node.graph.dtype(source) == TensorProto.BOOL:
            result = edit.add("And", [source, mask])
        else:
            result = edit.add("Where", [mask, source, elementwise.full(edit, source, 0)])
        edit.replace_node(node, result)

    @staticmethod
    def _mask(node: Node, k: int, edit: Edit, budget: float) -> str:
        """True where an element stays: by its distance from the diagonal, column less row."""
        height, width = (node.graph.shape(node.input(0)) or ())[-2:]
        if isinstance(height, int) and isinstance(width, int) and height * width <= budget:
            distance = np.arange(width)[None, :] - np.arange(height)[:, None]
            return edit.const(distance >= k if node.attr("upper") else distance <= k, "mask")
        shape, rank = edit.add("Shape", [node.input(0)]), elementwise.rank_of(node.graph, node.input(0))
        rows, columns = (
            edit.add("Range", [np.int64(0), edit.add("Gather", [shape, np.int64(rank - i)], axis=0), np.int64(1)])
            for i in (2, 1)
        )
        away = edit.add("Sub", [emit.unsqueeze(edit, columns, [0]), emit.unsqueeze(edit, rows, [1])])
        compare, bound = ("Greater", k - 1) if node.attr("upper") else ("Less", k + 1)
        return str(edit.add(compare, [away, np.int64(bound)]))
