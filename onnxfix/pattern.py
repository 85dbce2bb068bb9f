"""Match a small graph, given as a FunctionProto, against the nodes around an anchor.

The pattern's last-output producer is the anchor; matching walks from it to producers. An attribute that the pattern
does not mention must have its default value, and a value inside the match must not be read outside it: a rewrite made
of such a match loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, numpy_helper

from onnxfix.graph import Graph, Node, _schema_default, attribute_value

_COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "And", "Or", "Xor", "Equal"})


@dataclass
class Match:
    """What a pattern's names stand for."""

    values: dict[str, str] = field(default_factory=dict)  # pattern value -> value of the graph
    nodes: dict[int, Node] = field(default_factory=dict)  # index of the pattern node -> node
    attributes: dict[str, AttributeProto] = field(default_factory=dict)  # parameter -> value

    def copy(self) -> Match:
        return Match(dict(self.values), dict(self.nodes), dict(self.attributes))


class Pattern:
    """A compiled `before` graph. Cost of a match: the nodes of the pattern, times two per commutative node."""

    def __init__(self, function: FunctionProto) -> None:
        self.function = function
        self.inputs = list(function.input)
        self.outputs = list(function.output)
        self._producer = {o: i for i, n in enumerate(function.node) for o in n.output}
        self._anchor = self._producer[self.outputs[0]]

    @property
    def op(self) -> str:
        """The dispatch key of the anchor."""
        node = self.function.node[self._anchor]
        return f"{node.domain}::{node.op_type}" if node.domain else node.op_type

    def match(self, node: Node) -> Match | None:
        found = self._node(self._anchor, node, Match())
        if found is None or len(found.nodes) != len(self.function.node):
            return None
        inside = {n for n in found.nodes.values()}
        free = {found.values[o] for o in self.outputs}
        for matched in inside:
            for output in matched.outputs:
                if output in free or not output:
                    continue
                if matched.graph.is_output(output) or any(u not in inside for u, _ in matched.graph.uses(output)):
                    return None
        return found

    def _node(self, index: int, node: Node, match: Match) -> Match | None:
        if index in match.nodes:
            return match if match.nodes[index] is node else None
        proto = self.function.node[index]
        if proto.op_type != node.op or (proto.domain or "") != node.domain or node in match.nodes.values():
            return None
        bound = self._attributes(proto, node)
        if bound is None:
            return None
        match = match.copy()
        match.nodes[index] = node
        match.attributes.update(bound)
        for wanted, present in zip(proto.output, node.proto.output, strict=False):
            match.values[wanted] = present
        wanted_inputs = list(proto.input)
        if len([i for i in wanted_inputs if i]) != len([i for i in node.inputs if i]):
            return None
        orders = [node.inputs]
        if node.op in _COMMUTATIVE and len(wanted_inputs) == 2:
            orders.append(node.inputs[::-1])
        for present_inputs in orders:
            found = self._inputs(wanted_inputs, present_inputs, node.graph, match)
            if found is not None:
                return found
        return None

    def _inputs(self, wanted: list[str], present: list[str], graph: Graph, match: Match) -> Match | None:
        current: Match | None = match.copy()
        for name, value in zip(wanted, present, strict=False):
            assert current is not None
            if bool(name) != bool(value):
                return None
            if not name:
                continue
            if name in current.values and name not in self._producer:
                if current.values[name] != value:
                    return None
            elif name in self._producer:
                current = self._value(name, value, graph, current)
                if current is None:
                    return None
            else:
                current.values[name] = value
        return current

    def _value(self, name: str, value: str, graph: Graph, match: Match) -> Match | None:
        index = self._producer[name]
        proto = self.function.node[index]
        if proto.op_type == "Constant":
            return self._constant(index, proto, name, value, graph, match)
        producer = graph.producers.get(value)
        if producer is None or list(proto.output).index(name) != producer.outputs.index(value):
            return None
        if name in match.values and match.values[name] != value:
            return None
        return self._node(index, producer, match)

    @staticmethod
    def _constant(index: int, proto: NodeProto, name: str, value: str, graph: Graph, match: Match) -> Match | None:
        array = graph.const(value)
        if array is None:
            return None
        attribute = proto.attribute[0]
        wanted = (
            numpy_helper.to_array(attribute.t) if attribute.name == "value" else np.asarray(attribute_value(attribute))
        )
        if array.size != wanted.size or not np.array_equal(
            array.reshape(-1).astype(np.float64), wanted.reshape(-1).astype(array.dtype).astype(np.float64)
        ):
            return None
        match = match.copy()
        match.values[name] = value
        producer = graph.producer(value)
        # A constant may be an initializer: the pattern's node is matched all the same.
        match.nodes[index] = producer if producer is not None else Node(proto, graph)
        return match

    @staticmethod
    def _attributes(proto: NodeProto, node: Node) -> dict[str, AttributeProto] | None:
        """Parameters bound by the node's attributes; None when an attribute differs."""
        bound: dict[str, AttributeProto] = {}
        present = {a.name: a for a in node.proto.attribute}
        wanted = {a.name: a for a in proto.attribute}
        for name, attribute in wanted.items():
            if attribute.ref_attr_name:
                if name in present:
                    bound[attribute.ref_attr_name] = present[name]
                continue
            value = (
                attribute_value(present[name])
                if name in present
                else _schema_default(node.op, node.domain, node.opset, name)
            )
            expected = attribute_value(attribute)
            same = (
                np.isclose(value, expected) if isinstance(expected, float) and value is not None else value == expected
            )
            if not same:
                return None
        for name, attribute in present.items():
            if attribute.ref_attr_name:
                return None
            if name not in wanted:
                default = _schema_default(node.op, node.domain, node.opset, name)
                if default is None or attribute_value(attribute) != default:
                    return None
        return bound
