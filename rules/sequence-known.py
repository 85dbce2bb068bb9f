import numpy as np

from onnxfix import emit
from onnxfix.lowering import functions, sequences
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class SequenceKnown(Rule):
    ops = ("SequenceAt", "SequenceLength", "ConcatFromSequence")

    def match(self, node: Node, ctx: Context) -> list[str] | None:
        found = sequences.elements(node.graph, node.input(0))
        if found is None:
            raise Skip("what the sequence consists of is only known when the model runs; export without lists")
        if not functions.renameable(node):
            return None
        if node.op == "SequenceAt":
            at = node.graph.const(node.input(1))
            if at is None:
                raise Skip("the position is computed")
            place = int(at.reshape(-1)[0])
            if not -len(found) <= place < len(found):
                raise Skip(f"position {place} is outside of the sequence of {len(found)}")
            return [found[place]]
        if node.op == "ConcatFromSequence" and not found:
            raise Skip("the sequence is empty")
        return found

    def rewrite(self, node: Node, found: list[str], edit: Edit, ctx: Context) -> None:
        if node.op == "SequenceAt":
            result = found[0]
        elif node.op == "SequenceLength":
            result = edit.const(np.asarray(len(found), np.int64))
        else:
            axis = node.attr("axis")
            parts = found
            if node.attr("new_axis"):
                rank = node.graph.rank(found[0])
                if axis < 0 and rank is None:
                    raise Skip(f"the rank of '{found[0]}' is not known")
                axis += rank + 1 if axis < 0 and rank is not None else 0
                parts = [emit.unsqueeze(edit, v, [axis]) for v in found]
            result = emit.concat(edit, parts, axis)
        functions.replace_outputs(edit, node, [result])
