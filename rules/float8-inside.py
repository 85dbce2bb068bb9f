from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from onnxfix.lowering import bits, dtypes
from onnxfix.rule import Context, Edit, Graph, Node, Rule, Skip

_FLOAT = TensorProto.FLOAT
_SCALES = TensorProto.FLOAT8E8M0
_TO_FLOAT = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_CARRIES = dtypes.MOVES | {"Concat", "Where"}


@dataclass
class _Small:
    constants: list[str] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    casts: list[Node] = field(default_factory=list)  # to one of the formats
    carried: list[str] = field(default_factory=list)


class Float8Inside(Rule):
    ops = ("<graph>",)
    when = "always"

    def match(self, graph: Graph, ctx: Context) -> _Small | None:
        small = frozenset(d for d in (*bits.FLOATS8, _SCALES) if not ctx.target.takes_dtype(d))
        if graph.kind != "graph":
            return None
        found = _Small([n for n, t in graph.initializers.items() if t.data_type in small and not graph.unused(n)])
        found.inputs, found.outputs = (
            [i for i, v in enumerate(values) if v.type.tensor_type.elem_type in small]
            for values in (graph.proto.input, graph.proto.output)
        )
        found.casts = [n for n in graph.nodes() if n.op == "Cast" and n.attr("to") in small]
        if not (found.constants or found.inputs or found.outputs or found.casts):
            return None
        for node in graph.nodes():
            reads = [n for n in (*node.inputs, *node.captured) if n and graph.dtype(n) in small]
            makes = [o for o in node.outputs if o and graph.dtype(o) in small]
            if not reads and not makes:
                continue
            if node.op == "Cast":
                _check_cast(node, reads, makes)
            elif node.op in _CARRIES and not node.domain:
                found.carried += makes
            else:
                raise Skip(f"{node.op} of {dtypes.dtype_name(graph.dtype((reads or makes)[0]))} has no other form")
        return found

    def rewrite(self, graph: Graph, found: _Small, edit: Edit, ctx: Context) -> None:
        for name in found.constants:
            array = graph.const(name)
            assert array is not None
            edit.replace(name, edit.const(array.astype(np.float32), f"{name}/float"))
        for index in found.inputs:
            edit.retype_input(index, int(_FLOAT))
        for index in found.outputs:
            edit.retype_output(index, int(_FLOAT))
        for node in found.casts:
            x, to = node.input(0), bits.FLOATS8[int(node.attr("to"))]
            x = dtypes.as_float(edit, x) if graph.dtype(x) in dtypes.FLOATS else x
            edit.replace_node(node, bits.rounded(edit, x, to, bool(node.attr("saturate", 1))))
        for name in found.carried:
            edit.forget_type(name)
        edit.note = "numbers of eight bits are FLOAT; a Cast to them rounds as it did"


def _check_cast(node: Node, reads: list[str], makes: list[str]) -> None:
    """Raises Skip for a Cast whose numbers FLOAT arithmetic can't give."""
    before, after = node.graph.dtype(node.input(0)), int(node.attr("to"))
    if makes and (after not in bits.FLOATS8 or (not reads and before not in _TO_FLOAT)):
        raise Skip(f"a Cast from {dtypes.dtype_name(before)} to {dtypes.dtype_name(after)} has no other form")
    if reads and not makes and after not in _TO_FLOAT:
        raise Skip(f"a Cast from {dtypes.dtype_name(before)} to {dtypes.dtype_name(after)} has no other form")
