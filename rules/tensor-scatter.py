from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


@dataclass
class _Cache:
    rank: int
    axis: int  # of the positions
    size: int  # of the cache
    count: int  # of the update


class TensorScatter(Rule):
    ops = ("TensorScatter",)

    def match(self, node: Node, ctx: Context) -> _Cache:
        graph = node.graph
        past, update = graph.shape(node.input(0)), graph.shape(node.input(1))
        if past is None or update is None:
            raise Skip("the rank of the cache is not known")
        axis = elementwise.axis_of(node.attr("axis"), len(past))
        size, count = past[axis], update[axis]
        if not isinstance(size, int) or not isinstance(count, int) or not count:
            raise Skip("the lengths of the cache and of its update are not known; freeze the dynamic axes")
        return _Cache(len(past), axis, size, count)

    def rewrite(self, node: Node, found: _Cache, edit: Edit, ctx: Context) -> None:
        past, update = node.inputs[:2]
        ones = [1] * found.rank
        along = [found.size if i == found.axis else 1 for i in range(found.rank)]
        positions = np.arange(found.size, dtype=np.int64).reshape(along)
        if node.input(2):
            start = emit.reshape(edit, node.input(2), [-1, *ones[1:]])
            turn = edit.add("Sub", [positions, start])  # which element of the update each position gets
            if node.attr("mode") == "circular":
                turn = edit.add("Mod", [turn, np.int64(found.size)])
        else:
            turn = edit.const(positions)
        inside = edit.add("Less", [turn, np.int64(found.count)])
        if node.input(2) and node.attr("mode") != "circular":
            inside = edit.add("And", [inside, edit.add("Not", [edit.add("Less", [turn, np.int64(0)])])])
        index = edit.add("Min", [edit.add("Max", [turn, np.int64(0)]), np.int64(found.count - 1)])
        wide = edit.add("Expand", [index, edit.add("Shape", [past])])
        taken = edit.add("GatherElements", [update, wide], axis=found.axis)
        edit.replace_node(node, edit.add("Where", [inside, taken, past]))
