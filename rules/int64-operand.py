from onnx import TensorProto

from onnxfix.lowering import dtypes
from onnxfix.lowering.dtypes import Recast
from onnxfix.rule import Context, Edit, Node, Rule

_WIDE = frozenset({TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL})


class Int64Operand(Rule):
    ops = ("*",)

    def match(self, node: Node, ctx: Context) -> Recast | None:
        return None if node.domain or node.bodies else dtypes.recast(node, _WIDE, ctx)

    def rewrite(self, node: Node, found: Recast, edit: Edit, ctx: Context) -> None:
        edit.note = f"{node.op} of {dtypes.dtype_name(found.own)} runs in {dtypes.dtype_name(found.other)}"
        edit.replace_node(node, *dtypes.run_in(node, found, edit))
