from dataclasses import dataclass

from onnx import TensorProto, helper

from onnxfix import emit
from onnxfix.lowering import plugins
from onnxfix.rule import Context, Edit, Graph, Node, Rule, Safety, Skip


@dataclass(frozen=True)
class _Detections:
    overlap: float
    score: float
    gone: tuple[str, ...]  # outputs of the graph that hang on what is selected


class EfficientNms(Rule):
    ops = ("NonMaxSuppression",)
    safety = Safety.LOSSY
    when = "always"
    plugin = "EfficientNMS_TRT"
    options = {"max_output_boxes": 100}  # noqa: RUF012

    def match(self, node: Node, ctx: Context) -> _Detections:
        plugins.need(node, self.plugin, ctx)
        graph = node.graph
        if graph.kind != "graph":
            raise Skip("it lies in a body, which can't give the model other outputs")
        if graph.dtype(node.input(0)) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            raise Skip(f"the dtype of '{node.input(0)}' is not known")
        _, overlap, score = plugins.suppression_limits(node)
        behind = _behind(graph, node)
        gone = tuple(name for name in graph.output_names if name in behind)
        if not gone:
            raise Skip("no output of the model hangs on what it selects")
        return _Detections(overlap, score, gone)

    def rewrite(self, node: Node, found: _Detections, edit: Edit, ctx: Context) -> None:
        graph, boxes, most = node.graph, node.input(0), int(self.option(ctx, "max_output_boxes"))
        scores = emit.transpose(edit, node.input(1), [0, 2, 1])
        names = plugins.add(
            edit,
            self.plugin,
            [boxes, scores],
            outputs=("num_detections", "detection_boxes", "detection_scores", "detection_classes"),
            score_threshold=found.score,
            iou_threshold=found.overlap,
            max_output_boxes=most,
            background_class=-1,
            score_activation=0,
            box_coding=node.attr("center_point_box", 0),
        )
        batch, dtype, integer = (graph.shape(boxes) or (None,))[0], graph.dtype(boxes), TensorProto.INT32
        kinds = (integer, [batch, 1]), (dtype, [batch, most, 4]), (dtype, [batch, most]), (integer, [batch, most])
        infos = [helper.make_tensor_value_info(n, *kind) for n, kind in zip(names, kinds, strict=True)]
        edit.replace_outputs(found.gone, infos)
        edit.note = f"behind NonMaxSuppression, {', '.join(found.gone)} give way to the four outputs of {self.plugin}"


def _behind(graph: Graph, node: Node) -> set[str]:
    """All values that hang on a node's outputs, these too."""
    found, todo = set(node.outputs), list(node.outputs)
    while todo:
        for user, _ in graph.uses(todo.pop()):
            new = set(user.outputs) - found
            found |= new
            todo += new
    return found
