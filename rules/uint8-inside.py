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
    when = "always"  # a node that only reads a refused dtype is not refused itself: what made the value is

    def match(self, node: Node, ctx: Context) -> Recast | None:
        if node.domain or node.bodies or node.op == "Cast":
            return None
        reads = {node.graph.dtype(n) for n in node.inputs if n} & _SMALL
        refused = any(not ctx.target.takes_dtype(d) for d in reads) or (reads and ctx.refused(node))
        return dtypes.recast(node, _SMALL, ctx) if refused else None

    def rewrite(self, node: Node, found: Recast, edit: Edit, ctx: Context) -> None:
        edit.note = f"{node.op} of {dtypes.dtype_name(found.own)} runs in {dtypes.dtype_name(found.other)}"
        edit.replace_node(node, *dtypes.run_in(node, found, edit))
