"""Which numbers a value can hold, and how to compute with them in another dtype without changing any.

A value that provably holds whole numbers within bounds may travel as FLOAT (exact up to 2**24) or INT32 as well as in
the small dtype the model declares, which TensorRT often doesn't take. `whole_range` is that proof; `as_float` and
`as_dtype` make use of it: they step back over casts that change no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxfix import shapes
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Graph, Node, schema
from onnxfix.model import Model
from onnxfix.rule import Context

Range = tuple[float, float]  # inclusive bounds, possibly infinite

FLOAT_EXACT = 1 << 24  # FLOAT holds every whole number up to here

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})

_INTEGERS = ("INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64")

_SHORT: dict[str, Range] = {"INT4": (-8, 7), "UINT4": (0, 15), "INT2": (-2, 1), "UINT2": (0, 3)}

_BOUNDS: dict[int, Range] = {
    **{TensorProto.DataType.Value(n): (int(np.iinfo(n.lower()).min), int(np.iinfo(n.lower()).max)) for n in _INTEGERS},
    TensorProto.BOOL: (0, 1),
    # Older releases of ONNX have no integers of two bits.
    **{v: _SHORT[n] for n, v in TensorProto.DataType.items() if n in _SHORT},
}

# Integers that TensorRT takes nowhere, or at the border, or for quantised values alone.
SMALL = frozenset(_BOUNDS) - {TensorProto.BOOL, TensorProto.INT4, TensorProto.INT32, TensorProto.INT64}

# Why a UINT64 of the interface is left alone; what `{}` stands for comes first.
NO_WIDER = (
    "{} is UINT64, of which no dtype that is taken holds all numbers; if yours stay below 2^63, or you read the bits, "
    "set option uint64_as_bits: true of uint8-input and uint8-output, or keep 64-bit counts outside of the network"
)

# Significant bits: whole numbers up to this power of two are held without gaps.
_SIGNIFICANT: dict[int, int] = {
    TensorProto.FLOAT: 24,
    TensorProto.FLOAT16: 11,
    TensorProto.DOUBLE: 53,
    TensorProto.BFLOAT16: 8,
}

# Operators that move the numbers of their first input and don't look at them.
MOVES = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip

_DEPTH = 24  # producers looked at before giving up
_READ = 1 << 22  # elements up to which a constant's values are looked at
_FEW = 1024  # elements up to which a constant goes along when the matrix is asked about a node


def dtype_range(dtype: int) -> Range | None:
    """Bounds of an integer TensorProto.DataType (BOOL counts as 0 and 1), None for any other."""
    return _BOUNDS.get(dtype)


def dtype_name(dtype: int) -> str:
    return str(TensorProto.DataType.Name(dtype))


def within(inner: Range | None, outer: Range | None) -> bool:
    return inner is not None and outer is not None and outer[0] <= inner[0] and inner[1] <= outer[1]


def whole_range(graph: Graph, name: str, depth: int = _DEPTH) -> Range | None:
    """Bounds of a value that provably holds whole numbers only; None when it may hold others, or isn't known.

    An infinite bound says: whole, but of unknown size. Cost: the producers above it, up to a fixed depth, and the
    reading of constants among them.
    """
    if not name or depth <= 0:
        return None
    if graph.is_const(name):
        return _const_range(graph, name)
    promised = graph.root.promised.get(name)
    if promised is not None and graph.scope_of(name) is graph.root:
        return promised
    declared = _BOUNDS.get(graph.dtype(name))
    node = graph.producer(name)
    rule = _RANGES.get(node.op) if node is not None and node.domain == "" else None
    found = None
    if node is not None and rule is not None and (node.output(0) == name or node.op == "Split"):
        try:
            found = rule(node, depth - 1)
        except Skip:
            found = None
    if found is None or declared is None:
        return found or declared
    # Integer arithmetic wraps: a range that leaves the dtype says nothing.
    return found if within(found, declared) else declared


def _const_range(graph: Graph, name: str) -> Range | None:
    tensor = graph.const_tensor(name)
    if tensor is not None and math.prod(tensor.dims) > _READ:
        return _BOUNDS.get(tensor.data_type)
    array = graph.const(name)
    if array is not None and array.dtype.kind == "V":
        return _BOUNDS.get(graph.dtype(name))  # integers of four bits or two
    if array is None or array.dtype.kind not in "iufb" or array.size == 0:
        return None
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        return None
    low, high = float(array.min()), float(array.max())
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _ranges(node: Node, depth: int, indices: Sequence[int] | None = None) -> list[Range] | None:
    names = [node.input(i) for i in indices] if indices is not None else [n for n in node.inputs if n]
    found = [whole_range(node.graph, n, depth) for n in names]
    return None if any(r is None for r in found) or not found else [r for r in found if r is not None]


def _union(ranges: list[Range] | None) -> Range | None:
    return None if not ranges else (min(r[0] for r in ranges), max(r[1] for r in ranges))


def _any_whole(_: Node, __: int) -> Range:
    return (-math.inf, math.inf)


def _like(*indices: int) -> Callable[[Node, int], Range | None]:
    return lambda node, depth: _union(_ranges(node, depth, indices))


def _all(node: Node, depth: int) -> Range | None:
    return _union(_ranges(node, depth))


def _pad(node: Node, depth: int) -> Range | None:
    inner = whole_range(node.graph, node.input(0), depth)
    if inner is None or node.attr("mode") not in ("constant", None):
        return inner
    if node.has_attr("value"):
        fill: Range | None = (float(node.attr("value")),) * 2 if float(node.attr("value")).is_integer() else None
    else:
        fill = whole_range(node.graph, node.input(2), depth) if node.input(2) else (0, 0)
    return _union([inner, fill]) if fill is not None else None


def _pair(function: Callable[[Range, Range], Range]) -> Callable[[Node, int], Range | None]:
    def rule(node: Node, depth: int) -> Range | None:
        found = _ranges(node, depth)
        if not found or len(found) != 2:
            return None
        low, high = function(found[0], found[1])
        return None if math.isnan(low) or math.isnan(high) else (low, high)

    return rule


def _multiply(a: Range, b: Range) -> Range:
    products = [x * y if x and y else 0.0 for x in a for y in b]
    return min(products), max(products)


def _fold(choose: Callable[[list[float]], float]) -> Callable[[Node, int], Range | None]:
    def rule(node: Node, depth: int) -> Range | None:
        found = _ranges(node, depth)
        return None if not found else (choose([r[0] for r in found]), choose([r[1] for r in found]))

    return rule


def _negated(node: Node, depth: int) -> Range | None:
    found = whole_range(node.graph, node.input(0), depth)
    return None if found is None else (-found[1], -found[0])


def _relu(node: Node, depth: int) -> Range | None:
    found = whole_range(node.graph, node.input(0), depth)
    return None if found is None else (max(found[0], 0.0), max(found[1], 0.0))


def _clip(node: Node, depth: int) -> Range | None:
    graph = node.graph
    found = whole_range(graph, node.input(0), depth)
    if found is None:
        return None
    low, high = found
    bounds: list[Range | None] = []
    for name, index in (("min", 1), ("max", 2)):
        if node.has_attr(name):
            value = float(node.attr(name))
            bounds.append((value, value) if value.is_integer() else None)
        else:
            bounds.append(whole_range(graph, node.input(index), depth) if node.input(index) else (math.nan, math.nan))
    if None in bounds:
        return None
    least, most = (b for b in bounds if b is not None)
    if not math.isnan(least[0]):
        low, high = max(low, least[0]), max(high, least[1])
    if not math.isnan(most[0]):
        low, high = min(low, most[0]), min(high, most[1])
    return low, high


def _cast(node: Node, depth: int) -> Range | None:
    inner = whole_range(node.graph, node.input(0), depth)
    bounds = _BOUNDS.get(node.attr("to"))
    if bounds is None:
        return inner  # whole numbers stay whole in a float dtype (or become infinite, which nothing here allows)
    return inner if within(inner, bounds) else bounds


def _modulus(node: Node, depth: int) -> Range | None:
    divisor = whole_range(node.graph, node.input(1), depth)
    if node.attr("fmod") or divisor is None or divisor[0] < 0 or divisor[1] <= 0:
        return None
    return (0, divisor[1] - 1)


def _quotient(node: Node, depth: int) -> Range | None:
    found = _ranges(node, depth)
    if not found or len(found) != 2 or node.graph.dtype(node.input(0)) not in _BOUNDS:
        return None
    most = max(abs(v) for v in found[0])
    return (0 if min(found[0][0], found[1][0]) >= 0 else -most), most


def _counted(_: Node, __: int) -> Range:
    return (0, (1 << 31) - 1)  # no tensor has more elements on these targets


def _resized(node: Node, depth: int) -> Range | None:
    return whole_range(node.graph, node.input(0), depth) if node.attr("mode") == "nearest" else None


def _product_sum(node: Node, depth: int) -> Range | None:
    """Conv and MatMul of whole numbers with constant weights: bounds by the weights' absolute sums."""
    if node.op == "Conv" and node.input(2):
        return None
    inner = whole_range(node.graph, node.input(0), depth)
    weights = node.graph.const(node.input(1))
    if inner is None or weights is None or weights.ndim < 2 or not np.array_equal(weights, np.rint(weights)):
        return None
    most = max(abs(inner[0]), abs(inner[1])) * weight_sum(weights, node.op)
    return (-most, most) if math.isfinite(most) else None


def weight_sum(weights: np.ndarray, op: str) -> float:
    """The largest absolute sum of the weights that enter one output of a Conv or a MatMul."""
    if weights.size == 0:
        return 0.0
    axes = tuple(range(1, weights.ndim)) if op == "Conv" else (weights.ndim - 2,)
    return float(np.abs(weights.astype(np.float64)).sum(axis=axes).max())


_RANGES: dict[str, Callable[[Node, int], Range | None]] = {
    **dict.fromkeys(("Round", "Floor", "Ceil"), _any_whole),
    **dict.fromkeys((*MOVES, "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "TopK"), _like(0)),
    "Concat": _all,
    "Where": _like(1, 2),
    "Pad": _pad,
    "Add": _pair(lambda a, b: (a[0] + b[0], a[1] + b[1])),
    "Sub": _pair(lambda a, b: (a[0] - b[1], a[1] - b[0])),
    "Mul": _pair(_multiply),
    "Max": _fold(max),
    "Min": _fold(min),
    "Neg": _negated,
    "Relu": _relu,
    "Clip": _clip,
    "Cast": _cast,
    "Mod": _modulus,
    "Div": _quotient,
    "Sign": lambda node, depth: (-1, 1),
    **dict.fromkeys(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"), _counted),
    "Resize": _resized,
    "Conv": _product_sum,
    "MatMul": _product_sum,
}  # fmt: skip


# ---- the same numbers in another dtype ----


def as_dtype(edit: Edit, name: str, dtype: int) -> str:
    """The numbers of `name` as `dtype`: a converted constant, the source of a cast that changed none, or a Cast."""
    graph = edit.graph
    array = graph.const(name)
    if array is not None:
        wanted = helper.tensor_dtype_to_np_dtype(dtype)
        return name if array.dtype == wanted else edit.const(array.astype(wanted), dtype_name(dtype).lower())
    source = uncast(graph, name, dtype)
    if graph.dtype(source) == dtype:
        return source
    return str(edit.add("Cast", [source], to=dtype))


def as_float(edit: Edit, name: str) -> str:
    """The numbers of an integer value as FLOAT. The caller sees to it that FLOAT holds them."""
    return as_dtype(edit, name, TensorProto.FLOAT)


def uncast(graph: Graph, name: str, to: int = 0) -> str:
    """The value that `name` is a Cast of, as far as the casts change no number; `name` itself when it is none.

    `to` is the dtype it will be read in: where that is INT64, going there by way of UINT64 changes nothing either.
    """
    for _ in range(_DEPTH):
        node = graph.producer(name)
        if node is None or node.op != "Cast" or node.domain or node.graph is not graph:
            return name
        source = node.input(0)
        before, after = graph.dtype(source), node.attr("to")
        by_way = to == TensorProto.INT64 and after == TensorProto.UINT64 and before in _BOUNDS
        if not by_way and not unchanged(graph, source, before, after):
            return name
        name = source
    return name


def unchanged(graph: Graph, name: str, before: int, after: int) -> bool:
    """Whether casting `name` from one dtype to another keeps every number it can hold."""
    if not before or not after:
        return False
    if before == after or (before, after) in _WIDER:
        return True
    numbers = whole_range(graph, name)
    return within(numbers, _holds(after))


def _holds(dtype: int) -> Range | None:
    """Whole numbers that a dtype holds without gaps."""
    if dtype in _SIGNIFICANT:
        return -float(1 << _SIGNIFICANT[dtype]), float(1 << _SIGNIFICANT[dtype])
    return None if dtype == TensorProto.BOOL else _BOUNDS.get(dtype)


_WIDER = frozenset(
    {
        (TensorProto.FLOAT16, TensorProto.FLOAT),
        (TensorProto.FLOAT16, TensorProto.DOUBLE),
        (TensorProto.BFLOAT16, TensorProto.FLOAT),
        (TensorProto.BFLOAT16, TensorProto.DOUBLE),
        (TensorProto.FLOAT, TensorProto.DOUBLE),
    }
)


# ---- running a node in another dtype ----

# What a node does with the numbers of its data inputs decides what may be proved of its results.
_KEEPS = MOVES | {
    "ArgMax", "ArgMin", "Clip", "Compress", "Concat", "Equal", "GlobalMaxPool", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Max", "MaxPool", "Min", "NonZero", "OneHot", "Pad", "Pow", "ReduceMax", "ReduceMin", "Resize",
    "ReverseSequence", "ScatterElements", "ScatterND", "TopK", "Trilu", "Upsample", "Where",
}  # fmt: skip
# Layers that TensorRT runs on floating point alone.
_FLOAT_LAYERS = frozenset({"GlobalMaxPool", "MatMul", "MaxPool", "Resize", "Upsample"})
_COUNTS = frozenset({"Abs", "Add", "Div", "MatMul", "Mod", "Mul", "Neg", "ReduceSum", "Sub"})
RECAST = _KEEPS | _COUNTS  # what `recast` may have an answer for
# Whose results, wrapped around in wider integers, still wrap to what they should be.
_RING = frozenset({"Add", "Mul", "Neg", "ReduceSum", "Sub"})


@dataclass(frozen=True)
class Recast:
    """A node's data inputs and outputs, the dtype to run it in, and whether its results must be wrapped around."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    own: int
    other: int
    wraps: bool = False


def recast(node: Node, dtypes: frozenset[int], ctx: Context) -> Recast | None:
    """How a node that is refused for one of `dtypes` can run in another, with the same results.

    None when it isn't that dtype the node is refused for. Raises Skip when no dtype that the target takes can be
    shown to give the same numbers.
    """
    group = _typed_alike(node, dtypes)
    if group is None or node.op not in RECAST or not _plain(node):
        return None
    inputs, outputs, own = group
    ranges = [whole_range(node.graph, node.input(i)) for i in inputs]
    if any(r is None for r in ranges):
        return None
    if node.op in ("ReduceMax", "ReduceMin") and not _reduces_something(node):
        raise Skip("what it reduces may be empty, and then the result hangs on the dtype; freeze the dynamic axes")
    result = _result_range(node, [r for r in ranges if r is not None])
    taken = [d for d in _others(node, inputs, own, ctx) if not ctx.refused(_alone(node, inputs, d))]
    if not taken:
        return None
    for other in taken:
        found = _fits(node, own, other, [*ranges, result], ctx)
        if found is not None:
            return Recast(inputs, outputs, own, other, found)
    for other in taken if node.op in _RING else ():
        if all(within(r, _BOUNDS.get(other)) for r in ranges) and can_wrap(own, other, ctx):
            return Recast(inputs, outputs, own, other, True)
    names = ", ".join(map(dtype_name, taken))
    raise Skip(f"{dtype_name(own)} is refused here, and its numbers may not all fit in {names}; limit them with Clip")


def alike(node: Node, dtypes: frozenset[int], other: int) -> Recast | None:
    """A node to run in `other` whatever its numbers are, the caller having seen to that; None without such a dtype."""
    group = _typed_alike(node, dtypes)
    return None if group is None else Recast(*group, other)


def run_in(node: Node, how: Recast, edit: Edit, turn: Callable[[Edit, str], str] | None = None) -> list[str]:
    """The node again, in the other dtype, between casts. Returns its outputs in the dtypes they had.

    `turn` is done to the data that goes in and, being its own inverse, to what comes out.
    """
    inputs = [as_dtype(edit, name, how.other) if i in how.inputs else name for i, name in enumerate(node.inputs)]
    if turn is not None:
        inputs = [turn(edit, name) if i in how.inputs else name for i, name in enumerate(inputs)]
    attributes: dict[str, Any] = {a.name: node.attr(a.name) for a in node.proto.attribute}
    names = [o and edit.graph.fresh(f"{o}/{dtype_name(how.other).lower()}") for o in node.outputs]
    if node.op in ("Max", "Min") and how.other == TensorProto.INT64:
        outputs = [extreme(edit, node.op, inputs)]
    else:
        found = edit.add(node.op, inputs, outputs=names, **attributes)
        outputs = [found] if isinstance(found, str) else list(found)
    for i in how.outputs:
        if i < len(outputs) and outputs[i]:
            value = wrap(edit, outputs[i], how.own, how.other) if how.wraps else outputs[i]
            value = turn(edit, value) if turn is not None else value
            outputs[i] = str(edit.add("Cast", [value], to=how.own))
    return outputs


def extreme(edit: Edit, op: str, values: Sequence[str]) -> str:
    """Max or Min by comparing: ONNX Runtime's own for INT64 now and then picks the wrong number beyond INT32."""
    result, *rest = values
    for value in rest:
        less = edit.add("Less", [result, value])
        result = str(edit.add("Where", [less, value, result] if op == "Max" else [less, result, value]))
    return result


def wrap(edit: Edit, x: str, own: int, other: int) -> str:
    """Whole numbers of integer dtype `other`, wrapped around as dtype `own` would."""
    low, high = _BOUNDS[own]
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(other))
    shifted = str(edit.add("Sub", [x, np.asarray(low, kind)])) if low else x
    rest = str(edit.add("Mod", [shifted, np.asarray(high - low + 1, kind)]))
    return str(edit.add("Add", [rest, np.asarray(low, kind)])) if low else rest


def can_wrap(own: int, other: int, ctx: Context) -> bool:
    """Whether `wrap` can be written for the target, for numbers of `own` computed in the wider integers `other`.

    Where there is no Mod, rule mod-integer makes a division of it.
    """
    bits = 16 if other == TensorProto.INT32 else 32 if other == TensorProto.INT64 else 0
    rest = ctx.supports("Mod") or ctx.supports("Div")
    return rest and bits > 0 and within(_BOUNDS.get(own), (-(1 << bits), 1 << bits))


def _typed_alike(node: Node, dtypes: frozenset[int]) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """Inputs and outputs that share the type of the first input of one of `dtypes`, and that dtype."""
    found = schema(node.op, node.domain, node.opset)
    if found is None:
        return None

    def kind(formal: Sequence[Any], index: int) -> str:
        return str(formal[min(index, len(formal) - 1)].type_str) if formal else ""

    graph = node.graph
    for i, name in enumerate(node.inputs):
        own = graph.dtype(name) if name else 0
        if own not in dtypes or "(" in kind(found.inputs, i):  # a fixed type, such as an index, is not data
            continue
        letter = kind(found.inputs, i)
        inputs = tuple(k for k, n in enumerate(node.inputs) if n and kind(found.inputs, k) == letter)
        outputs = tuple(k for k, n in enumerate(node.outputs) if n and kind(found.outputs, k) == letter)
        if all(graph.dtype(node.input(k)) == own for k in inputs):
            return inputs, outputs, own
    return None


def _plain(node: Node) -> bool:
    """Whether the numbers are moved or computed as whole ones: no interpolation, no reduction on scattering."""
    if node.op in ("Resize", "Upsample"):
        return bool(node.attr("mode", "nearest") == "nearest" and not node.attr("antialias", 0))
    if node.op in ("ScatterND", "ScatterElements"):
        return bool(node.attr("reduction", "none") == "none")
    if node.op == "Pow":
        return node.graph.dtype(node.input(0)) in FLOATS  # the numbers are exponents then, and not part of the result
    return not (node.op == "Mod" and node.attr("fmod", 0))


def _reduces_something(node: Node) -> bool:
    """Whether a reduction runs over at least one element, as far as shapes tell."""
    shape = node.graph.shape(node.input(0))
    known: Sequence[int | None] | None = node.attr("axes") or node.graph.known(node.input(1))
    axes = [a for a in known or () if a is not None]
    if shape is None or len(axes) < len(known or ()) or (node.input(1) and known is None):
        return False
    reduced = [shape[a] for a in axes if -len(shape) <= a < len(shape)] if axes else shape
    return all(isinstance(d, int) and d > 0 for d in reduced)


def _others(node: Node, inputs: tuple[int, ...], own: int, ctx: Context) -> list[int]:
    """Dtypes to try, the one that saves casts first."""
    graph = node.graph
    made_of_float = any(graph.dtype(uncast(graph, node.input(i))) == TensorProto.FLOAT for i in inputs)
    order = [TensorProto.INT32, TensorProto.FLOAT, TensorProto.INT64]
    if made_of_float or node.op in _FLOAT_LAYERS:
        order = [TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64]
    if ctx.target.narrows(TensorProto.INT64):
        order.remove(TensorProto.INT64)
    # FLOAT divides with a fraction, and Mod of it is another operator.
    order = [d for d in order if d != own and not (d == TensorProto.FLOAT and node.op in ("Div", "Mod"))]
    return [int(d) for d in order if _allowed(node, inputs[0], d)]


def _allowed(node: Node, index: int, dtype: int) -> bool:
    """Whether ONNX has the operator for this dtype at the model's opset."""
    found = schema(node.op, node.domain, node.opset)
    if found is None or not found.inputs:
        return False
    letter = found.inputs[min(index, len(found.inputs) - 1)].type_str
    kinds = next((c.allowed_type_strs for c in found.type_constraints if c.type_param_str == letter), ())
    return f"tensor({dtype_name(dtype).lower()})" in kinds


def _fits(node: Node, own: int, other: int, ranges: Sequence[Range | None], ctx: Context) -> bool | None:
    """Whether results must be wrapped, None when the numbers don't all fit in `other`."""
    if not all(within(r, _holds(other)) for r in ranges):
        return None
    if within(ranges[-1], _BOUNDS[own]):
        return False
    return True if can_wrap(own, other, ctx) else None


def _result_range(node: Node, ranges: list[Range]) -> Range | None:
    """Bounds of the results before any wrapping around."""
    if node.op not in _COUNTS:
        return _union(ranges)
    a, b = ranges[0], ranges[-1]
    most = max(abs(v) for r in ranges for v in r)
    least = 0.0 if min(a[0], b[0]) >= 0 else -most
    if node.op == "Add":
        return a[0] + b[0], a[1] + b[1]
    if node.op == "Sub":
        return a[0] - b[1], a[1] - b[0]
    if node.op == "Mul":
        return _multiply(a, b)
    if node.op in ("MatMul", "ReduceSum"):
        terms = _terms(node)
        each = most if node.op == "ReduceSum" else max(map(abs, a)) * max(map(abs, b))
        bound = math.inf if terms is None else terms * each
        return -bound, bound
    return -most if node.op == "Neg" else least, most  # Neg, Abs, Div, Mod


def _terms(node: Node) -> int | None:
    """How many numbers enter one sum, None when that isn't known."""
    shape = node.graph.static_shape(node.input(0))
    if shape is None:
        return None
    return shape[-1] if node.op == "MatMul" and shape else math.prod(shape)


def _alone(node: Node, inputs: tuple[int, ...], dtype: int) -> Node:
    """The same node in a model of its own, its data inputs of another dtype: for asking the matrix about it."""
    graph, proto = node.graph, NodeProto()
    proto.CopyFrom(node.proto)
    alone = onnx.ModelProto(ir_version=10, opset_import=[helper.make_opsetid("", graph.opset())])
    alone.graph.name = "alone"
    alone.graph.node.append(proto)
    told: set[str] = set()
    for i, name in enumerate(node.inputs):
        kind, array = graph.type_of(name), graph.const(name) if graph.is_const(name) else None
        if not name or name in told:
            continue
        told.add(name)
        if array is not None and array.size <= _FEW:
            wanted = array.astype(helper.tensor_dtype_to_np_dtype(dtype)) if i in inputs else array
            alone.graph.initializer.append(numpy_helper.from_array(np.asarray(wanted), name))
        elif kind is not None:
            info = alone.graph.input.add(name=name, type=kind)
            info.type.tensor_type.elem_type = dtype if i in inputs else kind.tensor_type.elem_type
    alone.graph.output.extend(onnx.ValueInfoProto(name=o) for o in node.outputs if o)
    return next(shapes.index(Model(alone)).nodes())
