from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule


class ModInteger(Rule):
    ops = ("Mod",)

    def match(self, node: Node, ctx: Context) -> bool | None:
        return True if node.graph.dtype(node.input(0)) in elementwise.INTEGERS else None

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        a, b = node.inputs
        # Division of integers rounds towards zero, so the rest has the sign of a.
        rest = edit.add("Sub", [a, edit.add("Mul", [edit.add("Div", [a, b]), b])])
        graph = node.graph
        if not node.attr("fmod") and not all(elementwise.never_negative(graph, v) for v in (a, b)):
            rest = self._sign_of(edit, rest, b)
        edit.replace_node(node, rest)

    @staticmethod
    def _sign_of(edit: Edit, rest: str, b: str) -> str:
        """The rest with the sign of b: b is added where the signs differ."""
        zero, divisor = edit.const(elementwise.full(edit, b, 0), "zero"), edit.graph.const(b)
        if divisor is not None and (divisor > 0).all():
            return str(edit.add("Where", [edit.add("Less", [rest, zero]), edit.add("Add", [rest, b]), rest]))
        below = edit.add("And", [edit.add("Less", [rest, zero]), edit.add("Greater", [b, zero])])
        above = edit.add("And", [edit.add("Greater", [rest, zero]), edit.add("Less", [b, zero])])
        differ = edit.add("Or", [below, above])
        return str(edit.add("Where", [differ, edit.add("Add", [rest, b]), rest]))
