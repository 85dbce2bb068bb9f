from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import plugins
from onnxfix.rule import Context, Edit, Node, Rule, Safety


class RoiAlignPlugin(Rule):
    ops = ("RoiAlign",)
    safety = Safety.CLOSE
    when = "always"
    plugin = "ROIAlign_TRT"

    def match(self, node: Node, ctx: Context) -> bool:
        plugins.need(node, self.plugin, ctx)
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        shifted = node.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel" and node.opset >= 16
        y = plugins.add(
            edit,
            self.plugin,
            [node.input(0), node.input(1), emit.cast(edit, node.input(2), TensorProto.INT32)],
            coordinate_transformation_mode=int(shifted),
            mode=int(node.attr("mode", "avg") == "avg"),
            output_height=node.attr("output_height", 1),
            output_width=node.attr("output_width", 1),
            sampling_ratio=node.attr("sampling_ratio", 0),
            spatial_scale=float(node.attr("spatial_scale", 1.0)),
        )
        edit.replace_node(node, y)
