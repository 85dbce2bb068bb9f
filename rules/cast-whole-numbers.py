from typing import Any

from onnxfix.lowering.dtypes import uncast
from onnxfix.rule import Context, Edit, Node, Rule, Safety


class CastWholeNumbers(Rule):
    ops = ("Cast",)
    safety = Safety.CLOSE  # a negative zero comes out as one, not as zero
    when = "always"

    def match(self, node: Node, ctx: Context) -> str | None:
        graph = node.graph
        producer = graph.producer(node.input(0))
        if producer is None or producer.op != "Cast":
            return None
        source = uncast(graph, node.input(0))
        return source if source != node.input(0) and not graph.is_const(source) else None

    def rewrite(self, node: Node, found: str, edit: Edit, ctx: Context) -> None:
        to: Any = node.attr("to")
        same = node.graph.dtype(found) == to
        edit.replace_node(node, found if same else str(edit.add("Cast", [found], to=to)))
