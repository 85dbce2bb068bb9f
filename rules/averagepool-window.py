import math
from dataclasses import dataclass

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from onnxfix.lowering import window
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


@dataclass
class _Average:
    window: window.Window  # with the end pads that ceil_mode adds
    counted: window.Window | None  # the one whose pads count; None where none do


class AveragePoolWindow(Rule):
    ops = ("AveragePool",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Average | None:
        geometry = window.read(node)
        uneven = any(e > b + 1 for b, e in zip(geometry.begins, geometry.ends, strict=True))
        if all(d == 1 for d in geometry.dilations) and not uneven:
            return None
        found = _Average(window.ceiled(node, geometry), geometry if node.attr("count_include_pad") else None)
        window.channels(node)
        if not node.graph.dtype(node.input(0)):
            raise Skip(f"the dtype of '{node.input(0)}' is not known")
        if self._uneven(found) and window.spatial(node, node.input(0)) is None:
            raise Skip("each window divides by the elements it covers; freeze the height and width to count them")
        return found

    @staticmethod
    def _uneven(found: _Average) -> bool:
        """Whether windows divide by different numbers."""
        return found.window.padded and found.window != found.counted

    def rewrite(self, node: Node, found: _Average, edit: Edit, ctx: Context) -> None:
        geometry = found.window
        x, dtype = node.input(0), tensor_dtype_to_np_dtype(node.graph.dtype(node.input(0)))
        size = math.prod(geometry.kernel)
        count = window.channels(node)
        if not self._uneven(found):
            edit.replace_node(node, window.weighted(edit, x, geometry, count, dtype, 1 / size))
            return
        sizes = window.spatial(node, x)
        assert sizes is not None
        # A window that covers no data at all has a sum of 0 as well.
        share = 1 / np.maximum(window.counts(geometry, sizes, found.counted), 1)
        total = window.weighted(edit, x, geometry, count, dtype, 1.0)
        edit.replace_node(node, edit.add("Mul", [total, share[None, None].astype(dtype)]))
