from typing import Any

from onnx import TensorProto

from onnxfix.lowering import quant
from onnxfix.rule import Context, Edit, Node, Rule, Safety


class DynamicQuantizeLinear(Rule):
    ops = ("DynamicQuantizeLinear",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> bool | None:
        return True

    def rewrite(self, node: Node, found: Any, edit: Edit, ctx: Context) -> None:
        numbers, scale, zero = quant.quantize_dynamic(edit, node.input(0), ctx)
        as_uint8 = [edit.add("Cast", [value], to=TensorProto.UINT8) for value in (numbers, zero)]
        edit.replace_node(node, as_uint8[0], scale, as_uint8[1])
