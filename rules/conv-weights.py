import math

from onnxfix import emit
from onnxfix.lowering import norm, window
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_MOST_TAPS = 256


class ConvWeights(Rule):
    ops = ("Conv", "ConvTranspose")
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> tuple[window.Window, tuple[int, ...], list[int]] | None:
        graph, weights = node.graph, node.input(1)
        source = graph.producer(weights)
        if graph.is_const(weights) or (source is not None and source.op == "DequantizeLinear"):
            return None
        if node.op == "ConvTranspose":
            raise Skip("its weights are computed; TensorRT takes that from 8.5 on")
        shape, out = graph.static_shape(weights), window.spatial(node, node.output(0))
        if shape is None or out is None:
            raise Skip("its weights are computed, and the sizes are not all known; freeze the dynamic axes")
        geometry = window.read(node)
        taps = math.prod(geometry.kernel)
        if taps > _MOST_TAPS:
            raise Skip(f"its weights are computed, and a kernel of {taps} elements is too large to unfold")
        if 0 in (*shape, *out):
            return None
        return geometry, shape, out

    def rewrite(
        self, node: Node, found: tuple[window.Window, tuple[int, ...], list[int]], edit: Edit, ctx: Context
    ) -> None:
        """Unfold: every window becomes a column of length taps x channels, and the convolution a MatMul of groups."""
        geometry, (maps, depth, *_), out = found
        groups, taps, places = node.attr("group"), math.prod(geometry.kernel), math.prod(out)
        x = node.input(0)
        if geometry.padded:
            x = emit.pad(edit, x, [0, 0, *geometry.begins], [0, 0, *geometry.ends])
        columns = emit.concat(edit, [self.shifted(edit, x, t, geometry) for t in window.taps(geometry)], 1)
        if groups > 1:  # channels come tap by tap; bring the group in front
            columns = emit.reshape(edit, columns, [0, taps, groups, depth, places])
            columns = emit.transpose(edit, columns, [0, 2, 1, 3, 4])
        columns = emit.reshape(edit, columns, [0, groups, taps * depth, places])
        rows = emit.reshape(edit, node.input(1), [groups, maps // groups, depth, taps])
        rows = emit.reshape(edit, emit.transpose(edit, rows, [0, 1, 3, 2]), [1, groups, maps // groups, taps * depth])
        y = emit.reshape(edit, edit.add("MatMul", [rows, columns]), [0, maps, *out])
        if node.input(2):
            y = edit.add("Add", [y, norm.per_channel(edit, node.input(2), len(out) + 2)])
        edit.replace_node(node, y)

    def shifted(self, edit: Edit, x: str, offsets: tuple[int, ...], geometry: window.Window) -> str:
        """One element of every window. Steps of 1 leave ends negative, so that only whole windows count."""
        ends = [o - span + 1 or (1 << 62) for o, span in zip(offsets, geometry.spans, strict=True)]
        steps = list(geometry.strides) if any(s != 1 for s in geometry.strides) else None
        return emit.slice_(edit, x, offsets, ends, geometry.axes, steps)
