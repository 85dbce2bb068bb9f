from dataclasses import dataclass

from onnx import TensorProto

from onnxfix.lowering import bits, dtypes
from onnxfix.rule import Context, Edit, Node, Rule, Skip


@dataclass(frozen=True)
class _Operator:
    own: int
    mask: int | None = None  # how many of the lowest bits an And with a constant leaves
    of: str = ""  # the value it leaves them of


class Bitwise(Rule):
    ops = ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot")

    def match(self, node: Node, ctx: Context) -> _Operator | None:
        graph, own = node.graph, node.graph.dtype(node.input(0))
        if own not in bits.WIDTHS:
            return None
        if bits.carrier(own) == TensorProto.INT64 and ctx.target.narrows(TensorProto.INT64):
            raise Skip(f"the target cuts INT64 to INT32, and {dtypes.dtype_name(own)} has bits beyond; use INT32")
        if (graph.rank(node.output(0)) or 0) > 7:
            raise Skip("its digits need one more axis than the eight that tensors may have; reshape it")
        for name, other in (node.inputs, node.inputs[::-1]) if node.op == "BitwiseAnd" else ():
            mask = graph.const(name)
            if mask is not None and mask.ndim == 0 and 0 <= int(mask) < 1 << (bits.WIDTHS[own] - 2):
                count = int(mask).bit_length()
                if int(mask) + 1 == 1 << count:
                    return _Operator(own, count, other)
        return _Operator(own)

    def rewrite(self, node: Node, found: _Operator, edit: Edit, ctx: Context) -> None:
        if node.op == "BitwiseNot":
            value = bits.inverted(edit, node.input(0), found.own)
        elif found.mask is not None:
            value = bits.masked(edit, found.of, found.mask, found.own)
        else:
            value = bits.bitwise(edit, node.op, node.input(0), node.input(1), found.own)
        edit.replace_node(node, value)
