from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix.lowering import quant
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


class ConvInteger(Rule):
    ops = ("ConvInteger",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> np.ndarray:
        """The weights less their zero point, as FLOAT."""
        weights = node.graph.const(node.input(1))
        if weights is None:
            raise Skip("the weights are computed; make them constant")
        if not node.input(3):
            return weights.astype(np.float32)
        zero = node.graph.const(node.input(3))
        if zero is None:
            raise Skip("the weights' zero point is computed; make it constant")
        return np.asarray(weights.astype(np.float32) - quant.along(zero.astype(np.float32), weights.ndim, 0))

    def rewrite(self, node: Node, found: np.ndarray, edit: Edit, ctx: Context) -> None:
        # Padding an already centred tensor with zeros is padding the integers with the zero point.
        x = quant.centred(edit, node.input(0), node.input(2))
        attributes: dict[str, Any] = {name: node.attr(name) for name in _ATTRIBUTES if node.has_attr(name)}
        sums = edit.add("Conv", [x, edit.const(found, "weights")], **attributes)
        edit.note = quant.sums_note(found, "Conv")
        edit.replace_node(node, str(edit.add("Cast", [sums], to=TensorProto.INT32)))
