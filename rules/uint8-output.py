from onnx import TensorProto

from onnxfix.lowering import dtypes
from onnxfix.rule import Context, Edit, Graph, Rule, Skip

_SMALL = (
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
)


class Uint8Output(Rule):
    ops = ("<graph>",)
    when = "always"

    def match(self, graph: Graph, ctx: Context) -> int | None:
        """The index of an output whose dtype the target can't give."""
        if graph.kind != "graph":
            return None
        for index, info in enumerate(graph.proto.output):
            own, name = info.type.tensor_type.elem_type, info.name
            if own not in _SMALL or ctx.target.takes_dtype(own) or name not in graph.producers:
                continue
            if graph.uses(name):
                raise Skip(f"output '{name}' is {dtypes.dtype_name(own)} and read within the graph too; cast it there")
            return index
        return None

    def rewrite(self, graph: Graph, found: int, edit: Edit, ctx: Context) -> None:
        info = graph.proto.output[found]
        wide = TensorProto.INT32
        if info.type.tensor_type.elem_type in (TensorProto.UINT32, TensorProto.UINT64):
            wide = TensorProto.INT64
        edit.retype_output(found, int(wide))
        edit.replace(info.name, str(edit.add("Cast", [info.name], to=int(wide))))
        edit.note = f"output '{info.name}' is declared {dtypes.dtype_name(wide)}; its numbers are the same"
