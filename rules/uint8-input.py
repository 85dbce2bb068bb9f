from dataclasses import dataclass

from onnx import TensorProto

from onnxfix.lowering import dtypes
from onnxfix.rule import Context, Edit, Graph, Node, Rule

_SMALL = (
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
)


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

    def match(self, graph: Graph, ctx: Context) -> _Input | None:
        if graph.kind != "graph":
            return None
        for index, info in enumerate(graph.proto.input):
            own = info.type.tensor_type.elem_type
            if own not in _SMALL or ctx.target.takes_dtype(own) or not graph.is_input(info.name):
                continue
            moved, casts, others = _readers(graph, info.name)
            if any(graph.is_output(name) for name in moved):
                continue
            to_float = casts and not others and all(c.attr("to") == TensorProto.FLOAT for c in casts)
            wide = TensorProto.FLOAT if to_float else TensorProto.INT32
            if own in (TensorProto.UINT32, TensorProto.UINT64):
                wide = TensorProto.INT64
            return _Input(index, info.name, own, int(wide), tuple(moved), tuple(others))
        return None

    def rewrite(self, graph: Graph, found: _Input, edit: Edit, ctx: Context) -> None:
        edit.retype_input(found.index, found.wide, dtypes.dtype_range(found.own))
        edit.note = f"input '{found.name}' is declared {dtypes.dtype_name(found.wide)}; feed it the same numbers"
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
            if node.op == "Cast" and not node.domain:
                casts.append(node)
            elif node.op in dtypes.MOVES and index == 0 and not node.domain and len(node.outputs) == 1:
                moved.append(node.output(0))
            elif index >= 0:
                others.append((node, index))
    return moved, casts, others
