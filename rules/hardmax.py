import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class Hardmax(Rule):
    ops = ("Hardmax",)

    def match(self, node: Node, ctx: Context) -> int | None:
        graph, source = node.graph, node.input(0)
        rank = elementwise.rank_of(graph, source)
        elementwise.dtype_of(graph, source)
        axis = elementwise.axis_of(node.attr("axis"), rank)
        if node.opset < 13 and axis != rank - 1:
            raise Skip("before opset 13 it takes all axes from 'axis' on as one; export at opset 13")
        shape = graph.shape(source)
        if shape is None or not isinstance(shape[axis], int):
            raise Skip("the size of the axis is not known; freeze the dynamic axes")
        return axis

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        source, shape = node.input(0), node.graph.shape(node.input(0)) or ()
        size = shape[found]
        assert isinstance(size, int)
        first = edit.add("ArgMax", [source], axis=found, keepdims=1)
        places = np.arange(size, dtype=np.int64).reshape([-1 if i == found else 1 for i in range(len(shape))])
        hot = edit.add("Equal", [first, places])
        edit.replace_node(node, emit.cast(edit, hot, node.graph.dtype(source)))
