"""Compute beforehand what does not depend on the model's inputs.

A fold begins at a node whose inputs are all constant (or whose result is known otherwise) and goes on through the
nodes that read it, as long as these have nothing but constants to read either: a whole chain is one fold. Nodes are
evaluated one by one, by ONNX Runtime or else by ONNX's reference evaluator.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from onnxfix.errors import OnnxfixError, Skip
from onnxfix.graph import CAPTURED, Edit, Graph, Node, schema
from onnxfix.model import is_external, nbytes, one_line

# Never the same twice, or not a value to compute: a Constant is one already, and what quantized weights go through
# tells TensorRT which precision to compute in.
_LEFT_ALONE = frozenset(
    {"Constant", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
    | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Dropout"}
)
# Their results can be far larger than what they are made from.
_GROWING = frozenset(
    {"ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "Resize", "Upsample", "EyeLike", "CenterCropPad"}
    | {"AffineGrid", "BlackmanWindow", "Col2Im", "HannWindow", "HammingWindow", "MelWeightMatrix"}
)
_SMALL = 1024  # elements of an input up to which its values are shown to shape inference
_SLOW = 1 << 16  # elements up to which the reference evaluator, plain Python in places, is asked


@dataclass
class Fold:
    """What was computed, and which of it is needed by nodes that were not."""

    nodes: list[Node] = field(default_factory=list)  # in the order they were computed
    values: dict[str, np.ndarray] = field(default_factory=dict)  # still read: becomes constants

    def apply(self, edit: Edit) -> None:
        """Let the readers read constants; the nodes go, as nothing reads them."""
        for name, array in self.values.items():
            tensor = numpy_helper.from_array(np.array(array, order="C"))
            edit.replace(name, edit.store(tensor, edit.graph.fresh(f"{name}/folded")))
        shown = ", ".join(f"'{n}' {_shown(a)}" for n, a in list(self.values.items())[:3])
        more = f" and {len(self.values) - 3} more" if len(self.values) > 3 else ""
        nodes = "1 node is" if len(self.nodes) == 1 else f"{len(self.nodes)} nodes are"
        edit.note = f"{nodes} computed beforehand: {shown}{more}"


def _shown(array: np.ndarray) -> str:
    short = array.size <= 8 and array.dtype.kind in "iub"
    return f"= {array.tolist()}" if short else f"{array.dtype}{list(array.shape)}"


def foldable(node: Node) -> bool:
    """Whether the node could be computed if its inputs were constant. Cost: a few dict look-ups."""
    if node.op in _LEFT_ALONE or node.domain or node.bodies:
        return False
    if node.op == "Identity" and node.graph.is_output(node.output(0)):
        return False  # it carries a constant to an output of the graph: nothing is simpler
    return not any(a.ref_attr_name for a in node.proto.attribute)


def constant_inputs(node: Node) -> bool:
    """Whether the node has inputs and all of them are constant. Cost: the dict look-ups up to the first that isn't."""
    graph = node.graph
    inputs = node.proto.input
    return bool(inputs) and all(not name or graph.is_const(name) for name in inputs)


def fold(root: Node, budget: int, known: Mapping[str, np.ndarray] | None = None) -> Fold | None:
    """Compute `root` and what follows from it; None when nobody would read the result.

    With `known` (an output of `root` and its value), `root` itself is not computed. `budget` is the size in bytes above
    which a result must not be larger than what it is made from. Raises Skip when `root` can't be computed. Cost: about
    0.3 ms for each node computed.
    """
    graph = root.graph
    values: dict[str, np.ndarray] = dict(known or {})
    if not known:
        values.update(evaluate(root, values, budget))
    done: dict[Node, None] = {root: None}
    queue = collections.deque([root])
    while queue:
        for output in queue.popleft().proto.output:
            for user, index in graph.uses(output) if output else ():
                if user in done or index == CAPTURED or not foldable(user):
                    continue
                if not all(n in values or not n or graph.is_const(n) for n in user.proto.input):
                    continue
                try:
                    values.update(evaluate(user, values, budget))
                except Skip:
                    continue  # it is reported when the engine comes to it
                done[user] = None
                queue.append(user)
    found = Fold(list(done))
    for node in done:
        for name in node.proto.output:
            readers = [u for u, _ in graph.uses(name)] if name else []
            if name in values and (graph.is_output(name) or any(u not in done for u in readers)):
                if returned(graph, name):
                    return None
                found.values[name] = values[name]
    return found if found.values else None


def passes(node: Node, source: str) -> bool:
    """Whether readers of the node's only used output can read `source` instead, and every output keeps its name."""
    graph, result = node.graph, node.output(0)
    if returned(graph, result):
        return False
    if not graph.is_output(result):
        return True
    # An output must keep its name: its producer can take it over, unless that is an output (or no node) itself.
    return source in graph.producers and not graph.is_output(source) and not returned(graph, source)


def returned(graph: Graph, name: str) -> bool:
    """Whether a body returns this value of a scope around it unchanged: then its name can't change."""
    for node, index in graph.uses(name):
        if index == CAPTURED:
            for body in node.bodies.values():
                if not body.defines(name) and (body.is_output(name) or returned(body, name)):
                    return True
    return False


def evaluate(node: Node, values: Mapping[str, np.ndarray], budget: int) -> dict[str, np.ndarray]:
    """The outputs of one node; `values` comes before the graph's own constants.

    Raises Skip when the result would be too large, or no evaluator can compute it.
    """
    graph = node.graph
    names = list(dict.fromkeys(n for n in node.proto.input if n))
    for name in names:
        tensor = graph.const_tensor(name) if name not in values else None
        if tensor is not None and is_external(tensor) and nbytes(tensor) > budget:
            raise Skip(f"'{name}' is {_mib(nbytes(tensor))} of external data; raise 'max_mib' to have it read")
    feeds: dict[str, np.ndarray] = {}
    for name in names:
        array = values[name] if name in values else graph.const(name)
        if array is None:
            raise Skip(f"the value of '{name}' is stored in a form that can't be read (sparse)")
        # Runtimes take a vector of one for a scalar here, as long as no one infers its shape; inference does not.
        feeds[name] = array.reshape(()) if node.op == "Range" and array.size == 1 else array
    _check_size(node, feeds, budget)
    outputs = _run(node, feeds)
    if not all(isinstance(v, np.ndarray) for v in outputs.values()):
        raise Skip("its result is no tensor")
    size, given = sum(v.nbytes for v in outputs.values()), sum(v.nbytes for v in feeds.values())
    _within(size, given, budget)
    return outputs


def _within(size: int, given: int, budget: int) -> None:
    if size > budget and size > given:
        raise Skip(f"its constant result would take {_mib(size)}; raise 'max_mib' to have it stored")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _check_size(node: Node, feeds: Mapping[str, np.ndarray], budget: int) -> None:
    """Raises Skip before a large result is computed."""
    found = schema(node.op, node.domain, node.opset)
    if found is None:
        raise Skip(f"{node.op} is no operator of opset {node.opset}")
    dtypes = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in feeds.items()}
    types = {n: helper.make_tensor_type_proto(dtypes[n], a.shape) for n, a in feeds.items()}
    data = {n: numpy_helper.from_array(a) for n, a in feeds.items() if a.size <= _SMALL}
    opsets = [helper.make_opsetid(node.domain, node.opset)]
    try:
        inferred = shape_inference.infer_node_outputs(found, node.proto, types, data, opset_imports=opsets)
    except Exception as error:  # onnx raises several unrelated types
        raise Skip(f"its types do not agree: {one_line(error)}") from None
    size = 0
    for name in node.proto.output:
        kind = inferred[name].tensor_type if name in inferred else None
        dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim] if kind else [None]
        if kind is None or not kind.HasField("shape") or None in dims:
            if name and node.op in _GROWING:
                raise Skip("the size of its result is not known beforehand")
            continue
        size += math.prod(d for d in dims if d is not None) * helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    _within(size, sum(a.nbytes for a in feeds.values()), budget)


def _run(node: Node, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    proto = NodeProto()
    proto.CopyFrom(node.proto)
    del proto.metadata_props[:]
    wanted = [o for o in node.proto.output if o]
    model = _model(proto, feeds, wanted, node.opset)
    try:
        from onnxfix.backends import ort

        return ort.evaluate(model.SerializeToString(), feeds)
    except (OnnxfixError, ImportError) as error:
        reason = one_line(error)
    if sum(a.size for a in feeds.values()) > _SLOW:
        raise Skip(f"it can't be computed here: {reason}")
    from onnx.reference import ReferenceEvaluator

    try:
        found = ReferenceEvaluator(model).run(None, dict(feeds))
    except Exception:  # the evaluator raises whatever its Python does; ONNX Runtime's reason says more
        raise Skip(f"it can't be computed here: {reason}") from None
    return dict(zip(wanted, (np.asarray(v) for v in found), strict=True))


def _model(proto: NodeProto, feeds: Mapping[str, np.ndarray], outputs: list[str], opset: int) -> ModelProto:
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    # Outputs without a type: ONNX Runtime infers them.
    graph = helper.make_graph([proto], "fold", infos, [onnx.ValueInfoProto(name=n) for n in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def array_of(values: list[int], dtype: int, rank: int) -> np.ndarray:
    """An integer tensor of rank 0 or 1 from its elements; `dtype` is a TensorProto.DataType."""
    array = np.asarray(values, np.int64 if dtype == TensorProto.INT64 else np.int32)
    return array if rank else array.reshape(())
