from typing import Any

import numpy as np

from onnxfix import emit
from onnxfix.lowering import dtypes, quant
from onnxfix.lowering.quant import Quantised
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

# Operators of one quantised tensor: what they are between DequantizeLinear and QuantizeLinear.
_ONE = {
    "QLinearSigmoid": ("Sigmoid", ()),
    "QLinearLeakyRelu": ("LeakyRelu", ("alpha",)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", ()),
    "QLinearAveragePool": (
        "AveragePool",
        ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"),
    ),
    "QLinearSoftmax": ("Softmax", ("axis",)),
    "QLinearReduceMean": ("ReduceMean", ("axes", "keepdims")),
}
_TWO = ("QLinearAdd", "QLinearMul")


class QLinearOther(Rule):
    ops = tuple(f"com.microsoft::{op}" for op in (*_ONE, *_TWO, "QLinearConcat", "QLinearWhere"))
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> tuple[list[Quantised], Quantised]:
        if node.attr("channels_last", 0):
            raise Skip("its channels lie last; save the model without ONNX Runtime's optimisation")
        if node.op == "QLinearSoftmax" and (node.attr("opset", 13) < 13 or node.graph.opset() < 13):
            raise Skip("it is a Softmax over flattened axes; convert the model to opset 13 first")
        if node.op in _ONE:
            return [quant.quantised(node, 0, 1, 2)], quant.quantised(node, -1, 3, 4)
        if node.op in _TWO:
            return [quant.quantised(node, 0, 1, 2), quant.quantised(node, 3, 4, 5)], quant.quantised(node, -1, 6, 7)
        if node.op == "QLinearWhere":
            return [quant.quantised(node, 1, 2, 3), quant.quantised(node, 4, 5, 6)], quant.quantised(node, -1, 7, 8)
        parts = [quant.quantised(node, i, i + 1, i + 2) for i in range(2, len(node.inputs), 3)]
        return parts, quant.quantised(node, -1, 0, 1)

    def rewrite(self, node: Node, found: tuple[list[Quantised], Quantised], edit: Edit, ctx: Context) -> None:
        inputs, y = found
        if node.op in _TWO:
            edit.replace_node(node, self._pair(node, inputs, y, edit, ctx))
            return
        values = [quant.real(edit, x) for x in inputs]
        if node.op == "QLinearReduceMean":
            result = self._mean(node, values[0], edit)
        elif node.op in _ONE:
            op, names = _ONE[node.op]
            attributes: dict[str, Any] = {name: node.attr(name) for name in names if node.has_attr(name)}
            result = str(edit.add(op, values, **attributes))
        elif node.op == "QLinearWhere":
            result = str(edit.add("Where", [node.input(0), *values]))
        else:
            result = emit.concat(edit, values, node.attr("axis"))
        edit.replace_node(node, quant.quantized(edit, result, y, ctx))

    @staticmethod
    def _pair(node: Node, inputs: list[Quantised], y: Quantised, edit: Edit, ctx: Context) -> str:
        """A sum or product, in the kernel's order of steps: the result's zero point is added before rounding."""
        scales = [x.scale.reshape(()) for x in inputs]
        target = y.scale.reshape(())
        if node.op == "QLinearMul":
            a, b = (quant.centred(edit, node.input(i), node.input(i + 2)) for i in (0, 3))
            product = str(edit.add("Mul", [str(edit.add("Mul", [a, b])), scales[0] * scales[1] / target]))
            total = quant.shifted(edit, product, y.zero)
        else:
            ratios = [s / target for s in scales]
            zeros = [float(x.zero.reshape(())) for x in (*inputs, y)]
            # All zero points in one number, which the kernel, too, works out with one fused step.
            offset = np.float32(zeros[2] - np.float32(ratios[0] * zeros[0] + float(ratios[1] * np.float32(zeros[1]))))
            a, b = (dtypes.as_float(edit, node.input(i)) for i in (0, 3))
            first = quant.fused(edit, b, ratios[1], edit.const(offset, "offset"))
            total = quant.fused(edit, a, ratios[0], first)
        return quant.numbered(edit, quant.rounded(edit, total, ctx), y)

    @staticmethod
    def _mean(node: Node, values: str, edit: Edit) -> str:
        axes = node.attr("axes", []) or []
        if not axes:
            return str(edit.add("ReduceMean", [values], keepdims=node.attr("keepdims", 1)))
        return emit.reduce(edit, "ReduceMean", values, axes, node.attr("keepdims", 1))
