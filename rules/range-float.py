import math

from onnx import TensorProto

from onnxfix.lowering import elementwise
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
        ends = [as_dtype(edit, self._whole(node, name), TensorProto.INT64) for name in node.inputs]
        edit.replace_node(node, edit.add("Cast", [edit.add("Range", ends)], to=found))

    @staticmethod
    def _whole(node: Node, name: str) -> str:
        """The integer that a floating-point number was made from, where that counts something; else the number."""
        cast = node.graph.producer(name)
        if cast is None or cast.op != "Cast" or node.graph.dtype(cast.input(0)) not in elementwise.INTEGERS:
            return name
        bounds = whole_range(node.graph, cast.input(0))
        # A count beyond what the type holds would make a Range of that many elements.
        return cast.input(0) if bounds is not None and math.isfinite(bounds[0]) and math.isfinite(bounds[1]) else name
