from onnx import TensorProto, helper

from onnxfix import emit
from onnxfix.rule import Context, Edit, Node, Rule

# INT32 holds every value of these.
_NARROW = (TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT16, TensorProto.UINT16)


class PadDtype(Rule):
    ops = ("Pad",)

    def match(self, node: Node, ctx: Context) -> int | None:
        graph, x = node.graph, node.input(0)
        dtype = graph.dtype(x)
        if dtype not in _NARROW:
            return None
        cast = Node(helper.make_node("Cast", [x], ["wide"], to=TensorProto.INT32), graph)
        return None if ctx.refused(cast) else dtype  # a target without the dtype has no Cast from it either

    def rewrite(self, node: Node, dtype: int, edit: Edit, ctx: Context) -> None:
        inputs = node.inputs
        inputs[0] = emit.cast(edit, inputs[0], TensorProto.INT32)
        if len(inputs) > 2 and inputs[2]:
            value = node.graph.const(inputs[2])
            wide = edit.const(value.astype("int32"), "value") if value is not None else ""
            inputs[2] = wide or emit.cast(edit, inputs[2], TensorProto.INT32)
        attributes = {name: node.attr(name) for name in ("mode", "pads", "value") if node.has_attr(name)}
        padded = edit.add("Pad", inputs, **attributes)
        edit.replace_node(node, emit.cast(edit, padded, dtype))
