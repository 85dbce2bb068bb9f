from onnx import TensorProto

from onnxfix.lowering import bits, dtypes
from onnxfix.lowering.dtypes import MOVES, Recast
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_OWN, _CARRIER = TensorProto.UINT64, TensorProto.INT64
# What these do with 64 bits is the same, signed or not.
_SAME = MOVES | {
    "Add", "Compress", "Concat", "Equal", "Mul", "NonZero", "Pad", "ReduceSum", "ReverseSequence", "ScatterElements",
    "ScatterND", "Sub", "Trilu", "Where",
}  # fmt: skip
_ORDER = frozenset(
    {
        "ArgMax", "ArgMin", "Clip", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "ReduceMax",
        "ReduceMin", "TopK",
    }
)  # fmt: skip
_DIVIDE = frozenset({"Div", "Mod"})
_ALL = _SAME | _ORDER | _DIVIDE | {"Cast"}


class Uint64Inside(Rule):
    ops = ("*",)
    when = "always"  # a node that only reads a refused dtype is not refused itself: what made the value is

    def match(self, node: Node, ctx: Context) -> Recast | None:
        graph = node.graph
        if node.op not in _ALL or node.domain or node.bodies or ctx.target.takes_dtype(_OWN):
            return None
        if node.op == "Cast":
            return self._cast(node, ctx)
        if not any(graph.dtype(n) == _OWN for n in node.inputs if n):
            return None
        if ctx.target.narrows(_CARRIER):
            raise Skip("UINT64 is refused, and INT64, which could hold its bits, is cut to INT32 here; use INT32")
        how = dtypes.alike(node, frozenset({_OWN}), int(_CARRIER))
        if how is None or (node.op in ("ScatterND", "ScatterElements") and node.attr("reduction", "none") != "none"):
            return None
        return how

    def _cast(self, node: Node, ctx: Context) -> Recast | None:
        graph, name = node.graph, node.input(0)
        if ctx.target.narrows(_CARRIER):
            return None
        own = graph.dtype(name)
        if _OWN not in (own, node.attr("to")):
            return None
        if node.attr("to") == _OWN and own not in dtypes.FLOATS:
            return None  # what reads it reads the source
        if own == _OWN and dtypes.uncast(graph, name, int(_CARRIER)) == name:
            return None  # not carried yet
        return Recast((0,), (0,), int(_OWN), int(_CARRIER)) if own else None

    def rewrite(self, node: Node, found: Recast, edit: Edit, ctx: Context) -> None:
        edit.note = f"{node.op} of UINT64 runs on the same 64 bits in INT64"
        if node.op == "Cast":
            edit.replace_node(node, _cast(edit, node))
        elif node.op in _DIVIDE:
            quotient, rest = bits.divided(edit, *(dtypes.as_dtype(edit, n, _CARRIER) for n in node.inputs))
            result = quotient if node.op == "Div" else rest
            edit.replace_node(node, str(edit.add("Cast", [result], to=_OWN)))
        else:
            turn = bits.flipped if node.op in _ORDER else None
            edit.replace_node(node, *dtypes.run_in(node, found, edit, turn))


def _cast(edit: Edit, node: Node) -> str:
    name, graph, to = node.input(0), node.graph, int(node.attr("to"))
    own = graph.dtype(name)
    if to == _OWN:
        return str(edit.add("Cast", [bits.from_floating(edit, name, own)], to=_OWN))
    carried = dtypes.as_dtype(edit, name, _CARRIER)
    if to == _CARRIER:
        return carried
    return bits.as_floating(edit, carried, to) if to in dtypes.FLOATS else str(edit.add("Cast", [carried], to=to))
