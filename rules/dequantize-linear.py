from typing import Any

from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import quant
from onnxfix.lowering.dtypes import MOVES, as_float, dtype_name, dtype_range
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class DequantizeLinear(Rule):
    ops = ("DequantizeLinear", "com.microsoft::DequantizeLinear")
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool | None:
        graph = node.graph
        if graph.is_const(node.input(0)):
            return None  # dequantize-constant's
        if not ctx.refused(node) and not node.domain and not _lone(node):
            return None
        dtype = graph.dtype(node.input(0))
        if dtype == TensorProto.UNDEFINED:
            raise Skip("the dtype of the quantised tensor is not known")
        bounds = dtype_range(dtype)
        if bounds is None or bounds[1] > 65535:
            raise Skip(f"{dtype_name(dtype)} numbers don't all fit in FLOAT; make the tensor constant")
        quant.scheme(node)
        return True

    def rewrite(self, node: Node, found: Any, edit: Edit, ctx: Context) -> None:
        how = quant.scheme(node, edit)
        numbers = as_float(edit, node.input(0))
        if how.zero is not None:
            numbers = str(edit.add("Sub", [numbers, how.zero]))
        dtype = quant.output_dtype(node)
        scale = how.scale if isinstance(how.scale, str) else how.scale.astype("float32")
        if isinstance(scale, str):
            scale = emit.cast(edit, scale, TensorProto.FLOAT)
        values = str(edit.add("Mul", [numbers, scale]))
        edit.replace_node(node, values if dtype == TensorProto.FLOAT else str(edit.add("Cast", [values], to=dtype)))


def _lone(node: Node) -> bool:
    """Whether UINT8 numbers come from elsewhere than a QuantizeLinear: parsers take them in such pairs only."""
    graph, name = node.graph, node.input(0)
    if graph.dtype(name) != TensorProto.UINT8:
        return False
    maker = graph.producer(name)
    while maker is not None and maker.op in MOVES and not maker.domain:
        maker = graph.producer(maker.input(0))
    return maker is None or maker.op != "QuantizeLinear"
