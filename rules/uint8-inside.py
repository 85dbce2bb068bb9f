from onnx import TensorProto

from onnxfix.lowering import dtypes
from onnxfix.lowering.dtypes import Recast
from onnxfix.rule import Context, Edit, Node, Rule

_SMALL = frozenset(
    {
        TensorProto.UINT8,
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
    }
)


class Uint8Inside(Rule):
    ops = ("*",)

    def match(self, node: Node, ctx: Context) -> Recast | None:
        return None if node.domain or node.bodies else dtypes.recast(node, _SMALL, ctx)

    def rewrite(self, node: Node, found: Recast, edit: Edit, ctx: Context) -> None:
        edit.note = f"{node.op} of {dtypes.dtype_name(found.own)} runs in {dtypes.dtype_name(found.other)}"
        edit.replace_node(node, *dtypes.run_in(node, found, edit))
