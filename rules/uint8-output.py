from onnx import TensorProto

from onnxfix.lowering import dtypes
from onnxfix.rule import Context, Edit, Graph, Rule, Skip

_LARGE = (TensorProto.UINT32, TensorProto.UINT64)


class Uint8Output(Rule):
    ops = ("<graph>",)
    when = "always"
    options = {"uint64_as_bits": False}  # noqa: RUF012

    def match(self, graph: Graph, ctx: Context) -> int | None:
        """The index of an output whose dtype the target can't give."""
        if graph.kind != "graph":
            return None
        declined = ""
        for index, info in enumerate(graph.proto.output):
            own, name = info.type.tensor_type.elem_type, info.name
            if own not in dtypes.SMALL or ctx.target.takes_dtype(own) or name not in graph.producers:
                continue
            if own in _LARGE and ctx.target.narrows(TensorProto.INT64):
                continue
            if graph.uses(name):
                raise Skip(f"output '{name}' is {dtypes.dtype_name(own)} and read within the graph too; cast it there")
            if own == TensorProto.UINT64 and not self.option(ctx, "uint64_as_bits"):
                declined = dtypes.NO_WIDER.format(f"output '{name}'")
                continue
            return index
        if declined:
            raise Skip(declined)
        return None

    def rewrite(self, graph: Graph, found: int, edit: Edit, ctx: Context) -> None:
        info = graph.proto.output[found]
        own = info.type.tensor_type.elem_type
        wide = int(TensorProto.INT64 if own in _LARGE else TensorProto.INT32)
        edit.retype_output(found, wide)
        edit.replace(info.name, str(edit.add("Cast", [info.name], to=wide)))
        same = "the same numbers"
        if own == TensorProto.UINT64:
            same = "the same 64 bits: from 2^63 on the number less 2^64"
            edit.interface[-1] += f", {same}"
        edit.note = f"output '{info.name}' is declared {dtypes.dtype_name(wide)}; it gives {same}"
