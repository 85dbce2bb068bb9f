import numpy as np

from onnxfix import emit
from onnxfix.lowering import norm, window
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class ConvTransposePads(Rule):
    ops = ("ConvTranspose",)

    def match(self, node: Node, ctx: Context) -> tuple[list[int], list[int]] | None:
        if not node.graph.is_const(node.input(1)) or (node.input(2) and not node.graph.is_const(node.input(2))):
            return None  # refused for its computed parameters
        if node.attr("output_shape"):
            raise Skip("it states output_shape; export with pads and output_padding")
        geometry = window.read(node)
        extra = node.attr("output_padding") or [0] * len(geometry.kernel)
        ends = [e - x for e, x in zip(geometry.ends, extra, strict=True)]
        return (list(geometry.begins), ends) if any((*geometry.begins, *geometry.ends, *extra)) else None

    def rewrite(self, node: Node, found: tuple[list[int], list[int]], edit: Edit, ctx: Context) -> None:
        begins, ends = found
        grows = min(*begins, *ends) < 0
        attributes = {
            a.name: node.attr(a.name)
            for a in node.proto.attribute
            if a.name not in ("pads", "output_padding", "auto_pad")
        }
        y = edit.add("ConvTranspose", node.inputs[: 2 if grows else 3], **attributes)
        axes = [a for a in range(len(begins)) if begins[a] > 0 or ends[a] > 0]
        if axes:
            starts = [max(0, begins[a]) for a in axes]
            stops = [min(0, -ends[a]) or np.iinfo(np.int64).max for a in axes]
            y = emit.slice_(edit, y, starts, stops, [a + 2 for a in axes])
        if grows:  # what lies beyond the reach of the kernel is the bias alone, so that comes last
            y = emit.pad(edit, y, [0, 0, *(max(0, -b) for b in begins)], [0, 0, *(max(0, -e) for e in ends)])
            if node.input(2):
                y = edit.add("Add", [y, norm.per_channel(edit, node.input(2), len(begins) + 2)])
        edit.replace_node(node, y)
