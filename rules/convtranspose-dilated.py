import numpy as np

from onnxfix.lowering import window
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class ConvTransposeDilated(Rule):
    ops = ("ConvTranspose",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> window.Window | None:
        if max(node.attr("dilations") or [1]) == 1 or max(node.attr("strides") or [1]) == 1:
            return None
        if not node.graph.is_const(node.input(1)):
            raise Skip("it is strided and dilated, which TensorRT does not build, and its weights are computed")
        if node.attr("auto_pad") not in (None, "NOTSET", "VALID"):
            return None
        return window.read(node)

    def rewrite(self, node: Node, geometry: window.Window, edit: Edit, ctx: Context) -> None:
        weights = node.graph.const(node.input(1))
        assert weights is not None
        wide = np.zeros((*weights.shape[:2], *geometry.spans), weights.dtype)
        places = (slice(None), slice(None), *(slice(None, None, d) for d in geometry.dilations))
        wide[places] = weights
        edit.set_input(node, 1, wide)
        edit.set_attr(node, "dilations", None)
        edit.set_attr(node, "kernel_shape", list(geometry.spans))
