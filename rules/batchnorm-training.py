from onnx import TensorProto

from onnxfix.lowering import norm
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class BatchNormTraining(Rule):
    ops = ("BatchNormalization",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> int | None:
        graph = node.graph
        if not node.attr("training_mode") and not any(node.outputs[1:]):
            return None
        raise Skip(
            "it was exported in training mode, where it normalises by the batch at hand: "
            "call model.eval() and export again"
        )

    def rewrite(self, node: Node, rank: int, edit: Edit, ctx: Context) -> None:
        pass
