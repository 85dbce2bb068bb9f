from onnx import TensorProto

from onnxfix.lowering import quant
from onnxfix.rule import Context, Edit, Node, Rule

_EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)


class MicrosoftQuantize(Rule):
    ops = ("com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear")
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool | None:
        graph = node.graph
        dtype = graph.dtype(node.input(0)) if node.op == "DequantizeLinear" else quant.quantized_dtype(node)
        one_number = graph.static_shape(node.input(1)) in ((), (1,))
        known = graph.opset() >= (10 if one_number else 13)
        return True if known and (dtype in _EIGHT_BITS or graph.opset() >= 21) else None

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        edit.set_op(node, node.op)
        for output in node.outputs:
            edit.forget_type(output)
