from onnx import FunctionProto

from onnxfix.lowering import functions
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class FunctionExact(Rule):
    ops = ("CastLike", "CenterCropPad", "GreaterOrEqual", "LessOrEqual", "SequenceMap")

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
        edit.note = f"{node.op} is written out as the ONNX standard defines it, in {len(edit.added)} nodes"
        functions.replace_outputs(edit, node, [names.get(o, o) for o in found.output])
