from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from onnxfix.lowering.dtypes import FLOAT_EXACT
from onnxfix.rule import Context, Edit, Graph, Node, Rule, Safety, Skip

_DOUBLE, _FLOAT = TensorProto.DOUBLE, TensorProto.FLOAT
_DTYPES = ("to", "dtype", "output_dtype")  # attributes that name a dtype; all others hold a tensor


@dataclass
class _Doubles:
    constants: list[str] = field(default_factory=list)
    attributes: list[tuple[Node, str]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


class DoubleInside(Rule):
    ops = ("<graph>",)
    safety = Safety.CLOSE
    when = "always"

    def match(self, graph: Graph, ctx: Context) -> _Doubles | None:
        if not ctx.target.narrows(_DOUBLE) and ctx.target.takes_dtype(_DOUBLE):
            return None
        found = _Doubles()
        found.constants = [n for n, t in graph.initializers.items() if t.data_type == _DOUBLE and not graph.unused(n)]
        if graph.kind != "function":
            found.inputs = [i for i, v in enumerate(graph.proto.input) if _is_double(v) and graph.is_input(v.name)]
            found.outputs = [i for i, v in enumerate(graph.proto.output) if _is_double(v)]
        for node in graph.nodes():
            found.attributes += [(node, a.name) for a in node.proto.attribute if _names_double(a)]
        if not (found.constants or found.attributes or found.inputs or found.outputs):
            return None
        _check_bits(graph)
        for name in found.constants:
            _check(graph.const(name), name)
        for node, name in found.attributes:
            if name not in _DTYPES:
                _check(graph.model.array(node.attr(name)), node.output(0))
        return found

    def rewrite(self, graph: Graph, found: _Doubles, edit: Edit, ctx: Context) -> None:
        for name in found.constants:
            array: Any = graph.const(name)
            edit.replace(name, edit.const(array.astype(np.float32), f"{name}/float"))
        for node, name in found.attributes:
            value: Any = _FLOAT
            if name not in _DTYPES:
                value = numpy_helper.from_array(graph.model.array(node.attr(name)).astype(np.float32))
            edit.set_attr(node, name, int(value) if isinstance(value, int) else value)
        for index in found.inputs:
            edit.retype_input(index, int(_FLOAT))
        for index in found.outputs:
            edit.retype_output(index, int(_FLOAT))
        for node in graph.nodes():
            for output in node.outputs:
                edit.forget_type(output)
        edit.note = "DOUBLE became FLOAT throughout, as the parser would have it"


def _is_double(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.elem_type == _DOUBLE)


def _names_double(attribute: AttributeProto) -> bool:
    if attribute.type == AttributeProto.TENSOR:
        return bool(attribute.t.data_type == _DOUBLE)
    return attribute.name in _DTYPES and bool(attribute.i == _DOUBLE)


def _check_bits(graph: Graph) -> None:
    """Raises Skip where the graph looks at the bits of DOUBLE numbers, which FLOAT hasn't got."""
    for node in graph.nodes():
        if node.op == "BitCast" and _DOUBLE in (graph.dtype(node.input(0)), node.attr("to")):
            raise Skip(f"BitCast '{node.name or node.output(0)}' needs all 64 bits of DOUBLE numbers")


def _check(array: np.ndarray | None, name: str) -> None:
    """Raises Skip for constants that FLOAT can't come near."""
    if array is None or array.size == 0:
        return
    finite = array[np.isfinite(array)]
    if (np.abs(finite) > np.finfo(np.float32).max).any():
        raise Skip(f"the constant '{name}' holds numbers beyond FLOAT's largest")
    whole = finite[(finite == np.rint(finite)) & (np.abs(finite) > FLOAT_EXACT)]
    if (whole.astype(np.float32) != whole).any():
        raise Skip(f"the constant '{name}' holds whole numbers beyond 2^24 that FLOAT rounds")
