import numpy as np

from onnxfix import emit
from onnxfix.lowering.ms_attention import dim
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class RotaryEmbedding(Rule):
    ops = ("com.microsoft::RotaryEmbedding",)
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> tuple[int, int, int]:
        """Heads (0 when the input comes in heads), the width of a head, and how much of it is turned."""
        graph = node.graph
        if node.attr("scale", 1.0) != 1.0 or node.attr("is_packed_batching", 0):
            raise Skip("it has a scale or packed batches, which are not known here; export the model without that")
        rank, half = graph.rank(node.input(0)), dim(node, node.input(2), 1)
        width = dim(node, node.input(0), -1)
        if rank not in (3, 4) or half is None or width is None or graph.rank(node.input(1)) is None:
            raise Skip(f"the sizes of '{node.input(0)}', its places or its tables are not known")
        turned = node.attr("rotary_embedding_dim", 0) or 2 * half
        if rank == 4:
            return 0, width, turned
        heads = node.attr("num_heads", 0) or width // (2 * half)
        return heads, width // heads, turned

    def rewrite(self, node: Node, found: tuple[int, int, int], edit: Edit, ctx: Context) -> None:
        heads, width, turned = found
        x = emit.reshape(edit, node.input(0), [0, 0, heads, width]) if heads else node.input(0)
        kept = ""
        if turned < width:
            x, kept = emit.split(edit, x, [turned, width - turned], 3)
        if node.attr("interleaved", 0):
            last = np.iinfo(np.int64).max
            a, b = (emit.slice_(edit, x, [start], [last], [3], [2]) for start in (0, 1))
        else:
            a, b = emit.split(edit, x, [turned // 2] * 2, 3)
        places = self._places(node, bool(heads), edit)
        cos, sin = (
            emit.unsqueeze(edit, str(edit.add("Gather", [node.input(i), places], axis=0)), [2 if heads else 1])
            for i in (2, 3)
        )
        left = edit.add("Sub", [edit.add("Mul", [a, cos]), edit.add("Mul", [b, sin])])
        right = edit.add("Add", [edit.add("Mul", [a, sin]), edit.add("Mul", [b, cos])])
        if node.attr("interleaved", 0):
            pairs = emit.concat(edit, [emit.unsqueeze(edit, v, [4]) for v in (left, right)], 4)
            y = emit.reshape(edit, pairs, [0, 0, 0, turned])
        else:
            y = emit.concat(edit, [left, right], 3)
        if kept:
            y = emit.concat(edit, [y, kept], 3)
        edit.replace_node(node, emit.reshape(edit, y, [0, 0, heads * width]) if heads else y)

    @staticmethod
    def _places(node: Node, heads_behind: bool, edit: Edit) -> str:
        """B x S places; from an offset they are counted on."""
        if node.graph.rank(node.input(1)) == 2:
            return node.input(1)
        axis, one = np.asarray(1 if heads_behind else 2, np.int64), np.asarray(1, np.int64)
        length = edit.add("Gather", [edit.add("Shape", [node.input(0)]), axis], axis=0)
        counted = edit.add("Range", [np.asarray(0, np.int64), length, one])
        return emit.unsqueeze(edit, str(edit.add("Add", [counted, node.input(1)])), [0])
