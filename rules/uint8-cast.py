from onnx import TensorProto

from onnxfix.lowering import dtypes
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_SMALL = dtypes.SMALL - {TensorProto.UINT32, TensorProto.UINT64}


class Uint8Cast(Rule):
    ops = ("Cast",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> int | None:
        graph, own = node.graph, node.attr("to")
        inside = not graph.is_output(node.output(0)) and not graph.unused(node.output(0))
        if own not in _SMALL or not inside or (own == TensorProto.INT8 and ctx.target.takes_dtype(own)):
            return None
        if dtypes.within(dtypes.whole_range(graph, node.input(0)), dtypes.dtype_range(own)):
            return None  # nothing to wrap: what reads it can read the source
        if not graph.dtype(node.input(0)) or graph.dtype(node.input(0)) == own:
            return None
        if not dtypes.can_wrap(own, TensorProto.INT32, ctx):
            name = dtypes.dtype_name(own)
            raise Skip(f"its numbers may leave the range of {name}; limit them with Clip before the Cast")
        return int(own)

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        whole = dtypes.as_dtype(edit, node.input(0), TensorProto.INT32)
        wrapped = dtypes.wrap(edit, whole, found, TensorProto.INT32)
        edit.replace_node(node, str(edit.add("Cast", [wrapped], to=found)))
