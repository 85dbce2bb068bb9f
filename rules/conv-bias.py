from onnxfix.lowering import norm
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class ConvBias(Rule):
    ops = ("Conv", "ConvTranspose")
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> int | None:
        bias = node.input(2)
        if not bias or node.graph.is_const(bias):
            return None
        rank = node.graph.rank(node.input(1)) or node.graph.rank(node.input(0))
        if rank is None:
            raise Skip(f"the ranks of '{node.input(0)}' and '{node.input(1)}' are not known")
        return rank

    def rewrite(self, node: Node, rank: int, edit: Edit, ctx: Context) -> None:
        attributes = {a.name: node.attr(a.name) for a in node.proto.attribute}
        plain = edit.add(node.op, node.inputs[:2], **attributes)
        edit.replace_node(node, edit.add("Add", [plain, norm.per_channel(edit, node.input(2), rank)]))
