from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix.lowering import quant
from onnxfix.lowering.dtypes import MOVES
from onnxfix.rule import Context, Edit, Node, Rule

_QUANTISED = (TensorProto.UINT8, TensorProto.INT8)


class DequantizeTable(Rule):
    ops = ("Gather",)
    when = "always"  # where the parser takes an INT8 table, the builder still fails on it

    def match(self, node: Node, ctx: Context) -> list[Node] | None:
        """The nodes from here to the DequantizeLinear nodes, these included, when nothing else reads the numbers."""
        graph = node.graph
        if not graph.is_const(node.input(0)) or graph.dtype(node.input(0)) not in _QUANTISED:
            return None
        found, open_ = [], [node]
        while open_:
            here = open_.pop()
            if graph.is_output(here.output(0)):
                return None
            for reader, index in graph.uses(here.output(0)):
                if index != 0 or reader.domain:
                    return None
                if reader.op in MOVES and len(reader.outputs) == 1:
                    open_.append(reader)
                elif reader.op != "DequantizeLinear":
                    return None
                found.append(reader)
        ends = [n for n in found if n.op == "DequantizeLinear"]
        same = ends and all(n.inputs[1:] == ends[0].inputs[1:] for n in ends)
        return found if same and _one_number(ends[0]) else None

    def rewrite(self, node: Node, found: list[Node], edit: Edit, ctx: Context) -> None:
        graph = node.graph
        ends = [n for n in found if n.op == "DequantizeLinear"]
        table: Any = graph.const(node.input(0))
        dtype = quant.np_dtype(quant.output_dtype(ends[0]))
        edit.set_input(node, 0, edit.const(quant.dequantized(table, quant.scheme(ends[0]), dtype), "dequantized"))
        edit.forget_type(node.output(0))
        for reader in found:
            edit.forget_type(reader.output(0))
        for end in ends:
            edit.replace_node(end, end.input(0))


def _one_number(end: Node) -> bool:
    parameters = [end.graph.const(name) for name in end.inputs[1:] if name]
    return all(isinstance(p, np.ndarray) and p.size == 1 for p in parameters)
