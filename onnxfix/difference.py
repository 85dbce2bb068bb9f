"""What two models differ in, in words. Nodes' order and the names of values and nodes are no difference.

Every value has one producer and inputs have an order, so the pairing of two graphs is forced: from the outputs, which
are paired by name or else by place, back to the inputs. Whoever comes through that walk with one partner for each node
and value is the same graph; nothing is guessed. Only where the walk meets a difference, and for nodes that no output
needs, partners are looked for by content, by the values' names and by the nodes' names, to say what changed.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxfix.graph import Graph, Node, attribute_value, schema
from onnxfix.model import Model, external_field, is_external, load, nbytes

SHOWN = 8  # elements of a value in words

Value = tuple[Graph, str]  # the scope that defines it, and its name there


@dataclass(frozen=True)
class Entry:
    """One difference. `kind` is node, attribute, edge, initializer, input, output, opset, metadata or function."""

    kind: str
    change: str  # removed, added or changed
    where: str  # of the first model; of the second for what was added
    text: str  # in words


@dataclass(frozen=True)
class Difference:
    """All differences of two models. `notes` tell of what is no difference: other names, another order."""

    before: str
    after: str
    same: bool
    entries: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()


def diff(before: str | Path | Model, after: str | Path | Model, *, names: bool = False) -> Difference:
    """Compare two models by structure. With `names`, other names of inputs and outputs are differences too.

    Compared are nodes, attributes (one left out equals its default), connections, weights by their values, inputs and
    outputs with their types, opsets, functions and the model's metadata. Not compared: declared types of inner values,
    documentation, who produced the file. Reads all weights, one at a time.

    Raises ModelError for a file that is no model, or lacks its external data.
    """
    one, other = (m if isinstance(m, Model) else load(m) for m in (before, after))
    pairing = pair(one, other)
    entries = [*_header(one, other), *pairing.entries()]
    renamed = pairing.interface()
    if names:
        entries += renamed
    notes = [] if names else [e.text for e in renamed]
    if not entries:
        notes += pairing.remarks()
    return Difference(str(one.path or ""), str(other.path or ""), not entries, tuple(entries), tuple(notes))


def pair(one: Model, other: Model) -> Pairing:
    """Which node and value of a model is which of another's."""
    pairing = Pairing(Graph.of(one), Graph.of(other))
    pairing.run()
    return pairing


class Pairing:
    """The partners of nodes and values, both ways."""

    def __init__(self, one: Graph, other: Graph) -> None:
        self.one = one
        self.other = other
        self.nodes: dict[Node, Node] = {}
        self.taken: set[Node] = set()
        self.values: dict[Value, Value] = {}
        self.back: dict[Value, Value] = {}
        self.scopes: list[tuple[Graph, Graph]] = []
        self._arrays = _Contents()

    # ---- pairing ----

    def run(self) -> None:
        self._scope(self.one, self.other)
        for key, function in self.one.functions.items():
            if key in self.other.functions:
                self._scope(function, self.other.functions[key])

    def _scope(self, one: Graph, other: Graph) -> None:
        self.scopes.append((one, other))
        for a, b in ports(one, other, "input"):
            self._match(((one, a), (other, b)))
        self._walk([(one, a, other, b) for a, b in ports(one, other, "output")])
        self._alike(one, other)

    def _match(self, pair: tuple[Value, Value]) -> bool:
        a, b = pair
        if a in self.values or b in self.back:
            return self.values.get(a) == b
        self.values[a] = b
        self.back[b] = a
        return True

    def _walk(self, pending: list[tuple[Graph, str, Graph, str]]) -> None:
        """Pair the producers of paired values, and what they read in turn."""
        while pending:
            one, a, other, b = pending.pop()
            home, away = one.scope_of(a), other.scope_of(b)
            if not a or not b or home is None or away is None:
                continue
            maker, maker_b = home.producers.get(a), away.producers.get(b)
            if maker is None or maker_b is None:
                constant = a in home.initializers and b in away.initializers
                if constant and home.kind == away.kind:
                    self._match(((home, a), (away, b)))
                continue
            if maker.outputs.index(a) == maker_b.outputs.index(b):
                pending += self._join(maker, maker_b)

    def _join(self, a: Node, b: Node, same: bool = True) -> list[tuple[Graph, str, Graph, str]]:
        """Make two free nodes partners; with `same`, only if of one operation. Returns the values they read."""
        if a in self.nodes or b in self.taken or (same and (a.op, a.domain) != (b.op, b.domain)):
            return []
        self.nodes[a] = b
        self.taken.add(b)
        for x, y in zip(a.outputs, b.outputs, strict=False):
            if x and y:
                self._match(((a.graph, x), (b.graph, y)))
        for name, body in a.bodies.items():
            if name in b.bodies:
                self._scope(body, b.bodies[name])
        return [(a.graph, x, b.graph, y) for x, y in zip(a.inputs, b.inputs, strict=False)]

    def _alike(self, one: Graph, other: Graph) -> None:
        """Partners for what the walk from the outputs did not reach: by content, by value, by name, by operation."""
        prints, prints_b = self._prints(one), self._prints(other)
        keys: tuple[Callable[[Node], Any], ...] = (
            lambda n: prints.get(n) or prints_b.get(n),
            lambda n: (n.op, n.domain, tuple(n.outputs)),
            lambda n: (n.op, n.domain, n.name) if n.name else None,
            lambda n: (n.op, n.domain, next(filter(None, n.outputs), "")),
            lambda n: tuple(n.outputs),
        )
        for number, key in enumerate(keys):
            found: dict[Any, list[Node]] = defaultdict(list)
            for node in other.nodes():
                if node not in self.taken and (k := key(node)) is not None:
                    found[k].append(node)
            # Backwards, since a pair pulls what it reads with it.
            for node in reversed(list(one.nodes())):
                candidates = found.get(key(node), []) if node not in self.nodes else []
                candidates = [c for c in candidates if c not in self.taken]
                if candidates and (number == 0 or len(candidates) == 1):
                    self._walk(self._join(node, candidates[-1], same=number + 1 < len(keys)))

    def _prints(self, graph: Graph) -> dict[Node, str]:
        """What each node computes, from the inputs on: equal for nodes that do the same to the same."""
        marks: dict[str, str] = {}
        prints: dict[Node, str] = {}
        for node in graph.nodes():
            reads = [self._mark(graph, marks, name) for name in (*node.inputs, *node.captured)]
            attributes = {k: _words(v) for k, v in _attributes(node).items()}
            text = repr((node.op, node.domain, reads, sorted(attributes.items())))
            prints[node] = hashlib.sha256(text.encode()).hexdigest()
            marks.update({o: f"{prints[node]}:{i}" for i, o in enumerate(node.outputs) if o})
        return prints

    def _mark(self, graph: Graph, marks: Mapping[str, str], name: str) -> str:
        if name in marks or not name:
            return marks.get(name, "")
        home = graph.scope_of(name)
        if home is None:
            return "?"
        if name in home.initializers:
            return self._arrays.digest(home, name)
        if home is graph and graph.kind != "graph":
            return f"input {graph.input_names.get(name, -1)}"
        partner = self.back.get((home, name), (home, name))  # outer values and inputs go by the first model's name
        return f"value {partner[1]}"

    # ---- telling ----

    def entries(self) -> list[Entry]:
        """All differences of graphs and functions."""
        found: list[Entry] = []
        for one, other in self.scopes:
            found += self._of_scope(one, other)
        gone = set(self.one.functions) - set(self.other.functions)
        new = set(self.other.functions) - set(self.one.functions)
        found += [Entry("function", "removed", _function(k), f"function {_function(k)} is gone") for k in sorted(gone)]
        found += [Entry("function", "added", _function(k), f"function {_function(k)} is new") for k in sorted(new)]
        return found

    def _of_scope(self, one: Graph, other: Graph) -> Iterator[Entry]:
        yield from self._values_of(one, other, "input")
        yield from self._values_of(one, other, "output")
        for node in one.nodes():
            if node not in self.nodes:
                yield Entry("node", "removed", str(node.where()), f"node removed: {_node(node)}")
        for node in other.nodes():
            if node not in self.taken:
                yield Entry("node", "added", str(node.where()), f"node added: {_node(node)}")
        for node in one.nodes():
            if partner := self.nodes.get(node):
                yield from self._of_node(node, partner)
        yield from self._outputs_read(one, other)
        yield from self._weights(one, other)
        yield from _sparse(one, other)

    def _values_of(self, one: Graph, other: Graph, kind: str) -> Iterator[Entry]:
        """Inputs or outputs that came, went or changed their type."""
        if one.kind == "function":
            mine, theirs = list(one.proto.input), list(other.proto.input)
            if kind == "output":
                mine, theirs = list(one.proto.output), list(other.proto.output)
            if len(mine) != len(theirs):
                text = f"{one.path} has {len(theirs)} {kind}s instead of {len(mine)}"
                yield Entry(kind, "changed", one.path, text)
            return
        infos = {v.name: v for v in getattr(one.proto, kind) if v.name in _names(one, kind)}
        others = {v.name: v for v in getattr(other.proto, kind) if v.name in _names(other, kind)}
        pairs = ports(one, other, kind)
        place = f" of {one.path}" if one.path else ""
        for name in infos.keys() - {a for a, _ in pairs}:
            yield Entry(kind, "removed", name, f"{kind} removed{place}: {name} ({_type(infos[name])})")
        for name in others.keys() - {b for _, b in pairs}:
            yield Entry(kind, "added", name, f"{kind} added{place}: {name} ({_type(others[name])})")
        for a, b in pairs:
            had, has = _type(infos[a]), _type(others[b])
            if had != has:
                yield Entry(kind, "changed", a, f"{kind} {a}{place} is {has} instead of {had}")

    def _of_node(self, node: Node, partner: Node) -> Iterator[Entry]:
        place = str(node.where())
        if (node.op, node.domain) != (partner.op, partner.domain):
            now = f"{partner.domain}::{partner.op}" if partner.domain else partner.op
            yield Entry("node", "changed", place, f"{place}: is {now} now")
        had, has = _attributes(node), _attributes(partner)
        for name in sorted(had.keys() | has.keys()):
            if not _equal(had.get(name), has.get(name)):
                text = f"{place}: attribute {name} is {_words(has.get(name))} instead of {_words(had.get(name))}"
                yield Entry("attribute", "changed", place, text)
        for name in node.bodies.keys() ^ partner.bodies.keys():
            yield Entry("attribute", "changed", place, f"{place}: only one of them has the body {name}")
        if [bool(o) for o in node.outputs] != [bool(o) for o in partner.outputs]:
            text = f"{place}: its outputs are {_listed(partner.outputs)} instead of {_listed(node.outputs)}"
            yield Entry("edge", "changed", place, text)
        reads, reads_b = _trimmed(node.inputs), _trimmed(partner.inputs)
        for i in range(max(len(reads), len(reads_b))):
            a, b = (names[i] if i < len(names) else "" for names in (reads, reads_b))
            if not self._reads_same(node, a, partner, b):
                text = f"{place}: input {i} is {self._value(partner.graph, b)} instead of {self._value(node.graph, a)}"
                yield Entry("edge", "changed", place, text)

    def _reads_same(self, node: Node, a: str, partner: Node, b: str) -> bool:
        if not a or not b:
            return a == b
        home, away = node.graph.scope_of(a), partner.graph.scope_of(b)
        if home is None or away is None:
            return home is away and a == b
        return self.values.get((home, a)) == (away, b)

    def _outputs_read(self, one: Graph, other: Graph) -> Iterator[Entry]:
        """Outputs that are another value now."""
        for a, b in ports(one, other, "output"):
            home, away = one.scope_of(a), other.scope_of(b)
            if home is None or away is None or self.values.get((home, a)) == (away, b):
                continue
            text = f"output {a} comes from {self._value(other, b)} instead of {self._value(one, a)}"
            yield Entry("output", "changed", a, text)

    def _weights(self, one: Graph, other: Graph) -> Iterator[Entry]:
        pairs = {a: self.values[(one, a)] for a in one.initializers if (one, a) in self.values}
        rest = [b for b in other.initializers if (other, b) not in self.back]
        spare = {a for a in one.initializers if a not in pairs}
        for a in sorted(spare):  # nobody paired reads it: by name, then by content
            content = [b for b in rest if self._arrays.digest(other, b) == self._arrays.digest(one, a)]
            partner = a if a in rest else content[0] if content and one.unused(a) and other.unused(content[0]) else ""
            if partner and self._match(((one, a), (other, partner))):
                rest.remove(partner)
                pairs[a] = (other, partner)
        for a in one.initializers:
            if a not in pairs:
                yield Entry("initializer", "removed", a, f"initializer removed: {_tensor(one.initializers[a])}")
            elif text := self._arrays.differ(one, a, *pairs[a]):
                yield Entry("initializer", "changed", a, f"initializer {a}: {text}")
        for b in rest:
            yield Entry("initializer", "added", b, f"initializer added: {_tensor(other.initializers[b])}")

    def _value(self, graph: Graph, name: str) -> str:
        if not name:
            return "left out"
        home = graph.scope_of(name)
        maker = home.producers.get(name) if home else None
        if maker is not None:
            return f"{name} (of {maker.op}{f' {maker.name}' if maker.name else ''})"
        if home is not None and name in home.initializers:
            return f"the initializer {_tensor(home.initializers[name])}"
        return f"the input {name}" if home else f"{name} (of nothing)"

    def interface(self) -> list[Entry]:
        """Inputs and outputs of the model with another name, or in another order."""
        entries = []
        for kind in ("input", "output"):
            mine, theirs = _names(self.one, kind), _names(self.other, kind)
            if sorted(mine) == sorted(theirs) and mine != theirs:
                text = f"the {kind}s come in another order: {_listed(theirs)} instead of {_listed(mine)}"
                entries.append(Entry(kind, "changed", "", text))
            for a, b in ports(self.one, self.other, kind):
                if a != b:
                    entries.append(Entry(kind, "changed", a, f"{kind} {a} is called {b}"))
        return entries

    def remarks(self) -> list[str]:
        """What differs without being a difference. For models that are the same."""
        renamed = sum(1 for (g, a), (_, b) in self.values.items() if a != b and not (g.is_output(a) or g.is_input(a)))
        nodes = sum(1 for a, b in self.nodes.items() if a.name != b.name)
        order = [self.nodes[n].index for n in self.one.nodes() if n in self.nodes]
        found = []
        if renamed:
            found.append(f"{renamed} values have other names")
        if nodes:
            found.append(f"{nodes} nodes have other names")
        if order != sorted(order):
            found.append("the nodes stand in another order")
        return found


class _Contents:
    """Constants by their values: digests are kept, arrays are not."""

    def __init__(self) -> None:
        self._digests: dict[Value, str] = {}

    def digest(self, graph: Graph, name: str) -> str:
        key = (graph, name)
        if key not in self._digests:
            tensor = graph.initializers[name]
            array = graph.model.array(tensor)
            head = f"{tensor.data_type} {list(tensor.dims)} "
            self._digests[key] = hashlib.sha256(head.encode() + _raw(array)).hexdigest()
        return self._digests[key]

    def differ(self, one: Graph, a: str, other: Graph, b: str) -> str:
        """How two initializers differ, "" when they don't. The same bytes of the same file are not read."""
        mine, theirs = one.initializers[a], other.initializers[b]
        if (mine.data_type, list(mine.dims)) != (theirs.data_type, list(theirs.dims)):
            return f"is {_kind(theirs)} instead of {_kind(mine)}"
        if _place(one.model, mine) == _place(other.model, theirs) != ():
            return ""
        if self.digest(one, a) == self.digest(other, b):
            return ""
        return _compared(one.model.array(mine), other.model.array(theirs))


def _place(model: Model, tensor: TensorProto) -> tuple[str, ...]:
    if not is_external(tensor):
        return ()
    file = (model.directory / external_field(tensor, "location")).resolve()
    return (str(file), external_field(tensor, "offset") or "0", external_field(tensor, "length"))


def _raw(array: np.ndarray) -> bytes:
    return repr(array.tolist()).encode() if array.dtype == object else array.tobytes()


def _compared(mine: np.ndarray, theirs: np.ndarray) -> str:
    if mine.dtype.kind not in "biuf":
        return f"other values of {mine.size}"
    differ = ~((mine == theirs) | ((mine != mine) & (theirs != theirs)))
    count = int(differ.sum())
    if not count:
        return f"other bits for the same values, among {mine.size}"
    gap = np.abs(mine[differ].astype(np.float64) - theirs[differ].astype(np.float64))
    if mine.size <= SHOWN:
        return f"is {theirs.tolist()} instead of {mine.tolist()}"
    return f"{count} of {mine.size} values differ, by up to {float(gap.max()):.3g}"


# ---- words ----


def _header(one: Model, other: Model) -> Iterator[Entry]:
    for domain in sorted(one.opsets.keys() | other.opsets.keys()):
        had, has = one.opsets.get(domain), other.opsets.get(domain)
        name = domain or "ai.onnx"
        if had is None:
            yield Entry("opset", "added", name, f"opset {name} {has} is imported")
        elif has is None:
            yield Entry("opset", "removed", name, f"opset {name} {had} is no longer imported")
        elif had != has:
            yield Entry("opset", "changed", name, f"opset {name} is {has} instead of {had}")
    mine, theirs = one.proto.ir_version, other.proto.ir_version
    if mine != theirs:
        yield Entry("metadata", "changed", "ir_version", f"IR version is {theirs} instead of {mine}")
    had_, has_ = ({m.key: m.value for m in m_.proto.metadata_props} for m_ in (one, other))
    for key in sorted(had_.keys() | has_.keys()):
        if key not in has_:
            yield Entry("metadata", "removed", key, f"metadata removed: {key} = {_short(had_[key])}")
        elif key not in had_:
            yield Entry("metadata", "added", key, f"metadata added: {key} = {_short(has_[key])}")
        elif had_[key] != has_[key]:
            text = f"metadata {key} is {_short(has_[key])} instead of {_short(had_[key])}"
            yield Entry("metadata", "changed", key, text)


def _names(graph: Graph, kind: str) -> list[str]:
    """Inputs that are fed, or outputs."""
    if kind == "output":
        return list(graph.output_names)
    return [n for n in graph.input_names if graph.kind != "graph" or graph.is_input(n)]


def ports(one: Graph, other: Graph, kind: str) -> list[tuple[str, str]]:
    """Inputs or outputs paired: a body's and a function's by place; a model's by name, and those left over by place."""
    mine, theirs = _names(one, kind), _names(other, kind)
    if one.kind != "graph":
        return list(zip(mine, theirs, strict=False))
    known = set(theirs) & set(mine)
    rest, rest_b = [n for n in mine if n not in known], [n for n in theirs if n not in known]
    paired = zip(rest, rest_b, strict=True) if len(rest) == len(rest_b) else ()
    return [*((n, n) for n in mine if n in known), *paired]


def _attributes(node: Node) -> dict[str, Any]:
    """Attributes with their values, bodies left out; one that equals the operator's default is as good as none."""
    found: dict[str, Any] = {}
    for attribute in node.proto.attribute:
        if attribute.ref_attr_name:
            found[attribute.name] = f"parameter {attribute.ref_attr_name}"
        elif attribute.name not in node.bodies:
            found[attribute.name] = attribute_value(attribute)
    for name in list(found):
        default = _default(node, name)
        if default is not None and _equal(found[name], default):
            del found[name]
    return found


def _default(node: Node, name: str) -> Any:
    known = schema(node.op, node.domain, node.opset)
    if known is None or name not in known.attributes:
        return None
    default = known.attributes[name].default_value
    return attribute_value(default) if default.type else None


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, TensorProto) and isinstance(other, TensorProto):
        if (one.data_type, list(one.dims)) != (other.data_type, list(other.dims)):
            return False
        if is_external(one) or is_external(other):
            return one.SerializeToString() == other.SerializeToString()
        return _raw(numpy_helper.to_array(one)) == _raw(numpy_helper.to_array(other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and bool(one == other)


def _words(value: Any) -> str:
    if value is None:
        return "left out"
    if isinstance(value, TensorProto):
        words = _kind(value)
        if is_external(value):
            return words
        array = numpy_helper.to_array(value)
        if array.size <= SHOWN:
            return f"{words} {array.tolist()}"
        return f"{words} with digest {hashlib.sha256(_raw(array)).hexdigest()[:12]}"
    if isinstance(value, (onnx.TypeProto, onnx.SparseTensorProto, onnx.GraphProto)):
        return f"{type(value).__name__} with digest {hashlib.sha256(value.SerializeToString()).hexdigest()[:12]}"
    return repr(value) if isinstance(value, str) else str(value)


def _kind(tensor: TensorProto) -> str:
    return f"{TensorProto.DataType.Name(tensor.data_type).lower()}{list(tensor.dims)}"


def _tensor(tensor: TensorProto) -> str:
    return f"{tensor.name} ({_kind(tensor)}, {nbytes(tensor):,} bytes)"


def _type(info: onnx.ValueInfoProto) -> str:
    kind = info.type
    if not kind.HasField("tensor_type"):
        return " ".join(str(kind).split()) or "of no type"
    dims = [
        str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in kind.tensor_type.shape.dim
    ]
    name = TensorProto.DataType.Name(kind.tensor_type.elem_type).lower()
    return f"{name}[{', '.join(dims)}]" if kind.tensor_type.HasField("shape") else f"{name} of any rank"


def _node(node: Node) -> str:
    return f"{node.where()}, reads {_listed(node.inputs)}"


def _sparse(one: Graph, other: Graph) -> Iterator[Entry]:
    if one.kind == "function":
        return
    had = {s.values.name: s.SerializeToString() for s in one.proto.sparse_initializer}
    has = {s.values.name: s.SerializeToString() for s in other.proto.sparse_initializer}
    for name in sorted(had.keys() | has.keys()):
        if had.get(name) != has.get(name):
            yield Entry("initializer", "changed", name, f"sparse initializer {name} differs")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(n or "(none)" for n in names) or "nothing"


def _trimmed(names: list[str]) -> list[str]:
    while names and not names[-1]:
        names = names[:-1]
    return names


def _function(key: tuple[str, str]) -> str:
    return f"{key[0]}::{key[1]}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

