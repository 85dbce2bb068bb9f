from onnx import TensorProto

from onnxfix.lowering import bits, dtypes
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_OF_WIDTH = {16: TensorProto.INT16, 32: TensorProto.INT32}
_INT64, _BOOL = TensorProto.INT64, TensorProto.BOOL


class BitCast(Rule):
    ops = ("BitCast",)
    safety = Safety.CLOSE  # the bits of a NaN come out as those of the quiet one, and its numbers as some NaN

    def match(self, node: Node, ctx: Context) -> tuple[int, int] | None:
        before, after = node.graph.dtype(node.input(0)), int(node.attr("to"))
        if not before:
            return None
        for dtype in (before, after):
            if dtype not in bits.WIDTHS and dtype not in bits.LAYOUTS and dtype != _BOOL:
                raise Skip(f"the bits of {dtypes.dtype_name(dtype)} are out of reach of 32-bit arithmetic")
            if bits.WIDTHS.get(dtype, 0) > 32 and ctx.target.narrows(_INT64):
                raise Skip("the target cuts INT64 to INT32; use 32 bits")
        if not ctx.supports("Mod"):
            raise Skip("bits are taken apart with Mod, which the target lacks")
        return before, after

    def rewrite(self, node: Node, found: tuple[int, int], edit: Edit, ctx: Context) -> None:
        (before, after), x = found, node.input(0)
        if before in bits.LAYOUTS:
            layout = bits.LAYOUTS[before]
            x, before = bits.encoded(edit, dtypes.as_float(edit, x), layout), _integer(before)
            x = x if before == TensorProto.INT32 else str(edit.add("Cast", [x], to=before))
        if before == after:
            pass
        elif after in bits.LAYOUTS:
            whole = _reread(edit, x, before, _integer(after))
            whole = dtypes.as_dtype(edit, whole, TensorProto.INT32)
            x = bits.decoded(edit, whole, bits.LAYOUTS[after])
            x = x if after == TensorProto.FLOAT else str(edit.add("Cast", [x], to=after))
        else:
            x = _reread(edit, x, before, after)
        edit.replace_node(node, x)


def _integer(dtype: int) -> int:
    layout = bits.LAYOUTS[dtype]
    return int(_OF_WIDTH[1 + layout.exponent + layout.fraction])


def _reread(edit: Edit, x: str, before: int, after: int) -> str:
    """Integers (or booleans) as others of the same width."""
    if before == after:
        return x
    if _BOOL in (before, after) or bits.WIDTHS[before] == 64:
        return str(edit.add("Cast", [x], to=after))
    kind = int(_INT64 if TensorProto.UINT32 in (before, after) else TensorProto.INT32)
    return bits.given_back(edit, dtypes.as_dtype(edit, x, kind), after, kind)
