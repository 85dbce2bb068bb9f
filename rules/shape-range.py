from onnxfix import emit
from onnxfix.rule import Context, Edit, Node, Rule


class ShapeRange(Rule):
    ops = ("Shape",)

    def match(self, node: Node, ctx: Context) -> bool | None:
        return node.has_attr("start") or node.has_attr("end") or None

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        whole = edit.add("Shape", [node.input(0)])
        end = node.attr("end")
        result = emit.slice_(edit, whole, [node.attr("start", 0) or 0], [(1 << 31) - 1 if end is None else end], [0])
        edit.replace_node(node, result)
