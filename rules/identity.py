from typing import Any

from onnxfix.rule import Context, Edit, Node, Rule


class Identity(Rule):
    ops = ("Identity",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool | None:
        graph, source, result = node.graph, node.input(0), node.output(0)
        if not graph.is_output(result):
            return True
        # An output must keep its name: its producer can take it over, unless that is an output (or no node) itself.
        return True if source in graph.producers and not graph.is_output(source) else None

    def rewrite(self, node: Node, found: Any, edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, node.input(0))
