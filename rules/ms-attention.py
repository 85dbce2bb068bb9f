from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import contrib, ms_attention
from onnxfix.lowering.ms_attention import dim
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class FusedAttention(Rule):
    ops = ("com.microsoft::Attention", "com.microsoft::QAttention")
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> tuple[list[int], int]:
        """The widths of queries, keys and values, and the dtype computed in."""
        shared = node.attr("past_present_share_buffer", 0) or (node.op == "Attention" and node.input(6))
        if node.attr("do_rotary", 0) or shared:
            raise Skip("it turns positions, or writes into a shared buffer; export the model without that")
        if node.graph.opset() < 11:
            raise Skip("what it consists of does not exist before opset 11; convert the model to opset 13 first")
        sizes = node.attr("qkv_hidden_sizes", [])
        total = dim(node, node.input(1), -1) or dim(node, node.input(2), -1)
        if not sizes and (total is None or total % 3):
            raise Skip(f"the shape of its weights '{node.input(1)}' is not known")
        dtype = int(TensorProto.FLOAT) if node.op == "QAttention" else contrib.dtype_of(node)
        return list(sizes or [(total or 0) // 3] * 3), dtype

    def rewrite(self, node: Node, found: tuple[list[int], int], edit: Edit, ctx: Context) -> None:
        sizes, dtype = found
        heads = node.attr("num_heads")
        quantized = node.op == "QAttention"
        product = self._quantized_product if quantized else self._product
        joined = product(node, edit)
        if node.input(2):
            joined = str(edit.add("Add", [joined, node.input(2)]))
        q, k, v = (ms_attention.to_heads(edit, x, heads) for x in emit.split(edit, joined, sizes, 2))
        mask, past, bias = (node.input(i) for i in ((5, 8, 99) if quantized else (3, 4, 5)))
        queries = dim(node, node.input(0), 1)
        before = dim(node, past, 3) if past else 0
        if past:
            had = [ms_attention.part(edit, past, i, 0) for i in (0, 1)]
            k, v = (str(edit.add("Concat", pair, axis=2)) for pair in zip(had, (k, v), strict=True))
        keys = None if queries is None or before is None else queries + before
        lengths = ms_attention.Lengths(edit, q, k, queries, keys)
        added = []
        if mask:
            value = node.attr("mask_filter_value", -10000.0)
            added.append(ms_attention.padding(edit, mask, value, lengths, dtype, dim(node, node.input(0), 0)))
        if node.attr("unidirectional", 0):
            added.append(lengths.causal(dtype))
        if bias:
            added.append(bias)
        y = ms_attention.attend(edit, q, k, v, ms_attention.scale_of(node, sizes[0] // heads), added, dtype)
        outputs = [ms_attention.from_heads(edit, y, sizes[2])]
        if node.output(1) and not node.graph.unused(node.output(1)):
            outputs.append(emit.concat(edit, [emit.unsqueeze(edit, x, [0]) for x in (k, v)], 0))
        edit.replace_node(node, *outputs)

    @staticmethod
    def _product(node: Node, edit: Edit) -> str:
        return str(edit.add("MatMul", [node.input(0), node.input(1)]))

    @staticmethod
    def _quantized_product(node: Node, edit: Edit) -> str:
        """Input times weights in integers, times both scales."""
        inputs = [node.input(0), node.input(1), node.input(6), node.input(7)]
        while not inputs[-1]:
            inputs.pop()
        sums = edit.add("Cast", [edit.add("MatMulInteger", inputs)], to=TensorProto.FLOAT)
        return str(edit.add("Mul", [sums, edit.add("Mul", [node.input(3), node.input(4)])]))
