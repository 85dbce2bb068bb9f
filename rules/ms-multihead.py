from onnxfix import emit
from onnxfix.lowering import contrib, ms_attention
from onnxfix.lowering.ms_attention import dim
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class MultiHead(Rule):
    ops = ("com.microsoft::MultiHeadAttention",)
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> tuple[int, int]:
        """The width of a head of the queries, and the dtype."""
        graph, heads = node.graph, node.attr("num_heads")
        if node.input(8) or node.input(9) or (node.output(3) and not graph.unused(node.output(3))):
            raise Skip("it writes into a shared buffer, or its products are read; export the model without that")
        if graph.opset() < 11:
            raise Skip("what it consists of does not exist before opset 11; convert the model to opset 13 first")
        ranks = [graph.rank(node.input(i)) if node.input(i) else 0 for i in range(3)]
        if ranks not in ([3, 3, 3], [3, 4, 4], [5, 0, 0], [3, 5, 0]):
            raise Skip(f"its inputs' ranks are {ranks}, of which some are not known or of a form only GPUs have")
        width = dim(node, node.input(0), -1)
        if width is None:
            raise Skip(f"the last dimension of '{node.input(0)}' is not known")
        if node.input(3) and (ranks != [3, 3, 3] or dim(node, node.input(2), -1) is None):
            raise Skip("its bias can't be cut, since the inputs' sizes are not known or they are packed")
        return (width if ranks[0] == 5 else width // heads), contrib.dtype_of(node)

    def rewrite(self, node: Node, found: tuple[int, int], edit: Edit, ctx: Context) -> None:
        head, dtype = found
        heads = node.attr("num_heads")
        q, k, v = self._heads(node, heads, edit)
        past = dim(node, node.input(6), 2) if node.input(6) else 0
        now = dim(node, node.input(1) or node.input(0), 2 if node.graph.rank(node.input(1)) == 4 else 1)
        if node.input(6):
            k, v = (str(edit.add("Concat", [node.input(i), x], axis=2)) for i, x in ((6, k), (7, v)))
        queries = dim(node, node.input(0), 1)
        lengths = ms_attention.Lengths(edit, q, k, queries, None if now is None or past is None else now + past)
        added = []
        if node.input(4):
            value = node.attr("mask_filter_value", -10000.0)
            added.append(ms_attention.padding(edit, node.input(4), value, lengths, dtype, dim(node, node.input(0), 0)))
        if node.attr("unidirectional", 0):
            added.append(lengths.causal(dtype))
        if node.input(5):
            added.append(node.input(5))
        y = ms_attention.attend(edit, q, k, v, ms_attention.scale_of(node, head), added, dtype)
        width = dim(node, node.input(2), -1) if node.graph.rank(node.input(2)) == 3 else None
        edit.replace_node(node, ms_attention.from_heads(edit, y, width or -1), k, v)

    @staticmethod
    def _heads(node: Node, heads: int, edit: Edit) -> list[str]:
        """Queries, keys and values, each B x N x S x h."""
        graph = node.graph
        names = [n for n in node.inputs[:3] if n]
        if node.input(3):
            sizes = [dim(node, n, -1) or 0 for n in (names[0], names[0], names[2])]
            biases = ms_attention.cut(edit, node.input(3), sizes, 0)
            names = [str(edit.add("Add", pair)) for pair in zip(names, biases, strict=True)]
        found = []
        for name in names:
            rank = graph.rank(name) if name in node.inputs else 3
            if rank == 5:
                count = 3 if len(names) == 1 else 2
                found += [emit.transpose(edit, ms_attention.part(edit, name, i, 3), [0, 2, 1, 3]) for i in range(count)]
            else:
                found.append(name if rank == 4 else ms_attention.to_heads(edit, name, heads))
        return found
