from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.lowering import contrib, ms_attention
from onnxfix.lowering.ms_attention import dim
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

# Inputs and attributes of newer releases that mean another computation: by place, by name and value that means none.
_INPUTS = {11: "head_sink", 12: "k_scale", 13: "v_scale"}
_ATTRIBUTES = {"smooth_softmax": 0, "qk_output": 0, "kv_cache_bit_width": 0}


@dataclass(frozen=True)
class _Grouped:
    heads: int  # of keys and values
    group: int  # heads of queries for each of them
    width: int  # of a head
    dtype: int


class GroupedQuery(Rule):
    ops = ("com.microsoft::GroupQueryAttention",)
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> _Grouped:
        for index, name in _INPUTS.items():
            if node.input(index):
                raise Skip(f"it reads {name}, which is not written out here")
        for name, none in _ATTRIBUTES.items():
            if node.attr(name, none) not in (none, -1):
                raise Skip(f"its {name} is {node.attr(name)}, which is not written out here")
        if node.graph.opset() < 13:
            raise Skip("what it consists of is newer than the model's opset; convert the model to opset 13 first")
        self._full(node)
        heads, keys = node.attr("num_heads"), node.attr("kv_num_heads")
        total = dim(node, node.input(0), -1)
        if total is None:
            raise Skip(f"the last dimension of '{node.input(0)}' is not known")
        width = total // heads if node.input(1) else total // (heads + 2 * keys)
        return _Grouped(keys, heads // keys, width, contrib.dtype_of(node))

    @staticmethod
    def _full(node: Node) -> None:
        """Raises Skip unless all sequences are as long as the longest, which is what a single one always is."""
        if dim(node, node.input(0), 0) == 1:
            return
        lengths, total = node.graph.const(node.input(5)), node.graph.const(node.input(6))
        if lengths is None or total is None or (lengths + 1 != total).any():
            raise Skip("its sequences may differ in length; freeze the batch size to 1")

    def rewrite(self, node: Node, found: _Grouped, edit: Edit, ctx: Context) -> None:
        q, k, v = node.inputs[:3]
        if not k:
            sizes = [found.heads * found.group * found.width, *[found.heads * found.width] * 2]
            q, k, v = emit.split(edit, q, sizes, 2)
        if node.attr("do_rotary", 0):
            q = self._turned(node, q, found.heads * found.group, edit)
            k = self._turned(node, k, found.heads, edit)
        grouped = emit.reshape(edit, q, [0, 0, found.heads, found.group, found.width])
        grouped = emit.transpose(edit, grouped, [0, 2, 3, 1, 4])
        k, v = (ms_attention.to_heads(edit, x, found.heads) for x in (k, v))
        if node.input(3):
            k, v = (str(edit.add("Concat", [node.input(i), x], axis=2)) for i, x in ((3, k), (4, v)))
        queries = dim(node, node.input(0), 1)
        past = dim(node, node.input(3), 2) if node.input(3) else 0
        keys = None if queries is None or past is None else past + queries
        lengths = ms_attention.Lengths(edit, grouped, k, queries, keys, queries_axis=3)
        masks = [lengths.causal(found.dtype, node.attr("local_window_size", -1))]
        if node.input(10):
            masks.append(self._bias(node, found, keys, edit))
        y = self._attended(node, found, (grouped, k, v), masks, edit)
        y = emit.transpose(edit, y, [0, 3, 1, 2, 4])
        edit.replace_node(node, emit.reshape(edit, y, [0, 0, found.heads * found.group * found.width]), k, v)

    @staticmethod
    def _turned(node: Node, x: str, heads: int, edit: Edit) -> str:
        """`x` turned by the places of its elements, as an operator of ONNX Runtime: rule ms-rotary writes it out."""
        places: str | np.ndarray = node.input(9)
        if not places:
            past = dim(node, node.input(3), 2) if node.input(3) else 0
            places = emit.ints([past]) if past is not None else _size(edit, node.input(3), 2)
        inputs = [x, places, node.input(7), node.input(8)]
        interleaved = node.attr("rotary_interleaved", 0)
        half = dim(node, node.input(7), 1)
        turned = 2 * half if half is not None else None
        return str(
            edit.add(
                "RotaryEmbedding",
                inputs,
                domain=contrib.DOMAIN,
                interleaved=interleaved,
                num_heads=heads,
                rotary_embedding_dim=turned,
            )
        )

    @staticmethod
    def _bias(node: Node, found: _Grouped, keys: int | None, edit: Edit) -> str:
        """B x N x S x T as B x kv x group x S x T; with one for all heads, B x 1 x 1 x S x T."""
        bias, count = node.input(10), dim(node, node.input(10), 1)
        if count == 1:
            return emit.unsqueeze(edit, bias, [2])
        if count is None or keys is None:
            raise Skip(f"the shape of '{bias}' is not known; freeze the dynamic axes")
        return emit.reshape(edit, bias, [0, found.heads, found.group, -1, keys])

    @staticmethod
    def _attended(
        node: Node, found: _Grouped, qkv: tuple[str, str, str], masks: list[str | np.ndarray], edit: Edit
    ) -> str:
        """softmax(cap(q k' * scale) + masks) v: B x kv x group x S x h, keys and values the same for a group."""
        q, k, v = qkv
        turned = emit.unsqueeze(edit, emit.transpose(edit, k, [0, 1, 3, 2]), [2])
        scale, cap = ms_attention.scale_of(node, found.width), node.attr("softcap", 0.0)
        scores = edit.add("Mul", [edit.add("MatMul", [q, turned]), contrib.number(scale, found.dtype)])
        if cap:
            part = edit.add("Tanh", [edit.add("Mul", [scores, contrib.number(1 / cap, found.dtype)])])
            scores = edit.add("Mul", [part, contrib.number(cap, found.dtype)])
        for mask in masks:
            scores = edit.add("Add", [scores, mask])
        return str(edit.add("MatMul", [edit.add("Softmax", [scores], axis=4), emit.unsqueeze(edit, v, [2])]))


def _size(edit: Edit, x: str, axis: int) -> str:
    """The size of an axis as a rank-1 INT64."""
    return str(edit.add("Gather", [edit.add("Shape", [x]), emit.ints([axis])], axis=0))
