"""Probe models: one node each, and copies of it that differ in a single thing.

The node tests of onnx give a valid node for nearly every operator, with values for its inputs; `RECIPES` gives the
rest. From the simplest of them a `Spec` is taken, moved to every version of the operator's schema, and changed in one
thing at a time: a dtype, an attribute's value, whether an input is stored or comes at run time, the outputs asked
for, the rank, fixed or free dimensions, an optional input left out. What does not pass ONNX's own inference of
shapes is no question for a parser and is left out.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.defs import OpSchema
from onnx.reference import ReferenceEvaluator

from onnxfix.graph import attribute_value, schema
from onnxfix.limits import DTYPE
from onnxfix.probe import standard

# How a value comes to its node: as an input of the network, stored, through a Cast of a stored one, through arithmetic
# on stored ones, or through a Cast of an integer input of the network.
RUN_TIME, STORED, CAST, FOLDED, INTEGER = "run-time", "stored", "cast", "folded", "integer"
HOWS = (STORED, CAST, FOLDED, INTEGER, RUN_TIME)

RANKS = range(1, 7)
BASES = 3  # per operator: the simplest of each set of inputs
_IR = 8  # old parsers read it, and every opset may stand in it

# Another rank needs other attributes or parameters too.
_WINDOWS = frozenset({
    "Conv", "ConvTranspose", "ConvInteger", "DeformConv", "QLinearConv", "MaxPool", "AveragePool", "LpPool",
    "MaxUnpool", "BatchNormalization", "NonMaxSuppression", "Col2Im", "STFT", "Slice",
})  # fmt: skip
# Values of string attributes: the schemas do not list them.
_STRINGS = {
    "auto_pad": ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"),
    "reduction": ("none", "add", "mul", "min", "max"),
    "coordinate_transformation_mode": ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
                                       "asymmetric", "tf_half_pixel_for_nn", "tf_crop_and_resize", "output_half_pixel"),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
    "padding_mode": ("zeros", "border", "reflection"),
    "approximate": ("none", "tanh"),
}  # fmt: skip
_MODES = {
    "Resize": ("nearest", "linear", "cubic"),
    "Upsample": ("nearest", "linear"),
    "GridSample": ("nearest", "bilinear", "bicubic", "linear", "cubic"),
    "Pad": ("constant", "reflect", "edge", "wrap"),
    "DepthToSpace": ("DCR", "CRD"),
    "RoiAlign": ("avg", "max"),
    "TensorScatter": ("linear", "circular"),
}
_DTYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "softmax_precision", "stash_type", "output_datatype"})
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
# Questions whose answer ONNX's inference does not vouch for: the reference evaluator must take the model too.
_RUN = ("rank", "attribute", "left")
# A change of these needs other shapes too: the node tests hold such models.
_FIXED = frozenset({
    "kernel_shape", "axes", "perm", "shape", "sizes", "group", "split", "hidden_size", "blocksize", "num_heads",
    "q_num_heads", "kv_num_heads", "rotary_embedding_dim", "num_groups", "size", "then_branch", "else_branch",
    "body", "num_scan_inputs", "equation", "value", "batch_axis", "time_axis", "batch_dims", "direction",
    "block_size", "num_outputs", "output_shape", "height_scale", "width_scale", "scales", "k", "output_size",
    "spatial_scale",
})  # fmt: skip

# Where there is no node test of one node, or only one that needs much at once: opset -> graph.
RECIPES: tuple[tuple[int, str], ...] = (
    (22, "() => (float[2,3] y) { y = RandomNormal<shape=[2,3]>() }"),
    (22, "() => (float[2,3] y) { y = RandomUniform<shape=[2,3]>() }"),
    (22, "(float[2,3] x) => (float[2,3] y) { y = RandomNormalLike(x) }"),
    (22, "(float[2,3] x) => (float[2,3] y) { y = RandomUniformLike(x) }"),
    (22, "(float[2,3] x) => (int32[2,4] y) { y = Multinomial<sample_size=4>(x) }"),
    (22, "(float[1,2,6,6] x) => (float[1,2,1,1] y) { y = GlobalLpPool(x) }"),
    (22, "(float[1,2,6,6] x) => (float[1,2,5,5] y) { y = LpPool<kernel_shape=[2,2]>(x) }"),
    (22, "(float[1,2,6,6] x, float[1,5] r) => (float[1,2,2,2] y) { y = MaxRoiPool<pooled_shape=[2,2]>(x, r) }"),
    (22, "(float[2,3] x) => (float[2,3] y) { y = LpNormalization(x) }"),
    (22, "(float[1,2,4,4] x) => (float[1,2,4,4] y) { y = Dropout(x) }"),
    (9, "(float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s = {1,1,2,2}> { y = Upsample(x, s) }"),
    (10, "(float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s = {1,1,2,2}> { y = Resize(x, s) }"),
    (19, "(float[1,1,4,4] x) => (float[1,1,8,8] y) <float[4] s = {1,1,2,2}> { y = Resize<mode=\"linear\">(x, , s) }"),
    (10, "(float[3,3] x, int64[1,3] i, float[1,3] u) => (float[3,3] y) { y = Scatter(x, i, u) }"),
    (22, "(float[2,3] x) => (float[2,3] y, float[2,3] z) { y, z = Split<axis=0, num_outputs=2>(x) }"),
    (20, "(float[1,2,4,4] x) => (float[1,2,4,4] y) <float[1] s = {1}, float[1] b = {0}>"
         " { y = GroupNormalization<num_groups=1>(x, s, b) }"),
    (22, "(float[1,2,6,6] x, float[3,2,3,3] w) => (float[1,3,4,4] y) { y = Conv(x, w) }"),
    (22, "(float[1,2,6,6] x, float[2,3,3,3] w) => (float[1,3,8,8] y) { y = ConvTranspose(x, w) }"),
    (22, "(float[1,2,6,6] x) => (float[1,2,5,5] y) { y = MaxPool<kernel_shape=[2,2]>(x) }"),
    (22, "(float[1,2,6,6] x) => (float[1,2,5,5] y) { y = AveragePool<kernel_shape=[2,2]>(x) }"),
    (22, "(float[2,2] x, float s) => (int8[2,2] y) <int8 z = {0}> { y = QuantizeLinear(x, s, z) }"),
    (22, "(int8[2,2] x, float s) => (float[2,2] y) <int8 z = {0}> { y = DequantizeLinear(x, s, z) }"),
    (22, "(float[2,3] x) => (float[2,3] y) <int64[1] a = {1}> { y = CumSum(x, a) }"),
    (22, "(float[2,3] x) => (int64[2,1] y) { y = ArgMax<axis=1>(x) }"),
    (24, "(float[1,2,4,4] p, float[1,2,1,4] u, int64[1] w) => (float[1,2,4,4] y) { y = TensorScatter(p, u, w) }"),
    (22, "(float[2,5] x) => (float[2,2] y, int64[2,2] i) <int64[1] k = {2}> { y, i = TopK(x, k) }"),
)  # fmt: skip


@dataclass(frozen=True)
class Feed:
    """An input of the node. `dims` may hold names; `value` is what is stored when it is."""

    dtype: int
    dims: tuple[int | str, ...]
    value: np.ndarray | None = None
    how: str = RUN_TIME


@dataclass(frozen=True)
class Spec:
    """A node by itself."""

    op: str
    domain: str
    opset: int
    attributes: tuple[AttributeProto, ...]
    inputs: tuple[Feed | None, ...]
    outputs: int

    @property
    def key(self) -> str:
        return f"{self.domain}::{self.op}" if self.domain else self.op

    def attribute(self, name: str) -> Any:
        return next((attribute_value(a) for a in self.attributes if a.name == name), None)

    def with_attribute(self, name: str, value: Any) -> Spec:
        """With the attribute set, or without it when `value` is None."""
        kept = tuple(a for a in self.attributes if a.name != name)
        return replace(self, attributes=kept if value is None else (*kept, helper.make_attribute(name, value)))

    def with_input(self, index: int, feed: Feed | None) -> Spec:
        return replace(self, inputs=(*self.inputs[:index], feed, *self.inputs[index + 1 :]))


@dataclass(frozen=True)
class Case:
    """A question to a parser. Cases of one `base` and `about` differ in `value` alone."""

    spec: Spec
    base: str  # the node it is a copy of
    about: str  # "base", "dtype 0", "together 0 1", "attribute mode", "input 1", "outputs", "rank", …
    value: Any
    model: ModelProto

    @property
    def name(self) -> str:
        return f"{self.spec.key}-{self.spec.opset}/{self.base}/{self.about}={self.value}"


def cases(only: Collection[str] = ()) -> Iterator[Case]:
    """Every probe model, or those of some operators, in an order that is the same wherever the same onnx is."""
    seen: set[str] = set()
    for name, spec in _bases():
        if only and spec.key not in only:
            continue
        for case in _questions(name, spec):
            if case.name not in seen:
                seen.add(case.name)
                yield case


# ---- bases ----


def _bases() -> Iterator[tuple[str, Spec]]:
    """(name, spec): for each operator the simplest node of each set of inputs, in every version of its schema."""
    by_op: dict[str, dict[tuple[bool, ...], tuple[tuple[int, ...], str, Spec]]] = {}
    for name, spec in (*_recipes(), *_from_tests()):
        shape = tuple(f is not None for f in spec.inputs)
        known = by_op.setdefault(spec.key, {}).get(shape)
        if known is None or _size(spec) < known[0]:
            by_op[spec.key][shape] = (_size(spec), name, spec)
    for key in sorted(by_op):
        chosen = sorted(by_op[key].values(), key=lambda found: found[:2])[:BASES]
        for _, name, spec in chosen:
            yield name, spec
            for version in _older(spec):
                older = downgrade(spec, version)
                if older is not None:
                    yield name, older


def _size(spec: Spec) -> tuple[int, ...]:
    plain = bool(spec.inputs and spec.inputs[0] and spec.inputs[0].dtype != TensorProto.FLOAT)
    elements = sum(int(np.prod(f.value.shape)) for f in spec.inputs if f and f.value is not None)
    return plain, len(spec.attributes) + len(spec.inputs) + spec.outputs, elements


def _from_tests() -> Iterator[tuple[str, Spec]]:
    for name, model, values in standard.with_values():
        if len(model.graph.node) == 1 and model.ByteSize() < 100_000:
            spec = _spec(model, values)
            if spec is not None:
                yield name, spec


def _recipes() -> Iterator[tuple[str, Spec]]:
    for number, (opset, text) in enumerate(RECIPES):
        model = onnx.parser.parse_model(f'<ir_version: {_IR}, opset_import: ["" : {opset}]> g {text}')
        random = np.random.default_rng(number)
        values = [
            _ones(v.type.tensor_type.elem_type, [d.dim_value for d in v.type.tensor_type.shape.dim], random)
            for v in model.graph.input
        ]
        spec = _spec(model, values)
        assert spec is not None
        yield f"recipe {number}", spec


def _ones(dtype: int, dims: list[int], random: np.random.Generator) -> np.ndarray:
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    if np.issubdtype(kind, np.integer):
        return np.zeros(dims, kind)
    return random.uniform(0.1, 1, dims).astype(kind)


def _spec(model: ModelProto, values: Any) -> Spec | None:
    """The only node of a model; None where an input is no tensor. Inputs but the first are stored where they can be."""
    node = model.graph.node[0]
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = next((o.version for o in model.opset_import if o.domain in (domain, domain or "ai.onnx")), 0)
    feeds: dict[str, Feed] = {}
    for info, value in zip(model.graph.input, values, strict=False):
        if not info.type.HasField("tensor_type") or not isinstance(value, (np.ndarray, np.generic, TensorProto)):
            return None
        array: np.ndarray | None = (
            numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
        )
        kind = info.type.tensor_type.elem_type
        if kind == TensorProto.STRING:
            array = None
        feeds[info.name] = Feed(kind, tuple(d.dim_value for d in info.type.tensor_type.shape.dim), array)
    for tensor in model.graph.initializer:
        feeds[tensor.name] = Feed(tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor), STORED)
    if any(n and n not in feeds for n in node.input):
        return None
    inputs = [feeds[n] if n else None for n in node.input]
    stored = [f if f is None or i == 0 or f.value is None else replace(f, how=STORED) for i, f in enumerate(inputs)]
    return Spec(node.op_type, domain, opset, tuple(node.attribute), tuple(stored), len(node.output))


def _older(spec: Spec) -> list[int]:
    return [v for v in versions(spec.op, spec.domain) if v < _since(spec)]


def _since(spec: Spec) -> int:
    found = schema(spec.op, spec.domain, spec.opset)
    return found.since_version if found else 0


@functools.cache
def versions(op: str, domain: str) -> tuple[int, ...]:
    """The versions of an operator's schema, oldest first."""
    found = {s.since_version for s in onnx.defs.get_all_schemas_with_history() if (s.name, s.domain) == (op, domain)}
    return tuple(sorted(found))


def downgrade(spec: Spec, version: int) -> Spec | None:
    """The same node in an older version of its schema, None when that cannot say it.

    An input that was an attribute of its name then becomes one again, as axes of Squeeze did.
    """
    new, old = schema(spec.op, spec.domain, spec.opset), schema(spec.op, spec.domain, version)
    if new is None or old is None:
        return None
    later = [v for v in versions(spec.op, spec.domain) if v > version]
    # At the last opset of that version, where most models of it are.
    result, names = replace(spec, opset=later[0] - 1 if later else version), {a.lower(): a for a in old.attributes}
    kept: list[Feed | None] = []
    for index, feed in enumerate(spec.inputs):
        formal = new.inputs[min(index, len(new.inputs) - 1)].name.lower()
        if feed is not None and formal in names and formal not in {i.name.lower() for i in old.inputs}:
            if feed.value is None or not feed.value.size:
                return None
            held = feed.value.reshape(-1).tolist()
            several = old.attributes[names[formal]].type in (OpSchema.AttrType.INTS, OpSchema.AttrType.FLOATS)
            result = result.with_attribute(names[formal], held if several else held[0])
            continue
        kept.append(feed)
    while kept and kept[-1] is None:
        kept.pop()
    if not old.min_input <= len(kept) <= old.max_input:
        return None
    if any(f is None and _formal(old, i).option != OpSchema.FormalParameterOption.Optional for i, f in enumerate(kept)):
        return None
    for attribute in spec.attributes:
        if attribute.name not in old.attributes:
            result = result.with_attribute(attribute.name, None)
    return replace(result, inputs=tuple(kept), outputs=min(spec.outputs, old.max_output))


# ---- questions ----


def _questions(name: str, spec: Spec) -> Iterator[Case]:
    base = _case(spec, name, "base", "")
    if base is None:
        return
    yield base
    found = schema(spec.op, spec.domain, spec.opset)
    assert found is not None
    for about, value, changed in (
        *_dtypes(spec, found),
        *_attributes(spec, found),
        *_hows(spec),
        *_outputs(spec, found),
        *_ranks(spec),
        *_dims(spec),
        *_left_out(spec, found),
    ):
        case = _case(changed, name, about, value)
        listed = isinstance(value, str) and value.isalpha()  # a name from a list of valid ones
        if case is not None and (listed or about.split()[0] not in _RUN or _runs(case)):
            yield case


_Change = tuple[str, Any, Spec]


def _dtypes(spec: Spec, found: OpSchema) -> Iterator[_Change]:
    variables: dict[str, list[int]] = {}
    for i, feed in enumerate(spec.inputs):
        if feed is not None:
            variables.setdefault(_formal(found, i).type_str, []).append(i)
    allowed = {c.type_param_str: {_dtype(t) for t in c.allowed_type_strs} - {None} for c in found.type_constraints}
    at_run_time = replace(spec, inputs=tuple(f and replace(f, how=RUN_TIME) for f in spec.inputs))
    for start, note in ((spec, ""), (at_run_time, " at run time")):
        for variable, bound in variables.items():
            for dtype in sorted(d for d in allowed.get(variable, ()) if d):
                yield f"dtype {bound[0]}{note}", DTYPE[dtype], _typed(start, bound, dtype)
    # Several variables at once, where they now have the same dtype.
    first = spec.inputs[0] if spec.inputs else None
    alike = [v for v, bound in variables.items() if first and all(_of(spec, i) == first.dtype for i in bound)]
    if len(alike) > 1:
        for dtype in sorted(d for d in set.intersection(*(set(allowed.get(v, ())) for v in alike)) if d):
            yield f"together {' '.join(str(variables[v][0]) for v in alike)}", DTYPE[dtype], _typed(
                spec, [i for v in alike for i in variables[v]], dtype
            )


def _of(spec: Spec, index: int) -> int:
    feed = spec.inputs[index]
    return feed.dtype if feed else 0


def _typed(spec: Spec, bound: Iterable[int], dtype: int) -> Spec:
    for i in bound:
        spec = spec.with_input(i, _retyped(spec.inputs[i], dtype))
    return spec


def _formal(found: OpSchema, index: int) -> Any:
    return found.inputs[min(index, len(found.inputs) - 1)]


def _dtype(text: str) -> int | None:
    """TensorProto.DataType of "tensor(float)", None for other kinds of values."""
    if not text.startswith("tensor("):
        return None
    name = text[7:-1].upper()
    number = _NUMBERS.get(name)
    return None if number in (None, TensorProto.STRING) else number


_NUMBERS = {name: number for number, name in DTYPE.items()}


def _retyped(feed: Feed | None, dtype: int) -> Feed:
    assert feed is not None
    value = None
    if feed.value is not None:
        with np.errstate(all="ignore"), contextlib.suppress(TypeError, ValueError):
            value = np.asarray(feed.value).astype(helper.tensor_dtype_to_np_dtype(dtype))
    how = feed.how if value is not None else RUN_TIME
    return Feed(dtype, feed.dims, value, how)


def _attributes(spec: Spec, found: OpSchema) -> Iterator[_Change]:
    for name, attribute in sorted(found.attributes.items()):
        if name in _FIXED:
            continue
        for value in dict.fromkeys(_values(spec, name, attribute)):
            plain: Any = list(value) if isinstance(value, tuple) else value
            shown = DTYPE.get(plain, plain) if name in _DTYPE_ATTRIBUTES else plain
            yield f"attribute {name}", str(shown), spec.with_attribute(name, plain)


def _values(spec: Spec, name: str, attribute: Any) -> Iterable[Any]:
    kinds = OpSchema.AttrType
    now = spec.attribute(name)
    if attribute.type == kinds.STRING:
        return _MODES.get(spec.op, ()) if name == "mode" else _STRINGS.get(name, ())
    if name in _DTYPE_ATTRIBUTES:
        return _FLOATS if name in ("stash_type", "softmax_precision") else sorted(d for d in DTYPE if d)
    if attribute.type == kinds.INT:
        if name == "p":
            return (1, 2, 3)
        default = helper.get_attribute_value(attribute.default_value) if attribute.default_value.type else now
        return (0, 1) if default in (0, 1, None) and name != "axis" else ()
    if attribute.type == kinds.FLOAT:
        return (0.0, 1.0, 2.0)
    if attribute.type == kinds.INTS and spec.inputs and spec.inputs[0]:
        spatial = len(spec.inputs[0].dims) - 2
        if spatial < 1:
            return ()
        if name in ("dilations", "strides"):
            return ((1,) * spatial, (2,) * spatial)
        if name == "output_padding":
            return ((0,) * spatial,)
        if name == "pads":
            zeros = (0,) * spatial
            return ((*zeros, *zeros), (1, *zeros[1:], 1, *zeros[1:]), (1, *zeros[1:], *zeros), (*zeros, 1, *zeros[1:]))
    return ()


def _hows(spec: Spec) -> Iterator[_Change]:
    for index, feed in enumerate(spec.inputs):
        if feed is None or feed.value is None:
            continue
        for how in HOWS:
            if how == INTEGER and feed.dtype not in (TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64):
                continue
            yield f"input {index}", how, spec.with_input(index, replace(feed, how=how))


def _outputs(spec: Spec, found: OpSchema) -> Iterator[_Change]:
    if found.max_output > 8:
        return
    for count in range(max(found.min_output, 1), found.max_output + 1):
        yield "outputs", count, replace(spec, outputs=count)


def _ranks(spec: Spec) -> Iterator[_Change]:
    first = spec.inputs[0] if spec.inputs else None
    if first is None or spec.op in _WINDOWS:
        return
    alike = [i for i, f in enumerate(spec.inputs) if f and len(f.dims) == len(first.dims) and f.dtype == first.dtype]
    for rank in (*RANKS, 8, 9) if spec.op == "Relu" else RANKS:
        changed = spec
        for i in alike:
            changed = changed.with_input(i, _reshaped(spec.inputs[i], rank))
        yield "rank", rank, changed


def _reshaped(feed: Feed | None, rank: int) -> Feed:
    """Leading dimensions of size 1 come, or the leading ones go."""
    assert feed is not None
    dims = (1,) * (rank - len(feed.dims)) + feed.dims[-rank:]
    if feed.value is None:
        return replace(feed, dims=dims)
    return replace(feed, dims=dims, value=np.resize(feed.value, [int(d) for d in dims]))


def _dims(spec: Spec) -> Iterator[_Change]:
    first = spec.inputs[0] if spec.inputs else None
    if first is None or not first.dims or first.how != RUN_TIME:
        return
    yield "dims", "fixed", spec
    last = len(first.dims) - 1
    for value, axes in (("first free", {0}), ("last free", {last}), ("all free", set(range(last + 1)))):
        dims = tuple(f"d{i}" if i in axes else d for i, d in enumerate(first.dims))
        yield "dims", value, spec.with_input(0, replace(first, dims=dims))


def _left_out(spec: Spec, found: OpSchema) -> Iterator[_Change]:
    for index, feed in enumerate(spec.inputs):
        if feed is None or _formal(found, index).option != OpSchema.FormalParameterOption.Optional:
            continue
        if any(a.type == AttributeProto.GRAPH for a in spec.attributes):
            return  # a Loop without its trip count may never end
        changed = spec.with_input(index, None)
        kept = list(changed.inputs)
        while kept and kept[-1] is None:
            kept.pop()
        yield f"left out {index}", "given", spec
        yield f"left out {index}", "left out", replace(changed, inputs=tuple(kept))


# ---- a spec as a model ----


_INVALID = (ValueError, TypeError, RuntimeError, OverflowError, shape_inference.InferenceError)


def _case(spec: Spec, base: str, about: str, value: Any) -> Case | None:
    try:
        model = build(spec)
    except _INVALID:
        return None  # ONNX itself does not take it
    return None if model is None else Case(spec, base, about, value, model)


def _runs(case: Case) -> bool:
    """Whether ONNX's reference evaluator gets through, or cannot tell: random numbers of one seed."""
    random = np.random.default_rng(0)
    feeds = {}
    for index, feed in enumerate(case.spec.inputs):
        if feed is None or feed.how != RUN_TIME:
            continue
        dims = [int(d) for d in feed.dims]
        value = feed.value
        if value is None or list(value.shape) != dims:
            value = _ones(feed.dtype, dims, random)
        feeds[f"x{index}"] = value
    if any(a.type == AttributeProto.GRAPH for a in case.spec.attributes):
        return True
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            ReferenceEvaluator(case.model).run(None, feeds)
    except Exception:
        return False
    return True


def build(spec: Spec) -> ModelProto | None:
    """The model of a spec, its outputs typed by inference; None where that finds no type.

    Raises what onnx raises on an invalid node.
    """
    nodes: list[onnx.NodeProto] = []
    infos: list[onnx.ValueInfoProto] = []
    tensors: list[TensorProto] = []
    names = [_feed(f, f"x{i}", nodes, infos, tensors) if f else "" for i, f in enumerate(spec.inputs)]
    outputs = [f"y{i}" for i in range(spec.outputs)]
    node = helper.make_node(spec.op, names, outputs, name="probed", domain=spec.domain)
    node.attribute.extend(spec.attributes)
    nodes.append(node)
    imports = [helper.make_opsetid(spec.domain, spec.opset)]
    if spec.domain:
        imports.append(helper.make_opsetid("", 17))
    graph = helper.make_graph(nodes, "probe", infos, [onnx.ValueInfoProto(name=o) for o in outputs], tensors)
    model = helper.make_model(graph, opset_imports=imports, ir_version=_IR, producer_name="onnxfix probe")
    typed = shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    for info in typed.graph.output:
        if info.type.WhichOneof("value") is None:
            return None
        kind = info.type.tensor_type
        if info.type.HasField("tensor_type") and not kind.elem_type:
            return None
    del typed.graph.value_info[:]
    return typed


def _feed(
    feed: Feed, name: str, nodes: list[onnx.NodeProto], infos: list[onnx.ValueInfoProto], tensors: list[TensorProto]
) -> str:
    """Add what makes a value to the graph; its name."""
    if feed.how == RUN_TIME:
        infos.append(helper.make_tensor_value_info(name, feed.dtype, feed.dims))
        return name
    if feed.how == INTEGER:
        other = TensorProto.INT64 if feed.dtype != TensorProto.INT64 else TensorProto.INT32
        infos.append(helper.make_tensor_value_info(f"{name}_from", other, feed.dims))
        nodes.append(helper.make_node("Cast", [f"{name}_from"], [name], to=feed.dtype))
        return name
    assert feed.value is not None
    tensor = numpy_helper.from_array(feed.value, name if feed.how == STORED else f"{name}_from")
    tensors.append(tensor)
    if feed.how == CAST:
        nodes.append(helper.make_node("Cast", [tensor.name], [name], to=feed.dtype))
    elif feed.how == FOLDED:
        nodes.append(helper.make_node("Transpose", [tensor.name], [f"{name}_turned"]))
        nodes.append(helper.make_node("Transpose", [f"{name}_turned"], [name]))
    return name
