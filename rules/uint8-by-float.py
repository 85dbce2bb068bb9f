from onnx import TensorProto

from onnxfix.lowering import dtypes
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class Uint8ByFloat(Rule):
    ops = ("Cast",)

    def match(self, node: Node, ctx: Context) -> bool | None:
        own, to = node.graph.dtype(node.input(0)), node.attr("to")
        if TensorProto.UINT8 not in (own, to) or not own or not ctx.target.takes_dtype(TensorProto.UINT8):
            return None
        if own in _FLOATS or to in _FLOATS:
            return None  # that is not what it is refused for
        numbers = dtypes.whole_range(node.graph, node.input(0))
        if not dtypes.within(numbers, (-dtypes.FLOAT_EXACT, dtypes.FLOAT_EXACT)):
            raise Skip("its numbers may not all be whole in FLOAT; limit them with Clip before the Cast")
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        between = edit.add("Cast", [node.input(0)], to=TensorProto.FLOAT)
        edit.replace_node(node, edit.add("Cast", [between], to=node.attr("to")))
