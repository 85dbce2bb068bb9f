import itertools

import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_LARGEST = 6  # beyond it, elimination is cheaper and loses less


class Det(Rule):
    ops = ("Det",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> int:
        shape = node.graph.shape(node.input(0))
        if shape is None or not isinstance(shape[-1], int):
            raise Skip("the size of the matrices is not known")
        elementwise.dtype_of(node.graph, node.input(0))
        if not 1 <= shape[-1] <= _LARGEST:
            raise Skip(f"matrices of {shape[-1]} rows are not written out, only up to {_LARGEST}")
        return shape[-1]

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        x, axis = node.input(0), elementwise.rank_of(node.graph, node.input(0)) - 2  # of the rows, then of the minors
        dtype = elementwise.dtype_of(node.graph, x)
        rows = [emit.squeeze(edit, r, [axis]) for r in emit.split(edit, x, [1] * found, axis)]
        minors = rows.pop()  # all minors of the last r rows, in the order of their columns
        for r in range(2, found + 1):
            smaller = {columns: i for i, columns in enumerate(itertools.combinations(range(found), r - 1))}
            larger = list(itertools.combinations(range(found), r))
            rest = [[smaller[c[:j] + c[j + 1 :]] for j in range(r)] for c in larger]
            signs = np.asarray([1, -1] * r, dtype)[:r]
            entries = edit.add("Gather", [rows.pop(), np.asarray(larger)], axis=axis)
            signed = edit.add("Mul", [entries, signs])
            terms = edit.add("Mul", [signed, edit.add("Gather", [minors, np.asarray(rest)], axis=axis)])
            minors = emit.reduce(edit, "ReduceSum", terms, [axis + 1], keepdims=0)
        edit.replace_node(node, emit.squeeze(edit, minors, [axis]))
