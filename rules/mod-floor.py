import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from onnxfix.lowering.dtypes import FLOATS
from onnxfix.rule import Context, Edit, Node, Rule, Safety


class ModFloor(Rule):
    ops = ("Mod",)
    safety = Safety.CLOSE  # a zero may come out with the other sign

    def match(self, node: Node, ctx: Context) -> int | None:
        dtype = node.graph.dtype(node.input(0))
        return dtype if dtype in FLOATS and not node.attr("fmod", 0) and ctx.supports("Mod") else None

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        a, b = node.inputs
        zero = edit.const(np.asarray(0, tensor_dtype_to_np_dtype(found)), "zero")
        rest = edit.add("Mod", [a, b], fmod=1)
        # Signs are compared one by one: the product of two small numbers may be zero.
        below = edit.add("And", [edit.add("Less", [rest, zero]), edit.add("Greater", [b, zero])])
        above = edit.add("And", [edit.add("Greater", [rest, zero]), edit.add("Less", [b, zero])])
        differ = edit.add("Or", [below, above])
        edit.replace_node(node, str(edit.add("Where", [differ, edit.add("Add", [rest, b]), rest])))
