"""What each Change did, kept while the engine runs so that it can be proved afterwards (`onnxfix.changeproof`).

A `Recorder` watches the engine and keeps, for each Change, the nodes before and after, the values both read, and its
*claims*: this value before is that value after.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, numpy_helper

from onnxfix.graph import Edit, Graph, Node
from onnxfix.model import is_external, nbytes
from onnxfix.report import Change

UNKNOWN_BYTES = 1 << 20  # what a value of unknown shape is taken to need


@dataclass
class Side:
    """One side of a Change: nodes of the main graph, in order, and what they need."""

    nodes: list[NodeProto]
    opsets: dict[str, int]
    functions: tuple[FunctionProto, ...] = ()
    constants: dict[str, TensorProto] = field(default_factory=dict)  # stored tensors, by reference
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)  # of the values it reads, where they are known
    made: frozenset[str] = frozenset()
    reads: tuple[str, ...] = ()  # what it takes from outside: neither made here nor constant

    def environment(self) -> tuple[Any, ...]:
        """Sides that agree in this can be nodes of one model."""
        return (self.opsets.get("", 0), *map(id, self.functions))


@dataclass
class Recorded:
    """A Change as it was made."""

    change: Change
    before: Side
    after: Side
    claims: list[tuple[str, str]]  # (value before, value after) that must be the same
    stored: dict[str, TensorProto] = field(default_factory=dict)  # of the values in claims, those that are constants
    nbytes: int = 0  # estimate of the values it reads and claims

    @property
    def weights(self) -> int:
        """Bytes of the stored tensors it reads, without those in files of their own."""
        tensors = {id(t): t for side in (self.before, self.after) for t in side.constants.values()}
        return sum(nbytes(t) for t in tensors.values() if not is_external(t))


class Recorder:
    """Watches the engine (`engine.Observer`). Cost for each change: a copy of the nodes it touched."""

    def __init__(self) -> None:
        self.recorded: list[Recorded] = []
        self._opset = 0
        self._functions: dict[tuple[str, str], FunctionProto] = {}

    def before(self, graph: Graph, node: Node | None) -> None:
        """Keep what the edit itself doesn't keep."""
        self._opset = graph.root.opset()
        if _top(graph).kind == "function":
            self._function(_top(graph))

    def after(self, change: Change, edit: Edit) -> None:
        """Keep what the change did."""
        self.recorded.append(self._record(change, edit))

    def _record(self, change: Change, edit: Edit) -> Recorded:
        main, top = edit.graph.root, _top(edit.graph)
        if top.kind == "function":
            return self._in_function(change, main, top)
        gone = [n for n in edit.removed if n.graph is main and not edit.is_new(n)]
        if edit.interface or main.opset() != self._opset:  # this concerns every node
            now = list(main.nodes())
        else:
            owner = _owner(edit.graph)
            # Who makes and who reads a value that is something else now takes part, changed or not.
            around = [main.producers[name] for name in sorted(edit.retyped) if name in main.producers]
            around += [reader for name in sorted(edit.retyped) for reader, _ in main.uses(name)]
            now = [n for n in (*edit.added, *edit.kept, *([owner] if owner else []), *around) if n.graph is main]
            now = [n for n in dict.fromkeys(now) if n.live]
        old = [snapshot(n, edit) for n in (*gone, *(n for n in now if not edit.is_new(n)))]
        before = self._side(main, old, {**main.model.opsets, "": self._opset})
        after = self._side(main, [snapshot(n) for n in now], dict(main.model.opsets))
        if edit.interface or edit.retyped:  # what was read before is what the original has
            before.types = {}
        claims = _claims(main, edit, set(now), before, after)
        made = before.made | after.made
        stored = {n: _stored(main, n) for c in claims for n in c if main.is_const(n) and (n == c[1] or n not in made)}
        return Recorded(change, before, after, claims, stored, _held(main, before, after, claims))

    def _side(self, main: Graph, nodes: list[NodeProto], opsets: dict[str, int]) -> Side:
        side = Side(ordered(nodes), opsets, self._called(main, nodes))
        side.made = frozenset(o for n in side.nodes for o in n.output if o)
        outside = dict.fromkeys(r for n in side.nodes for r in reads(n) if r not in side.made)
        side.reads = tuple(name for name in outside if not main.is_const(name))
        side.constants = {name: _stored(main, name) for name in outside if main.is_const(name)}
        kinds = ((name, main.type_of(name)) for name in side.reads)
        side.types = {name: kind for name, kind in kinds if kind is not None}
        return side

    # ---- functions ----

    def _called(self, main: Graph, nodes: Iterable[NodeProto]) -> tuple[FunctionProto, ...]:
        """The functions these nodes call, and those that these call."""
        found: dict[tuple[str, str], FunctionProto] = {}
        waiting = [c for n in nodes for c in operators(n)] if main.functions else []
        while waiting:
            key = waiting.pop()
            if key in main.functions and key not in found:
                found[key] = self._function(main.functions[key])
                waiting += [c for n in found[key].node for c in operators(n)]
        return tuple(found[key] for key in sorted(found))

    def _function(self, scope: Graph) -> FunctionProto:
        """A function as it is now; the same object until a change is made inside it."""
        key = (scope.proto.domain, scope.proto.name)
        if key not in self._functions:
            self._functions[key] = _with_nodes(scope, FunctionProto())
        return self._functions[key]

    def _in_function(self, change: Change, main: Graph, scope: Graph) -> Recorded:
        """A change inside a function is proved at a call of the function in the main graph."""
        key = (scope.proto.domain, scope.proto.name)
        calls = {k: {c for n in f.nodes() for c in operators(snapshot(n))} for k, f in main.functions.items()}
        leading = {("" if key[0] == "ai.onnx" else key[0], key[1])}  # functions that lead to this one
        while more := {k for k, called in calls.items() if called & leading} - leading:
            leading |= more
        call = next((n for n in main.nodes() if leading.intersection(operators(snapshot(n)))), None)
        opsets = dict(main.model.opsets)
        if call is None:  # all its calls were replaced by its body before
            self._functions.pop(key, None)
            return Recorded(change, Side([], opsets), Side([], opsets), [])
        before = self._side(main, [snapshot(call)], opsets)
        self._functions.pop(key, None)
        after = self._side(main, [snapshot(call)], opsets)
        claims = [(o, o) for o in call.outputs if o]
        return Recorded(change, before, after, claims, nbytes=_held(main, before, after, claims))


def snapshot(node: Node, undo: Edit | None = None) -> NodeProto:
    """A copy of a node as it is now, with what was changed in its bodies and not yet committed.

    With `undo` the node as it was before that edit, in its bodies too.
    """
    copy = NodeProto()
    copy.CopyFrom(node.proto if undo is None else undo.former(node))
    for attribute in copy.attribute:
        if attribute.name in node.bodies:
            _with_nodes(node.bodies[attribute.name], attribute.g, undo)
    return copy


def _with_nodes(scope: Graph, copy: Any, undo: Edit | None = None) -> Any:
    copy.CopyFrom(scope.proto)
    nodes = list(scope.nodes())
    if undo is not None:
        nodes = [n for n in nodes if not undo.is_new(n)]
        nodes += [n for n in undo.removed if n.graph is scope and not undo.is_new(n)]
    protos = ordered([snapshot(n, undo) for n in nodes])
    del copy.node[:]
    copy.node.extend(protos)
    if isinstance(copy, GraphProto):
        del copy.value_info[:]  # may be out of date; nothing here needs it
        made = {o for n in protos for o in n.output}
        for i in range(len(copy.initializer) - 1, -1, -1):
            if copy.initializer[i].name in made:  # was a Constant node before
                del copy.initializer[i]
    return copy


def _top(graph: Graph) -> Graph:
    """The main graph or the function that a scope lies in."""
    while graph.parent is not None:
        graph = graph.parent
    return graph


def _owner(graph: Graph) -> Node | None:
    """The main graph's node that a body lies in; None for the main graph itself and for functions."""
    owner = None
    while graph.parent is not None:
        owner, graph = graph.owner, graph.parent
    return owner if graph.kind == "graph" else None


def _claims(main: Graph, edit: Edit, region: set[Node], before: Side, after: Side) -> list[tuple[str, str]]:
    """What must be the same: values that keep their names, and values whose readers read another one now."""
    moved = {(reader, new) for (_, new), readers in edit.redirected.items() for reader in readers}

    def is_read(name: str) -> bool:
        """Whether others read it, and did before: what only rewritten nodes read may mean something else now."""
        readers = (reader for reader, _ in main.uses(name))
        return main.is_output(name) or any(r not in region and (r, name) not in moved for r in readers)

    kept = (name for name in sorted(before.made) if name in after.made or name in main.initializers)
    claims = [(name, name) for name in kept if is_read(name)]
    for (old, new), readers in edit.redirected.items():
        # Readers that were changed otherwise too are compared themselves: their values need not be the same.
        if edit.graph is main and any(r.live and r not in region for r in readers):
            claims.append((old, new))
    return list(dict.fromkeys(claims))


def _stored(graph: Graph, name: str) -> TensorProto:
    tensor = graph.const_tensor(name)
    if tensor is None:  # value_ints and its like
        tensor = numpy_helper.from_array(np.asarray(graph.const(name)), name)
    return tensor


def _held(main: Graph, before: Side, after: Side, claims: Sequence[tuple[str, str]]) -> int:
    """Bytes of the values that go in and out when a change is proved, from what is known of their shapes."""
    return sum(_nbytes(main, name) for name in (*{*before.types, *after.types}, *(n for c in claims for n in c)))


def _nbytes(main: Graph, name: str) -> int:
    shape = main.static_shape(name)
    return UNKNOWN_BYTES if shape is None else math.prod(shape) * 4


def reads(node: NodeProto) -> Iterator[str]:
    """The values a node reads, those that its bodies take from outside included."""
    yield from (n for n in node.input if n)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graph: Any = attribute.g
            own = {v.name for v in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output}
            inner = (name for n in graph.node for name in reads(n))
            yield from (n for n in (*inner, *(o.name for o in graph.output)) if n not in own)


def operators(node: NodeProto) -> Iterator[tuple[str, str]]:
    """Domain and name of a node's operator, and of those in its bodies."""
    yield ("" if node.domain == "ai.onnx" else node.domain), node.op_type
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.type == AttributeProto.GRAPH else ():
            yield from operators(inner)


def ordered(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Nodes with each after those it reads from."""
    makers = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    needs = [{makers[r] for r in reads(n) if r in makers} - {i} for i, n in enumerate(nodes)]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, makers_of in enumerate(needs):
        for maker in makers_of:
            readers[maker].append(i)
    missing = [len(n) for n in needs]
    ready = [i for i, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for i in readers[order[-1]]:
            missing[i] -= 1
            if not missing[i]:
                heapq.heappush(ready, i)
    return [nodes[i] for i in order]
