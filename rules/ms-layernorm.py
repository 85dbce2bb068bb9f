import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import contrib
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_SKIP = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


class LayerNorm(Rule):
    # ONNX Runtime files two of them under the standard's own domain, where the standard has them later or not at all.
    ops = (
        *(f"com.microsoft::{op}" for op in _SKIP),
        "com.microsoft::EmbedLayerNormalization",
        "SimplifiedLayerNormalization",
        "LayerNormalization",
    )
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> int | None:
        if node.op == "LayerNormalization" and node.opset >= 17:
            return None
        if node.op in ("LayerNormalization", "SimplifiedLayerNormalization"):
            rank = node.graph.rank(node.input(0))
            if node.attr("axis", -1) not in (-1, None if rank is None else rank - 1):
                raise Skip("it normalises over more than the last axis; convert the model to opset 17")
        if node.op != "EmbedLayerNormalization":
            contrib.unread(node, 1, 2)
        return contrib.dtype_of(node)

    def rewrite(self, node: Node, dtype: int, edit: Edit, ctx: Context) -> None:
        epsilon = node.attr("epsilon", 1e-12 if node.domain and "Simplified" not in node.op else 1e-5)
        x, total = node.input(0), ""
        if node.op == "EmbedLayerNormalization":
            x = self._embedded(node, edit)
            scale, bias = node.input(5), node.input(6)
        elif node.op in _SKIP:
            simplified = node.op == _SKIP[1]
            scale, bias = node.input(2), "" if simplified else node.input(3)
            x = str(edit.add("Add", [x, node.input(1)]))
            extra = node.input(3 if simplified else 4)
            if extra:
                x = str(edit.add("Add", [x, extra]))
            total = x
        else:
            scale, bias = node.input(1), node.input(2)
        if "Simplified" in node.op:
            y = contrib.rms_norm(edit, x, scale, epsilon, dtype)
        else:
            y = contrib.layer_norm(edit, x, scale, bias, epsilon, dtype)
        outputs = [y, "", "", total]
        if node.op == "EmbedLayerNormalization":
            counted = bool(node.output(1)) and not node.graph.unused(node.output(1))
            outputs = [y, self._counted(node, edit) if counted else "", x]
        edit.replace_node(node, *outputs[: len(node.outputs)])

    @staticmethod
    def _counted(node: Node, edit: Edit) -> str:
        """How many ones each sequence's mask has; zeros without a mask."""
        one = np.asarray(1, np.int32)
        if not node.input(7):
            size = emit.slice_(edit, str(edit.add("Shape", [node.input(0)])), [0], [1], [0])
            return str(edit.add("Expand", [np.zeros(1, np.int32), size]))
        ones = edit.add("Cast", [edit.add("Equal", [node.input(7), one])], to=TensorProto.INT32)
        return emit.reduce(edit, "ReduceSum", str(ones), [1], keepdims=0)

    @staticmethod
    def _embedded(node: Node, edit: Edit) -> str:
        """The sum of the word, position and segment embeddings."""
        ids, segments, words, positions, segment_table = (node.input(i) for i in range(5))
        total = str(edit.add("Gather", [words, ids], axis=0))
        if node.input(8):
            places = str(edit.add("Gather", [positions, node.input(8)], axis=0))
        else:
            length = emit.slice_(edit, str(edit.add("Shape", [ids])), [1], [2], [0])
            places = str(edit.add("Slice", [positions, emit.ints([0]), length, emit.ints([0])]))
        total = str(edit.add("Add", [total, places]))
        if segments and segment_table:
            total = str(edit.add("Add", [total, str(edit.add("Gather", [segment_table, segments], axis=0))]))
        return total
