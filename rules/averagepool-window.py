import math

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from onnxfix.lowering import window
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class AveragePoolWindow(Rule):
    ops = ("AveragePool",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> window.Window | None:
        geometry = window.read(node)
        uneven = any(e > b + 1 for b, e in zip(geometry.begins, geometry.ends, strict=True))
        if all(d == 1 for d in geometry.dilations) and not uneven:
            return None
        if not window.rounds_down(node, geometry):
            raise Skip("ceil_mode adds a last window here; export with ceil_mode=False or freeze the sizes")
        window.channels(node)
        if not node.graph.dtype(node.input(0)):
            raise Skip(f"the dtype of '{node.input(0)}' is not known")
        if self.uncounted(node, geometry) and window.spatial(node, node.input(0)) is None:
            raise Skip("each window divides by the elements it covers; freeze the height and width to count them")
        return geometry

    def uncounted(self, node: Node, geometry: window.Window) -> bool:
        return geometry.padded and not node.attr("count_include_pad")

    def rewrite(self, node: Node, geometry: window.Window, edit: Edit, ctx: Context) -> None:
        x, dtype = node.input(0), tensor_dtype_to_np_dtype(node.graph.dtype(node.input(0)))
        size = math.prod(geometry.kernel)
        count = window.channels(node)
        if not self.uncounted(node, geometry):
            edit.replace_node(node, window.weighted(edit, x, geometry, count, dtype, 1 / size))
            return
        sizes = window.spatial(node, x)
        assert sizes is not None
        # A window that covers no data at all has a sum of 0 as well.
        share = 1 / np.maximum(window.counts(geometry, sizes), 1)
        total = window.weighted(edit, x, geometry, count, dtype, 1.0)
        edit.replace_node(node, edit.add("Mul", [total, share[None, None].astype(dtype)]))
