from onnxfix import emit
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_READERS = ("SequenceAt", "SequenceLength", "SequenceInsert", "SequenceErase", "ConcatFromSequence", "Identity")


class SequenceSplit(Rule):
    ops = ("SplitToSequence",)

    def match(self, node: Node, ctx: Context) -> list[int] | None:
        graph = node.graph
        readers = [u for u, _ in graph.uses(node.output(0))]
        if graph.is_output(node.output(0)) or any(u.op not in _READERS for u in readers):
            raise Skip("the sequence itself is handed on: to an output, or into a body")
        shape, axis = graph.shape(node.input(0)), int(node.attr("axis"))
        if shape is None or not -len(shape) <= axis < len(shape):
            raise Skip("the rank of its input is not known; freeze the dynamic axes")
        size = shape[axis]
        if node.input(1):
            split = graph.const(node.input(1))
            if split is None:
                raise Skip("the sizes of the parts are computed")
            if split.ndim:
                return [int(v) for v in split]
            step = int(split)
        else:
            step = 1
        if not isinstance(size, int):
            place = f"dimension {axis} of '{node.input(0)}'"
            raise Skip(f"the number of parts hangs on {place}, which is dynamic; freeze it")
        if step < 1 or size == 0:
            raise Skip("there is nothing to split")
        return [min(step, size - i) for i in range(0, size, step)]

    def rewrite(self, node: Node, found: list[int], edit: Edit, ctx: Context) -> None:
        rank = node.graph.rank(node.input(0)) or 0
        axis = int(node.attr("axis")) % rank
        parts = emit.split(edit, node.input(0), found, axis)
        if not node.input(1) and not node.attr("keepdims"):
            parts = [emit.squeeze(edit, p, [axis]) for p in parts]
        edit.replace_node(node, edit.add("SequenceConstruct", parts))
