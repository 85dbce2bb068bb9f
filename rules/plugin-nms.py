from onnx import TensorProto

from onnxfix.lowering import plugins
from onnxfix.rule import Context, Edit, Node, Rule, Safety


class NmsPlugin(Rule):
    ops = ("NonMaxSuppression",)
    safety = Safety.LOSSY
    when = "always"
    plugin = "EfficientNMS_ONNX_TRT"

    def match(self, node: Node, ctx: Context) -> tuple[int, float, float]:
        """How many boxes of a class, and the two thresholds."""
        plugins.need(node, self.plugin, ctx)
        return plugins.suppression_limits(node)

    def rewrite(self, node: Node, found: tuple[int, float, float], edit: Edit, ctx: Context) -> None:
        most, overlap, score = found
        rows = plugins.add(
            edit,
            self.plugin,
            [node.input(0), node.input(1)],
            max_output_boxes_per_class=most,
            iou_threshold=overlap,
            score_threshold=score,
            center_point_box=node.attr("center_point_box", 0),
        )
        edit.replace_node(node, edit.add("Cast", [rows], to=TensorProto.INT64))
