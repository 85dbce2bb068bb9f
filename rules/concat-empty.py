from onnxfix.rule import Context, Edit, Node, Rule


class ConcatEmpty(Rule):
    ops = ("Concat",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> list[str] | None:
        axis, kept = node.attr("axis"), []
        for name in node.inputs:
            shape = node.graph.shape(name)
            known = shape is not None and axis is not None and -len(shape) <= axis < len(shape)
            if shape is None or not known or shape[axis] != 0:
                kept.append(name)
        return kept if kept and len(kept) < len(node.inputs) else None

    def rewrite(self, node: Node, kept: list[str], edit: Edit, ctx: Context) -> None:
        edit.set_inputs(node, kept)
