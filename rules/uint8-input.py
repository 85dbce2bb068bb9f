from dataclasses import dataclass

from onnx import TensorProto

from onnxfix.graph import CAPTURED
from onnxfix.lowering import dtypes
from onnxfix.rule import Context, Edit, Graph, Node, Rule, Skip

_LARGE = (TensorProto.UINT32, TensorProto.UINT64)


@dataclass(frozen=True)
class _Input:
    index: int
    name: str
    own: int
    wide: int
    moved: tuple[str, ...]  # values that only carry its numbers
    others: tuple[tuple[Node, int], ...]  # what reads them and neither moves nor casts them


class Uint8Input(Rule):
    ops = ("<graph>",)
    when = "always"
    options = {"uint64_as_bits": False}  # noqa: RUF012

    def match(self, graph: Graph, ctx: Context) -> _Input | None:
        if graph.kind != "graph":
            return None
        narrow, declined = ctx.target.narrows(TensorProto.INT64), ""
        for index, info in enumerate(graph.proto.input):
            own = info.type.tensor_type.elem_type
            if own not in dtypes.SMALL or ctx.target.takes_dtype(own) or not graph.is_input(info.name):
                continue
            moved, casts, others = _readers(graph, info.name)
            if any(graph.is_output(name) for name in moved) or (own in _LARGE and narrow):
                continue
            if any(at == CAPTURED for _, at in others):
                continue  # a body reads it, in the dtype it has
            if own == TensorProto.UINT64 and not self.option(ctx, "uint64_as_bits"):
                declined = dtypes.NO_WIDER.format(f"input '{info.name}'")
                continue
            to_float = casts and not others and all(c.attr("to") == TensorProto.FLOAT for c in casts)
            wide = TensorProto.INT64 if own in _LARGE else TensorProto.FLOAT if to_float else TensorProto.INT32
            return _Input(index, info.name, own, int(wide), tuple(moved), tuple(others))
        if declined:
            raise Skip(declined)
        return None

    def rewrite(self, graph: Graph, found: _Input, edit: Edit, ctx: Context) -> None:
        bits = found.own == TensorProto.UINT64
        edit.retype_input(found.index, found.wide, None if bits else dtypes.dtype_range(found.own))
        what = "the same 64 bits: from 2^63 on the number less 2^64" if bits else "the same numbers"
        if bits:
            edit.interface[-1] += f", {what}"
        edit.note = f"input '{found.name}' is declared {dtypes.dtype_name(found.wide)}; feed it {what}"
        for name in found.moved:
            edit.forget_type(name)
        narrow: dict[str, str] = {}
        for node, index in found.others:
            name = node.input(index)
            if name not in narrow:
                narrow[name] = edit.add("Cast", [name], to=found.own)
            edit.set_input(node, index, narrow[name])


def _readers(graph: Graph, name: str) -> tuple[list[str], list[Node], list[tuple[Node, int]]]:
    """Values that only carry the input's numbers, the casts that read them, and all else that does."""
    moved, casts, others = [name], [], []
    for value in moved:
        for node, index in graph.uses(value):
            if node.op == "Cast" and not node.domain and graph.dtype(name) != TensorProto.UINT64:
                casts.append(node)
            elif node.op in dtypes.MOVES and index == 0 and not node.domain and len(node.outputs) == 1:
                moved.append(node.output(0))
            else:
                others.append((node, index))
    return moved, casts, others
