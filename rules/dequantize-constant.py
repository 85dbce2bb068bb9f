from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix.lowering import quant
from onnxfix.rule import Context, Edit, Node, Rule


class DequantizeConstant(Rule):
    ops = ("DequantizeLinear", "com.microsoft::DequantizeLinear")
    when = "always"

    def match(self, node: Node, ctx: Context) -> quant.Scheme | None:
        graph, name = node.graph, node.input(0)
        if not graph.is_const(name):
            return None
        # The builder fails on a lone INT8 number, and no release dequantises UINT8 constants.
        troubled = graph.rank(name) == 0 or graph.dtype(name) == TensorProto.UINT8
        if not troubled and not ctx.refused(node):
            return None
        how = quant.scheme(node)
        return how if isinstance(how.scale, np.ndarray) and not isinstance(how.zero, str) else None

    def rewrite(self, node: Node, found: quant.Scheme, edit: Edit, ctx: Context) -> None:
        array: Any = node.graph.const(node.input(0))
        zero: Any = node.graph.const(node.input(2)) if node.input(2) else None
        if array.dtype == np.uint8 and array.ndim and zero is not None and (zero == 128).all():
            # INT8 with zero point 0 is the same numbers, and stays one byte each.
            edit.set_input(node, 0, edit.const((array.astype(np.int16) - 128).astype(np.int8), "int8"))
            edit.set_input(node, 2, edit.const(np.zeros(zero.shape, np.int8), "zero_point"))
            return
        values = quant.dequantized(array, found, quant.np_dtype(quant.output_dtype(node)))
        edit.replace_node(node, edit.const(values, "dequantized"))
