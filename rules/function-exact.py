from onnx import FunctionProto

from onnxfix.lowering import functions
from onnxfix.rule import Context, Edit, Node, Rule


class FunctionExact(Rule):
    ops = ("CastLike", "CenterCropPad", "GreaterOrEqual", "LessOrEqual", "SequenceMap")

    def match(self, node: Node, ctx: Context) -> FunctionProto | None:
        return functions.body_for(node, ctx)

    def rewrite(self, node: Node, found: FunctionProto, edit: Edit, ctx: Context) -> None:
        functions.write_out(node, found, edit, ctx)
