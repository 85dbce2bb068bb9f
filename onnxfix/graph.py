"""The index over a model's graphs, and the only code that changes protobuf.

`Graph` indexes one scope (the main graph, an If/Loop/Scan body, a function) in one pass: who produces a value, who
uses it, what is constant. A use of an outer value inside a body counts as a use by the node that owns the body, so
a scope sees all that depends on it. Rules change a graph through `Edit` alone, which keeps the index true.

Values are known by their names, which ONNX keeps unique within a scope and the scopes around it.
Costs are those of a dict look-up unless a docstring says otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from onnxfix.errors import Skip
from onnxfix.model import Model
from onnxfix.report import Where

Dim = int | str | None
Shape = tuple[Dim, ...]

CAPTURED = -1  # the input index that stands for "used inside a body of this node"

RULE_KEY = "onnxfix.rule"  # provenance, in a node's metadata
FROM_KEY = "onnxfix.from"

_SMALL = 1 << 16  # bytes up to which a constant's array is kept once read
_STANDARD = 13  # the opset that new nodes bring into a model without one: old enough for every TensorRT from 8.0 on


class Typer(Protocol):
    """What knows the types of values (`onnxfix.shapes` provides it)."""

    def type_of(self, graph: Graph, name: str) -> onnx.TypeProto | None: ...
    def types_of(self, graph: Graph) -> Mapping[str, onnx.TypeProto]: ...
    def known(self, graph: Graph, name: str) -> list[int | None] | None: ...
    def forget(self, graph: Graph, name: str) -> None: ...


@functools.cache
def schema(op: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    """The ONNX schema of an operator as of an opset version, None for operators outside the standard."""
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


@functools.cache
def _schema_default(op: str, domain: str, version: int, attribute: str) -> Any:
    found = schema(op, domain, version)
    if found is None or attribute not in found.attributes:
        return None
    default = found.attributes[attribute].default_value
    return attribute_value(default) if default.type else None


def attribute_value(attribute: AttributeProto) -> Any:
    """An attribute as Python: str for strings, list for repeated ones, the proto for tensors, graphs and types."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == AttributeProto.STRINGS:
        return [v.decode("utf-8", "replace") for v in value]
    if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
        return list(value)
    return value


class Node:
    """One node of a scope. Compared by identity; `proto` is written through `Edit` only."""

    __slots__ = ("bodies", "captured", "graph", "index", "live", "proto")

    def __init__(self, proto: NodeProto, graph: Graph, index: int = -1) -> None:
        self.proto = proto
        self.graph = graph
        self.index = index  # its place in the input model, -1 for nodes a rule added
        self.live = True
        self.bodies: dict[str, Graph] = {}  # attribute name -> body
        self.captured: dict[str, None] = {}  # outer values its bodies use

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def domain(self) -> str:
        return "" if self.proto.domain == "ai.onnx" else self.proto.domain

    @property
    def name(self) -> str:
        return self.proto.name

    @property
    def inputs(self) -> list[str]:
        return list(self.proto.input)

    @property
    def outputs(self) -> list[str]:
        return list(self.proto.output)

    @property
    def opset(self) -> int:
        """Version of the node's domain that this model (or function) imports; 0 when it imports none."""
        return self.graph.opset(self.domain)

    def input(self, index: int) -> str:
        """Name of an input, "" when it is omitted."""
        return self.proto.input[index] if index < len(self.proto.input) else ""

    def output(self, index: int) -> str:
        return self.proto.output[index] if index < len(self.proto.output) else ""

    def has_attr(self, name: str) -> bool:
        return any(a.name == name for a in self.proto.attribute)

    def attr(self, name: str, default: Any = None) -> Any:
        """Value of an attribute; without it `default`, or the schema's own default when that is None.

        Raises Skip when the value is a parameter of the function that holds this node.
        """
        for attribute in self.proto.attribute:
            if attribute.name == name:
                if attribute.ref_attr_name:
                    raise Skip(f"attribute '{name}' is a parameter of the function around it")
                return attribute_value(attribute)
        if default is not None:
            return default
        return _schema_default(self.op, self.domain, self.opset, name)

    def where(self) -> Where:
        return Where(self.name, self.op, self.domain, self.index, tuple(self.outputs), self.graph.path)

    def __repr__(self) -> str:
        return f"<{self.where()}>"


class Graph:
    """The index over one scope. Built by `of`; types come from the root's `typer`."""

    def __init__(self, proto: Any, model: Model, parent: Graph | None, owner: Node | None, kind: str, path: str):
        self.proto = proto  # GraphProto, or FunctionProto when kind is "function"
        self.model = model
        self.parent = parent
        self.owner = owner  # the If/Loop/Scan node whose body this is
        self.kind = kind  # "graph", "body" or "function"
        self.path = path
        self.root: Graph = parent.root if parent else self
        self.typer: Typer | None = None  # read from the root only
        self.functions: dict[tuple[str, str], Graph] = {}  # of the main graph: (domain, name) -> scope
        self._names: set[str] = set()  # of the root: all value and node names of the model
        self._opsets: dict[str, int] = parent._opsets if parent else model.opsets
        self._nodes: list[Node] = []
        self._before: dict[Node, list[Node]] = {}  # nodes added in front of another since the last commit
        self._last: list[Node] = []  # nodes added at the end
        self._dirty = False
        self.producers: dict[str, Node] = {}
        self.initializers: dict[str, TensorProto] = {}
        self._uses: dict[str, dict[tuple[Node, int], None]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._orphans: set[str] = set()  # initializers whose last use an edit took away
        self._stale: set[str] = set()  # values whose declared type no longer holds
        self._inlined: set[tuple[str, str]] = set()  # of the root: functions that calls were replaced by
        self.promised: dict[str, tuple[float, float]] = {}  # of the root: whole numbers its widened inputs hold
        if kind == "function":
            self._opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
            self.input_names: dict[str, int] = {n: i for i, n in enumerate(proto.input)}
            self.output_names: dict[str, int] = {n: i for i, n in enumerate(proto.output)}
        else:
            self.input_names = {v.name: i for i, v in enumerate(proto.input)}
            self.output_names = {v.name: i for i, v in enumerate(proto.output)}
            self.initializers = {t.name: t for t in proto.initializer}
        self._sparse = set() if kind == "function" else {s.values.name for s in proto.sparse_initializer}

    @staticmethod
    def of(model: Model) -> Graph:
        """Index a model: the main graph, its bodies and its functions. Cost: one walk over all nodes."""
        main = Graph(model.proto.graph, model, None, None, "graph", "")
        for function in model.proto.functions:
            scope = Graph(function, model, None, None, "function", f"function {function.domain}::{function.name}")
            scope.root = main
            main.functions[("" if function.domain == "ai.onnx" else function.domain, function.name)] = scope
        for scope in (main, *main.functions.values()):
            scope._index()
        return main

    def _index(self) -> None:
        names = self.root._names
        names.update(self.input_names, self.initializers, self.output_names)
        for position, proto in enumerate(self.proto.node):
            self._nodes.append(self._adopt(proto, position))
        # Uses come after all definitions, so that what a scope does not define is known to be captured.
        for node in self._nodes:
            self._link_inputs(node)
        if self.kind == "body":
            for name in self.output_names:
                if name and not self.defines(name):
                    self._capture(name)

    def _adopt(self, proto: NodeProto, position: int = -1) -> Node:
        node = Node(proto, self, position)
        self.root._names.update(proto.output)
        if proto.name:
            self.root._names.add(proto.name)
        for output in proto.output:
            if output:
                self.producers[output] = node
        for attribute in proto.attribute:
            if attribute.type == AttributeProto.GRAPH:
                label = proto.name or (proto.output[0] if proto.output else f"#{position}")
                path = f"{self.path}/{label}" if self.path else label
                node.bodies[attribute.name] = Graph(
                    attribute.g, self.model, self, node, "body", f"{path}/{attribute.name}"
                )
        return node

    def _link_inputs(self, node: Node) -> None:
        for i, name in enumerate(node.proto.input):
            if name:
                self._use(name, node, i)
        for body in node.bodies.values():
            body._index()

    # ---- reading ----

    def nodes(self) -> Iterator[Node]:
        """The live nodes of this scope, in order, new ones where they were put."""
        if not self._before and not self._last:
            return (n for n in self._nodes if n.live)
        return self._flat()

    def _flat(self) -> Iterator[Node]:
        for start in (self._nodes, self._last):
            for first in start:
                stack = [(first, False)]
                while stack:
                    node, expanded = stack.pop()
                    before = () if expanded else self._before.get(node, ())
                    if before:
                        stack.append((node, True))
                        stack.extend((n, False) for n in reversed(before))
                    elif node.live:
                        yield node

    def walk(self) -> Iterator[Graph]:
        """This scope and all bodies inside it, outer first."""
        yield self
        for node in self.nodes():
            for body in node.bodies.values():
                yield from body.walk()

    def scopes(self) -> Iterator[Graph]:
        """All scopes of the model: the main graph, functions, and their bodies."""
        yield from self.root.walk()
        for function in self.root.functions.values():
            yield from function.walk()

    def opset(self, domain: str = "") -> int:
        """The version imported for a domain, 0 for none; where ONNX's own is not, the one a new node would bring."""
        return self._opsets.get(domain, 0 if domain else self.model.opset() or _STANDARD)

    def import_opset(self, domain: str) -> Callable[[], None]:
        """Import the domain of a new node for the model, or the function, that this scope lies in; returns the undo."""
        version, written = self.opset(domain) or self.model.opset(domain) or 1, []
        if self.model.opset(domain) == 0:
            self.model.import_opset(domain, version)
            written.append((self.model.proto.opset_import, self.model.opsets))
        outermost = self
        while outermost.parent is not None:
            outermost = outermost.parent
        if outermost.kind == "function":
            outermost.proto.opset_import.add(domain=domain, version=version)
            self._opsets[domain] = version
            written.append((outermost.proto.opset_import, self._opsets))

        def undo() -> None:
            for imports, known in written:
                del imports[-1], known[domain]

        return undo

    def defines(self, name: str) -> bool:
        """Whether the value belongs to this very scope."""
        return (
            name in self.producers or name in self.initializers or name in self.input_names or name in self._sparse
        )

    def scope_of(self, name: str) -> Graph | None:
        """The scope that defines the value, looking outwards."""
        scope: Graph | None = self
        while scope is not None and not scope.defines(name):
            scope = scope.parent
        return scope

    def producer(self, name: str) -> Node | None:
        scope = self.scope_of(name)
        return scope.producers.get(name) if scope else None

    def uses(self, name: str) -> list[tuple[Node, int]]:
        """(node, input index) for each use in this scope; CAPTURED as index when a body of the node uses it."""
        return list(self._uses.get(name, ()))

    def is_input(self, name: str) -> bool:
        """Whether it is an input that the caller must feed: initializers listed as inputs don't count."""
        return name in self.input_names and name not in self.initializers

    def is_output(self, name: str) -> bool:
        return name in self.output_names

    def unused(self, name: str) -> bool:
        """Whether nothing reads this value of this scope (also true of an omitted output)."""
        return not name or (not self._uses.get(name) and name not in self.output_names)

    def is_const(self, name: str) -> bool:
        scope = self.scope_of(name)
        if scope is None:
            return False
        if name in scope.initializers:
            return True
        node = scope.producers.get(name)
        return node is not None and node.op == "Constant" and node.domain == "" and not _ref(node)

    def const_tensor(self, name: str) -> TensorProto | None:
        """The stored tensor behind a constant value, for its dims and dtype; None when it isn't stored as one."""
        scope = self.scope_of(name)
        if scope is None:
            return None
        if name in scope.initializers:
            return scope.initializers[name]
        node = scope.producers.get(name)
        if node is not None and node.op == "Constant" and node.domain == "":
            return next((a.t for a in node.proto.attribute if a.name == "value"), None)
        return None

    def const(self, name: str) -> np.ndarray | None:
        """The array behind a constant value, else None. Reads external data; small arrays are kept."""
        scope = self.scope_of(name)
        if scope is None or not scope.is_const(name):
            return None
        if name in scope._arrays:
            return scope._arrays[name]
        tensor = scope.initializers.get(name)
        array = self.model.array(tensor) if tensor is not None else _constant_value(scope, scope.producers[name])
        if array is not None and array.nbytes <= _SMALL:
            array.flags.writeable = False
            scope._arrays[name] = array
        return array

    def type_of(self, name: str) -> onnx.TypeProto | None:
        typer = self.root.typer
        return typer.type_of(self, name) if typer and name else None

    def types(self) -> Iterator[tuple[str, onnx.TypeProto | None]]:
        """Name and type of every value that this scope makes, is fed or reads, but for those it stores.

        The type is None where it is not known.
        """
        typer = self.root.typer
        found = typer.types_of(self) if typer else {}
        for name in {**self.producers, **self.input_names, **self._uses}.keys() - self.initializers.keys():
            yield name, found.get(name) or self.type_of(name)

    def unread(self) -> set[str]:
        """The values made here that nothing reads and that are no outputs. Cost: linear, but little."""
        return self.producers.keys() - self._uses.keys() - self.output_names.keys()

    def dtype(self, name: str) -> int:
        """TensorProto.DataType of a value; 0 when unknown or no tensor."""
        stored = self.initializers.get(name)
        if stored is not None:
            return stored.data_type
        found = self.type_of(name)
        return found.tensor_type.elem_type if found is not None and found.HasField("tensor_type") else 0

    def shape(self, name: str) -> Shape | None:
        """Dimensions of a value: int, a symbol's name, or None for one unknown; None when the rank is unknown."""
        dims = self._dims(name)
        if dims is None:
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in dims)

    def _dims(self, name: str) -> Sequence[onnx.TensorShapeProto.Dimension] | None:
        found = self.type_of(name)
        if found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
            return None
        return found.tensor_type.shape.dim

    def static_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape when all of it is known, else None."""
        found = self.shape(name)
        if found is None or not all(isinstance(d, int) for d in found):
            return None
        return tuple(d for d in found if isinstance(d, int))

    def rank(self, name: str) -> int | None:
        dims = self._dims(name)
        return None if dims is None else len(dims)

    def known(self, name: str) -> list[int | None] | None:
        """What is known of an integer tensor of rank 0 or 1 (a shape, sizes, axes): its elements, None each unknown."""
        typer = self.root.typer
        return typer.known(self, name) if typer and name else None

    # ---- the index (Edit's ground) ----

    def _use(self, name: str, node: Node, index: int) -> None:
        uses = self._uses.setdefault(name, {})
        first = not uses
        uses[(node, index)] = None
        if index == CAPTURED:
            node.captured[name] = None
        if first and self.parent is not None and not self.defines(name):
            self._capture(name)

    def _unuse(self, name: str, node: Node, index: int) -> None:
        uses = self._uses.get(name, {})
        uses.pop((node, index), None)
        if index == CAPTURED:
            node.captured.pop(name, None)
        if not uses:
            self._uses.pop(name, None)
            if self.parent is None or self.owner is None or self.defines(name) or name in self.output_names:
                return
            siblings = (b for b in self.owner.bodies.values() if b is not self)
            if not any(name in b._uses or name in b.output_names for b in siblings):
                self.parent._unuse(name, self.owner, CAPTURED)

    def _capture(self, name: str) -> None:
        if self.parent is not None and self.owner is not None:
            self.parent._use(name, self.owner, CAPTURED)

    def fresh(self, hint: str) -> str:
        """A name that no value and no node of the model has: `hint` itself when it is free."""
        names = self.root._names
        name, number = hint, 1
        while name in names or not name:
            number += 1
            name = f"{hint}_{number}"
        names.add(name)
        return name

    # ---- commit ----

    def commit(self) -> None:
        """Write the changes of all scopes into the protobuf: node lists rebuilt once, in topological order.

        Raises RuntimeError when the nodes form a cycle. Cost: linear in the nodes of the scopes that changed.
        """
        for scope in (self.root, *self.root.functions.values()):
            scope._commit()
        while self.root._drop_functions():
            pass

    def _drop_functions(self) -> bool:
        """Remove functions that were inlined and that nothing calls any more. Cost: one walk, where any was inlined."""
        if not self._inlined:
            return False
        called = {(n.domain, n.op) for scope in self.scopes() for n in scope.nodes()}
        functions = self.model.proto.functions
        gone = [i for i, f in enumerate(functions) if (f.domain, f.name) in self._inlined - called]
        for i in reversed(gone):
            key = (functions[i].domain, functions[i].name)
            self._inlined.discard(key)
            self.functions.pop(key, None)
            del functions[i]
        return bool(gone)

    def _commit(self) -> bool:
        changed = self._dirty
        nodes = list(self.nodes())
        for node in nodes:
            for body in node.bodies.values():
                changed |= body._commit()
        self._drop_orphans()
        if self._dirty:
            nodes = self._sorted(nodes)
            protos = [n.proto for n in nodes]
            del self.proto.node[:]
            self.proto.node.extend(protos)
            self._nodes, self._before, self._last, self._dirty = nodes, {}, [], False
            self._relink(self.proto)
            self._drop_stale_info()
        return changed

    def _relink(self, proto: Any) -> None:
        """Point the index at `proto`, a copy of what it pointed at; node for node the same."""
        self.proto = proto
        if self.kind != "function":
            self.initializers = {t.name: t for t in proto.initializer}
        for node, copy in zip(self._nodes, proto.node, strict=True):
            node.proto = copy
            if node.bodies:
                for attribute in copy.attribute:
                    if attribute.name in node.bodies:
                        node.bodies[attribute.name]._relink(attribute.g)

    def _drop_orphans(self) -> None:
        if self.kind == "function" or not self._orphans:
            return
        gone = {n for n in self._orphans if self.unused(n) and n in self.initializers}
        self._orphans.clear()
        if not gone:
            return
        for i in range(len(self.proto.initializer) - 1, -1, -1):
            if self.proto.initializer[i].name in gone:
                del self.proto.initializer[i]
        for i in range(len(self.proto.input) - 1, -1, -1):
            if self.proto.input[i].name in gone:  # an initializer listed as input goes with its data
                del self.proto.input[i]
        self.input_names = {v.name: i for i, v in enumerate(self.proto.input)}
        self.initializers = {t.name: t for t in self.proto.initializer}

    def _drop_stale_info(self) -> None:
        """Remove value_info of values that are gone or have another type now; what is left stands as it was."""
        infos = self.proto.value_info
        kept = [v for v in infos if v.name not in self._stale and self.defines(v.name)]
        if len(kept) < len(infos):
            del infos[:]
            infos.extend(kept)
        self._stale.clear()

    def _sorted(self, nodes: list[Node]) -> list[Node]:
        """`nodes` with each after what it needs, otherwise in the order given."""
        done: set[Node] = set()
        open_: set[Node] = set()
        result: list[Node] = []
        for first in nodes:
            stack = [first]
            while stack:
                node = stack[-1]
                if node in done:
                    stack.pop()
                    continue
                needs = [
                    p
                    for name in (*node.proto.input, *node.captured)
                    if (p := self.producers.get(name)) is not None and p not in done and p is not node
                ]
                if not needs:
                    stack.pop()
                    done.add(node)
                    open_.discard(node)
                    result.append(node)
                elif node in open_:
                    raise RuntimeError(f"the nodes around {node.where()} form a cycle")
                else:
                    open_.add(node)
                    stack.extend(n for n in needs if n not in open_)
                    if stack[-1] is node:
                        raise RuntimeError(f"the nodes around {node.where()} form a cycle")
        return result


def _ref(node: Node) -> bool:
    return any(a.ref_attr_name for a in node.proto.attribute)


def _constant_value(scope: Graph, node: Node) -> np.ndarray | None:
    for attribute in node.proto.attribute:
        if attribute.name == "value":
            return scope.model.array(attribute.t)
        value = attribute_value(attribute)
        if attribute.name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
        if attribute.name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if attribute.name in ("value_string", "value_strings"):
            return np.asarray(value, object)
    return None


class Edit:
    """One rule's change at one place. Everything it does can be rolled back until the engine keeps it.

    Arrays may be given wherever a value's name is expected: they become constants.
    """

    def __init__(self, graph: Graph, anchor: Node | None, rule: str) -> None:
        self.graph = graph
        self.anchor = anchor
        self.rule = rule
        self.added: list[Node] = []
        self.removed: list[Node] = []
        self.touched: dict[Node, None] = {}  # nodes to look at again
        self.interface: list[str] = []  # what changed of the model's inputs and outputs, in words
        self.note = ""  # set by a rule to say what it did, beyond its summary
        self.keeps = False  # whether to keep what the next two fields say, for a proof of the change
        self.kept: dict[Node, NodeProto] = {}  # nodes changed in place, as they were
        self.redirected: dict[tuple[str, str], list[Node]] = {}  # readers of this scope that read another value now
        self.retyped: set[str] = set()  # values said to be something else now under the same name
        self._reads: dict[Node, list[str]] = {}  # what redirected readers read at first
        self._new: set[Node] = set()
        self._former: dict[Node, Where] = {}  # what nodes were before their outputs' names were taken over
        self._undo: list[Callable[[], None]] = []
        self._loose: list[tuple[Graph, str]] = []  # values that may have lost their last use

    def describe(self, node: Node) -> str:
        """A node as the user knows it, whatever this edit did to its outputs' names."""
        return str(self._former.get(node) or node.where())

    # ---- making ----

    def const(self, array: np.ndarray | float | int, hint: str = "const") -> str:
        """A new constant in this scope; returns its name. Give a typed array: Python numbers become FLOAT or INT64."""
        if isinstance(array, (float, int)) and not isinstance(array, (bool, np.generic)):
            array = np.asarray(array, np.float32 if isinstance(array, float) else np.int64)
        array = np.asarray(array)
        graph = self.graph
        base = (self.anchor.output(0) or self.anchor.name) if self.anchor else graph.proto.name
        tensor = numpy_helper.from_array(np.array(array, order="C", copy=None))
        return self.store(tensor, graph.fresh(f"{base}/{hint}"))

    def store(self, tensor: TensorProto, name: str) -> str:
        """A copy of a stored tensor as a constant of this scope, under a fresh `name`; external data stays outside."""
        graph = self.graph
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = name
        if graph.kind == "function":
            self._insert(helper.make_node("Constant", [], [name], value=copy))
            return name
        graph.proto.initializer.append(copy)
        graph.initializers[name] = graph.proto.initializer[-1]
        if graph.kind == "graph" and graph.model.proto.ir_version < 4:  # there, initializers are listed as inputs
            graph.input_names[name] = len(graph.proto.input)
            graph.proto.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        self._undo.append(functools.partial(self._unconst, graph, name))
        return name

    def initialize(self, node: Node) -> None:
        """Turn a Constant node of this scope (no function) into an initializer of the same name."""
        name = node.output(0)
        tensor = node.graph.const_tensor(name)
        if tensor is None:  # value_ints and its like
            tensor = numpy_helper.from_array(np.asarray(node.graph.const(name)))
        self._detach(node)
        node.live = False
        node.graph._dirty = True
        self.removed.append(node)
        self._undo.append(functools.partial(self._restore, node))
        self.store(tensor, name)
        node.graph.initializers[name].doc_string = tensor.doc_string or node.proto.doc_string
        for user, _ in node.graph.uses(name):
            self.touched[user] = None

    @staticmethod
    def _unconst(graph: Graph, name: str) -> None:
        del graph.proto.initializer[-1]
        del graph.initializers[name]
        if graph.input_names.pop(name, None) is not None:
            del graph.proto.input[-1]

    def add(
        self,
        op: str,
        inputs: Sequence[str | np.ndarray],
        *,
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        hint: str = "",
        **attributes: Any,
    ) -> Any:
        """Add a node in front of the anchor. Returns its output's name, or a tuple of names for several.

        `outputs` is their number, or their names ("" for one that is not wanted). None attributes are left out.
        """
        names = [i if isinstance(i, str) else self.const(i, op.lower()) for i in inputs]
        base = self.anchor.output(0) if self.anchor else self.graph.proto.name
        if isinstance(outputs, int):
            outs = [self.graph.fresh(f"{base}/{hint or op}") for _ in range(outputs)]
        else:
            outs = [o and self.graph.fresh(o) for o in outputs]
        proto = helper.make_node(
            op, names, outs, domain=domain, **{k: v for k, v in attributes.items() if v is not None}
        )
        self._insert(proto)
        return outs[0] if len(outs) == 1 else tuple(outs)

    def insert(self, proto: NodeProto) -> Node:
        """Add a copy of a ready NodeProto in front of the anchor; its outputs' names must be fresh."""
        copy = NodeProto()
        copy.CopyFrom(proto)
        return self._insert(copy)

    def _insert(self, proto: NodeProto) -> Node:
        graph, anchor = self.graph, self.anchor
        self._stamp(proto)
        node = graph._adopt(proto)
        if node.domain not in graph._opsets:
            self._undo.append(graph.import_opset(node.domain))
        graph._link_inputs(node)
        if anchor is not None and anchor.graph is graph:
            graph._before.setdefault(anchor, []).append(node)
        else:
            graph._last.append(node)
        graph._dirty = True
        self.added.append(node)
        self._new.add(node)
        self.touched[node] = None
        self._undo.append(functools.partial(self._uninsert, node))
        return node

    def _uninsert(self, node: Node) -> None:
        self._detach(node)
        node.live = False

    def _stamp(self, proto: NodeProto) -> None:
        """Name the node after the one it stands for and write down where it comes from."""
        source = self.anchor.proto if self.anchor else None
        if not proto.name:
            label = (source.name or (source.output[0] if source.output else "")) if source else ""
            made = f"{self.rule}/{proto.op_type}"
            proto.name = self.graph.fresh(f"{label}/{made}" if label else made)
        if source is not None:
            present = {m.key for m in proto.metadata_props}
            # What the exporter said of the original node (its stack trace, its module) holds for what replaces it.
            for entry in source.metadata_props:
                if entry.key not in present and entry.key not in (RULE_KEY, FROM_KEY):
                    proto.metadata_props.add(key=entry.key, value=entry.value)
            origin = next((m.value for m in source.metadata_props if m.key == FROM_KEY), "")
            proto.metadata_props.add(key=FROM_KEY, value=origin or source.name or source.output[0])
        proto.metadata_props.add(key=RULE_KEY, value=self.rule)

    # ---- changing ----

    def drop_initializer(self, name: str) -> None:
        """Remove an initializer of this scope that nothing reads."""
        self.graph._orphans.add(name)
        self._undo.append(lambda: self.graph._orphans.discard(name))

    def remove(self, node: Node) -> None:
        """Remove a node; nothing may use its outputs any more. What only it needed goes too, at `finish`."""
        for output in node.proto.output:
            if not node.graph.unused(output) and node.graph.producers.get(output) is node:
                raise RuntimeError(f"{node.where()} cannot be removed: '{output}' is still used")
        self._detach(node)
        node.live = False
        node.graph._dirty = True
        self.removed.append(node)
        self._undo.append(functools.partial(self._restore, node))

    def _restore(self, node: Node) -> None:
        graph = node.graph
        node.live = True
        for output in node.proto.output:
            if output:
                graph.producers[output] = node
        for i, name in enumerate(node.proto.input):
            if name:
                graph._use(name, node, i)
        for body in node.bodies.values():
            for name in [*body._uses, *body.output_names]:
                if not body.defines(name):
                    body._capture(name)

    def _detach(self, node: Node) -> None:
        graph = node.graph
        for i, name in enumerate(node.proto.input):
            if name:
                self._drop_use(graph, name, node, i)
        for name in list(node.captured):
            self._drop_use(graph, name, node, CAPTURED)
        for output in node.proto.output:
            if graph.producers.get(output) is node:
                del graph.producers[output]

    def _drop_use(self, graph: Graph, name: str, node: Node, index: int) -> None:
        graph._unuse(name, node, index)
        scope = graph.scope_of(name)
        if scope is not None:
            self._loose.append((scope, name))
            producer = scope.producers.get(name)
            if producer is not None:
                self.touched[producer] = None

    def set_input(self, node: Node, index: int, value: str | np.ndarray) -> None:
        """Make input `index` read another value ("" leaves it out); missing inputs before it are filled with ""."""
        name = value if isinstance(value, str) else self.const(value, f"input{index}")
        self._keep(node)
        before = list(node.proto.input)
        padded = [*before, *[""] * (index + 1 - len(before))]
        self._write_inputs(node, [*padded[:index], name, *before[index + 1 :]])
        self._undo.append(functools.partial(self._write_inputs, node, before))

    def set_inputs(self, node: Node, names: Sequence[str]) -> None:
        """Replace all inputs."""
        self._keep(node)
        before = list(node.proto.input)
        self._write_inputs(node, list(names))
        self._undo.append(functools.partial(self._write_inputs, node, before))

    def _write_inputs(self, node: Node, names: list[str]) -> None:
        while names and not names[-1]:
            names = names[:-1]
        graph = node.graph
        for i, name in enumerate(node.proto.input):
            if name:
                self._drop_use(graph, name, node, i)
        del node.proto.input[:]
        node.proto.input.extend(names)
        for i, name in enumerate(names):
            if name:
                graph._use(name, node, i)
        self.touched[node] = None
        graph._dirty = True  # the order may have to change

    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Set an attribute; None removes it."""
        self._keep(node)
        before = [AttributeProto.FromString(a.SerializeToString()) for a in node.proto.attribute]
        kept = [a for a in before if a.name != name]
        if value is not None:
            kept.append(helper.make_attribute(name, value))
        self._write_attributes(node, kept)
        self._undo.append(functools.partial(self._write_attributes, node, before))

    def _write_attributes(self, node: Node, attributes: Iterable[AttributeProto]) -> None:
        if node.bodies:
            raise RuntimeError("attributes of a node with bodies are not rewritten in place")
        del node.proto.attribute[:]
        node.proto.attribute.extend(attributes)
        self.touched[node] = None
        self._forget(node.graph, node.outputs)

    def set_op(self, node: Node, op: str, domain: str = "") -> None:
        """Turn a node into another operator with the same inputs and outputs."""
        self._keep(node)
        before = (node.proto.op_type, node.proto.domain)
        node.proto.op_type, node.proto.domain = op, domain
        self.touched[node] = None

        def undo() -> None:
            node.proto.op_type, node.proto.domain = before

        self._undo.append(undo)

    def _keep(self, node: Node) -> None:
        if self.keeps and node not in self._new and node not in self.kept:
            self.kept[node] = self.former(node)

    def former(self, node: Node) -> NodeProto:
        """A node as it was before this edit, as far as the edit `keeps` that; a copy."""
        if node in self.kept:
            return self.kept[node]
        copy = NodeProto()
        copy.CopyFrom(node.proto)
        if node in self._reads:
            del copy.input[:]
            copy.input.extend(self._reads[node])
        return copy

    def is_new(self, node: Node) -> bool:
        """Whether this edit made the node."""
        return node in self._new

    def mark(self, node: Node) -> None:
        """Write provenance on a node that was changed in place."""
        if not any(m.key == RULE_KEY and m.value == self.rule for m in node.proto.metadata_props):
            node.proto.metadata_props.add(key=RULE_KEY, value=self.rule)
            self._undo.append(lambda: node.proto.metadata_props.__delitem__(-1))

    def replace(self, old: str, new: str) -> None:
        """Let everything that reads `old` read `new`, except the nodes this edit added.

        Where `new` was made by this edit, or `old` is an output of the graph, `new` takes over the name `old`, so that
        tensor names survive. Cost: the number of uses.
        """
        if old == new:
            return
        graph = self.graph
        producer = graph.producers.get(new)
        fresh = producer is not None and producer in self._new
        if graph.is_output(old) and not fresh and (producer is None or graph.is_output(new)):
            # The value cannot take the output's name: an Identity carries it there.
            new = self.add("Identity", [new])
            producer, fresh = graph.producers[new], True
        if producer is not None and (fresh or graph.is_output(old)) and old in graph.producers:
            self._take_over(old, new, producer)
        else:
            self._redirect(graph, old, new)
        self._loose.append((graph, old))

    def _take_over(self, old: str, new: str, producer: Node) -> None:
        graph = self.graph
        retired = graph.fresh(f"{old}/retired")
        self._loose.append((graph, retired))
        former = graph.producers[old]
        self._former.setdefault(former, former.where())
        self._redirect(graph, old, retired, only_new=True)
        self._rename_output(former, old, retired)
        self._redirect(graph, new, old, everyone=True)
        self._rename_output(producer, new, old)
        for node, _ in graph.uses(old):
            self.touched[node] = None

    def _rename_output(self, node: Node, old: str, new: str) -> None:
        self._keep(node)
        self._write_output(node, old, new)
        self._undo.append(functools.partial(self._write_output, node, new, old))

    def _write_output(self, node: Node, old: str, new: str) -> None:
        graph = node.graph
        node.proto.output[list(node.proto.output).index(old)] = new
        if graph.producers.get(old) is node:
            del graph.producers[old]
        graph.producers[new] = node
        graph._dirty = True

    def _redirect(
        self, graph: Graph, old: str, new: str, *, only_new: bool = False, everyone: bool = False
    ) -> None:
        for node, index in graph.uses(old):
            if not everyone and (node in self._new) is not only_new:
                continue
            if index == CAPTURED:
                for body in node.bodies.values():
                    if not body.defines(old):
                        self._redirect(body, old, new, everyone=True)
                        if old in body.output_names:
                            raise RuntimeError(f"a body of {node.where()} returns '{old}' unchanged")
            else:
                before = list(node.proto.input)
                if self.keeps and node not in self._new:
                    self._reads.setdefault(node, before)
                    self.redirected.setdefault((old, new), []).append(node)
                self._write_inputs(node, [new if i == index else n for i, n in enumerate(before)])
                self._undo.append(functools.partial(self._write_inputs, node, before))

    def replace_node(self, node: Node, *values: str) -> None:
        """Replace a node's outputs, in order, by these values, and remove the node."""
        for output, value in zip(node.outputs, values, strict=False):
            if output and not node.graph.unused(output):
                self.replace(output, value)
        self.remove(node)

    def retype_output(self, index: int, dtype: int) -> None:
        """Declare another dtype for output `index` of the graph (the interface changes, and is reported)."""
        self._retype(self.graph.proto.output[index], dtype, "output")

    def retype_input(self, index: int, dtype: int, promised: tuple[float, float] | None = None) -> None:
        """Declare another dtype for input `index` of the graph (the interface changes, and is reported).

        `promised` are bounds of the whole numbers the caller goes on feeding: those of the dtype it had.
        """
        info = self.graph.proto.input[index]
        self._retype(info, dtype, "input")
        if promised is not None:
            self.graph.root.promised[info.name] = promised
            self._undo.append(lambda: self.graph.root.promised.__delitem__(info.name))

    def _retype(self, info: onnx.ValueInfoProto, dtype: int, role: str) -> None:
        before = info.type.tensor_type.elem_type
        names = TensorProto.DataType.Name
        info.type.tensor_type.elem_type = dtype
        if self.graph.kind == "graph":
            self.interface.append(f"{role} '{info.name}': {names(before)} -> {names(dtype)}")
        self._forget(self.graph, [info.name])
        for node, _ in self.graph.uses(info.name):
            self.touched[node] = None

        def undo() -> None:
            info.type.tensor_type.elem_type = before
            self._forget(self.graph, [info.name])

        self._undo.append(undo)

    def replace_outputs(self, gone: Sequence[str], made: Sequence[onnx.ValueInfoProto]) -> None:
        """Take outputs of the graph away and put other values behind those left.

        The interface changes, which is reported; what only the former outputs needed goes at `finish`.
        """
        graph = self.graph
        before = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in graph.proto.output]
        self._write_outputs(graph, [*(v for v in before if v.name not in gone), *made])
        self._undo.append(functools.partial(self._write_outputs, graph, before))
        self._loose += [(graph, name) for name in gone]
        self.interface += [f"output '{name}' is gone" for name in gone]
        self.interface += [f"output '{v.name}' is new" for v in made]

    @staticmethod
    def _write_outputs(graph: Graph, infos: Sequence[onnx.ValueInfoProto]) -> None:
        del graph.proto.output[:]
        graph.proto.output.extend(infos)
        graph.output_names = {v.name: i for i, v in enumerate(graph.proto.output)}

    def set_opset(self, version: int) -> None:
        """Declare another opset for the main graph and its bodies. The nodes must be written for it."""
        root = self.graph.root
        entry = next(o for o in root.model.proto.opset_import if o.domain in ("", "ai.onnx"))
        before = entry.version

        def write(number: int) -> None:
            entry.version = root.model.opsets[""] = number

        write(version)
        self._undo.append(lambda: write(before))
        self.touched.update((node, None) for scope in root.walk() for node in scope.nodes())

    def forget_type(self, name: str) -> None:
        """Say that the type or shape of an existing value is no longer what it was."""
        self.retyped.add(name)
        self._forget(self.graph, [name])

    def _forget(self, graph: Graph, names: Iterable[str]) -> None:
        typer = graph.root.typer
        for name in names:
            graph._stale.add(name)
            if typer is not None:
                typer.forget(graph, name)

    # ---- bodies ----

    def inline(
        self,
        nodes: Iterable[NodeProto],
        values: dict[str, str],
        attributes: dict[str, AttributeProto] | None = None,
    ) -> dict[str, str]:
        """Put copies of `nodes` (the body of a function, or of an If's branch) in front of the anchor.

        `values` maps names of the body to values of this graph; all others get fresh names. `attributes` fill the
        body's attribute parameters; a parameter without a value drops the attribute. Returns the whole name map.
        """
        names = dict(values)
        label = self.anchor.output(0) if self.anchor else self.graph.proto.name
        for proto in nodes:
            copy = NodeProto()
            copy.CopyFrom(proto)
            copy.name = ""
            _bind(copy, attributes or {})
            _rename(copy, names, lambda n: self.graph.fresh(f"{label}/{n}"), define=True)
            while copy.input and not copy.input[-1]:
                del copy.input[-1]  # an optional input that the call leaves out
            self._insert(copy)
        return names

    def inline_graph(
        self,
        scope: Graph,
        values: dict[str, str],
        attributes: dict[str, AttributeProto] | None = None,
    ) -> dict[str, str]:
        """Put a copy of what a body or a function holds, constants included, in front of the anchor.

        As `inline`. A constant of the body that `values` maps is not copied again. A function that nothing calls any
        more goes at the next commit. Raises Skip for sparse constants.
        """
        if scope._sparse:
            raise Skip("it holds sparse constants")
        scope._commit()
        names = dict(values)
        label = self.anchor.output(0) if self.anchor else self.graph.proto.name
        for name, tensor in scope.initializers.items():
            if name not in names:
                names[name] = self.store(tensor, self.graph.fresh(f"{label}/{name}"))
        if scope.kind == "function":
            self.graph.root._inlined.add((scope.proto.domain, scope.proto.name))
        return self.inline(scope.proto.node, names, attributes)

    # ---- ending ----

    def finish(self) -> None:
        """Remove what lost its last use through this edit, and remember the initializers that did."""
        while self._loose:
            graph, name = self._loose.pop()
            if not graph.unused(name):
                continue
            if name in graph.initializers:
                graph._orphans.add(name)
            node = graph.producers.get(name)
            if node is not None and node.live and all(graph.unused(o) for o in node.proto.output):
                if node in self._new:
                    self.added.remove(node)
                    self._new.discard(node)
                    self._detach(node)
                    node.live = False
                else:
                    self.remove(node)
        for node in [*self.added, *self.touched]:
            for name in node.proto.output:
                for user, _ in node.graph.uses(name):
                    self.touched[user] = None
        self._undo.clear()

    def rollback(self) -> None:
        """Undo everything. Only before `finish`."""
        while self._undo:
            self._undo.pop()()
        self.touched.clear()


def _bind(proto: NodeProto, attributes: dict[str, AttributeProto]) -> None:
    """Fill attribute parameters (`ref_attr_name`), also in bodies."""
    for i in range(len(proto.attribute) - 1, -1, -1):
        attribute = proto.attribute[i]
        if attribute.ref_attr_name:
            value = attributes.get(attribute.ref_attr_name)
            if value is None:
                del proto.attribute[i]
            else:
                name = attribute.name
                attribute.CopyFrom(value)
                attribute.name = name
        elif attribute.type == AttributeProto.GRAPH:
            for node in attribute.g.node:
                _bind(node, attributes)


def _rename(proto: NodeProto, names: dict[str, str], fresh: Callable[[str], str], *, define: bool) -> None:
    """Rename a node's values by `names`; with `define`, its outputs get fresh names. Bodies are renamed throughout."""
    for i, name in enumerate(proto.input):
        if name:
            proto.input[i] = names.get(name, name)
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graph, inner = attribute.g, dict(names)
            values: list[Any] = [*graph.input, *graph.initializer]
            for value in values:
                before = value.name  # kept apart: targets are assigned from left to right
                value.name = inner[before] = inner_name(before, names, inner, fresh)
            for name in (o for node in graph.node for o in node.output):
                if inner.get(name) == names.get(name):
                    inner.pop(name, None)  # the body's own, whatever has that name around it
            for node in graph.node:
                _rename(node, inner, fresh, define=True)
            for value in (*graph.output, *graph.value_info):
                value.name = inner.get(value.name, value.name)
    if define:
        for i, name in enumerate(proto.output):
            if name:
                if name not in names:
                    names[name] = fresh(name)
                proto.output[i] = names[name]


def inner_name(name: str, outer: dict[str, str], inner: dict[str, str], fresh: Callable[[str], str]) -> str:
    """A fresh name for a value a body defines; one it shares between input and initializer is renamed once."""
    return inner[name] if name in inner and inner.get(name) != outer.get(name) else fresh(name)
