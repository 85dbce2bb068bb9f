"""Resize and Upsample as what they are: along each axis, a constant map from input to output positions.

`read` brings any version of the two operators into one `Spec`. `indices` and `weights` give the map of an axis whose
sizes are known: the input index of each output position (nearest), or a matrix (linear, cubic). Two Resize nodes with
the same maps compute the same, which is how `equal_form` finds another form of a node that a target takes.

Coordinates follow the text of the standard and are computed in float32, in ONNX Runtime's order of operations, whose
numbers are the reference; weights in float64. (`length_resized` is a whole number, as in that text. The standard's
reference implementation takes scale times size instead where a scale does not give a whole size, which changes
align_corners and tf_crop_and_resize; it is not followed there.) Skip is raised where runtimes mean different things
(`read`), and for a position so close to a boundary that float32 and float64 differ (`indices`, `outside`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Graph, Node
from onnxfix.rule import Context

# Trial sizes for an axis of unknown size. With a whole scale k the map of position q*k + r is q plus the map of r,
# but for the clamping at both ends: what holds for these sizes holds for all.
_TRIALS = (1, 2, 3, 4, 5, 7, 64)
_EPS = 1e-6  # two matrices this close differ by rounding of the coordinates
_FAR = 1e-3  # coordinates this far apart don't make such matrices
_TIE = 1e-6  # ONNX Runtime counts what is this close to the middle of two pixels as the middle (1.2x on)


@dataclass(frozen=True)
class Axis:
    size: int | None  # of the input
    out: int | None  # of the output
    scale: Fraction | None  # as given, or out / size
    roi: tuple[np.float32, np.float32] = (np.float32(0), np.float32(1))  # of tf_crop_and_resize

    @property
    def moved(self) -> bool:
        """Whether anything happens along it; True when that is not known."""
        return self.scale is None or self.scale != 1

    @property
    def static(self) -> bool:
        return self.size is not None and self.out is not None and self.scale is not None


@dataclass(frozen=True)
class Spec:
    """What a node computes, whatever its version. `axes` has one entry for each dimension."""

    mode: str  # nearest, linear or cubic
    transform: str  # coordinate_transformation_mode
    nearest: str  # nearest_mode; "simple" is that of Upsample and Resize-10
    axes: tuple[Axis, ...]
    by: str  # "scales" or "sizes": which the node has
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0

    @property
    def moved(self) -> list[int]:
        """The axes along which something happens, those that shrink first: less is left to do for the others."""
        found = [i for i, a in enumerate(self.axes) if a.moved]
        return sorted(found, key=lambda i: float(self.axes[i].scale or 1))


def read(node: Node) -> Spec:
    """What a Resize or Upsample node computes. Raises Skip, with what to do, when that cannot be told."""
    graph, x, old = node.graph, node.input(0), node.op == "Upsample" or node.opset < 11
    dims = _dims(graph, x)
    if dims is None:
        raise Skip(f"the rank of '{x}' is not known; run shape inference or fix the shapes of the model's inputs")
    attr = node.attr
    mode = {"bilinear": "linear"}.get(attr("mode"), attr("mode"))
    if mode not in ("nearest", "linear", "cubic"):
        raise Skip(f"mode '{mode}' is none of Resize's")
    chosen = [a % len(dims) for a in (not old and attr("axes")) or range(len(dims))]
    by = "sizes" if not old and node.input(3) else "scales"
    given = _given(node, by, old)
    if given is not None and len(given) != len(chosen):
        raise Skip(f"it has {len(given)} {by} for {len(chosen)} axes")
    axes = [Axis(d, d, Fraction(1)) for d in (_number(t) for t in dims)]
    for position, i in enumerate(chosen):
        axes[i] = _axis(dims[i], given[position] if given else None, by)
    policy = "stretch" if old or by == "scales" else attr("keep_aspect_ratio_policy") or "stretch"
    if policy != "stretch":
        if min(node.attr("axes") or [0]) < 0:
            raise Skip("runtimes differ on negative axes with keep_aspect_ratio_policy; count the axes from 0")
        _keep_aspect_ratio(axes, chosen, policy)
    spec = Spec(
        mode=mode,
        transform="asymmetric" if old else attr("coordinate_transformation_mode"),
        nearest="simple" if old else attr("nearest_mode"),
        axes=tuple(axes),
        by=by,
        cubic=-0.75 if old else attr("cubic_coeff_a"),
        exclude_outside=not old and bool(attr("exclude_outside")),
        antialias=not old and bool(attr("antialias")),
        extrapolation=0.0 if old else attr("extrapolation_value"),
    )
    if spec.transform == "tf_crop_and_resize":
        spec = replace(spec, axes=_crop(node, axes, chosen))
    _refuse_disputed(node, spec)
    return spec


def _keep_aspect_ratio(axes: list[Axis], chosen: Sequence[int], policy: str) -> None:
    scales = [axes[i].scale for i in chosen]
    known = [s for s in scales if s is not None]
    if len(known) < len(scales) or any(axes[i].size is None for i in chosen):
        raise Skip("keep_aspect_ratio_policy needs the sizes of all resized axes; fix the shapes of the model's inputs")
    scale = min(known) if policy == "not_larger" else max(known)
    for i in chosen:
        size = axes[i].size or 0
        axes[i] = Axis(size, math.floor(scale * size + Fraction(1, 2)), scale)


def _crop(node: Node, axes: Sequence[Axis], chosen: Sequence[int]) -> tuple[Axis, ...]:
    roi = node.graph.const(node.input(1)) if node.input(1) else None
    if roi is None or roi.size != 2 * len(chosen):
        raise Skip("the region of interest (roi) of tf_crop_and_resize is computed; make it a constant")
    ends = {i: (np.float32(roi[p]), np.float32(roi[p + len(chosen)])) for p, i in enumerate(chosen)}
    return tuple(replace(a, roi=ends[i]) if i in ends else a for i, a in enumerate(axes))


def _refuse_disputed(node: Node, spec: Spec) -> None:
    """Raise Skip where ONNX Runtime and the standard mean different things."""
    declared = node.graph.shape(node.output(0))
    same_size = all(a.size == a.out for a in spec.axes)
    for i, axis in enumerate(spec.axes):
        if axis.size == 0 or axis.out == 0:
            raise Skip(f"axis {i} is empty")
        if axis.moved and axis.size is not None and axis.size == axis.out and (same_size or spec.antialias):
            raise Skip(
                f"along axis {i} its scale of {_text(axis.scale)} leaves the size as it is, "
                "and runtimes differ on what that means; give sizes instead of scales"
            )
        if not axis.moved and [float(r) for r in axis.roi] != [0, 1]:
            raise Skip(f"along axis {i} it crops without scaling, and runtimes differ on what that means; use Slice")
        said = declared[i] if declared is not None and len(declared) == len(spec.axes) else None
        if isinstance(said, int) and axis.out is not None and said != axis.out:
            raise Skip(f"axis {i} is inferred as {said}, but runtimes make it {axis.out}; give sizes instead of scales")
    if spec.exclude_outside and (spec.mode == "nearest" or (spec.mode == "linear" and not spec.antialias)):
        raise Skip(f"exclude_outside has no meaning for mode '{spec.mode}' in ONNX Runtime; drop it")
    crops = spec.transform == "tf_crop_and_resize"
    if spec.mode == "cubic" and crops and any(i < len(spec.axes) - 2 for i in spec.moved):
        raise Skip("a cubic crop of other axes than the last two goes wrong in ONNX Runtime; transpose them to the end")
    if spec.antialias and spec.mode == "nearest":
        raise Skip("antialias has no meaning for mode 'nearest'; drop it")


# ---- sizes and scales, followed through arithmetic on dimensions ----

Term = tuple[Fraction, Any]  # factor and dimension; None as the dimension of a plain number


def _dims(graph: Graph, name: str) -> list[Term] | None:
    shape = graph.shape(name)
    if shape is None:
        return None
    return [(Fraction(d), None) if isinstance(d, int) else (Fraction(1), d or (name, i)) for i, d in enumerate(shape)]


def _number(term: Term | None) -> int | None:
    return None if term is None or term[1] is not None or term[0].denominator != 1 else term[0].numerator


def _text(scale: Fraction | None) -> str:
    return f"{float(scale or 0):.6g}"


def _axis(dim: Term, given: Term | None, by: str) -> Axis:
    size = _number(dim)
    if given is None:
        return Axis(size, None, None)
    if by == "scales":
        if given[1] is not None:
            return Axis(size, None, None)
        scale = Fraction(float(np.float32(given[0])))
        return Axis(size, _scaled(size, scale), scale)
    out = _number(given)
    if given[1] != dim[1] or dim[0] == 0:
        return Axis(size, out, None)
    return Axis(size, out, given[0] / dim[0])


def _given(node: Node, by: str, old: bool) -> list[Term | None] | None:
    """The node's scales or sizes, as far as they are known."""
    if old and node.op == "Upsample" and node.has_attr("scales"):
        return [(Fraction(s), None) for s in node.attr("scales")]
    name = node.input(3 if by == "sizes" else 1 if old else 2)
    if not name:
        raise Skip("it has neither scales nor sizes")
    found = terms(node.graph, name)
    if found is None and by == "sizes":  # what the inference of shapes made of it
        shape = node.graph.shape(node.output(0)) if not node.attr("axes") else None
        found = [(Fraction(d), None) if isinstance(d, int) else None for d in shape] if shape is not None else None
    return found


def terms(graph: Graph, name: str, memo: dict[str, list[Term | None] | None] | None = None) -> list[Term | None] | None:
    """The elements of a 1-D (or 0-D) tensor of sizes or scales as multiples of dimensions, None each unknown one.

    Rounding is left out of account: exact for dimensions below 2**24. Cost: the arithmetic above it.
    """
    memo = {} if memo is None else memo
    if name not in memo:
        memo[name] = None  # stops a recursion without end
        memo[name] = _terms(graph, name, memo)
    return memo[name]


def _terms(graph: Graph, name: str, memo: dict[str, list[Term | None] | None]) -> list[Term | None] | None:
    if (graph.rank(name) or 0) > 1:
        return None
    if graph.is_const(name):
        array = graph.const(name)
        if array is None or array.size > 64 or array.dtype.kind not in "fiu":
            return None
        return [(Fraction(v), None) if math.isfinite(v) else None for v in array.reshape(-1).tolist()]
    known = graph.known(name)
    if known is not None and None not in known:
        return [(Fraction(v), None) for v in known if v is not None]
    node = graph.producer(name)
    if node is None or node.domain or node.op not in _ARITHMETIC or node.output(0) != name:
        return None
    if node.op == "Shape":
        dims = _dims(node.graph, node.input(0))
        return None if dims is None else [*dims[node.attr("start", 0) : node.attr("end", len(dims))]]
    return _computed(node, [terms(node.graph, n, memo) if n else None for n in node.inputs])


_ROUNDING = ("Floor", "Ceil", "Round")
_KEEPING = ("Identity", "Unsqueeze", "Squeeze", "Reshape")
_ARITHMETIC = {"Shape", "Concat", "Cast", "Gather", "Slice", "Mul", "Div", *_ROUNDING, *_KEEPING}


def _computed(node: Node, inputs: list[list[Term | None] | None]) -> list[Term | None] | None:
    scope, first = node.graph, inputs[0] if inputs else None
    if node.op == "Concat":
        return None if None in inputs else [t for part in inputs for t in part or ()]
    if first is None:
        return None
    if node.op in _KEEPING:
        return first if (scope.rank(node.output(0)) or 0) <= 1 else None
    if node.op in _ROUNDING or (node.op == "Cast" and _is_integer(node.attr("to"))):
        return [t if t is not None and t[0].denominator == 1 else None for t in first]
    if node.op == "Cast":
        return first
    if node.op == "Gather":
        at, size = scope.known(node.input(1)), len(first)
        return None if at is None else [first[i] if i is not None and -size <= i < size else None for i in at]
    if node.op == "Slice":
        return _sliced(node, first)
    if node.op in ("Mul", "Div") and inputs[1] is not None:
        whole = _is_integer(scope.dtype(node.output(0)))
        pairs = _broadcast(first, inputs[1])
        return [_multiplied(a, b, node.op == "Div", whole) for a, b in pairs]
    return None


def _is_integer(dtype: int) -> bool:
    return dtype in (TensorProto.INT64, TensorProto.INT32)


def _sliced(node: Node, values: list[Term | None]) -> list[Term | None] | None:
    def bound(attribute: str, index: int, default: int) -> int | None:
        found = node.attr(attribute) if node.has_attr(attribute) else node.graph.known(node.input(index)) or [default]
        return found[0] if len(found) == 1 else None

    start, end = bound("starts", 1, 0), bound("ends", 2, len(values))
    step = bound("steps", 4, 1) if node.input(4) else 1
    return None if start is None or end is None or step != 1 else values[start:end]


def _broadcast(a: list[Term | None], b: list[Term | None]) -> list[tuple[Term | None, Term | None]]:
    count = max(len(a), len(b))
    return list(zip(a * (count if len(a) == 1 else 1), b * (count if len(b) == 1 else 1), strict=False))


def _multiplied(a: Term | None, b: Term | None, divide: bool, whole: bool) -> Term | None:
    if a is None or b is None or (divide and b[0] == 0):
        return None
    if divide:
        if b[1] is not None and b[1] != a[1]:
            return None
        factor, dim = a[0] / b[0], None if b[1] is not None else a[1]
        return None if whole and factor.denominator != 1 else (factor, dim)
    return None if a[1] is not None and b[1] is not None else (a[0] * b[0], a[1] if a[1] is not None else b[1])


# ---- the map of one axis ----


def coordinates(spec: Spec, axis: Axis, dtype: type[np.floating[Any]] = np.float32) -> np.ndarray:
    """Where each output position lies in the input: dtype[out]."""
    assert axis.size is not None and axis.out is not None and axis.scale is not None
    x, size, out = np.arange(axis.out, dtype=dtype), dtype(axis.size), dtype(axis.out)
    scale, half = dtype(axis.scale), dtype(0.5)
    if spec.transform == "asymmetric":
        found = x / scale
    elif spec.transform == "align_corners":
        found = x * (size - 1) / (out - 1) if axis.out > 1 else x * 0
    elif spec.transform == "tf_half_pixel_for_nn":
        found = (x + half) / scale
    elif spec.transform == "half_pixel":
        found = (x + half) / scale - half
    elif spec.transform == "pytorch_half_pixel":
        found = (x + half) / scale - half if axis.out > 1 else x * 0
    elif spec.transform == "half_pixel_symmetric":
        offset = size / 2 * (1 - out / (scale * size))
        found = np.float64(offset) + (x.astype(np.float64) + 0.5) / np.float64(scale) - 0.5
    elif spec.transform == "tf_crop_and_resize":
        start, end = dtype(axis.roi[0]), dtype(axis.roi[1])
        span = x * (end - start) * (size - 1)
        middle = np.full(axis.out, 0.5 * float(start + end) * float(size - 1))
        found = start * (size - 1) + span / (out - 1) if axis.out > 1 else middle
    else:
        raise Skip(f"coordinate_transformation_mode '{spec.transform}' is none of Resize's")
    return np.asarray(found, dtype)


def indices(spec: Spec, axis: Axis) -> np.ndarray:
    """Nearest: the input index of each output position: int64[out]."""
    found = _rounded(spec, axis, np.float32)
    differing = np.flatnonzero(found != _rounded(spec, axis, np.float64))
    if len(differing):
        raise Skip(
            f"from {axis.size} to {axis.out} positions, position {differing[0]} lies so close to the border between "
            "two pixels that runtimes choose differently; choose other sizes or another nearest_mode"
        )
    return found


def _rounded(spec: Spec, axis: Axis, dtype: type[np.floating[Any]]) -> np.ndarray:
    assert axis.size is not None and axis.scale is not None
    x = coordinates(spec, axis, dtype).astype(np.float64)
    middle = np.floor(x) + 0.5
    if dtype is np.float32:
        x = np.where(np.abs(x - middle) < _TIE, middle, x)
    if spec.nearest == "floor" or (spec.nearest == "simple" and axis.scale >= 1):
        found = np.floor(x)
    elif spec.nearest in ("ceil", "simple"):
        found = np.ceil(x)
    elif spec.nearest == "round_prefer_ceil":
        found = np.floor(x + 0.5)
    elif spec.nearest == "round_prefer_floor":
        found = np.ceil(x - 0.5)
    else:
        raise Skip(f"nearest_mode '{spec.nearest}' is none of Resize's")
    return np.clip(found, 0, axis.size - 1).astype(np.int64)


def weights(spec: Spec, axis: Axis) -> np.ndarray:
    """Linear and cubic: the matrix from input to output positions: float64[out, size], each row's sum 1.

    A row is the kernel around the position's coordinate. Neighbours outside the input fold onto its edge, or are left
    out with exclude_outside; antialias widens the kernel where the image shrinks.
    """
    assert axis.size is not None and axis.out is not None and axis.scale is not None
    x = coordinates(spec, axis).astype(np.float64)
    if spec.mode == "linear" and not spec.antialias:
        x = np.clip(x, 0, axis.size - 1)
    stretch = min(float(axis.scale), 1.0) if spec.antialias else 1.0
    reach = (1 if spec.mode == "linear" else 2) / stretch
    near = np.floor(x).astype(np.int64)[:, None] + np.arange(-math.ceil(reach), math.ceil(reach) + 2)
    w = _kernel(spec, (near - x[:, None]) * stretch)
    inside = (near >= 0) & (near < axis.size)
    if spec.exclude_outside:
        w = w * inside
    matrix = np.zeros((axis.out, axis.size))
    np.add.at(matrix, (np.arange(axis.out)[:, None], np.clip(near, 0, axis.size - 1)), w)
    total = matrix.sum(axis=1, keepdims=True)
    return np.asarray(matrix / np.where(total == 0, 1, total))


def _kernel(spec: Spec, distance: np.ndarray) -> np.ndarray:
    d = np.abs(distance)
    if spec.mode == "linear":
        return np.asarray(np.clip(1 - d, 0, None))
    a = float(np.float32(spec.cubic))
    inner = ((a + 2) * d - (a + 3)) * d * d + 1
    outer = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d < 1, inner, np.where(d < 2, outer, 0.0))


def outside(spec: Spec, axis: Axis) -> np.ndarray:
    """The output positions that take extrapolation_value: bool[out]; only tf_crop_and_resize has any."""
    assert axis.size is not None and axis.out is not None
    if spec.transform != "tf_crop_and_resize":
        return np.zeros(axis.out, bool)
    single, double = coordinates(spec, axis), coordinates(spec, axis, np.float64)
    found, exact = ((x < 0) | (x > axis.size - 1) for x in (single, double))
    if (found != exact).any():
        raise Skip(
            f"the border of its region of interest falls on a pixel ({axis.size} to {axis.out} positions), and "
            "runtimes differ on whether that is outside; move the roi a little inwards"
        )
    return np.asarray(found)


# ---- another form of the same ----


@dataclass(frozen=True)
class Form:
    """How to write the node: a Resize with these attributes, without `axes`, policy and antialias."""

    transform: str
    nearest: str
    by: str  # "given": the inputs as they are, widened to full rank where the node has axes; "scales"; "sizes"


def equal_form(node: Node, spec: Spec, ctx: Context, *, exact: bool) -> Form | None:
    """A form that computes what the node computes and that the target takes, None when there is none.

    With `exact`, index vectors and matrices must be the same bit for bit; without it, up to rounding.
    """
    for form in _forms(node, spec):
        other = _spec_of(form, spec)
        if other is None:
            continue
        if not all(_same(spec, a, other, b, exact) for a, b in zip(spec.axes, other.axes, strict=True)):
            continue
        probe = Edit(node.graph, node, "")
        written = node.graph.producer(write(form, node, spec, probe))
        taken = written is not None and not any(ctx.refused(n) for n in probe.added)
        probe.rollback()
        if taken:
            return form
    return None


def _forms(node: Node, spec: Spec) -> Iterator[Form]:
    old = node.op == "Upsample" or node.opset < 11
    policy = not old and (node.attr("keep_aspect_ratio_policy") or "stretch") != "stretch" and spec.by == "sizes"
    ways = [spec.by, "sizes" if spec.by == "scales" else "scales"]
    widened = not old and bool(node.attr("axes"))
    known = all((a.scale if spec.by == "scales" else a.out) is not None for a in spec.axes)
    if not policy and not (widened and known):  # what is known is written as a constant, not computed
        ways.insert(2 if widened else 0, "given")
    if old:
        if node.opset >= 9:  # before, the scales are an attribute
            yield Form(spec.transform, spec.nearest, "scales")
        return
    transforms = ["half_pixel", "pytorch_half_pixel", "align_corners"]
    roundings = [spec.nearest]
    if spec.mode == "nearest":
        transforms = ["asymmetric", *transforms, "tf_half_pixel_for_nn"]
        roundings += ["floor", "round_prefer_floor", "round_prefer_ceil", "ceil"]
    for transform in dict.fromkeys([spec.transform, *transforms]):
        for rounding in dict.fromkeys(roundings):
            for way in ways:
                # TensorRT's importer wants scales with tf_half_pixel_for_nn.
                if transform != "tf_half_pixel_for_nn" or (spec.by if way == "given" else way) == "scales":
                    yield Form(transform, rounding, way)


def _spec_of(form: Form, spec: Spec) -> Spec | None:
    """What the form computes; None when it cannot be written."""
    axes = spec.axes
    if form.by == "sizes":
        if any(a.out is None for a in axes):
            return None
        axes = tuple(replace(a, scale=_ratio(a)) for a in axes)
    if form.by == "scales":
        if any(a.scale is None for a in axes):
            return None
        axes = tuple(replace(a, scale=_stored(a.scale), out=_scaled(a.size, _stored(a.scale)) or a.out) for a in axes)
    by = spec.by if form.by == "given" else form.by
    return replace(spec, transform=form.transform, nearest=form.nearest, axes=axes, by=by, antialias=False)


def _ratio(axis: Axis) -> Fraction | None:
    return axis.scale if axis.size is None or axis.out is None else Fraction(axis.out, axis.size)


def _stored(scale: Fraction | None) -> Fraction | None:
    """What is left of a scale in the operator's float32 input."""
    return None if scale is None else Fraction(float(np.float32(scale)))


def _scaled(size: int | None, scale: Fraction | None) -> int | None:
    """The output size of an axis by its scale, as ONNX Runtime computes it."""
    return None if size is None or scale is None else int(np.float32(scale) * np.float32(size))


def _same(spec: Spec, a: Axis, other: Spec, b: Axis, exact: bool) -> bool:
    """Whether both do the same along an axis, for whatever size it has."""
    if not a.moved or not b.moved:
        return a.moved == b.moved
    if a.static and b.static:
        return _same_map(spec, a, other, b, exact)
    if spec.antialias or a.out != b.out or a.scale != b.scale:
        return False
    if spec.transform == "tf_crop_and_resize" or other.transform == "tf_crop_and_resize":
        return False
    if _plain(spec, a) == _plain(other, b) and (spec.mode != "nearest" or spec.nearest == other.nearest):
        return True
    if a.scale is None or a.scale < 1 or a.scale.denominator != 1:
        return False
    pairs = zip(_trials(a), _trials(b), strict=True)
    return all(_same_map(spec, x, other, y, exact) for x, y in pairs)


def _trials(axis: Axis) -> Iterator[Axis]:
    """An axis of whole scale and unknown size, at the trial sizes."""
    scale = int(axis.scale or 1)
    return (replace(axis, size=n, out=n * scale) for n in _TRIALS)


def _plain(spec: Spec, axis: Axis) -> str:
    """The transformation, named half_pixel where pytorch_half_pixel is the same: it is but for an output of size 1."""
    larger = (axis.out or 0) > 1 or (axis.scale or 0) >= 2
    return "half_pixel" if spec.transform == "pytorch_half_pixel" and larger else spec.transform


def _same_map(spec: Spec, a: Axis, other: Spec, b: Axis, exact: bool) -> bool:
    if a.out != b.out:
        return False
    if spec.transform != other.transform or spec.nearest != other.nearest or a.scale != b.scale:
        try:
            if outside(spec, a).any() or outside(other, b).any():
                return False
            if spec.mode == "nearest":
                return bool(np.array_equal(indices(spec, a), indices(other, b)))
        except Skip:
            return False
    elif not spec.antialias:
        return True
    apart = np.abs(coordinates(spec, a) - coordinates(other, b)).max()
    if exact or apart > _FAR:
        # The target computes coordinates its own way: the same matrix must come from the same coordinates.
        return not spec.antialias and bool(apart == 0)
    return bool(np.abs(weights(spec, a) - weights(other, b)).max() <= _EPS)


def write(form: Form, node: Node, spec: Spec, edit: Edit) -> str:
    """Add the node in this form; returns the name of its output."""
    x = node.input(0)
    if node.op == "Upsample" or node.opset < 11:
        return str(edit.add(node.op, [x, _scales(spec)], mode=node.attr("mode")))
    crop = form.transform == "tf_crop_and_resize"
    return str(
        edit.add(
            "Resize",
            _inputs(form, node, spec, edit, crop),
            mode=spec.mode,
            coordinate_transformation_mode=form.transform,
            nearest_mode=form.nearest if spec.mode == "nearest" else None,
            cubic_coeff_a=spec.cubic if spec.mode == "cubic" else None,
            exclude_outside=1 if spec.exclude_outside else None,
            extrapolation_value=spec.extrapolation if crop else None,
        )
    )


def _inputs(form: Form, node: Node, spec: Spec, edit: Edit, crop: bool) -> list[str | np.ndarray]:
    x = node.input(0)
    empty: str | np.ndarray = "" if node.opset >= 13 else np.zeros(0, np.float32)
    roi = empty if not crop else np.array([*(a.roi[0] for a in spec.axes), *(a.roi[1] for a in spec.axes)], np.float32)
    by = spec.by if form.by == "given" else form.by
    if form.by == "scales":
        value: str | np.ndarray = _scales(spec)
    elif form.by == "sizes":
        value = emit.ints([a.out or 0 for a in spec.axes])
    else:
        value = _widened(node, by, edit)
    return [x, roi, value] if by == "scales" else [x, roi, empty, value]


def _scales(spec: Spec) -> np.ndarray:
    return np.array([float(a.scale or 1) for a in spec.axes], np.float32)


def _widened(node: Node, by: str, edit: Edit) -> str:
    """The node's own scales or sizes, with an entry for each dimension."""
    value, axes, rank = node.input(2 if by == "scales" else 3), node.attr("axes"), node.graph.rank(node.input(0)) or 0
    if not axes:
        return value
    rest: str | np.ndarray = np.ones(rank, np.float32) if by == "scales" else str(edit.add("Shape", [node.input(0)]))
    everything = emit.concat(edit, [rest, value], 0)
    at = list(range(rank))
    for position, axis in enumerate(axes):
        at[axis % rank] = rank + position
    return str(edit.add("Gather", [everything, emit.ints(at)], axis=0))


# ---- lowering ----


def need_static(spec: Spec, axes: Sequence[int]) -> None:
    """Raise Skip unless the sizes along these axes are known."""
    open_ = [str(i) for i in axes if not spec.axes[i].static]
    if open_:
        which = f"axis {open_[0]}" if len(open_) == 1 else f"axes {', '.join(open_)}"
        raise Skip(f"the sizes along {which} are not known; fix the shapes of the model's inputs")


def whole_repeat(spec: Spec, axis: Axis) -> int:
    """How often a nearest Resize repeats each element along an axis, whatever its size; 0 when it does not do that."""
    if axis.scale is None or axis.scale < 1 or axis.scale.denominator != 1 or spec.transform == "tf_crop_and_resize":
        return 0
    k = int(axis.scale)
    return k if all(np.array_equal(indices(spec, a), np.arange(a.out or 0) // k) for a in _trials(axis)) else 0


def gathered(edit: Edit, x: str, spec: Spec) -> str:
    """A nearest Resize of `x` as one Gather for each axis of known sizes, and repetition along the others.

    Raises Skip when an axis of unknown size is not repeated a whole number of times.
    """
    repeats = {i: 0 if spec.axes[i].static else whole_repeat(spec, spec.axes[i]) for i in spec.moved}
    need_static(spec, [i for i, k in repeats.items() if not k])
    for i, k in repeats.items():
        if not k:
            x = str(edit.add("Gather", [x, indices(spec, spec.axes[i])], axis=i))
    x = _repeated(edit, x, {i: k for i, k in sorted(repeats.items()) if k})
    return _extrapolated(edit, x, spec)


def _repeated(edit: Edit, x: str, repeats: dict[int, int]) -> str:
    """`x` with each element repeated along some axes: a new axis behind each, tiled, then merged."""
    if not repeats:
        return x
    rank = edit.graph.rank(x) or 0
    new = [axis + 1 + position for position, axis in enumerate(repeats)]
    tiles = np.ones(rank + len(new), np.int64)
    tiles[new] = list(repeats.values())
    grown = emit.ints([repeats.get(i, 1) for i in range(rank)])
    shape = edit.add("Mul", [edit.add("Shape", [x]), grown])
    return str(edit.add("Reshape", [edit.add("Tile", [emit.unsqueeze(edit, x, new), tiles]), shape]))


def multiplied(edit: Edit, x: str, spec: Spec, dtype: np.dtype[Any], rank: int) -> str:
    """A linear or cubic Resize of `x` as one MatMul with a constant matrix for each axis. All sizes must be known."""
    for i in spec.moved:
        matrix = weights(spec, spec.axes[i]).astype(dtype)
        if i == rank - 1:
            x = str(edit.add("MatMul", [x, np.ascontiguousarray(matrix.T)]))
        elif i == rank - 2:
            x = str(edit.add("MatMul", [matrix, x]))
        else:
            to_last = [a for a in range(rank) if a != i] + [i]
            back = [to_last.index(a) for a in range(rank)]
            x = edit.add("MatMul", [emit.transpose(edit, x, to_last), np.ascontiguousarray(matrix.T)])
            x = emit.transpose(edit, x, back)
    return _extrapolated(edit, x, spec)


def matrix_bytes(spec: Spec, itemsize: int) -> int:
    """The memory of the constants `multiplied` makes."""
    sizes = (spec.axes[i] for i in spec.moved)
    return sum((a.size or 0) * (a.out or 0) for a in sizes) * itemsize


def _extrapolated(edit: Edit, x: str, spec: Spec) -> str:
    """`x` with extrapolation_value where a position fell outside the input."""
    if spec.transform != "tf_crop_and_resize":
        return x
    rank, inside = len(spec.axes), np.ones((1,) * len(spec.axes), bool)
    for i in spec.moved:
        beyond = outside(spec, spec.axes[i])
        if beyond.any():
            inside = inside & ~beyond.reshape([-1 if a == i else 1 for a in range(rank)])
    if inside.all():
        return x
    return str(edit.add("Where", [inside, x, emit.scalar(edit, spec.extrapolation, x)]))


def copied(node: Node, inputs: Sequence[str], edit: Edit) -> str:
    """Add a copy of the node that reads other inputs; returns the name of its output."""
    attributes = {a.name: node.attr(a.name) for a in node.proto.attribute}
    return str(edit.add(node.op, list(inputs), **attributes))
