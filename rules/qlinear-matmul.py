from typing import Any

import numpy as np

from onnxfix.lowering import quant
from onnxfix.lowering.quant import Quantised
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_Found = tuple[Quantised, Quantised, Quantised | None]  # left, right, result (None: FLOAT)


class QLinearMatMul(Rule):
    ops = ("QLinearMatMul", "com.microsoft::QGemm")
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Found:
        a, b = quant.quantised(node, 0, 1, 2), quant.quantised(node, 3, 4, 5)
        if a.scale.size > 1:
            raise Skip("the left side has a scale for each row")
        if node.op == "QLinearMatMul":
            return a, b, quant.quantised(node, -1, 6, 7)
        if node.input(6) and not node.graph.is_const(node.input(6)):
            raise Skip("the bias is computed; make it constant")
        return a, b, quant.quantised(node, -1, 7, 8) if node.input(7) else None

    def rewrite(self, node: Node, found: _Found, edit: Edit, ctx: Context) -> None:
        a, b, y = found
        gemm = node.op == "QGemm"
        left = quant.centred(edit, a.name, node.input(2))
        right = self._right(node, b, edit)
        factor = a.scale.reshape(()) * (b.scale.reshape(()) if b.scale.size == 1 else b.scale)
        if gemm:
            bias: Any = node.graph.const(node.input(6)) if node.input(6) else None
            inputs = [left, right] if bias is None else [left, right, bias.astype(np.float32)]
            sums = str(edit.add("Gemm", inputs, transA=node.attr("transA", 0), transB=node.attr("transB", 0)))
            factor = factor * np.float32(node.attr("alpha", 1.0))
        else:
            sums = str(edit.add("MatMul", [left, right]))
            edit.note = quant.sums_note(node.graph.const(right), "MatMul")
        if y is None:
            edit.replace_node(node, str(edit.add("Mul", [sums, factor])))
        else:
            factor = np.asarray(factor / y.scale.reshape(()), np.float32)
            edit.replace_node(node, quant.requantize(edit, sums, factor, y, ctx))

    @staticmethod
    def _right(node: Node, b: Quantised, edit: Edit) -> str:
        """The right side less its zero point, which may be one for each column."""
        array = node.graph.const(b.name)
        if array is None or b.zero.size == 1 or not node.attr("transB", 0):
            return quant.centred(edit, b.name, node.input(5))
        return edit.const(array.astype(np.float32) - b.zero.astype(np.float32).reshape(-1, 1), "weights")
