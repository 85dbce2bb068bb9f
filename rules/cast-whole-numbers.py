from typing import Any

from onnx import helper

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
        source, to = uncast(graph, node.input(0)), node.attr("to")
        if source == node.input(0) or graph.is_const(source):
            return None
        direct = Node(helper.make_node("Cast", [source], ["direct"], to=to), graph)
        # The target may convert the one to the other by way of a third alone (rule uint8-by-float).
        stays = graph.dtype(source) != to and ctx.refused(direct) and not ctx.refused(node)
        return None if stays else source

    def rewrite(self, node: Node, found: str, edit: Edit, ctx: Context) -> None:
        to: Any = node.attr("to")
        same = node.graph.dtype(found) == to
        edit.replace_node(node, found if same else str(edit.add("Cast", [found], to=to)))
