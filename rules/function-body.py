from onnx import FunctionProto

from onnxfix.lowering import functions
from onnxfix.rule import Context, Edit, Node, Rule, Safety

_EXACT = ("CastLike", "CenterCropPad", "GreaterOrEqual", "LessOrEqual", "SequenceMap")  # the rule function-exact
# Other rules do better with these; a Bernoulli draws other numbers than its body.
_ELSEWHERE = (
    *("Bernoulli", "Clip", "Range", "ReduceLogSumExp", "DynamicQuantizeLinear"),
    *("LayerNormalization", "GroupNormalization"),
)


class FunctionBody(Rule):
    ops = tuple(op for op in functions.defined_by_function() if op not in (*_EXACT, *_ELSEWHERE))
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> FunctionProto | None:
        return functions.body_for(node, ctx)

    def rewrite(self, node: Node, found: FunctionProto, edit: Edit, ctx: Context) -> None:
        functions.write_out(node, found, edit, ctx)
