from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import resize
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_BYTES = (TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8)


class ResizeUnsupportedNearest(Rule):
    ops = ("Resize", "Upsample")

    def match(self, node: Node, ctx: Context) -> tuple[resize.Spec, bool] | None:
        if node.attr("mode") != "nearest":
            return None
        spec = resize.read(node)
        dtype = node.graph.dtype(node.input(0))
        probe = Edit(node.graph, node, "")
        try:
            resize.gathered(probe, node.input(0), spec)
            refused = any(ctx.refused(n) for n in probe.added)
        finally:
            probe.rollback()
        if refused and dtype not in _BYTES:
            raise Skip("the target refuses the Gather this would become as well")
        return spec, refused

    def rewrite(self, node: Node, found: tuple[resize.Spec, bool], edit: Edit, ctx: Context) -> None:
        spec, through_float = found
        x, dtype = node.input(0), node.graph.dtype(node.input(0))
        if through_float:
            x = emit.cast(edit, x, TensorProto.FLOAT)
        y = resize.gathered(edit, x, spec)
        edit.replace_node(node, emit.cast(edit, y, dtype) if through_float else y)
