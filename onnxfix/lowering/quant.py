"""Quantised arithmetic written in FLOAT, number for number.

A quantised tensor holds whole numbers from a small range. FLOAT holds those exactly, and sums of their products too
while they stay below 2**24, so integer convolutions and products become ordinary ones on whole-valued FLOAT tensors.
What rounds in the integer form (a division by the scale, then rounding half to even) is done by the same operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Graph, Node
from onnxfix.lowering.dtypes import FLOAT_EXACT, as_float, dtype_range, weight_sum
from onnxfix.rule import Context

F32 = np.float32


def rounded(edit: Edit, x: str, ctx: Context) -> str:
    """FLOAT `x` rounded half to even, with Floor where the opset or the target has no Round."""
    if edit.graph.opset() >= 11 and ctx.supports("Round"):
        return str(edit.add("Round", [x]))
    half = np.asarray(0.5, F32)
    floor = str(edit.add("Floor", [x]))
    rest = str(edit.add("Sub", [x, floor]))
    up, down = (str(edit.add("Cast", [edit.add(op, [rest, half])], to=TensorProto.FLOAT)) for op in ("Greater", "Less"))
    tie = edit.add("Sub", [edit.add("Sub", [np.asarray(1, F32), up]), down])
    pairs = edit.add("Floor", [edit.add("Mul", [floor, half])])
    odd = edit.add("Sub", [floor, edit.add("Mul", [pairs, np.asarray(2, F32)])])
    return str(edit.add("Add", [edit.add("Add", [floor, up]), edit.add("Mul", [tie, odd])]))


def quantize(
    edit: Edit, x: str, scale: str | np.ndarray, zero: str | np.ndarray | None, dtype: int, ctx: Context
) -> str:
    """`x / scale`, rounded half to even, plus the zero point, limited to the dtype's range: FLOAT whole numbers.

    `scale` and `zero` are FLOAT and broadcast with `x`; no zero point is none to add.
    """
    bounds = dtype_range(dtype)
    if bounds is None:
        raise Skip(f"quantising to {TensorProto.DataType.Name(dtype)} is not rounding to whole numbers")
    whole = rounded(edit, str(edit.add("Div", [x, scale])), ctx)
    if zero is not None and not (isinstance(zero, np.ndarray) and not zero.any()):
        whole = str(edit.add("Add", [whole, zero]))
    return emit.clip(edit, whole, np.asarray(bounds[0], F32), np.asarray(bounds[1], F32))


def quantize_dynamic(edit: Edit, x: str, ctx: Context) -> tuple[str, str, str]:
    """What DynamicQuantizeLinear does, in FLOAT: whole numbers from 0 to 255, the scale, and the zero point."""
    low = edit.add("Min", [str(edit.add("ReduceMin", [x], keepdims=0)), np.asarray(0, F32)])
    high = edit.add("Max", [str(edit.add("ReduceMax", [x], keepdims=0)), np.asarray(0, F32)])
    width = str(edit.add("Sub", [high, low]))
    # A tensor of nothing but zeros has width 0, and gets scale 1.
    flat = edit.add("Equal", [width, np.asarray(0, F32)])
    scale = str(edit.add("Where", [flat, np.asarray(1, F32), str(edit.add("Div", [width, np.asarray(255, F32)]))]))
    zero = rounded(edit, str(edit.add("Neg", [str(edit.add("Div", [low, scale]))])), ctx)
    zero = emit.clip(edit, zero, np.asarray(0, F32), np.asarray(255, F32))
    return quantize(edit, x, scale, zero, TensorProto.UINT8, ctx), scale, zero


def centred(edit: Edit, x: str, zero: str) -> str:
    """The numbers of the integer value `x`, less its zero point ("" for none), as FLOAT."""
    array = edit.graph.const(x)
    offset = edit.graph.const(zero) if zero else None
    if offset is not None and not offset.any():
        zero = ""
    if array is not None and (not zero or offset is not None):
        shift = np.zeros((), F32) if not zero or offset is None else offset.astype(F32)
        return edit.const(array.astype(F32) - shift, "weights")
    numbers = as_float(edit, x)
    return str(edit.add("Sub", [numbers, as_float(edit, zero)])) if zero else numbers


def along(values: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A per-channel vector shaped to broadcast along `axis` of a tensor of that rank; one number as a scalar."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def sums_note(weights: np.ndarray | None, op: str, largest: float = 255.0) -> str:
    """How large the sums may become, in words, where FLOAT may round them; "" where it can't."""
    if weights is None:
        return ""
    bound = largest * weight_sum(weights, op)
    return "" if bound < FLOAT_EXACT else f"sums may reach {bound:.3g}, beyond 2^24, where FLOAT rounds them"


# ---- QuantizeLinear and DequantizeLinear ----


@dataclass(frozen=True)
class Scheme:
    """Scale and zero point of a (De)QuantizeLinear, shaped to broadcast; zero None when there is nothing to shift."""

    scale: np.ndarray | str
    zero: np.ndarray | str | None


def scheme(node: Node, edit: Edit | None = None) -> Scheme:
    """How a QuantizeLinear or DequantizeLinear maps numbers. Without `edit`, only what constants tell is looked at.

    Raises Skip for blocked quantisation with scales that aren't constant, and for ranks that aren't known.
    """
    graph = node.graph
    scale, zero = graph.const(node.input(1)), graph.const(node.input(2)) if node.input(2) else None
    block = node.attr("block_size", 0) or 0
    if scale is not None and (zero is not None or not node.input(2)):
        shift = None if zero is None or not zero.any() else zero.astype(F32)
        if scale.size == 1 and (shift is None or shift.size == 1):
            return Scheme(scale.reshape(()), None if shift is None else shift.reshape(()))
        rank, axis = _rank(node), node.attr("axis", 1)
        if block:
            return _blocked(node, scale, shift, axis % rank, block)
        return Scheme(along(scale, rank, axis), None if shift is None else along(shift, rank, axis))
    if block:
        raise Skip("blocked quantisation with computed scales; make the scales constant")
    return _computed(node, edit)


def _blocked(node: Node, scale: np.ndarray, shift: np.ndarray | None, axis: int, block: int) -> Scheme:
    shape = node.graph.static_shape(node.input(0))
    if shape is None:
        raise Skip("blocked quantisation of a tensor whose shape is not known; freeze the dynamic axes")

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, block, axis=axis)[tuple(slice(0, d) for d in shape)]

    return Scheme(spread(scale), None if shift is None else spread(shift))


def _computed(node: Node, edit: Edit | None) -> Scheme:
    graph = node.graph
    if graph.static_shape(node.input(1)) not in ((), (1,)):
        raise Skip("the scale is computed and not one number; make it constant")
    if edit is None:
        return Scheme(node.input(1), node.input(2) or None)
    scale, zero = node.input(1), as_float(edit, node.input(2)) if node.input(2) else None
    if graph.rank(node.input(1)) == 1 and graph.rank(node.input(0)) in (0, None):
        raise Skip("the scale has rank 1, which would raise the rank of a scalar; make it a scalar")
    return Scheme(scale, zero)


def _rank(node: Node) -> int:
    rank = node.graph.rank(node.input(0))
    if rank is None:
        raise Skip("the rank of the quantised tensor is not known; run shape inference on the model first")
    return rank


def dequantized(array: np.ndarray, how: Scheme, dtype: np.dtype) -> np.ndarray:
    """What DequantizeLinear makes of a constant: the difference, then one product, as the operator defines."""
    assert isinstance(how.scale, np.ndarray) and not isinstance(how.zero, str)
    numbers = array.astype(np.int64) if array.dtype.kind in "iu" else array.astype(F32)
    shift = 0 if how.zero is None else how.zero.astype(np.int64)
    return np.asarray((numbers - shift).astype(F32) * how.scale.astype(F32), dtype)


def output_dtype(node: Node) -> int:
    """The dtype a DequantizeLinear gives: that of its scale, FLOAT when that isn't known."""
    return node.attr("output_dtype", 0) or node.graph.dtype(node.input(1)) or int(TensorProto.FLOAT)


def quantized_dtype(node: Node) -> int:
    """The dtype a QuantizeLinear gives: that of its zero point, else its attribute's, else UINT8."""
    zero = node.input(2)
    return (node.graph.dtype(zero) if zero else node.attr("output_dtype", 0)) or int(TensorProto.UINT8)


def is_value(graph: Graph, name: str, value: int) -> bool:
    """Whether a constant holds nothing but this number."""
    array = graph.const(name) if name else None
    return array is not None and array.size > 0 and bool((array == value).all())


def np_dtype(dtype: int) -> np.dtype:
    return np.dtype(helper.tensor_dtype_to_np_dtype(dtype))


# ---- operators between quantised tensors ----


@dataclass(frozen=True)
class Quantised:
    """A quantised tensor with the one scale and zero point it goes by: value = (numbers - zero) * scale."""

    name: str  # "" for a result that is still to come
    scale: np.ndarray
    zero: np.ndarray
    dtype: int


def quantised(node: Node, data: int, scale: int, zero: int) -> Quantised:
    """The tensor at input `data` (-1: the output) with its constant parameters. Raises Skip when they aren't."""
    graph = node.graph
    factor = graph.const(node.input(scale))
    shift = graph.const(node.input(zero)) if node.input(zero) else np.zeros((), np.uint8)
    if factor is None or shift is None:
        raise Skip("a scale or zero point is computed; make it constant")
    dtype = int(helper.np_dtype_to_tensor_dtype(shift.dtype))
    return Quantised(node.input(data) if data >= 0 else "", factor.astype(F32), shift, dtype)


def real(edit: Edit, x: Quantised) -> str:
    """The values a tensor with one scale stands for, in FLOAT."""
    numbers = as_float(edit, x.name)
    if x.zero.any():
        numbers = str(edit.add("Sub", [numbers, x.zero.astype(F32).reshape(())]))
    return str(edit.add("Mul", [numbers, x.scale.reshape(())]))


def requantize(edit: Edit, sums: str, factor: np.ndarray, y: Quantised, ctx: Context) -> str:
    """Whole-valued FLOAT sums times a factor, rounded to `y`'s numbers, in its dtype."""
    scaled = rounded(edit, str(edit.add("Mul", [sums, factor])), ctx)
    return numbered(edit, shifted(edit, scaled, y.zero), y)


def quantized(edit: Edit, values: str, y: Quantised, ctx: Context) -> str:
    """FLOAT values as `y`'s numbers, in its dtype."""
    scaled = rounded(edit, str(edit.add("Div", [values, y.scale.reshape(())])), ctx)
    return numbered(edit, shifted(edit, scaled, y.zero), y)


def fused(edit: Edit, x: str, factor: np.ndarray, addend: str) -> str:
    """x * factor + addend in FLOAT, rounded once, as a fused multiply-add does; `x` holds whole numbers up to 2**8.

    The factor in two parts makes both products exact; what the sum of the first and the addend loses is found by the
    differences (Knuth's TwoSum) and added at the end.
    """
    high = (factor.astype(F32).view(np.uint32) & np.uint32(0xFFFFFF00)).view(F32)
    low = factor.astype(F32) - high
    product = str(edit.add("Mul", [x, high]))
    total = str(edit.add("Add", [product, addend]))
    if not low.any():
        return total
    rest = edit.add("Mul", [x, low])
    other = str(edit.add("Sub", [total, product]))
    lost = [edit.add("Sub", [product, edit.add("Sub", [total, other])]), edit.add("Sub", [addend, other])]
    return str(edit.add("Add", [total, edit.add("Add", [edit.add("Add", lost), rest])]))


def shifted(edit: Edit, x: str, zero: np.ndarray) -> str:
    """FLOAT `x` plus a zero point."""
    return str(edit.add("Add", [x, zero.astype(F32).reshape(())])) if zero.any() else x


def numbered(edit: Edit, whole: str, y: Quantised) -> str:
    """Whole-valued FLOAT limited to the range of `y`'s dtype, in that dtype."""
    low, high = dtype_range(y.dtype) or (0, 255)
    limited = emit.clip(edit, whole, np.asarray(low, F32), np.asarray(high, F32))
    return str(edit.add("Cast", [limited], to=y.dtype))
