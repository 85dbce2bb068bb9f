from typing import Any

import numpy as np

from onnxfix.lowering import quant
from onnxfix.rule import Context, Edit, Node, Rule


class DequantizeConstant(Rule):
    ops = ("DequantizeLinear", "com.microsoft::DequantizeLinear")

    def match(self, node: Node, ctx: Context) -> Any:
        """The table behind a Gather, or None for a constant that is dequantised directly."""
        graph = node.graph
        if graph.is_const(node.input(0)):
            return _usable(quant.scheme(node)) and (None,)
        gather = graph.producer(node.input(0))
        if gather is None or gather.op != "Gather" or gather.domain or not graph.is_const(gather.input(0)):
            return None
        how = quant.scheme(node)
        one_number = _usable(how) and np.ndim(how.scale) == 0 and (how.zero is None or np.ndim(how.zero) == 0)
        return (gather,) if one_number and len(graph.uses(node.input(0))) == 1 else None

    def rewrite(self, node: Node, found: tuple[Node | None], edit: Edit, ctx: Context) -> None:
        graph, gather = node.graph, found[0]
        table = gather.input(0) if gather else node.input(0)
        array = graph.const(table)
        assert array is not None
        dtype = quant.output_dtype(node)
        if gather is None and array.dtype == np.uint8 and quant.is_value(graph, node.input(2), 128):
            # INT8 with zero point 0 is the same numbers, and stays one byte each.
            edit.set_inputs(node, [self._shifted(edit, table), node.input(1), self._zeros(edit, node.input(2))])
            return
        values = edit.const(quant.dequantized(array, quant.scheme(node), quant.np_dtype(dtype)), "dequantized")
        if gather is not None:
            values = edit.add("Gather", [values, gather.input(1)], axis=gather.attr("axis"))
        edit.replace_node(node, values)

    @staticmethod
    def _shifted(edit: Edit, name: str) -> str:
        array = edit.graph.const(name)
        assert array is not None
        return edit.const((array.astype(np.int16) - 128).astype(np.int8), "int8")

    @staticmethod
    def _zeros(edit: Edit, name: str) -> str:
        array = edit.graph.const(name)
        assert array is not None
        return edit.const(np.zeros(array.shape, np.int8), "zero_point")


def _usable(how: quant.Scheme) -> bool:
    return isinstance(how.scale, np.ndarray) and not isinstance(how.zero, str)


