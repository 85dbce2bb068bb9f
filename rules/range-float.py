import math

from onnx import TensorProto

from onnxfix.lowering.dtypes import as_dtype, whole_range
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_EXACT = {TensorProto.FLOAT: 1 << 24, TensorProto.DOUBLE: 1 << 53, TensorProto.FLOAT16: 1 << 11}


class RangeFloat(Rule):
    ops = ("Range",)

    def match(self, node: Node, ctx: Context) -> int | None:
        graph = node.graph
        dtype = graph.dtype(node.input(0))
        if dtype not in _EXACT:
            return None
        for name in node.inputs:
            bounds = whole_range(graph, name)
            if bounds is None:
                raise Skip(f"'{name}' may hold fractions; give start, limit and delta as whole numbers or constants")
            known = [b for b in bounds if math.isfinite(b)]
            if any(abs(b) > _EXACT[dtype] for b in known) and not graph.producer(name):
                raise Skip(f"'{name}' may be too large for its type to hold all whole numbers")
        return dtype

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        ends = [as_dtype(edit, name, TensorProto.INT64) for name in node.inputs]
        edit.replace_node(node, edit.add("Cast", [edit.add("Range", ends)], to=found))
