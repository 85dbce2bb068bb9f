from typing import Any

from onnxfix import folding
from onnxfix.rule import Context, Edit, Node, Rule


class Identity(Rule):
    ops = ("Identity",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool | None:
        return folding.passes(node, node.input(0)) or None

    def rewrite(self, node: Node, found: Any, edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, node.input(0))
