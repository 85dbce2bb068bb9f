"""A part of a model as a model of its own: some of the nodes, wherever they stand.

What they read and nobody of them makes becomes a graph input of the type it has in the whole model (a constant where
its value is known); what nobody of them reads becomes an output. Nodes of a body whose owner is left out move to the
main graph; those that stay in a body read what was cut as captured values. So one mechanism covers plain graphs,
bodies, omitted inputs and missing value_info.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxfix.graph import FROM_KEY, RULE_KEY, Graph, Node
from onnxfix.model import PROTOBUF_LIMIT, Model, is_external, nbytes
from onnxfix.recorder import operators

INLINE_LIMIT = 1 << 30  # bytes of weights a cut may hold


class Uncuttable(Exception):
    """The cut would go through a value whose type is not known; `node` makes it."""

    def __init__(self, node: Node) -> None:
        super().__init__(str(node.where()))
        self.node = node


class _Cut:
    """One cut of a model, see the module."""

    def __init__(self, graph: Graph, keep: frozenset[Node]) -> None:
        self.graph = graph
        self.keep = keep
        source = graph.model.proto
        self.proto = onnx.ModelProto(ir_version=source.ir_version)
        self.proto.opset_import.extend(source.opset_import)
        self.proto.graph.name = "reduced"
        self.given: dict[str, Graph] = {}  # inputs and constants of the new main graph -> the scope they come from
        self.read: set[str] = set()
        self.made: set[str] = set()

    def make(self) -> onnx.ModelProto | None:
        """The model, None when nothing of it is left to be an output. Raises Uncuttable."""
        roots = [n for n in all_nodes(self.graph) if n in self.keep and not self._inside(n)]
        self.made = {o for n in roots for o in n.outputs if o}
        for node in roots:
            self.proto.graph.node.append(self._copy(node))
        for node in roots:
            used = [o for o in node.outputs if o and (o in self.read)]
            unread = [o for o in node.outputs if o and o not in self.read]
            free = [o for o in unread if not node.graph.unused(o) or len(node.outputs) == 1]
            for name in free or ([] if used else [o for o in node.outputs if o][:1]):
                info = self.proto.graph.output.add(name=name)
                if (kind := node.graph.type_of(name)) is not None:
                    info.type.CopyFrom(kind)
        self._functions()
        return self.proto if self.proto.graph.output else None

    def _inside(self, node: Node) -> bool:
        return node.graph.owner is not None and node.graph.owner in self.keep

    def _copy(self, node: Node) -> NodeProto:
        copy = NodeProto()
        if not node.bodies:
            copy.CopyFrom(node.proto)
        else:
            copy.CopyFrom(_bodiless(node.proto))
            for attribute in node.proto.attribute:
                target = copy.attribute.add()
                if attribute.name in node.bodies:
                    target.name, target.type = attribute.name, attribute.type
                    self._body(node.bodies[attribute.name], target.g)
                else:
                    target.CopyFrom(attribute)
        del copy.metadata_props[:]
        copy.metadata_props.extend(m for m in node.proto.metadata_props if m.key in (FROM_KEY, RULE_KEY))
        copy.doc_string = ""
        for name in filter(None, node.inputs):
            self._want(node.graph, name)
        return copy

    def _body(self, body: Graph, target: onnx.GraphProto) -> None:
        target.name = body.proto.name or "body"
        target.input.extend(body.proto.input)
        target.initializer.extend(body.proto.initializer)
        target.sparse_initializer.extend(body.proto.sparse_initializer)
        for node in body.nodes():
            if node in self.keep:
                target.node.append(self._copy(node))
        for output in body.proto.output:
            info = target.output.add()
            info.CopyFrom(output)
            maker = body.producers.get(output.name)
            if (maker is None or maker not in self.keep) and not (
                output.name in body.initializers or output.name in body.input_names
            ):
                self._want(body, output.name)
                info.name = f"{output.name}/kept"
                target.node.append(helper.make_node("Identity", [output.name], [info.name]))

    def _want(self, scope: Graph, name: str) -> None:
        """See to it that a kept node can read the value."""
        self.read.add(name)
        home = scope.scope_of(name)
        if home is None or name in self.made or self.given.get(name) is home:
            return
        maker = home.producers.get(name)
        if maker is not None and maker in self.keep:
            return  # made in a body, next to its reader
        own = name in home.input_names or name in home.initializers
        if own and home.owner is not None and home.owner in self.keep:
            return
        if name in self.given:
            raise Uncuttable(maker or self._owner(home))  # another value of that name, of another body
        self._give(home, name, maker)
        self.given[name] = home

    def _owner(self, scope: Graph) -> Node:
        assert scope.owner is not None
        return scope.owner

    def _give(self, home: Graph, name: str, maker: Node | None) -> None:
        main = self.proto.graph
        if name in home.initializers:
            main.initializer.append(home.initializers[name])
            return
        kind = home.type_of(name)
        if home.parent is None and name in home.input_names:
            main.input.append(home.proto.input[home.input_names[name]])
            return
        if maker is not None and maker.op == "Constant" and maker.domain == "":
            tensor = home.const_tensor(name)
            if tensor is None:
                array = home.const(name)
                if array is None:
                    raise Uncuttable(maker)
                tensor = numpy_helper.from_array(array, name)
            main.initializer.add().CopyFrom(tensor)
            main.initializer[-1].name = name
            return
        dtype = home.dtype(name)
        known = home.known(name) if dtype in (TensorProto.INT64, TensorProto.INT32) else None
        if known is not None and None not in known and home.rank(name) is not None:
            array = np.asarray(known, helper.tensor_dtype_to_np_dtype(dtype))
            array = array if home.rank(name) else array.reshape(())
            main.initializer.append(numpy_helper.from_array(array, name))
            return
        if kind is None or not kind.WhichOneof("value") or (kind.HasField("tensor_type") and not dtype):
            raise Uncuttable(maker or self._owner(home))
        info = main.input.add(name=name)
        info.type.CopyFrom(kind)

    def _functions(self) -> None:
        """The functions that are still called, by whomever."""
        source = {(f.domain, f.name): f for f in self.graph.model.proto.functions}
        wanted: dict[tuple[str, str], None] = {}
        pending = [called for node in self.proto.graph.node for called in operators(node)]
        while pending:
            key = pending.pop()
            if key in source and key not in wanted:
                wanted[key] = None
                pending += [called for node in source[key].node for called in operators(node)]
        self.proto.functions.extend(f for key, f in source.items() if key in wanted)


def _bodiless(proto: NodeProto) -> NodeProto:
    copy = NodeProto(op_type=proto.op_type, domain=proto.domain, name=proto.name, overload=proto.overload)
    copy.input.extend(proto.input)
    copy.output.extend(proto.output)
    return copy


def all_nodes(graph: Graph) -> list[Node]:
    """Nodes of the main graph and its bodies, those of a body in front of the node that owns it."""
    nodes: list[Node] = []
    for node in graph.nodes():
        for body in node.bodies.values():
            nodes += all_nodes(body)
        nodes.append(node)
    return nodes


def cut(graph: Graph, keep: Iterable[Node]) -> onnx.ModelProto | None:
    """A model of these nodes alone, and of what has to come with them because its type is not known.

    Weights are shared with the original and external data stays outside. None when nothing is left.
    """
    kept = set(keep)
    while True:
        try:
            return _Cut(graph, frozenset(kept)).make()
        except Uncuttable as error:
            if error.node in kept:
                return None
            kept.add(error.node)


def between(graph: Graph, fed: set[str], wanted: Sequence[str]) -> onnx.ModelProto | None:
    """A model of what lies between the values `fed` and the values `wanted` of the main graph, in that order.

    None when a wanted value is not made by a node of the main graph.
    """
    keep: set[Node] = set()
    pending = [graph.producers.get(name) for name in wanted]
    if None in pending:
        return None
    while pending:
        node = pending.pop()
        if node is None or node in keep:
            continue
        keep.update([node, *(n for body in node.bodies.values() for n in all_nodes(body))])
        names = [*node.inputs, *node.captured]
        pending += [graph.producers.get(n) for n in names if n and n not in fed]
    proto = cut(graph, keep)
    if proto is None:
        return None
    del proto.graph.output[:]
    for name in wanted:
        info = proto.graph.output.add(name=name)
        if (kind := graph.type_of(name)) is not None:
            info.type.CopyFrom(kind)
    return proto


def write_inlined(proto: onnx.ModelProto, source: Model, path: Path) -> bool:
    """Write with all weights inside; False when they are too many for that. `proto` is changed."""
    held = Model(proto, source.path)
    tensors = list(held.tensors())
    if sum(map(nbytes, tensors)) > min(INLINE_LIMIT, PROTOBUF_LIMIT):
        return False
    for tensor in tensors:
        if is_external(tensor):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(source.array(tensor), name))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return True
