import numpy as np

from onnxfix.lowering import elementwise, plugins
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class DeformConvPlugin(Rule):
    ops = ("DeformConv",)
    safety = Safety.CLOSE
    when = "always"
    plugin = "ModulatedDeformConv2d"

    def match(self, node: Node, ctx: Context) -> list[int]:
        plugins.need(node, self.plugin, ctx)
        pads = node.attr("pads", [0, 0, 0, 0])
        if len(pads) != 4 or pads[:2] != pads[2:]:
            raise Skip("the plugin pads both ends of two axes alike, and this node doesn't")
        if not node.input(4):
            elementwise.static(node.graph, node.input(2))
        return list(pads[:2])

    def rewrite(self, node: Node, padding: list[int], edit: Edit, ctx: Context) -> None:
        x, weights, offsets, bias, mask = (node.input(i) for i in range(5))
        if not mask:
            batch, channels, *spatial = elementwise.static(node.graph, offsets)
            dtype = elementwise.dtype_of(node.graph, x)
            mask = edit.const(np.ones((batch, channels // 2, *spatial), dtype), "mask")
        y = plugins.add(
            edit,
            self.plugin,
            [x, offsets, mask, weights, *([bias] if bias else [])],
            stride=node.attr("strides", [1, 1]),
            padding=padding,
            dilation=node.attr("dilations", [1, 1]),
            group=node.attr("group", 1),
            deformable_group=node.attr("offset_group", 1),
        )
        edit.replace_node(node, y)
