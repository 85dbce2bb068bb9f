import numpy as np

from onnxfix.rule import Context, Edit, Node, Rule


class ShapePartlyKnown(Rule):
    ops = ("Reshape",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> list[int] | None:
        graph, target = node.graph, node.input(1)
        if graph.is_const(target) or node.attr("allowzero"):
            return None
        known = graph.known(target)
        # The one that is not known follows from the number of elements, as long as the others are not empty.
        if known is None or known.count(None) != 1 or any(v is not None and v <= 0 for v in known):
            return None
        return [-1 if v is None else v for v in known]

    def rewrite(self, node: Node, found: list[int], edit: Edit, ctx: Context) -> None:
        edit.set_input(node, 1, np.asarray(found, np.int64))
        edit.note = f"the target shape is {found}: what is not known of it follows from the number of elements"


