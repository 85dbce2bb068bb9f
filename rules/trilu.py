import numpy as np
from onnx import TensorProto

from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class Trilu(Rule):
    ops = ("Trilu",)
    options = {"max_mib": 16}  # noqa: RUF012

    def match(self, node: Node, ctx: Context) -> np.ndarray | None:
        graph, source = node.graph, node.input(0)
        elementwise.dtype_of(graph, source)
        shape = graph.shape(source)
        if shape is None or not all(isinstance(d, int) for d in shape[-2:]):
            raise Skip("the last two dimensions are not known; freeze the dynamic axes")
        height, width = (int(d or 0) for d in shape[-2:])
        offset = graph.const(node.input(1)) if node.input(1) else np.asarray(0)
        if offset is None:
            raise Skip("the diagonal k is computed")
        limit = self.option(ctx, "max_mib")
        if height * width > limit * (1 << 20):
            raise Skip(f"its mask would take {height * width / (1 << 20):.1f} MiB; raise 'max_mib' to have it stored")
        distance = np.arange(width)[None, :] - np.arange(height)[:, None]
        k = int(offset.reshape(-1)[0])
        return distance >= k if node.attr("upper") else distance <= k

    def rewrite(self, node: Node, found: np.ndarray, edit: Edit, ctx: Context) -> None:
        source = node.input(0)
        mask = edit.const(found, "mask")
        if node.graph.dtype(source) == TensorProto.BOOL:
            result = edit.add("And", [source, mask])
        else:
            result = edit.add("Where", [mask, source, elementwise.full(edit, source, 0)])
        edit.replace_node(node, result)
