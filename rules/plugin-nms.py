import numpy as np
from onnx import TensorProto

from onnxfix.lowering import plugins
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class NmsPlugin(Rule):
    ops = ("NonMaxSuppression",)
    safety = Safety.LOSSY
    when = "always"
    plugin = "EfficientNMS_ONNX_TRT"

    def match(self, node: Node, ctx: Context) -> tuple[int, float, float]:
        """How many boxes of a class, and the two thresholds."""
        plugins.need(node, self.plugin, ctx)
        values = [node.graph.const(node.input(i)) if node.input(i) else np.zeros(1) for i in (2, 3, 4)]
        known = [float(v.reshape(-1)[0]) for v in values if v is not None and v.size == 1]
        if len(known) < 3:
            raise Skip("its limits are no constants; freeze them")
        if known[0] < 1:
            raise Skip("it keeps no boxes at all")
        # Without a threshold every score counts, also negative ones.
        return int(known[0]), known[1], known[2] if node.input(4) else float(np.finfo(np.float32).min)

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
