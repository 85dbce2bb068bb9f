"""Bit operators by integer and floating-point arithmetic, and UINT64 in INT64.

Whole numbers of a dtype travel in a `carrier`: INT32 up to 16 bits and for INT32, else INT64. Signed and narrower ones
keep their value there, UINT64 keeps its 64 bits. Division and Mod (fmod=0) by powers of two then read any bits:
Mod rounds down, so it sees two's complement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxfix import emit
from onnxfix.graph import Edit
from onnxfix.lowering import dtypes

WIDTHS: Mapping[int, int] = {
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8), 8),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16), 16),
    **dict.fromkeys((TensorProto.INT32, TensorProto.UINT32), 32),
    **dict.fromkeys((TensorProto.INT64, TensorProto.UINT64), 64),
}
SIGNED = frozenset({TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64})

_HEX = 16
_LEAST = np.asarray(np.iinfo(np.int64).min)
_FUNCTIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}


def carrier(own: int) -> int:
    """The dtype that the numbers of integer dtype `own` are computed in."""
    narrow = WIDTHS[own] <= 16 or own == TensorProto.INT32
    return int(TensorProto.INT32 if narrow else TensorProto.INT64)


def carried(edit: Edit, name: str, own: int) -> str:
    return dtypes.as_dtype(edit, name, carrier(own))


def given_back(edit: Edit, x: str, own: int, kind: int) -> str:
    """Low bits of integers of dtype `kind` as numbers of dtype `own`."""
    if own == kind:
        return x
    if WIDTHS[own] < 64:
        x = dtypes.wrap(edit, x, own, kind)
    return str(edit.add("Cast", [x], to=own))


def array(values: Any, kind: int) -> np.ndarray:
    return np.asarray(values, helper.tensor_dtype_to_np_dtype(kind))


def floor_divided(edit: Edit, x: str, by: str | np.ndarray) -> str:
    """x / by, rounded down; ONNX's Div of integers rounds towards zero."""
    divisor = by if isinstance(by, str) else edit.const(by, "by")
    rest = edit.add("Mod", [x, divisor])
    return str(edit.add("Div", [edit.add("Sub", [x, rest]), divisor]))


def bitwise(edit: Edit, op: str, a: str, b: str, own: int) -> str:
    """BitwiseAnd, BitwiseOr or BitwiseXor of values of dtype `own`: digit by hexadecimal digit, by a table."""
    kind, count = carrier(own), WIDTHS[own] // 4
    powers = [_HEX**k for k in range(count)]
    left, right = (_digits(edit, carried(edit, name, own), powers, kind) for name in (a, b))
    i, j = np.meshgrid(np.arange(_HEX), np.arange(_HEX), indexing="ij")
    table = np.asarray(_FUNCTIONS[op](i, j)).ravel()
    # The highest digit of two's complement counts from -8 to 7.
    signed = own in SIGNED or WIDTHS[own] == 64
    tables = [table, np.where(table < _HEX // 2, table, table - _HEX)] if signed else [table]
    first = [0] * (count - 1) + [table.size if signed else 0]
    index = edit.add("Add", [edit.add("Mul", [left, array(_HEX, kind)]), right])
    index = edit.add("Add", [index, array(first, kind)])
    digits = edit.add("Gather", [array(np.concatenate(tables), kind), index], axis=0)
    found = edit.add("Mul", [digits, array(powers, kind)])
    # Halves are added up by hand: ONNX Runtime's ReduceSum of INT64 rounds as DOUBLE does.
    while count > 1:
        count //= 2
        low, high = (emit.slice_(edit, found, [at], [at + count], [-1]) for at in (0, count))
        found = edit.add("Add", [low, high])
    return given_back(edit, emit.squeeze(edit, found, [-1]), own, kind)


def _digits(edit: Edit, x: str, powers: list[int], kind: int) -> str:
    """Hexadecimal digits along a new last axis, the lowest first."""
    deep = emit.unsqueeze(edit, x, [-1])
    return str(edit.add("Mod", [floor_divided(edit, deep, array(powers, kind)), array(_HEX, kind)]))


def masked(edit: Edit, x: str, bits: int, own: int) -> str:
    """The lowest `bits` bits of values of dtype `own`: fewer than it has."""
    kind = carrier(own)
    found = str(edit.add("Mod", [carried(edit, x, own), array(1 << bits, kind)]))
    return found if own == kind else str(edit.add("Cast", [found], to=own))


def inverted(edit: Edit, x: str, own: int) -> str:
    """BitwiseNot of values of dtype `own`."""
    kind = carrier(own)
    ones = -1 if own in SIGNED or WIDTHS[own] == 64 else (1 << WIDTHS[own]) - 1
    found = str(edit.add("Sub", [edit.const(array(ones, kind), "ones"), carried(edit, x, own)]))
    return found if own == kind else str(edit.add("Cast", [found], to=own))


def shifted(edit: Edit, x: str, by: str, own: int, direction: str) -> str:
    """BitShift of values of dtype `own` by counts of the same dtype; counts outside its bits leave the sign only."""
    kind, width = int(TensorProto.INT64), WIDTHS[own]
    value, count = (dtypes.as_dtype(edit, name, kind) for name in (x, by))
    powers = array([1 << min(k, 62) for k in range(64)], kind)
    once_more = array([1 << max(k - 62, 0) for k in range(64)], kind)
    inside = edit.add("Equal", [edit.add("Mod", [count, array(width, kind)]), count])
    index = edit.add("Mod", [count, array(width, kind)])
    zero = array(0, kind)
    if direction == "LEFT":
        moved = edit.add("Mul", [value, edit.add("Gather", [powers, index], axis=0)])
        if width == 64:
            moved = edit.add("Mul", [moved, edit.add("Gather", [once_more, index], axis=0)])
        return given_back(edit, edit.add("Where", [inside, moved, zero]), own, kind)
    fill: str | np.ndarray = zero
    if own in SIGNED:
        fill = edit.add("Where", [edit.add("Less", [value, zero]), array(-1, kind), zero])
    elif width == 64:
        # The first step takes the sign away; nothing is left to do where there is none to take.
        some = edit.add("Less", [zero, index])
        value = edit.add("Where", [some, halved(edit, value), value])
        index = edit.add("Sub", [index, edit.add("Cast", [some], to=kind)])
    power = edit.add("Gather", [powers, index], axis=0)
    moved = floor_divided(edit, value, power) if own in SIGNED else edit.add("Div", [value, power])
    if width == 64 and own in SIGNED:
        moved = floor_divided(edit, moved, edit.add("Gather", [once_more, index], axis=0))
    found = edit.add("Where", [inside, moved, fill])
    return found if own == kind else str(edit.add("Cast", [found], to=own))


# ---- UINT64 by its bits in INT64 ----


def halved(edit: Edit, x: str) -> str:
    """Half of UINT64 numbers, rounded down."""
    low = edit.add("Div", [x, array(2, TensorProto.INT64)])
    high = edit.add("Div", [flipped(edit, x), array(2, TensorProto.INT64)])
    high = edit.add("Add", [high, array(1 << 62, TensorProto.INT64)])
    return str(edit.add("Where", [negative(edit, x), high, low]))


def flipped(edit: Edit, x: str) -> str:
    """UINT64 numbers less 2^63, which puts the bits of INT64 in the order of UINT64, or back."""
    return str(edit.add("Add", [x, _LEAST]))


def negative(edit: Edit, x: str) -> str:
    return str(edit.add("Less", [x, array(0, TensorProto.INT64)]))


def divided(edit: Edit, a: str, b: str) -> tuple[str, str]:
    """Quotient and remainder of UINT64 numbers.

    Twice the quotient of half the dividend is right or one too small (Hacker's Delight, unsigned from signed division);
    a divisor from 2^63 on goes into the dividend once or not at all.
    """
    zero, one = (array(v, TensorProto.INT64) for v in (0, 1))
    huge = negative(edit, b)
    divisor = str(edit.add("Where", [huge, one, b]))
    half = edit.add("Div", [halved(edit, a), divisor])
    quotient = edit.add("Where", [huge, zero, edit.add("Add", [half, half])])
    rest = edit.add("Sub", [a, edit.add("Mul", [quotient, b])])
    less = edit.add("Less", [flipped(edit, rest), flipped(edit, b)])
    more = edit.add("Where", [less, zero, one])
    quotient = edit.add("Add", [quotient, more])
    return str(quotient), str(edit.add("Sub", [rest, edit.add("Mul", [more, b])]))


def as_floating(edit: Edit, x: str, to: int) -> str:
    """UINT64 numbers in a floating dtype, rounded once."""
    two = array(2, TensorProto.INT64)
    half = halved(edit, x)
    odd = edit.add("Mod", [half, two])
    # Beyond 2^63 the half is rounded; its last bit stands for the one cut off as well.
    sticky = dtypes.extreme(edit, "Max", [odd, edit.add("Mod", [x, two])])
    half = edit.add("Add", [edit.add("Sub", [half, odd]), sticky])
    big = edit.add("Cast", [half], to=to)
    return str(edit.add("Where", [negative(edit, x), edit.add("Add", [big, big]), edit.add("Cast", [x], to=to)]))


def from_floating(edit: Edit, x: str, dtype: int) -> str:
    """Bits of the UINT64 numbers next to floating ones, towards zero."""
    border = np.asarray(2.0**63, helper.tensor_dtype_to_np_dtype(dtype))
    big = edit.add("Not", [edit.add("Less", [x, border])])
    over = flipped(edit, edit.add("Cast", [edit.add("Sub", [x, border])], to=TensorProto.INT64))
    return str(edit.add("Where", [big, over, edit.add("Cast", [x], to=TensorProto.INT64)]))


# ---- the bits of floating-point numbers ----


@dataclass(frozen=True)
class Layout:
    """A floating-point format: its bits are a sign, an exponent and a fraction."""

    exponent: int
    fraction: int

    @property
    def largest(self) -> int:
        """The exponent field of infinity and NaN."""
        return (1 << self.exponent) - 1

    @property
    def bias(self) -> int:
        return self.largest // 2


LAYOUTS: Mapping[int, Layout] = {
    TensorProto.FLOAT: Layout(8, 23),
    TensorProto.FLOAT16: Layout(5, 10),
    TensorProto.BFLOAT16: Layout(8, 7),
}


def encoded(edit: Edit, x: str, layout: Layout) -> str:
    """The bits of FLOAT numbers that a format holds exactly, as INT32 in two's complement of its width.

    NaN comes out as the quiet one without a sign.
    """
    kind = TensorProto.INT32
    fields = np.arange(layout.largest + 1)
    size = edit.add("Abs", [x])
    powers = np.ldexp(np.float32(1), fields[1:-1] - layout.bias)
    # The exponent field is the largest whose power of two does not exceed the number.
    field = step_of(edit, size, [0, *powers, np.inf])
    first, second = _scales(layout.fraction - (np.maximum(fields, 1) - layout.bias))
    scaled = edit.add("Mul", [size, edit.add("Gather", [first, field], axis=0)])
    scaled = edit.add("Mul", [scaled, edit.add("Gather", [second, field], axis=0)])
    whole = edit.add("Less", [field, array(layout.largest, kind)])
    fraction = edit.add("Cast", [edit.add("Where", [whole, scaled, np.asarray(0, np.float32)])], to=kind)
    # A number that is not subnormal has the leading one in its scaled form already.
    above = np.maximum(fields - 1, 0) << layout.fraction
    above[-1] = layout.largest << layout.fraction
    bits = edit.add("Add", [edit.add("Gather", [array(above, kind), field], axis=0), fraction])
    sign = array(-(1 << (layout.exponent + layout.fraction)), kind)
    bits = edit.add("Where", [minus(edit, x), edit.add("Add", [bits, sign]), bits])
    quiet = array((layout.largest << layout.fraction) + (1 << (layout.fraction - 1)), kind)
    return str(edit.add("Where", [edit.add("IsNaN", [x]), quiet, bits]))


def step_of(edit: Edit, x: str, steps: Sequence[float]) -> str:
    """INT32 index of the last of the rising steps, 2**n of them, that FLOAT numbers reach; the last one for NaN.

    The first is taken as reached. A search by halving: n rounds of Gather and Less.
    """
    table = edit.const(np.asarray(steps, np.float32), "steps")
    index = ""
    for bit in reversed(range(len(steps).bit_length() - 1)):
        step = array(1 << bit, TensorProto.INT32)
        higher = edit.add("Add", [index, step]) if index else edit.const(step, "step")
        below = edit.add("Less", [x, edit.add("Gather", [table, higher], axis=0)])
        index = str(edit.add("Where", [below, index or array(0, TensorProto.INT32), higher]))
    return index


def minus(edit: Edit, x: str) -> str:
    """Whether FLOAT numbers have the sign, which of the zeros only their reciprocals show."""
    zero = edit.add("Equal", [x, np.asarray(0, np.float32)])
    shown = edit.add("Where", [zero, edit.add("Div", [edit.const(np.asarray(1, np.float32), "one"), x]), x])
    return str(edit.add("Less", [shown, np.asarray(0, np.float32)]))


def decoded(edit: Edit, bits: str, layout: Layout) -> str:
    """The FLOAT numbers whose bits in a format these INT32 are, in two's complement of its width."""
    kind, fields = TensorProto.INT32, np.arange(layout.largest + 1)
    below = edit.add("Less", [bits, array(0, kind)])
    sign = array(-(1 << (layout.exponent + layout.fraction)), kind)
    bits = str(edit.add("Where", [below, edit.add("Sub", [bits, sign]), bits]))
    unit = array(1 << layout.fraction, kind)
    field = edit.add("Div", [bits, unit])
    fraction = edit.add("Mod", [bits, unit])
    leading = (fields > 0).astype(np.int32) << layout.fraction
    whole = edit.add("Add", [fraction, edit.add("Gather", [leading, field], axis=0)])
    first, second = _scales(np.maximum(fields, 1) - layout.bias - layout.fraction)
    size = edit.add("Cast", [whole], to=TensorProto.FLOAT)
    size = edit.add("Mul", [size, edit.add("Gather", [first, field], axis=0)])
    size = edit.add("Mul", [size, edit.add("Gather", [second, field], axis=0)])
    none = edit.add("Equal", [fraction, array(0, kind)])
    special = edit.add("Where", [none, np.asarray(np.inf, np.float32), np.asarray(np.nan, np.float32)])
    size = edit.add("Where", [edit.add("Less", [field, array(layout.largest, kind)]), size, special])
    return str(edit.add("Mul", [size, _sign(edit, below)]))


def _sign(edit: Edit, below: str) -> str:
    return str(edit.add("Where", [below, np.asarray(-1, np.float32), np.asarray(1, np.float32)]))


def _scales(exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Powers of two as products of two: one alone may be beyond FLOAT's normal numbers."""
    half = exponents // 2
    return tuple(np.ldexp(np.float32(1), e).astype(np.float32) for e in (half, exponents - half))  # type: ignore[return-value]


# ---- rounding to formats of eight bits ----


@dataclass(frozen=True)
class Float8:
    """What a format holds: `fraction` bits behind the leading one, normal exponents from `least`, up to `top`."""

    fraction: int
    least: int
    top: float
    beyond: float  # what a number above `top` becomes where it is not saturated
    negative_zero: bool = True


FLOATS8: Mapping[int, Float8] = {
    TensorProto.FLOAT8E4M3FN: Float8(3, -6, 448.0, math.nan),
    TensorProto.FLOAT8E4M3FNUZ: Float8(3, -7, 240.0, math.nan, negative_zero=False),
    TensorProto.FLOAT8E5M2: Float8(2, -14, 57344.0, math.inf),
    TensorProto.FLOAT8E5M2FNUZ: Float8(2, -15, 57344.0, math.nan, negative_zero=False),
}


def rounded(edit: Edit, x: str, to: Float8, saturate: bool) -> str:
    """FLOAT numbers rounded to those a format holds, ties to even; they stay FLOAT."""
    exponents = np.arange(to.least, math.frexp(to.top)[1])
    count = 1 << (len(exponents) - 1).bit_length()
    steps = [0, *np.ldexp(1.0, exponents[1:]), *[math.inf] * (count - len(exponents))]
    units = np.ldexp(np.float32(1), np.resize(exponents, count) - to.fraction).astype(np.float32)
    units[len(exponents) :] = units[len(exponents) - 1]
    size = str(edit.add("Abs", [x]))
    index = step_of(edit, size, steps)
    unit = edit.add("Gather", [units, index], axis=0)
    size = edit.add("Mul", [edit.add("Round", [edit.add("Div", [size, unit])]), unit])
    top, beyond = (np.asarray(v, np.float32) for v in (to.top, to.top if saturate else to.beyond))
    size = edit.add("Where", [edit.add("Less", [edit.const(top, "top"), size]), beyond, size])
    below = minus(edit, x) if to.negative_zero else edit.add("Less", [x, np.asarray(0, np.float32)])
    # Not a choice between -size and size: ONNX Runtime's Where makes one zero of the two.
    found = str(edit.add("Mul", [size, _sign(edit, below)]))
    return found if to.negative_zero else str(edit.add("Add", [found, np.asarray(0, np.float32)]))
