from typing import Any

from onnxfix.rule import Context, Edit, Node, Rule


class CastLike(Rule):
    ops = ("CastLike",)
    when = "always"  # a node that only reads a refused dtype is not refused itself: what made the value is

    def match(self, node: Node, ctx: Context) -> int | None:
        graph, like = node.graph, node.graph.dtype(node.input(1))
        taken = all(ctx.target.takes_dtype(graph.dtype(n)) for n in (*node.inputs, *node.outputs))
        return (like or None) if ctx.refused(node) or not taken else None

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        kept: dict[str, Any] = {a.name: node.attr(a.name) for a in node.proto.attribute}
        edit.replace_node(node, str(edit.add("Cast", [node.input(0)], to=found, **kept)))
