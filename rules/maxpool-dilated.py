import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from onnxfix import emit
from onnxfix.lowering import pad, window
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class MaxPoolDilated(Rule):
    ops = ("MaxPool",)

    def match(self, node: Node, ctx: Context) -> window.Window | None:
        if all(d == 1 for d in node.attr("dilations") or ()):
            return None
        if node.output(1) and not node.graph.unused(node.output(1)):
            raise Skip("its Indices are used, and are not computed here")
        geometry = window.ceiled(node, window.read(node))
        if geometry.padded and not node.graph.dtype(node.input(0)):
            raise Skip(f"the dtype of '{node.input(0)}' is not known")
        return geometry

    def rewrite(self, node: Node, geometry: window.Window, edit: Edit, ctx: Context) -> None:
        x = node.input(0)
        if geometry.padded:
            dtype = tensor_dtype_to_np_dtype(node.graph.dtype(x))
            least = np.asarray(pad.lowest(dtype) if dtype.kind in "iu" else -np.inf, dtype)
            x = emit.pad(edit, x, [0, 0, *geometry.begins], [0, 0, *geometry.ends], least)
        # A box is a maximum along each axis in turn: as many slices as the kernel is wide plus high, not times.
        for axis, k, s, d, span in zip(
            geometry.axes, geometry.kernel, geometry.strides, geometry.dilations, geometry.spans, strict=True
        ):
            parts = [window.tap(edit, x, offset, span, s, axis) for offset in range(0, k * d, d)]
            x = edit.add("Max", parts) if k > 1 else parts[0]
        edit.replace_node(node, x)
