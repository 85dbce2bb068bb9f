"""Types and shapes of values, inferred when first asked for and kept aside: the protobuf is not touched.

The whole model is inferred once, by `onnx.shape_inference` on a copy without the large tensors; what rules add later is
inferred node by node. `known` follows integer shape arithmetic through partly known shapes, which ONNX's own
inference gives up on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, shape_inference

from onnxfix.errors import Skip
from onnxfix.graph import Graph, Node, schema
from onnxfix.model import Model, is_external

# Tensors above this number of elements are stripped from the copy that is inferred: no shape depends on them.
KEEP_ELEMENTS = 1024

Known = list[int | None]


def index(model: Model) -> Graph:
    """Index a model and attach what knows its types. Types are inferred on first use."""
    graph = Graph.of(model)
    graph.typer = Types(graph)
    return graph


class Types:
    """The types of all values of a model, by scope."""

    def __init__(self, root: Graph) -> None:
        self._root = root
        self._types: dict[Graph, dict[str, onnx.TypeProto]] | None = None
        self._known: dict[tuple[Graph, str], Known | None] = {}
        self._failed: set[tuple[Graph, str]] = set()

    def refresh(self) -> None:
        """Forget everything; infer anew when next asked. Call after `commit`, when shapes may have become known."""
        self._types = None
        self._known.clear()
        self._failed.clear()

    def forget(self, graph: Graph, name: str) -> None:
        scope = graph.scope_of(name) or graph
        if self._types is not None:
            self._types.get(scope, {}).pop(name, None)
        self._known.clear()
        self._failed.clear()

    def types_of(self, graph: Graph) -> Mapping[str, onnx.TypeProto]:
        """What inference found in a scope; `type_of` may know more."""
        if self._types is None:
            self._types = infer(self._root)
        return self._types.get(graph, {})

    def type_of(self, graph: Graph, name: str) -> onnx.TypeProto | None:
        if self._types is None:
            self._types = infer(self._root)
        scope = graph if graph.defines(name) else graph.scope_of(name)
        if scope is None:
            return None
        here = self._types.get(scope)
        found = here.get(name) if here else None
        if found is not None:
            return found
        tensor = scope.const_tensor(name)
        if tensor is not None:
            return helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        return self._local(scope, name)

    def _local(self, scope: Graph, name: str) -> onnx.TypeProto | None:
        """Infer one node, from the types of its inputs."""
        node = scope.producers.get(name)
        if node is None or node.bodies or (scope, name) in self._failed:
            return None
        self._failed.add((scope, name))  # also stops a recursion without end
        found = schema(node.op, node.domain, node.opset)
        if found is None:
            return None
        types = {}
        for value in node.inputs:
            kind = self.type_of(scope, value) if value else None
            if value and kind is None:
                return None
            if kind is not None:
                types[value] = kind
        data = {}
        for value in node.inputs:
            tensor = scope.const_tensor(value) if value else None
            if tensor is not None and math.prod(tensor.dims) <= KEEP_ELEMENTS and not is_external(tensor):
                data[value] = tensor
        try:
            inferred = shape_inference.infer_node_outputs(
                found,
                node.proto,
                types,
                data,
                opset_imports=[helper.make_opsetid(d, v) for d, v in scope._opsets.items()],
            )
        except Exception:  # onnx raises several unrelated types for a node it cannot infer
            return None
        assert self._types is not None
        self._types.setdefault(scope, {}).update(inferred)
        self._failed.discard((scope, name))
        return inferred.get(name)

    def known(self, graph: Graph, name: str) -> Known | None:
        scope = graph.scope_of(name)
        if scope is None:
            return None
        key = (scope, name)
        if key not in self._known:
            self._known[key] = None  # stops a recursion without end
            self._known[key] = _known(scope, name)
        return self._known[key]


def infer(root: Graph) -> dict[Graph, dict[str, onnx.TypeProto]]:
    """Types of all values of the main graph and its bodies. Cost: one copy of the nodes, one inference in C++."""
    proto = onnx.ModelProto(ir_version=max(root.model.proto.ir_version, 8))
    proto.opset_import.extend(root.model.proto.opset_import)
    proto.functions.extend(root.model.proto.functions)
    order: list[tuple[Graph, list[Node]]] = []
    _skeleton(root, proto.graph, order)
    try:
        inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception:  # a model that inference chokes on is still a model; types stay unknown where undeclared
        inferred = proto.graph
    types: dict[Graph, dict[str, onnx.TypeProto]] = {}
    _collect(root, inferred, dict(order), types)
    return types


def _skeleton(graph: Graph, proto: onnx.GraphProto, order: list[tuple[Graph, list[Node]]]) -> None:
    source = graph.proto
    proto.name = source.name or "graph"
    proto.input.extend(source.input)
    proto.output.extend(source.output)
    kept = []
    for tensor in source.initializer:
        if _kept(tensor):
            kept.append(tensor)
        else:
            _strip(tensor, proto.initializer.add())
    proto.initializer.extend(kept)
    nodes = list(graph.nodes())
    order.append((graph, nodes))
    foreign: set[str] = set()
    plain: list[onnx.NodeProto] = []  # those that are copied as they are, many at once
    for node in nodes:
        original = node.proto
        if original.domain and node.domain != "" and schema(node.op, node.domain, node.opset) is None:
            foreign.update(original.output)
        if not node.bodies and original.op_type != "Constant":
            plain.append(original)
            continue
        proto.node.extend(plain)
        plain.clear()
        copy = proto.node.add(op_type=original.op_type, domain=original.domain, name=original.name)
        copy.input.extend(original.input)
        copy.output.extend(original.output)
        for attribute in original.attribute:
            target = copy.attribute.add(name=attribute.name, type=attribute.type)
            if attribute.name in node.bodies:
                _skeleton(node.bodies[attribute.name], target.g, order)
            elif attribute.type == AttributeProto.TENSOR:
                _strip(attribute.t, target.t)
            else:
                target.CopyFrom(attribute)
    proto.node.extend(plain)
    # Inference knows nothing of other domains' operators: there, what the file declares is all there is.
    proto.value_info.extend(v for v in source.value_info if v.name in foreign)


def _kept(tensor: TensorProto) -> bool:
    return math.prod(tensor.dims) <= KEEP_ELEMENTS or is_external(tensor)


def _strip(tensor: TensorProto, copy: TensorProto) -> None:
    if _kept(tensor):
        copy.CopyFrom(tensor)
        return
    copy.name, copy.data_type = tensor.name, tensor.data_type
    copy.dims.extend(tensor.dims)
    copy.data_location = TensorProto.EXTERNAL
    copy.external_data.add(key="location", value="stripped")


def _collect(
    graph: Graph,
    proto: onnx.GraphProto,
    order: dict[Graph, list[Node]],
    types: dict[Graph, dict[str, onnx.TypeProto]],
) -> None:
    types[graph] = {
        v.name: v.type for v in (*proto.value_info, *proto.output, *proto.input) if v.type.WhichOneof("value")
    }
    for number, node in enumerate(order[graph]):
        if node.bodies:
            for attribute in proto.node[number].attribute:
                if attribute.name in node.bodies:
                    _collect(node.bodies[attribute.name], attribute.g, order, types)


# ---- partly known integers ----


def _known(graph: Graph, name: str) -> Known | None:
    tensor = graph.const_tensor(name)
    if graph.is_const(name):
        if tensor is not None and (math.prod(tensor.dims) > KEEP_ELEMENTS or len(tensor.dims) > 1):
            return None
        array = graph.const(name)
        if array is None or array.ndim > 1 or array.dtype.kind not in "iu":
            return None
        return [int(v) for v in array.reshape(-1)]
    node = graph.producers.get(name)
    rule = _KNOWN.get(node.op) if node is not None and node.domain == "" else None
    if node is None or rule is None or node.output(0) != name:
        return None
    try:
        return rule(node)
    except (Skip, RecursionError):
        return None


def _inputs(node: Node) -> list[Known] | None:
    found = [node.graph.known(n) for n in node.inputs if n]
    return None if any(f is None for f in found) else [f for f in found if f is not None]


def _all(values: Known | None) -> list[int] | None:
    return None if values is None or any(v is None for v in values) else [v for v in values if v is not None]


def _shape(node: Node) -> Known | None:
    shape = node.graph.shape(node.input(0))
    if shape is None:
        return None
    dims: Known = [d if isinstance(d, int) else None for d in shape]
    return dims[node.attr("start", 0) or 0 : node.attr("end", len(dims))]


def _size(node: Node) -> Known | None:
    shape = node.graph.static_shape(node.input(0))
    return None if shape is None else [math.prod(shape)]


def _gather(node: Node) -> Known | None:
    data, at = node.graph.known(node.input(0)), _all(node.graph.known(node.input(1)))
    if data is None or at is None or (node.graph.rank(node.input(1)) or 0) > 1:
        return None
    return [data[i] for i in at] if all(-len(data) <= i < len(data) for i in at) else None


def _slice(node: Node) -> Known | None:
    data = node.graph.known(node.input(0))
    if data is None:
        return None
    starts: list[int] | None
    ends: list[int] | None
    steps: list[int] | None
    if node.has_attr("starts"):
        starts, ends, steps = node.attr("starts"), node.attr("ends"), [1]
    else:
        starts, ends = _all(node.graph.known(node.input(1))), _all(node.graph.known(node.input(2)))
        steps = _all(node.graph.known(node.input(4))) if node.input(4) else [1]
    if not starts or not ends or not steps or len(starts) != 1:
        return None
    step = steps[0]
    if step > 0:
        return data[starts[0] : ends[0] : step]
    end = None if ends[0] < -len(data) else ends[0]
    return data[starts[0] : end : step]


def _same(node: Node) -> Known | None:
    return node.graph.known(node.input(0))


def _cast(node: Node) -> Known | None:
    integers = (TensorProto.INT64, TensorProto.INT32)
    return _same(node) if node.attr("to") in integers else None


def _squeezed(node: Node) -> Known | None:
    found = _same(node)
    rank = node.graph.rank(node.output(0))
    return found if rank is not None and rank <= 1 else None


def _concat(node: Node) -> Known | None:
    parts = _inputs(node)
    return None if parts is None else [v for part in parts for v in part]


def _binary(function: Callable[[int, int], int]) -> Callable[[Node], Known | None]:
    def rule(node: Node) -> Known | None:
        parts = _inputs(node)
        if parts is None or len(parts) != 2:
            return None
        a, b = parts
        if len(a) != len(b):
            if len(a) == 1:
                a = a * len(b)
            elif len(b) == 1:
                b = b * len(a)
            else:
                return None
        return [None if x is None or y is None else function(x, y) for x, y in zip(a, b, strict=True)]

    return rule


def _divide(a: int, b: int) -> int:
    # ONNX divides integers towards zero.
    return 0 if b == 0 else int(math.copysign(1, a) * math.copysign(1, b)) * (abs(a) // abs(b))


def _reduce_prod(node: Node) -> Known | None:
    values = _all(_same(node))
    rank = node.graph.rank(node.input(0))
    return [math.prod(values)] if values is not None and rank == 1 else None


def _constant_of_shape(node: Node) -> Known | None:
    size = _all(node.graph.known(node.input(0)))
    if size is None or len(size) > 1 or math.prod(size) > KEEP_ELEMENTS:
        return None
    tensor = node.attr("value")
    fill = 0 if tensor is None else node.graph.model.array(tensor).reshape(-1)[0]
    return [int(fill)] * math.prod(size) if tensor is not None and np.asarray(fill).dtype.kind in "iu" else None


def _range(node: Node) -> Known | None:
    ends = _inputs(node)
    flat = _all([v for part in ends for v in part]) if ends else None
    if flat is None or len(flat) != 3 or flat[2] == 0:
        return None
    values = range(*flat)
    return list(values) if len(values) <= KEEP_ELEMENTS else None


def _where(node: Node) -> Known | None:
    condition = node.graph.const(node.input(0))
    a, b = node.graph.known(node.input(1)), node.graph.known(node.input(2))
    if condition is None or a is None or b is None or not condition.size == len(a) == len(b):
        return None
    return [x if c else y for c, x, y in zip(condition.reshape(-1), a, b, strict=True)]


_KNOWN: dict[str, Callable[[Node], Known | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Identity": _same,
    "Cast": _cast,
    "Squeeze": _squeezed,
    "Unsqueeze": _squeezed,
    "Reshape": _squeezed,
    "Concat": _concat,
    "Add": _binary(lambda a, b: a + b),
    "Sub": _binary(lambda a, b: a - b),
    "Mul": _binary(lambda a, b: a * b),
    "Div": _binary(_divide),
    "Max": _binary(max),
    "Min": _binary(min),
    "ReduceProd": _reduce_prod,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Where": _where,
}
