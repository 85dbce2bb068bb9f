from onnxfix.lowering import dtypes
from onnxfix.lowering.dtypes import Recast
from onnxfix.rule import Context, Edit, Node, Rule


class Uint8Inside(Rule):
    ops = ("*",)
    when = "always"  # a node that only reads a refused dtype is not refused itself: what made the value is

    def match(self, node: Node, ctx: Context) -> Recast | None:
        if node.op not in dtypes.RECAST or node.domain or node.bodies:
            return None
        reads = {node.graph.dtype(n) for n in node.inputs if n} & dtypes.SMALL
        refused = any(not ctx.target.takes_dtype(d) for d in reads) or (reads and ctx.refused(node))
        return dtypes.recast(node, dtypes.SMALL, ctx) if refused else None

    def rewrite(self, node: Node, found: Recast, edit: Edit, ctx: Context) -> None:
        edit.note = f"{node.op} of {dtypes.dtype_name(found.own)} runs in {dtypes.dtype_name(found.other)}"
        edit.replace_node(node, *dtypes.run_in(node, found, edit))
