import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class ArgMaxLastIndex(Rule):
    ops = ("ArgMax", "ArgMin")

    def match(self, node: Node, ctx: Context) -> tuple[int, int] | None:
        if not node.attr("select_last_index"):
            return None
        shape = node.graph.shape(node.input(0))
        if shape is None:
            raise Skip(f"the rank of '{node.input(0)}' is not known")
        axis = elementwise.axis_of(node.attr("axis"), len(shape))
        size = shape[axis]
        if not isinstance(size, int):
            raise Skip("the size of the axis is not known; freeze the dynamic axes")
        return axis, size

    def rewrite(self, node: Node, found: tuple[int, int], edit: Edit, ctx: Context) -> None:
        axis, size = found
        backwards = emit.slice_(edit, node.input(0), [-1], [np.iinfo(np.int64).min], [axis], [-1])
        kept = {a.name: node.attr(a.name) for a in node.proto.attribute if a.name != "select_last_index"}
        index = edit.add(node.op, [backwards], **kept)
        edit.replace_node(node, edit.add("Sub", [np.asarray(size - 1, np.int64), index]))
