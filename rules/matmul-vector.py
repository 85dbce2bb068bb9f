from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule


class MatMulVector(Rule):
    ops = ("MatMul",)

    def match(self, node: Node, ctx: Context) -> tuple[int, int] | None:
        left, right = (elementwise.rank_of(node.graph, name) for name in node.inputs)
        return (left, right) if 1 in (left, right) and left != right else None

    def rewrite(self, node: Node, found: tuple[int, int], edit: Edit, ctx: Context) -> None:
        left, right = node.inputs
        if found[0] == 1:
            product = edit.add("MatMul", [emit.unsqueeze(edit, left, [0]), right])
            edit.replace_node(node, emit.squeeze(edit, product, [found[1] - 2]))
        else:
            product = edit.add("MatMul", [left, emit.unsqueeze(edit, right, [1])])
            edit.replace_node(node, emit.squeeze(edit, product, [found[0] - 1]))
