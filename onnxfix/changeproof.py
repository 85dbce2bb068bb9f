"""Each Change proved on its own: what it took away against what it put there, on the original's real activations.

A `Recorder` watches the engine and keeps, for each Change, the nodes before and after, the values both read, and its
*claims*: this value before is that value after. `prove` then runs the original once, with the values that the Changes
read as additional outputs, and all the small graphs before and after side by side in one session that computes what
they say and nothing else. So the cost is a run of the original plus twice that of the nodes that were rewritten.

A value that the original has is taken from the original, also where an earlier Change makes it now: a wrong Change
can't make a later one look wrong. Only values that earlier Changes brought in are taken from what these made.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxfix.backends import BackendError, feeds, version
from onnxfix.backends.compare import Compared, compare
from onnxfix.errors import ModelError, UnavailableError
from onnxfix.graph import Edit, Graph, Node
from onnxfix.model import Model
from onnxfix.prove import TOLERANCES
from onnxfix.report import Change, Check, Safety, Status

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
SEEDS = (1, 0, 2, 3, 4, 5)  # the first draws from [-1, 1]: both signs
SMALL_BYTES = 16 << 20  # up to which estimate all seeds are used; above it the first alone
BATCH_BYTES = 512 << 20  # of values held at a time
UNKNOWN_BYTES = 1 << 20  # what a value of unknown shape is taken to need

_NAMES = TensorProto.DataType.Name


@dataclass
class _Side:
    """One side of a Change: nodes of the main graph, in order, and what they need."""

    nodes: list[NodeProto]
    opsets: dict[str, int]
    functions: tuple[FunctionProto, ...] = ()
    constants: dict[str, TensorProto] = field(default_factory=dict)  # stored tensors, by reference
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)  # of the values it reads, where they are known
    made: frozenset[str] = frozenset()

    def reads(self) -> list[str]:
        """What it takes from outside: neither made here nor constant."""
        names = dict.fromkeys(n for node in self.nodes for n in _reads(node))
        return [n for n in names if n not in self.made and n not in self.constants]

    def environment(self) -> tuple[Any, ...]:
        """Sides that agree in this can be nodes of one model."""
        return (self.opsets.get("", 0), *map(id, self.functions))


@dataclass
class _Recorded:
    """A Change as it was made."""

    change: Change
    before: _Side
    after: _Side
    claims: list[tuple[str, str]]  # (value before, value after) that must be the same
    stored: dict[str, TensorProto] = field(default_factory=dict)  # of the values in claims, those that are constants
    nbytes: int = 0  # estimate of the values it reads and makes


@dataclass(frozen=True)
class Proof:
    """What is known of one Change. Errors are relative to the largest magnitude of the value before."""

    change: Change
    verdict: str  # "equal", "within", "differs", "not run", or "lossy": measured, with nothing to judge it by
    detail: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    value: str = ""  # the value with the largest error

    def figures(self) -> dict[str, Any]:
        return {
            "change": self.change.id,
            "rule": self.change.rule,
            "where": str(self.change.where),
            "verdict": self.verdict,
            "value": self.value,
            "max_abs": self.max_abs,
            "max_rel": self.max_rel,
            "detail": self.detail,
        }


# ---- recording ----


class Recorder:
    """Watches the engine (`engine.Observer`). Cost for each change: a copy of the nodes it touched."""

    def __init__(self) -> None:
        self.recorded: list[_Recorded] = []
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

    def _record(self, change: Change, edit: Edit) -> _Recorded:
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
        return _Recorded(change, before, after, claims, stored, nbytes=_estimate(main, before, after))

    def _side(self, main: Graph, nodes: list[NodeProto], opsets: dict[str, int]) -> _Side:
        side = _Side(_ordered(nodes), opsets, self._called(main, nodes))
        side.made = frozenset(o for n in side.nodes for o in n.output if o)
        for name in side.reads():
            if main.is_const(name):
                side.constants[name] = _stored(main, name)
            elif (kind := main.type_of(name)) is not None:
                side.types[name] = kind
        return side

    # ---- functions ----

    def _called(self, main: Graph, nodes: Iterable[NodeProto]) -> tuple[FunctionProto, ...]:
        """The functions these nodes call, and those that these call."""
        found: dict[tuple[str, str], FunctionProto] = {}
        waiting = [c for n in nodes for c in _calls(n)] if main.functions else []
        while waiting:
            key = waiting.pop()
            if key in main.functions and key not in found:
                found[key] = self._function(main.functions[key])
                waiting += [c for n in found[key].node for c in _calls(n)]
        return tuple(found[key] for key in sorted(found))

    def _function(self, scope: Graph) -> FunctionProto:
        """A function as it is now; the same object until a change is made inside it."""
        key = (scope.proto.domain, scope.proto.name)
        if key not in self._functions:
            self._functions[key] = _with_nodes(scope, FunctionProto())
        return self._functions[key]

    def _in_function(self, change: Change, main: Graph, scope: Graph) -> _Recorded:
        """A change inside a function is proved at a call of the function in the main graph."""
        key = (scope.proto.domain, scope.proto.name)
        calls = {k: {c for n in f.nodes() for c in _calls(snapshot(n))} for k, f in main.functions.items()}
        leading = {("" if key[0] == "ai.onnx" else key[0], key[1])}  # functions that lead to this one
        while more := {k for k, called in calls.items() if called & leading} - leading:
            leading |= more
        call = next((n for n in main.nodes() if leading.intersection(_calls(snapshot(n)))), None)
        opsets = dict(main.model.opsets)
        if call is None:  # all its calls were replaced by its body before
            self._functions.pop(key, None)
            return _Recorded(change, _Side([], opsets), _Side([], opsets), [])
        before = self._side(main, [snapshot(call)], opsets)
        self._functions.pop(key, None)
        after = self._side(main, [snapshot(call)], opsets)
        claims = [(o, o) for o in call.outputs if o]
        return _Recorded(change, before, after, claims, nbytes=_estimate(main, before, after))


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
    protos = _ordered([snapshot(n, undo) for n in nodes])
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


def _claims(main: Graph, edit: Edit, region: set[Node], before: _Side, after: _Side) -> list[tuple[str, str]]:
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


def _estimate(main: Graph, before: _Side, after: _Side) -> int:
    """Bytes of the values a change reads and makes, from what is known of their shapes."""
    total = 0
    for name in {*before.types, *after.types, *before.made, *after.made}:
        shape = main.shape(name)
        known = shape is not None and all(isinstance(d, int) for d in shape)
        total += math.prod(d for d in shape or () if isinstance(d, int)) * 4 if known else UNKNOWN_BYTES
    return total


def _reads(node: NodeProto) -> Iterator[str]:
    """The values a node reads, those that its bodies take from outside included."""
    yield from (n for n in node.input if n)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graph: Any = attribute.g
            own = {v.name for v in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output}
            inner = (name for n in graph.node for name in _reads(n))
            yield from (n for n in (*inner, *(o.name for o in graph.output)) if n not in own)


def _calls(node: NodeProto) -> Iterator[tuple[str, str]]:
    yield ("" if node.domain == "ai.onnx" else node.domain), node.op_type
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.type == AttributeProto.GRAPH else ():
            yield from _calls(inner)


def _ordered(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Nodes with each after those it reads from."""
    makers = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    needs = [{makers[r] for r in _reads(n) if r in makers} - {i} for i, n in enumerate(nodes)]
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


# ---- proving ----


def prove(
    original: Callable[[], Model],
    recorder: Recorder,
    *,
    inputs: Path | None = None,
    frozen: Mapping[str, Any] | None = None,
    tolerances: Mapping[str, float] | None = None,
    seconds: float = 300.0,
) -> list[Proof]:
    """Judge every recorded Change, in order.

    `original` gives the model that the rules saw, in memory of its own. `inputs` is an .npz or a Polygraphy .json;
    without it inputs are drawn. The tolerances are the parity's: by grade, as `tolerances` states or its own. After
    `seconds` what has not been looked at is "not run".

    Raises RequestError when `inputs` is no usable file.
    """
    if not recorder.recorded:
        return []
    try:
        proving = _Proving(original(), recorder.recorded, inputs, frozen or {}, tolerances or {}, seconds)
        return proving.all()
    except (BackendError, UnavailableError, ModelError) as error:
        return [Proof(r.change, "not run", str(error)) for r in recorder.recorded]


class _Proving:
    def __init__(
        self,
        model: Model,
        recorded: Sequence[_Recorded],
        inputs: Path | None,
        frozen: Mapping[str, Any],
        tolerances: Mapping[str, float],
        seconds: float,
    ) -> None:
        self.model = model
        self.recorded = recorded
        self.inputs = inputs
        self.frozen = frozen
        self.tolerances = tolerances
        self.deadline = time.monotonic() + seconds
        self.constants = {t.name: t for t in model.proto.graph.initializer}
        self.original = {o for n in model.proto.graph.node for o in n.output if o}
        self.original.update(v.name for v in model.proto.graph.input)
        self.data = model.proto.SerializeToString()
        self.samples: list[feeds.Feeds] = []
        self.loads = False  # whether ONNX Runtime is known to load the original
        self.slow = False  # by the reference evaluator, where ONNX Runtime lacks an operator
        self.makers = self._makers()
        self.made: dict[tuple[int, str, int], Any] = {}  # (change, value, sample) that a later batch reads
        self.proofs: dict[int, Proof] = {}

    def _makers(self) -> list[dict[str, int]]:
        """For each change the earlier changes that make what it reads and the original has not."""
        latest: dict[str, int] = {}
        result = []
        as_it_was = set(self.original)  # values that still mean what they do in the original
        for position, record in enumerate(self.recorded):
            names = {*record.before.reads(), *record.after.reads(), *(n for c in record.claims for n in c)}
            result.append({n: latest[n] for n in names if n in latest and n not in as_it_was})
            latest.update((n, position) for n in record.after.made)
            as_it_was -= record.after.made.difference(new for old, new in record.claims if old == new)
        return result

    def all(self) -> list[Proof]:
        batch: list[int] = []
        held = 0
        for position, record in enumerate(self.recorded):
            if why := self._unprovable(position, record):
                self.proofs[position] = Proof(record.change, "not run", why)
                continue
            if batch and held + record.nbytes > BATCH_BYTES:
                self._prove(batch)
                batch, held = [], 0
            batch.append(position)
            held += record.nbytes
        if batch:
            self._prove(batch)
        return [self.proofs[p] for p in range(len(self.recorded))]

    def _unprovable(self, position: int, record: _Recorded) -> str:
        nodes = (*record.before.nodes, *record.after.nodes)
        drawn = [op for n in nodes for _, op in _calls(n) if op in RANDOM]
        if drawn:
            return f"{drawn[0]} draws other numbers on every run"
        for side in (record.before, record.after):
            for name in side.reads():
                if name not in self.original and name not in self.makers[position] and name not in self.constants:
                    return f"'{name}', which it reads, is no value of the original"
        return ""

    def session(self, model: bytes, *, exact: bool) -> Any:
        from onnxfix.backends import ort, reference

        return reference.Session(model) if self.slow else ort.Session(model, self.model.directory, exact=exact)

    # ---- a batch ----

    def _prove(self, batch: list[int]) -> None:
        """Prove these changes; where they fail to run together, in halves, to find the one at fault."""
        if time.monotonic() > self.deadline:
            for p in batch:
                self.proofs[p] = Proof(self.recorded[p].change, "not run", "the time for proofs was over")
            return
        try:
            compared = self._run(batch)
        except BackendError as error:
            if self._takes_the_slow_way():
                self._prove(batch)
                return
            if len(batch) == 1:
                self.proofs[batch[0]] = self._alone(batch[0], error)
                return
            middle = len(batch) // 2
            self._prove(batch[:middle])
            self._prove(batch[middle:])
            return
        for p in batch:
            self.proofs[p] = self._judge(self.recorded[p], compared[p])

    def _takes_the_slow_way(self) -> bool:
        """Whether ONNX Runtime lacks an operator of the original, which is found out now, and only once.

        Raises BackendError where it can't run the original for another reason.
        """
        from onnxfix.backends.ort import UnsupportedError

        if self.loads:
            return False
        self.loads = True
        try:
            self.session(self.data, exact=False)
        except UnsupportedError:
            self.slow = True
        return self.slow

    def _alone(self, position: int, error: BackendError) -> Proof:
        """Why a change can't be run: no fault of its own unless what was there before it does run."""
        from onnxfix.backends.ort import UnsupportedError

        record = self.recorded[position]
        if isinstance(error, UnsupportedError) and not self.slow:
            self.slow = True
            try:
                return self._judge(record, self._run([position])[position])
            except BackendError as second:
                return Proof(record.change, "not run", f"ONNX Runtime: {error}; {second}")
            finally:
                self.slow = False
        try:
            self._run([position], sides="b")
        except BackendError as first:
            return Proof(record.change, "not run", str(first))
        return Proof(record.change, "differs", f"what it put there does not run: {error}", math.inf, math.inf)

    def _run(self, batch: list[int], sides: str = "ba") -> dict[int, list[tuple[str, Compared]]]:
        """Compare the claims of these changes, on every sample."""
        parts = [_Part(self, p, s) for p in batch for s in sides]
        wanted = {name for part in parts for name in part.captured()}
        later = {(m, n) for p in range(batch[-1] + 1, len(self.recorded)) for n, m in self.makers[p].items()}
        models = _combined(self, parts, later)
        compared: dict[int, list[tuple[str, Compared]]] = {p: [] for p in batch}
        sessions: dict[tuple[Any, ...], Any] = {}
        for number, values in enumerate(self._captured(sorted(wanted))):
            made: dict[str, Any] = {}
            for index, model in enumerate(models):
                fed = model.feeds(values, made, self, number)
                key = (index, *_shapes(fed))
                if key not in sessions:
                    sessions[key] = self.session(model.data(fed), exact=True)
                made.update(sessions[key].run(fed, model.outputs))
            for p in batch:
                self._keep(p, later, made, number)
                if sides == "ba":
                    compared[p] += self._compare(p, values, made, number)
        return compared

    def _keep(self, position: int, later: set[tuple[int, str]], made: Mapping[str, Any], number: int) -> None:
        for maker, name in later:
            if maker == position and f"a{position}/{name}" in made:
                self.made[position, name, number] = made[f"a{position}/{name}"]

    def _compare(
        self, position: int, values: Mapping[str, Any], made: Mapping[str, Any], number: int
    ) -> Iterator[tuple[str, Compared]]:
        record = self.recorded[position]
        for old, new in record.claims:
            one = self._value(position, "b", old, values, made, number)
            other = self._value(position, "a", new, values, made, number)
            if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
                for a, b in zip(one, other, strict=True):
                    yield old, _compare(old, a, b, self._allowed(record.change.safety, a))
            else:
                yield old, _compare(old, one, other, self._allowed(record.change.safety, one))

    def _value(
        self, position: int, side: str, name: str, values: Mapping[str, Any], made: Mapping[str, Any], number: int
    ) -> Any:
        """A value as one side of a change has it."""
        record = self.recorded[position]
        part = record.before if side == "b" else record.after
        if name in part.made:
            return made[f"{side}{position}/{name}"]
        if name in record.stored:
            return self.model.array(record.stored[name])
        maker = self.makers[position].get(name)
        if maker is not None:
            key = f"a{maker}/{name}"
            return made[key] if key in made else self.made[maker, name, number]
        return values[name]

    def _allowed(self, safety: Safety, reference: Any) -> float:
        own = TOLERANCES.get(safety, math.inf)
        stated = self.tolerances.get(safety.value, own)
        half = isinstance(reference, np.ndarray) and reference.dtype == np.float16
        if half and safety is Safety.CLOSE and stated == own:
            return float(np.finfo(np.float16).eps)  # one unit in the last place
        return stated

    def _judge(self, record: _Recorded, compared: Sequence[tuple[str, Compared]]) -> Proof:
        change = record.change
        if not record.claims:
            return Proof(change, "equal", "no value that is used depends on it")
        if not compared:
            return Proof(change, "not run", "the original ran on no input tried")
        for name, c in compared:
            if c.verdict == "kind":
                return Proof(change, "not run", f"'{name}' is no tensor")
            if c.verdict in ("shape", "finite"):
                return Proof(change, "differs", f"'{name}': {c.note}", math.inf, math.inf, name)
        name, worst = max(compared, key=lambda pair: (pair[1].verdict == "beyond", pair[1].relative))
        size = f"{worst.relative:.3g} of its largest magnitude {worst.magnitude:.3g}"
        error = f"'{name}' differs by {worst.max_abs:.3g}, {size}"
        if worst.verdict == "equal":
            return Proof(change, "equal", "equal, bit for bit")
        verdict = "within" if worst.verdict == "within" else "differs"
        if change.safety is Safety.LOSSY and Safety.LOSSY.value not in self.tolerances:
            verdict = "lossy"
        return Proof(change, verdict, error, worst.max_abs, worst.relative, name)

    # ---- activations ----

    def _captured(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """For each sample: the constants and the values of the original that were asked for."""
        stored = {n: self.model.array(self.constants[n]) for n in names if n in self.constants}
        wanted = [n for n in names if n not in stored]
        proto = self.model.proto
        present = {v.name for v in proto.graph.output}
        given = {v.name for v in proto.graph.input}
        extra = GraphProto(output=[ValueInfoProto(name=n) for n in wanted if n not in present | given])
        # Two messages one after the other are one message with the lists of both.
        session = self.session(self.data + onnx.ModelProto(graph=extra).SerializeToString(), exact=False)
        computed = [n for n in wanted if n not in given] or sorted(present - given)[:1]
        for sample in list(self._samples(session, computed)):
            try:
                values = session.run(sample, computed)
            except BackendError:
                if len(self.samples) == 1:
                    raise
                # An index out of range, perhaps: one that the original does not take proves nothing.
                self.samples = [s for s in self.samples if s is not sample]
                continue
            yield {**sample, **stored, **values}

    def _samples(self, session: Any, computed: Sequence[str]) -> Iterator[feeds.Feeds]:
        if not self.samples:
            fed = [t for t in session.inputs if t.name not in self.frozen]
            taken = {t.name for t in session.inputs}
            frozen = {n: v for n, v in self.frozen.items() if n in taken}
            if self.inputs is not None:
                found = feeds.read(self.inputs, fed)
            elif reason := feeds.unfillable(fed):
                raise BackendError(f"{reason}: give inputs with --inputs")
            else:
                found = self._drawn(session, fed, frozen, computed)
            self.samples = [{**s, **frozen} for s in found]
        yield from self.samples

    def _drawn(
        self, session: Any, fed: Sequence[feeds.Tensor], frozen: Mapping[str, Any], computed: Sequence[str]
    ) -> list[feeds.Feeds]:
        """Seeded inputs at the first size at which the original runs. Without dynamic axes nothing has to be tried."""
        tries = list(feeds.sizes(feeds.axes(fed), {}))
        seeds = SEEDS if sum(r.nbytes for r in self.recorded) <= SMALL_BYTES else SEEDS[:1]
        reason = ""
        for chosen in tries:
            if feeds.too_large(fed, chosen):
                continue
            ways: list[feeds.Draw] = []
            draws = list(feeds.draws(fed, chosen))
            for draw in draws:
                try:
                    # Where there is but one thing to try, the run itself will tell.
                    if not len(tries) == len(draws) == len(seeds) == 1:
                        session.run({**feeds.seeded(fed, draw, SEEDS[0]), **frozen}, computed)
                    ways.append(draw)
                except BackendError as error:
                    reason = reason or str(error)
                if ways and len(seeds) == 1:
                    break
            if ways:  # several are taken in turn, to see more of the model's branches
                return [feeds.seeded(fed, ways[i % len(ways)], seed) for i, seed in enumerate(seeds)]
            if time.monotonic() > self.deadline:
                break
        raise BackendError(f"the original runs on no input tried: {reason}; give some with --inputs")


def _compare(name: str, before: Any, after: Any, tolerance: float) -> Compared:
    """As the parity's `compare`, which takes some ten times as long over values that agree."""
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray) or before.shape != after.shape:
        return compare(name, before, after, tolerance)
    if np.array_equal(before, after):
        return Compared("equal", before.size, before.size)
    if before.dtype.kind == after.dtype.kind == "f":
        reference = before.astype(np.float64)
        with np.errstate(all="ignore"):
            error, magnitude = float(np.abs(reference - after).max()), float(np.abs(reference).max())
        if error <= tolerance * magnitude < math.inf:  # false where NaN or infinity take part
            return Compared("within", before.size, before.size, error, magnitude)
    return compare(name, before, after, tolerance)


# ---- many small graphs in one model ----


class _Part:
    """One side of one change, as part of a model that holds many."""

    def __init__(self, proving: _Proving, position: int, side: str) -> None:
        self.record = proving.recorded[position]
        self.position = position
        self.label = f"{side}{position}"
        self.side = self.record.before if side == "b" else self.record.after
        self.makers = proving.makers[position]
        self.claimed = [c[side == "a"] for c in self.record.claims]

    def captured(self) -> Iterator[str]:
        """What it needs of the original."""
        for name in (*self.side.reads(), *self.claimed):
            if name not in self.side.made and name not in self.makers and name not in self.record.stored:
                yield name


@dataclass
class _Model:
    """Parts that run together. `given` are its inputs: name -> (value, the change that made it or None, its type)."""

    proto: onnx.ModelProto
    given: dict[str, tuple[str, int | None, onnx.TypeProto | None]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def data(self, fed: Mapping[str, Any]) -> bytes:
        """The model with its inputs declared as what it is fed."""
        del self.proto.graph.input[:]
        for name, value in fed.items():
            info = self.proto.graph.input.add(name=name)
            kind = self.given[name][2]
            if isinstance(value, np.ndarray):
                dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
                info.type.CopyFrom(helper.make_tensor_type_proto(dtype, value.shape))
            elif kind is not None and kind.HasField("sequence_type"):
                element = helper.make_tensor_type_proto(kind.sequence_type.elem_type.tensor_type.elem_type, None)
                info.type.CopyFrom(helper.make_sequence_type_proto(element))
            else:
                raise BackendError(f"'{self.given[name][0]}' is no tensor")
        return bytes(self.proto.SerializeToString())

    def feeds(
        self, values: Mapping[str, Any], made: Mapping[str, Any], proving: _Proving, number: int
    ) -> dict[str, Any]:
        """What it reads, for this sample: of the original, made by this batch, or kept from an earlier one."""
        result = {}
        for name, (value, maker, kind) in self.given.items():
            if maker is None:
                array = values[value]
            else:
                key = f"a{maker}/{value}"
                array = made[key] if key in made else proving.made.get((maker, value, number))
                if array is None:
                    source = proving.recorded[maker].change.id
                    raise BackendError(f"'{value}' comes from change {source}, which did not run")
            dtype = kind.tensor_type.elem_type if kind is not None else 0
            if dtype and isinstance(array, np.ndarray) and array.dtype != object:
                # An earlier change may have widened it.
                array = feeds.cast(array, helper.tensor_dtype_to_np_dtype(dtype))
            result[name] = array
        return result


def _shapes(fed: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(getattr(value, "shape", None) for value in fed.values())


def _combined(proving: _Proving, parts: Sequence[_Part], later: set[tuple[int, str]]) -> list[_Model]:
    """One model for all parts that can share one; parts of another opset, or of other functions, get their own.

    A new model begins where the environment changes, so that what a part reads of an earlier change is made before it.
    """
    models: list[_Model] = []
    homes: dict[str, int] = {}
    current: tuple[Any, ...] = ()
    for part in parts:
        if not models or part.side.environment() != current:
            current = part.side.environment()
            models.append(_Model(_empty(proving, part.side)))
        homes[part.label] = len(models) - 1
        _put(models, homes, part)
    exported = {f"{p.label}/{n}" for p in parts for n in p.claimed if n in p.side.made}
    exported |= {f"a{maker}/{name}" for maker, name in later}
    exported |= {f"a{maker}/{value}" for m in models for value, maker, _ in m.given.values() if maker is not None}
    # A claim may name a value of an earlier change that this one does not make itself.
    exported |= {f"a{p.makers[n]}/{n}" for p in parts for n in p.claimed if n in p.makers and n not in p.side.made}
    for model in models:
        made = [o for n in model.proto.graph.node for o in n.output if o in exported]
        model.outputs = made
        model.proto.graph.output.extend(ValueInfoProto(name=n) for n in made)
    return [m for m in models if m.outputs]


def _empty(proving: _Proving, side: _Side) -> onnx.ModelProto:
    opsets = [helper.make_opsetid(d, v) for d, v in sorted(side.opsets.items())]
    proto = helper.make_model(GraphProto(name="changes"), opset_imports=opsets, functions=list(side.functions))
    proto.ir_version = max(8, proving.model.proto.ir_version)
    return proto


def _put(models: list[_Model], homes: Mapping[str, int], part: _Part) -> None:
    model = models[-1]
    graph = model.proto.graph
    names = {n: f"{part.label}/{n}" for n in part.side.made}
    imported = {o.domain for o in model.proto.opset_import}
    model.proto.opset_import.extend(
        helper.make_opsetid(d, v) for d, v in part.side.opsets.items() if d not in imported
    )
    stored = {t.name for t in graph.initializer}
    for name, tensor in part.side.constants.items():
        names[name] = f"{part.label}/{name}"
        if names[name] not in stored:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = names[name]
    for name in part.side.reads():
        maker = part.makers.get(name)
        kind = part.side.types.get(name)
        if maker is not None and homes.get(f"a{maker}") == len(models) - 1:
            names[name] = f"a{maker}/{name}"
            continue
        origin = "" if maker is None else f"a{maker}/"
        names[name] = f"given/{origin}{name}:{kind.tensor_type.elem_type if kind is not None else 0}"
        model.given[names[name]] = (name, maker, kind)
    for node in part.side.nodes:
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{part.label}/{node.name}" if node.name else ""
        _rename(copy, names, part.label)


def _rename(node: NodeProto, names: Mapping[str, str], label: str) -> None:
    """Rename values in a node and in its bodies; what a body defines itself is put under the label."""
    for values in (node.input, node.output):
        for i, name in enumerate(values):
            if name in names:
                values[i] = names[name]
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graph: Any = attribute.g
            own = {v.name for v in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output if o}
            inner = {**names, **{name: f"{label}/{name}" for name in own}}
            for body_node in graph.node:
                _rename(body_node, inner, label)
            for value in (*graph.input, *graph.initializer, *graph.output):
                value.name = inner.get(value.name, value.name)


# ---- the check ----


def check(proofs: Sequence[Proof], undone: Sequence[Proof] = ()) -> Check:
    """The proofs as a Check called `changes`: passed when every change that stayed was proved on its own."""
    by = f"onnxruntime {version('onnxruntime')}"
    figures = {"changes": [p.figures() for p in proofs], "undone": [p.figures() for p in undone]}
    wrong = [p for p in proofs if p.verdict == "differs"]
    missing = [p for p in proofs if p.verdict == "not run"]
    took_back = f"; undone: {_listed(undone, numbers=False)}" if undone else ""
    if wrong:
        detail = f"{_listed(wrong)}{took_back}"
        return Check("changes", Status.FAILED, by, detail, figures)
    if missing:
        detail = f"{len(proofs) - len(missing)} of {len(proofs)} changes proved; not {_listed(missing)}{took_back}"
        return Check("changes", Status.NOT_RUN, by, detail, figures)
    equal = sum(p.verdict == "equal" for p in proofs)
    changes = "1 change" if len(proofs) == 1 else f"{len(proofs)} changes"
    detail = f"{changes} proved one by one, {equal} bit for bit" if proofs else "no change to prove"
    return Check("changes", Status.PASSED, by, f"{detail}{took_back}", figures)


def _listed(proofs: Sequence[Proof], numbers: bool = True) -> str:
    first = proofs[0]
    # What was undone has no number in the report.
    what = f"change {first.change.id} ({first.change.rule} at {first.change.where})"
    more = f" and {len(proofs) - 1} more" if len(proofs) > 1 else ""
    return f"{what if numbers else f'{first.change.rule} at {first.change.where}'}: {first.detail}{more}"
