from typing import Any

import numpy as np

from onnxfix.lowering import quant
from onnxfix.lowering.quant import Quantised
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


class QLinearConv(Rule):
    ops = ("QLinearConv",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> tuple[Quantised, Quantised, Quantised]:
        x, w, y = quant.quantised(node, 0, 1, 2), quant.quantised(node, 3, 4, 5), quant.quantised(node, -1, 6, 7)
        if not node.graph.is_const(w.name) or (node.input(8) and not node.graph.is_const(node.input(8))):
            raise Skip("the weights or the bias are computed; make them constant")
        return x, w, y

    def rewrite(self, node: Node, found: tuple[Quantised, Quantised, Quantised], edit: Edit, ctx: Context) -> None:
        x, w, y = found
        values: Any = node.graph.const(w.name)
        weights = values.astype(np.float32) - quant.along(w.zero.astype(np.float32), values.ndim, 0)
        inputs: list[str | np.ndarray] = [quant.centred(edit, x.name, node.input(2)), weights]
        if node.input(8):
            bias: Any = node.graph.const(node.input(8))
            inputs.append(bias.astype(np.float32))
        attributes: dict[str, Any] = {name: node.attr(name) for name in _ATTRIBUTES if node.has_attr(name)}
        sums = str(edit.add("Conv", inputs, **attributes))
        edit.note = quant.sums_note(weights, "Conv")
        factor = quant.along(x.scale.reshape(-1) * w.scale.reshape(-1) / y.scale.reshape(-1), values.ndim, 1)
        edit.replace_node(node, quant.requantize(edit, sums, factor, y, ctx))
