"""Make inputs and dynamic axes of a model constant, before any rule looks at it.

A frozen input is an initializer of the same name; a set shape goes into the model's inputs and outputs, and into
whatever was inferred with the same symbol. Both change the model's interface, and are reported as changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxfix.errors import RequestError
from onnxfix.graph import Graph, Node
from onnxfix.model import Model
from onnxfix.report import Change, Finding, Safety, Skipped, Where
from onnxfix.shapes import index

Values = Mapping[str, Any]  # input name -> number, list or array
Shapes = Mapping[str, Sequence[int | None]]  # input name -> sizes, None for an axis that stays as it is
RULE = "freeze"  # what such changes are reported under

_REFUSING = ("refused", "silently wrong", "build fails")


def apply(
    model: Model, values: Values | None = None, shapes: Shapes | None = None
) -> tuple[list[Change], dict[str, np.ndarray]]:
    """Change `model` in place. Returns the changes, and the frozen values by name, to be fed to the original.

    Raises RequestError for a name that is no input, a value or a size that does not fit it, and for two sizes of one
    symbol. Cost: one walk over the declared types.
    """
    changes: list[Change] = []
    for words, name in _set_shapes(model, shapes or {}):
        changes.append(_change(len(changes), name, words))
    frozen: dict[str, np.ndarray] = {}
    for name, value in (values or {}).items():
        info = _input(model, name)
        frozen[name] = array = _array(info, value)
        changes.append(_change(len(changes), name, f"input '{name}' frozen to {_shown(array)}"))
        _initialize(model.proto, info, array)
    return changes, frozen


def _change(count: int, name: str, words: str) -> Change:
    where = Where(name, "input", outputs=(name,))
    return Change(count + 1, RULE, Safety.EXACT, where, words, interface=True)


def _input(model: Model, name: str) -> ValueInfoProto:
    """Raises RequestError with the names there are."""
    stored = {t.name for t in model.proto.graph.initializer}
    inputs = {v.name: v for v in model.proto.graph.input}
    if name in inputs:
        return inputs[name]
    have = ", ".join(f"'{n}'" for n in inputs if n not in stored) or "none"
    raise RequestError(f"the model has no input '{name}' to freeze; its inputs: {have}")


# ---- values ----


def _array(info: ValueInfoProto, value: Any) -> np.ndarray:
    """`value` in the dtype and shape of the input; a single number fills the shape, a list may fill it in order."""
    if not info.type.HasField("tensor_type"):
        raise RequestError(f"input '{info.name}' is no tensor and can't be frozen")
    elem = info.type.tensor_type.elem_type
    given = np.asarray(value)
    if elem == TensorProto.STRING or given.dtype.kind not in "biuf":
        raise RequestError(f"input '{info.name}' can only be frozen to numbers, not to {value!r}")
    dtype = helper.tensor_dtype_to_np_dtype(elem)
    with np.errstate(all="ignore"):
        array = given.astype(dtype)
    if dtype.kind in "biu" and not np.array_equal(array.astype(np.float64), given.astype(np.float64)):
        kind = TensorProto.DataType.Name(elem)
        raise RequestError(f"input '{info.name}' is {kind}, which can't hold {value!r}")
    if not info.type.tensor_type.HasField("shape"):
        return array
    declared = [d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim]
    fitted = _fitted(array, declared)
    if fitted is None:
        raise RequestError(f"input '{info.name}' is {_dims(info)}, and {_shown(array)} does not fit it")
    return fitted


def _fitted(array: np.ndarray, declared: list[int | None]) -> np.ndarray | None:
    if array.ndim == len(declared) and all(d in (None, have) for d, have in zip(declared, array.shape, strict=True)):
        return array
    if array.ndim == 0:
        return np.full([1 if d is None else d for d in declared], array)
    if declared.count(None) > 1:
        return None
    sizes = [-1 if d is None else d for d in declared]
    try:
        return array.reshape(sizes)
    except ValueError:
        return None


def _shown(array: np.ndarray) -> str:
    if array.size <= 8:
        return str(array.tolist())
    return f"{array.dtype} values of shape {'x'.join(map(str, array.shape))}"


def _initialize(proto: onnx.ModelProto, info: ValueInfoProto, array: np.ndarray) -> None:
    graph, name = proto.graph, info.name
    for i in range(len(graph.initializer) - 1, -1, -1):
        if graph.initializer[i].name == name:  # a default, which the value replaces
            del graph.initializer[i]
    graph.initializer.append(numpy_helper.from_array(np.array(array, order="C"), name))
    if proto.ir_version >= 4:  # before, every initializer is listed as an input too
        graph.input.remove(info)


# ---- shapes ----


def _set_shapes(model: Model, shapes: Shapes) -> Iterator[tuple[str, str]]:
    """What is done, in words, and the input it is done to."""
    symbols: dict[str, int] = {}
    for name, sizes in shapes.items():
        info = _input(model, name)
        if not info.type.HasField("tensor_type"):
            raise RequestError(f"input '{name}' is no tensor: its shape can't be set")
        before = _dims(info)
        shape = info.type.tensor_type.shape
        if not info.type.tensor_type.HasField("shape"):
            shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in sizes)
        if len(shape.dim) != len(sizes):
            raise RequestError(f"input '{name}' is {before}, of rank {len(shape.dim)}; {len(sizes)} sizes were given")
        for axis, (dim, size) in enumerate(zip(shape.dim, sizes, strict=True)):
            if size is None:
                continue
            if dim.HasField("dim_value") and dim.dim_value != size:
                raise RequestError(f"input '{name}' is {before}: axis {axis} can't be set to {size}")
            if symbols.setdefault(dim.dim_param, size) != size and dim.dim_param:
                raise RequestError(
                    f"axis {axis} of input '{name}' is '{dim.dim_param}', "
                    f"which was set to {symbols[dim.dim_param]} already"
                )
            dim.dim_value = size
        yield f"input '{name}': {before} -> {_dims(info)}", name
    symbols.pop("", None)
    outputs = ((o, o.type.tensor_type.shape.dim) for o in model.proto.graph.output)
    changed = [(o.name, i, dim) for o, dims in outputs for i, dim in enumerate(dims) if dim.dim_param in symbols]
    if symbols:
        for info in _declared(model.proto.graph):
            _substitute(info, symbols)
        _correct(model, changed)


def _correct(model: Model, changed: Sequence[tuple[str, int, Any]]) -> None:
    """Sizes of outputs (name, axis, dimension) as computed: an exporter may have named such an axis wrongly."""
    sizes = [dim.dim_value for _, _, dim in changed]
    for _, _, dim in changed:
        dim.Clear()
    graph = index(model) if changed else None
    for (name, axis, dim), size in zip(changed, sizes, strict=True):
        computed = graph.shape(name) if graph else None
        found = computed[axis] if computed and axis < len(computed) else None
        dim.dim_value = found if isinstance(found, int) else size


def _declared(graph: GraphProto) -> Iterator[ValueInfoProto]:
    yield from (*graph.input, *graph.output, *graph.value_info)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _declared(attribute.g)


def _substitute(info: ValueInfoProto, symbols: Mapping[str, int]) -> None:
    for dim in info.type.tensor_type.shape.dim if info.type.HasField("tensor_type") else ():
        if dim.dim_param in symbols:
            dim.dim_value = symbols[dim.dim_param]


def _dims(info: ValueInfoProto) -> str:
    if not info.type.tensor_type.HasField("shape"):
        return "of any shape"
    shape = info.type.tensor_type.shape
    dims = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in shape.dim]
    return "x".join(dims) or "a scalar"


# ---- what it could do for a model ----


def advice(graph: Graph, remaining: Iterable[Finding], skipped: Iterable[Skipped]) -> list[str]:
    """What freezing might rescue: refused nodes whose parameters come from inputs or dynamic axes of the model.

    Says "alone" when that holds for all that is refused. It is a hint from the graph's shape, not a trial.
    """
    refused = [f for f in remaining if f.effect.value in _REFUSING]
    words = ("freeze the ", "fix the shapes")  # what rules that wait for sizes say
    waiting = {s.where.outputs for s in skipped if any(w in s.reason for w in words)}
    inputs: dict[str, list[str]] = {}  # input -> nodes that freezing it would help
    sized: dict[str, list[str]] = {}  # input -> nodes that fixing its shape would help
    helped = 0
    for finding in refused:
        node = _node(graph, finding.where)
        if node is None:
            continue
        parameters = [n for n in node.inputs[1:] if n and not node.graph.is_const(n) and f"'{n}' is" in finding.reason]
        values, shapes = _sources(node.graph, parameters)
        if finding.where.outputs in waiting:
            shapes |= _sources(node.graph, node.inputs[:1], through=True)[1]
        for found, into in ((values, inputs), (shapes, sized)):
            for name in found:
                into.setdefault(name, []).append(str(finding.where))
        helped += bool(values or shapes)
    alone = "that alone would" if helped == len(refused) else "it would"
    lines = [
        f"freezing input '{name}' (--freeze {name}=VALUE) makes a parameter of {_some(nodes)} constant; {alone} help"
        for name, nodes in inputs.items()
    ]
    lines += [
        f"input '{name}' has dynamic axes; fixing them (--set-shape {name}:{_template(graph, name)}) makes sizes known "
        f"that {_some(nodes)} waits for; {alone} help"
        for name, nodes in sized.items()
    ]
    return lines


def _node(graph: Graph, where: Where) -> Node | None:
    for scope in graph.scopes():
        for output in where.outputs:
            node = scope.producers.get(output)
            if node is not None and node.op == where.op and scope.path == where.graph:
                return node
    return None


def _sources(graph: Graph, names: Sequence[str], *, through: bool = False) -> tuple[set[str], set[str]]:
    """The model's inputs whose values decide these, and those whose dynamic axes do (with `through`, those of any
    input above). Cost: the nodes above."""
    values: set[str] = set()
    sized: set[str] = set()
    seen: set[tuple[Graph, str]] = set()
    stack = [(graph, n) for n in names]
    while stack:
        scope, name = stack.pop()
        home = scope.scope_of(name)
        if home is None or (home, name) in seen or home.is_const(name):
            continue
        seen.add((home, name))
        node = home.producers.get(name)
        if node is None:
            if home.kind == "graph" and home.is_input(name):
                dynamic = not all(isinstance(d, int) for d in home.shape(name) or (None,))
                (sized if through and dynamic else values).add(name)
            continue
        if node.op in ("Shape", "Size") and not node.domain:
            sized |= _sources(home, node.inputs, through=True)[1]
        else:
            stack += [(home, n) for n in node.inputs if n]
    return (set() if through else values), sized


def _template(graph: Graph, name: str) -> str:
    return "x".join(str(d) if isinstance(d, int) else "N" for d in graph.shape(name) or ())


def _some(nodes: Sequence[str]) -> str:
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} and {len(nodes) - 1} more"
