from onnx import TensorProto

from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class ModFloat(Rule):
    ops = ("Mod",)
    safety = Safety.LOSSY

    def match(self, node: Node, ctx: Context) -> bool | None:
        dtype = node.graph.dtype(node.input(0))
        if dtype in elementwise.INTEGERS:
            return None
        if dtype not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            raise Skip("only FLOAT, FLOAT16 and DOUBLE can be computed otherwise")
        if not node.attr("fmod", 0):
            return None  # the divisor's sign: mod-floor's
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        a, b = node.inputs
        # The rest has the sign of a: quotients are rounded towards zero.
        quotient = edit.add("Div", [a, b])
        whole = edit.add("Mul", [edit.add("Floor", [edit.add("Abs", [quotient])]), edit.add("Sign", [quotient])])
        rest = edit.add("Sub", [a, edit.add("Mul", [whole, b])])
        edit.replace_node(node, rest)
