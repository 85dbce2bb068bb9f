from onnx import FunctionProto

from onnxfix.lowering import functions
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

# Not in need of this rule, or not to be had from it: they have rules of their own that do better.
_EXACT = ("CastLike", "CenterCropPad", "GreaterOrEqual", "LessOrEqual", "SequenceMap")
_ELSEWHERE = ("Bernoulli", "Clip", "Range", "DynamicQuantizeLinear", "LayerNormalization", "GroupNormalization")


class FunctionBody(Rule):
    ops = tuple(op for op in functions.defined_by_function() if op not in (*_EXACT, *_ELSEWHERE))
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> FunctionProto | None:
        if not functions.renameable(node):
            return None
        body = functions.standard_body(node)
        functions.same_opsets(body, node.graph)
        missing = functions.lacking(body, ctx, node.opset)
        if missing:
            raise Skip(f"its definition needs {', '.join(missing)}, which the target has not either")
        return body

    def rewrite(self, node: Node, found: FunctionProto, edit: Edit, ctx: Context) -> None:
        values, attributes = functions.bind(node, found)
        names = edit.inline(found.node, values, attributes)
        if ctx.supports(node.op):
            # The target has the operator and refuses this form of it: that must be better with the body.
            for added in edit.added:
                verdict = ctx.judge(added) if ctx.refused(added) else None
                if verdict is not None:
                    raise Skip(f"its definition needs {added.op}, and {verdict.reason}")
        edit.note = f"{node.op} is written out as the ONNX standard defines it, in {len(edit.added)} nodes"
        functions.replace_outputs(edit, node, [names.get(o, o) for o in found.output])
