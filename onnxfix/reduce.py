"""The smallest model that still fails the same way: delta debugging over nodes, then shapes, then weights.

A trial is a cut: some of the nodes, wherever they stand. What they read and nobody of them makes becomes a graph input
of the type it has in the whole model (a constant where its value is known); what nobody of them reads becomes an
output. Nodes of a body whose owner is left out move to the main graph; those that stay in a body read what was cut as
captured values. So one mechanism covers plain graphs, bodies, omitted inputs and missing value_info.

Trials run in long-lived children with time and memory limits (`onnxfix.backends.trt`, `onnxfix.trial`), where a crash
or a hang is one more way to fail. What the first trial blames is tried alone first, then with more and more of its
neighbourhood; without a culprit the search halves the node list from both ends. Every result was seen to fail.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from onnxfix import __version__, catalog, prove, shapes
from onnxfix.backends import BackendError, trt, version
from onnxfix.build import BuildOptions
from onnxfix.errors import ModelError, RequestError, UnavailableError
from onnxfix.graph import FROM_KEY, RULE_KEY, Graph, Node
from onnxfix.model import PROTOBUF_LIMIT, Model, is_external, load, nbytes, one_line, write_atomic
from onnxfix.report import Status, Where
from onnxfix.trial import Worker

KINDS = ("parse", "build", "parity", "ort")
TRIALS = 400  # at most
SHAPE_TRIALS = 24
SMALL = 64  # elements up to which a weight is shown, and may be left as it is
INLINE_LIMIT = 1 << 30  # bytes of weights a trial may hold

Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class Failure:
    """One way a model fails. Two are the same when all but the place are, names and sizes in the reason included."""

    kind: str  # refused, build, load, run, differs, crash, hang or memory
    reason: str
    op: str = ""  # "" where no node is known
    code: str = ""  # the parser's own code
    where: Where | None = None

    def same(self, other: Failure) -> bool:
        one, two = ((f.kind, f.op, f.code, _essence(f)) for f in (self, other))
        return one == two

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where and self.where.op else ""
        return f"{place}{self.reason}"


Judge = Callable[[Path], "list[Failure]"]  # what is wrong with the model at a path; empty when nothing is


@dataclass(frozen=True)
class Reduced:
    """What was found, and how the reader can see it fail."""

    model: str
    output: str
    fails: str
    failure: Failure
    by: str
    nodes_before: int
    nodes: int
    bytes_before: int
    bytes: int
    trials: int
    seconds: float
    command: str  # shows the failure of the output
    text: str  # the output in ONNX's textual syntax
    notes: tuple[str, ...] = ()
    issue: str = ""  # the Markdown written beside the output


def _essence(failure: Failure) -> str:
    """A reason without what every run and every cut has otherwise."""
    if failure.kind in ("crash", "hang", "memory", "differs"):
        return ""
    text = re.sub(r"0x[0-9a-fA-F]+|\b\d+(\.\d+)? ?(s|ms|MiB|bytes)\b", "#", failure.reason)
    return text if failure.kind == "refused" else re.sub(r"\{[^}]*\}|\d+", "#", text)


def _is_at(failure: Failure, name: str) -> bool:
    return failure.where is not None and name in (failure.where.node, *failure.where.outputs)


# ---- the judges ----


def parser_judge(seconds: float) -> Judge:
    """Everything TensorRT's parser refuses, or that it died."""

    def judge(path: Path) -> list[Failure]:
        return _from_check(prove.parse(path, seconds=seconds), "refused")

    return judge


def build_judge(seconds: float, capability: str = "") -> Judge:
    """What the parser refuses, or why the builder fails."""

    def judge(path: Path) -> list[Failure]:
        options = BuildOptions(compute_capability=capability, seconds=seconds)
        return _from_check(prove.build(path, path.with_suffix(".plan"), options), "build")

    return judge


def _from_check(check: Any, kind: str) -> list[Failure]:
    if check.status is Status.NOT_RUN:
        raise UnavailableError(f"{check.name} can't be tried here: {check.detail}")
    if check.status is Status.PASSED:
        return []
    if not check.findings:
        return [Failure(kind, check.detail.rpartition(" (")[0] if check.detail.endswith(")") else check.detail)]
    failures = []
    for finding in check.findings:
        died = _death(finding.reason)
        where = finding.where if finding.where.op else None
        failures.append(
            died(where) if died else Failure("refused", finding.reason, finding.where.op, finding.limit, where)
        )
    return failures


def _death(text: str) -> Callable[[Where | None], Failure] | None:
    """What the text of a DiedError says became of the child."""
    for kind, pattern in (("crash", r"crashed \((.+?)\)"), ("hang", "did not finish"), ("memory", r"took \d+ MiB")):
        if found := re.search(rf"^[\w ]+? {pattern}", text):
            code = found[1] if kind == "crash" else ""
            return lambda where: Failure(kind, text, where.op if where else "", code, where)
    return None


def ort_judge(worker: Worker, seconds: float) -> Judge:
    """Why ONNX Runtime does not load or run the model."""

    def judge(path: Path) -> list[Failure]:
        return _asked(lambda: worker.ask("run", seconds, path=str(path)), _loaded)

    return judge


def _loaded(answer: Mapping[str, Any]) -> list[Failure]:
    if not answer["stage"]:
        return []
    reason = re.sub(r"^Load model from .*? failed: ?", "", answer["reason"])
    op = re.search(r"(?:operator|Optype) \((\w+)\)|^(\w+) '|of (\w+)\(\d", reason)
    return [Failure(answer["stage"], reason, next(filter(None, op.groups()), "") if op else "")]


def rules_judge(worker: Worker, seconds: float, rules: str, target: str) -> Judge:
    """How the numbers differ once the rules have rewritten the model."""

    def judge(path: Path) -> list[Failure]:
        def ask() -> dict[str, Any]:
            return worker.ask("rules", seconds, path=str(path), rules=rules, target=target, budget=seconds / 2)

        return _asked(ask, _differs)

    return judge


def against_judge(worker: Worker, seconds: float, other: Model, safety: str) -> Judge:
    """How the numbers differ from the other model's, cut at the same values."""
    graph = shapes.index(other)

    def judge(path: Path) -> list[Failure]:
        cut = load(path)
        fed = {t.name for t in cut.proto.graph.initializer} | {v.name for v in cut.proto.graph.input}
        proto = between(graph, fed, [v.name for v in cut.proto.graph.output])
        if proto is None or {v.name for v in proto.graph.input} - fed:
            return []
        _supply(proto, cut.proto)
        twin = path.with_name("twin.onnx")
        if not write_inlined(proto, other, twin):
            return []

        def ask() -> dict[str, Any]:
            names = {"path": str(path), "against": str(twin), "safety": safety}
            return worker.ask("parity", seconds, **names, budget=seconds / 2)

        return _asked(ask, _differs)

    return judge


def _supply(proto: onnx.ModelProto, cut: onnx.ModelProto) -> None:
    """What the cut made constant is constant in its twin too."""
    constants = {t.name: t for t in cut.graph.initializer}
    for i in range(len(proto.graph.input) - 1, -1, -1):
        if tensor := constants.get(proto.graph.input[i].name):
            proto.graph.initializer.append(tensor)
            del proto.graph.input[i]


def _differs(answer: Mapping[str, Any]) -> list[Failure]:
    if answer["status"] != Status.FAILED.value:
        return []
    kind = "run" if "fails where" in answer["detail"] or "does not load" in answer["detail"] else "differs"
    return [Failure(kind, answer["detail"])]


def _asked(ask: Callable[[], dict[str, Any]], read: Callable[[Mapping[str, Any]], list[Failure]]) -> list[Failure]:
    try:
        return read(ask())
    except trt.DiedError as error:
        died = _death(str(error))
        return [died(None) if died else Failure("crash", str(error))]
    except BackendError as error:
        return [Failure("run", str(error))]


# ---- cutting ----


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
        roots = [n for n in _all_nodes(self.graph) if n in self.keep and not self._inside(n)]
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
        pending = list(_calls(self.proto.graph.node))
        while pending:
            key = pending.pop()
            if key in source and key not in wanted:
                wanted[key] = None
                pending += _calls(source[key].node)
        self.proto.functions.extend(f for key, f in source.items() if key in wanted)


def _bodiless(proto: NodeProto) -> NodeProto:
    copy = NodeProto(op_type=proto.op_type, domain=proto.domain, name=proto.name, overload=proto.overload)
    copy.input.extend(proto.input)
    copy.output.extend(proto.output)
    return copy


def _calls(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _calls(attribute.g.node)


def _all_nodes(graph: Graph) -> list[Node]:
    """Nodes of the main graph and its bodies, those of a body in front of the node that owns it."""
    nodes: list[Node] = []
    for node in graph.nodes():
        for body in node.bodies.values():
            nodes += _all_nodes(body)
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
        keep.update([node, *(n for body in node.bodies.values() for n in _all_nodes(body))])
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


# ---- the search ----


class _Search:
    """Trials of one model, counted."""

    def __init__(self, model: Model, judge: Judge, folder: Path, limit: int, progress: Progress | None) -> None:
        self.model = model
        self.graph = shapes.index(model)
        self.judge = judge
        self.folder = folder
        self.limit = limit
        self.progress = progress
        self.trials = 0
        self.tried: dict[frozenset[Node], bool] = {}
        self.target: Failure | None = None
        self.seen: Failure | None = None  # the target as the last failing trial has it
        self.best: bytes = b""

    def first(self, path: Path, wanted: str) -> Failure:
        """How the whole model fails: the way that the node or operator `wanted` has a part in, else the first."""
        self.trials += 1
        failures = self.judge(path)
        if not failures:
            raise RequestError(f"{path}: nothing to reduce, it does not fail")
        fitting = [f for f in failures if not wanted or wanted == f.op or _is_at(f, wanted)]
        if not fitting:
            raise RequestError(f"{path}: fails, but not at '{wanted}'; it fails at {failures[0]}")
        self.target = self.seen = fitting[0]
        return fitting[0]

    def proto(self, proto: onnx.ModelProto | None) -> bool:
        """Whether this model fails the same way."""
        if proto is None or self.trials >= self.limit:
            return False
        path = self.folder / "trial.onnx"
        try:
            if not write_inlined(proto, self.model, path):
                return False
        except (ModelError, ValueError):
            return False
        self.trials += 1
        if self.progress:
            self.progress("reduce", self.trials, None)
        assert self.target is not None
        same = next((f for f in self.judge(path) if f.same(self.target)), None)
        if same is not None:
            self.seen = same
            self.best = path.read_bytes()
        return same is not None

    def fails(self, keep: Iterable[Node]) -> bool:
        kept = frozenset(keep)
        if kept not in self.tried:
            self.tried[kept] = bool(kept) and self.proto(cut(self.graph, kept))
        return self.tried[kept]

    # ---- nodes ----

    def nodes(self, failure: Failure) -> list[Node]:
        """The fewest nodes found that fail; all when no part of them does."""
        everything = _all_nodes(self.graph)
        blamed = self._blamed(failure, everything)
        for core in self._cores(blamed):
            if self.fails(core):
                return self._minimal(everything, core, {blamed} if blamed else set())
        if blamed is not None:
            around = self._around(blamed)
            size = 2
            while size < len(around):
                if self.fails(around[:size]):
                    return self._minimal(everything, set(around[:size]), {blamed})
                size *= 2
        return self._bisected(everything)

    def _blamed(self, failure: Failure, nodes: Sequence[Node]) -> Node | None:
        where = failure.where
        if where is not None:
            exact = [n for n in nodes if n.where() == where]
            alike = [n for n in nodes if (n.op, n.name, n.graph.path) == (where.op, where.node, where.graph)]
            named = [n for n in nodes if where.node and (n.op, n.name) == (where.op, where.node)]
            for found in (exact, alike, named):
                if found:
                    return found[0]
        words = set(re.findall(r"[^\s'\"(){}\[\],;]+", failure.reason))
        words |= {w.rstrip(".:") for w in words}
        return next((n for n in reversed(nodes) if n.name and n.name in words), None)

    def _cores(self, node: Node | None) -> Iterator[set[Node]]:
        """A node by itself, with all of its bodies; then inside the nodes that own its scope, one by one."""
        if node is None:
            return
        core = {node, *(n for body in node.bodies.values() for n in _all_nodes(body))}
        if len(core) > 1:
            yield {node}
        yield core
        owner = node.graph.owner
        while owner is not None:
            core = {*core, owner}
            yield core
            yield {owner, *(n for body in owner.bodies.values() for n in _all_nodes(body))}
            owner = owner.graph.owner

    def _around(self, node: Node) -> list[Node]:
        """All nodes by their distance from one, what it reads before what reads it."""
        order, seen = [node], {node}
        pending = deque(order)
        while pending:
            at = pending.popleft()
            near = [at.graph.producer(n) for n in (*at.inputs, *at.captured) if n]
            near += [n for body in at.bodies.values() for n in body.nodes()]
            near += [at.graph.owner] if at.graph.owner else []
            near += [u for o in at.outputs for u, _ in at.graph.uses(o)]
            for other in near:
                if other is not None and other not in seen:
                    seen.add(other)
                    order.append(other)
                    pending.append(other)
        return order

    def _bisected(self, nodes: list[Node]) -> list[Node]:
        """Halve from both ends: the shortest beginning that fails, what it depends on, and the end of that."""
        if not self.fails(nodes):
            return nodes
        low, high = 0, len(nodes)  # nodes[:high] fails
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fails(nodes[:middle]) else (middle, high)
        kept = nodes[:high]
        needed = self._needed(kept[-1], set(kept))
        if self.fails(needed):
            kept = needed
        low, high = 0, len(kept)  # kept[low:] fails
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fails(kept[middle:]) else (low, middle)
        return self._minimal(nodes, set(kept[low:]), {kept[-1]})

    def _needed(self, node: Node, among: set[Node]) -> list[Node]:
        seen, pending = {node}, [node]
        while pending:
            at = pending.pop()
            near = [at.graph.producer(n) for n in (*at.inputs, *at.captured) if n]
            near += [n for body in at.bodies.values() for n in body.nodes()]
            near += [at.graph.owner] if at.graph.owner else []
            fresh = [n for n in near if n is not None and n in among and n not in seen]
            seen.update(fresh)
            pending += fresh
        return [n for n in _all_nodes(self.graph) if n in seen]

    def _minimal(self, order: Sequence[Node], keep: set[Node], fixed: set[Node]) -> list[Node]:
        """Leave out pieces, then smaller ones, until no single node can go. `fixed` goes last."""
        kept = [n for n in order if n in keep]
        size = max(len(kept) // 2, 1)
        while True:
            smaller, at = kept, 0
            while at < len(smaller):
                piece = set(smaller[at : at + size])
                rest = [n for n in smaller if n not in piece or n in fixed]
                if rest and len(rest) < len(smaller) and self.fails(rest):
                    smaller = rest
                else:
                    at += size
            if size == 1 and len(smaller) == len(kept):
                return smaller
            kept = smaller
            size = max(size // 2, 1)

    # ---- shapes and weights ----

    def shapes(self) -> None:
        """Smaller dimensions, as long as the model fails in the same words."""
        tried = 0

        def attempt(sizes: Mapping[int, int]) -> bool:
            nonlocal tried
            tried += 1
            best = onnx.ModelProto.FromString(self.best)
            return tried <= SHAPE_TRIALS and self.proto(_shrunk(best, sizes))

        large = [d for d in _dims(onnx.ModelProto.FromString(self.best)) if d > 8]
        for size in (2, 4, 8):
            if large and attempt(dict.fromkeys(large, size)):
                return
        for dim in large:
            any(attempt({dim: size}) for size in (1, 4, 8))

    def weights(self) -> bool:
        """Random weights in place of the real ones, which nobody has to see; of all, or else of the large ones."""
        return self._redrawn(SMALL // 8) or self._redrawn(SMALL)

    def _redrawn(self, small: int) -> bool:
        proto = onnx.ModelProto.FromString(self.best)
        replaced = False
        for tensor in proto.graph.initializer:
            if math.prod(tensor.dims) > small and tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
                array = numpy_helper.to_array(tensor)
                finite = array[np.isfinite(array)]
                scale = float(np.abs(finite).max()) if finite.size else 1.0
                drawn = np.random.default_rng(0).uniform(-scale, scale, array.shape).astype(array.dtype)
                tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
                replaced = True
        return replaced and self.proto(proto)


def _dims(proto: onnx.ModelProto) -> list[int]:
    """The fixed sizes in inputs and weights, the largest first."""
    found = {d.dim_value for v in proto.graph.input for d in v.type.tensor_type.shape.dim}
    found |= {d for t in proto.graph.initializer for d in t.dims}
    return sorted(found, reverse=True)


def _shrunk(proto: onnx.ModelProto, sizes: Mapping[int, int]) -> onnx.ModelProto:
    """Every dimension of these sizes made smaller, in inputs, weights and in the numbers of shape constants."""
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.HasField("tensor_type"):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value in sizes:
                    dim.dim_value = sizes[dim.dim_value]
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.INT64 and array.ndim <= 1 and array.size <= 16:
            flat = [sizes.get(int(v), int(v)) for v in array.reshape(-1)]
            array = np.asarray(flat, np.int64).reshape(array.shape)
        array = array[tuple(slice(0, sizes.get(d, d)) for d in array.shape)]
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
    return proto


# ---- the whole ----


def reduce(
    model: str | Path,
    fails: str,
    output: str | Path | None = None,
    *,
    against: str | Path | None = None,
    rules: str = "",
    target: str = "",
    node: str = "",
    seconds: float = 60.0,
    memory_mib: int | None = None,
    trials: int = TRIALS,
    safety: str = "exact",
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> Reduced:
    """Write the smallest model found that still fails the way `model` does, to `output` (MODEL.reduced.onnx).

    `fails` is what to look at: "parse" and "build" ask TensorRT, "ort" asks ONNX Runtime to load and run it, and
    "parity" compares it with `against`, a model with the same value names, or with what the `rules` make of it for
    `target`. `node` chooses among several failures, by a node's name, its operator or one of its outputs. `seconds`
    and `memory_mib` limit each trial, `trials` their number. `judge` replaces the way models are judged.

    Raises RequestError when the model does not fail or the request is wrong, UnavailableError when the judge is not
    installed.
    """
    source = Path(model)
    destination = Path(output) if output else source.with_name(f"{source.stem}.reduced.onnx")
    _check(fails, source, destination, against, rules)
    loaded = load(source)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="onnxfix-reduce-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if judge is None:
            judge = _judge(stack, fails, against, rules, target, seconds, memory_mib, safety)
        search = _Search(loaded, judge, folder, trials, progress)
        failure = search.first(source.absolute(), node)
        before = len(_all_nodes(search.graph))
        search = _inlined(search, failure) or search
        kept = search.nodes(search.seen or failure)
        notes = []
        if not search.best:
            raise RequestError(
                f"{source}: no part of it can be tried by itself within {trials} trials, so it can't be made smaller"
            )
        search.shapes()
        if search.weights():
            notes.append("the weights are random numbers, not the model's own")
        if search.trials >= trials:
            notes.append(f"stopped after {trials} trials; more may make it smaller")
        assert search.seen is not None
        proto = onnx.ModelProto.FromString(search.best)
        proto.producer_name, proto.producer_version = "onnxfix", __version__
        data = proto.SerializeToString(deterministic=True)
        write_atomic(destination, data)
        if fails == "parity" and against:
            twin = folder / "twin.onnx"
            judge(destination.absolute()) if not twin.exists() else None
            other = destination.with_name(f"{destination.stem}.against.onnx")
            _rejudge(judge, search.best, folder)
            write_atomic(other, twin.read_bytes())
            notes.append(f"the other model, cut the same way, is {other.name}")
    size = len(kept) if kept else 0
    return Reduced(
        model=str(source),
        output=str(destination),
        fails=fails,
        failure=search.seen,
        by=_by(fails),
        nodes_before=before,
        nodes=max(_count(proto.graph), 0) or size,
        bytes_before=source.stat().st_size,
        bytes=len(data),
        trials=search.trials,
        seconds=time.monotonic() - started,
        command=_command(fails, destination, against, rules, target),
        text=as_text(proto),
        notes=tuple(notes),
    )


def _rejudge(judge: Judge, best: bytes, folder: Path) -> None:
    """Leave the twin of the final model, not that of the last trial, in the folder."""
    path = folder / "trial.onnx"
    path.write_bytes(best)
    judge(path)


def _count(graph: onnx.GraphProto) -> int:
    inner = (a.g for n in graph.node for a in n.attribute if a.type == AttributeProto.GRAPH)
    return len(graph.node) + sum(map(_count, inner))


def _check(fails: str, source: Path, destination: Path, against: str | Path | None, rules: str) -> None:
    if fails not in KINDS:
        raise RequestError(f"no failure called '{fails}'; there are {', '.join(KINDS)}")
    if (fails == "parity") != bool(against or rules) or (against and rules):
        raise RequestError("parity, and only parity, needs the other side: --against MODEL, or --rules R")
    if destination.is_dir() or not destination.absolute().parent.is_dir():
        raise RequestError(f"{destination}: is a folder, or its folder does not exist")
    if source.exists() and destination.exists() and source.samefile(destination):
        raise RequestError(f"{destination}: is the input itself; give another name with -o")


def _judge(
    stack: contextlib.ExitStack,
    fails: str,
    against: str | Path | None,
    rules: str,
    target: str,
    seconds: float,
    memory_mib: int | None,
    safety: str,
) -> Judge:
    if fails in ("parse", "build"):
        if memory_mib:
            tensorrt = trt.shared()
            tensorrt.memory_mib, kept = memory_mib, tensorrt.memory_mib
            tensorrt.close()  # the limit is the child's from its start

            def restore() -> None:
                tensorrt.memory_mib = kept
                tensorrt.close()

            stack.callback(restore)
        return parser_judge(seconds) if fails == "parse" else build_judge(seconds)
    worker = stack.enter_context(Worker(memory_mib=memory_mib))
    if fails == "ort":
        return ort_judge(worker, seconds)
    if against:
        return against_judge(worker, seconds, load(against), safety)
    catalog.load_set(rules)  # a wrong rule file is no failure of the model
    return rules_judge(worker, seconds, rules, target)


def _inlined(search: _Search, failure: Failure) -> _Search | None:
    """The search over the model with its functions inlined, when it fails the same way: there is more to cut."""
    if not search.model.proto.functions:
        return None
    try:
        proto = onnx.inliner.inline_local_functions(search.model.proto)
    except Exception:  # the inliner raises what it likes on models it can't do
        return None
    if failure.where:
        # What the place was called no longer holds; the op and the words do.
        failure = replace(failure, where=None)
    inner = _Search(Model(proto, search.model.path), search.judge, search.folder, search.limit, search.progress)
    inner.target, inner.trials = failure, search.trials
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if inner.proto(copy):
        return inner
    search.trials = inner.trials
    return None


def _by(fails: str) -> str:
    if fails in ("parse", "build"):
        return str(trt.shared().about())
    return f"onnxruntime {version('onnxruntime')}"


def _command(fails: str, output: Path, against: str | Path | None, rules: str, target: str) -> str:
    """A command of the tools at hand that shows the failure."""
    if fails == "parity":
        if against:
            return f"onnxfix verify {output.name} {output.stem}.against.onnx"
        goal = f" --target {target}" if target else ""
        return f"onnxfix apply {output.name} --rules {rules}{goal} --require parity -o fixed.onnx"
    if fails == "ort":
        return f"polygraphy run {output.name} --onnxrt"
    switch = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if trt.shared().about().flavour == "tensorrt_rtx" else ""
    return f"{switch}polygraphy convert {output.name} --convert-to trt -o reduced.plan"


def as_text(proto: onnx.ModelProto) -> str:
    """The model in ONNX's textual syntax, with large weights left out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    large = [t for t in copy.graph.initializer if math.prod(t.dims) > SMALL]
    for tensor in large:
        del copy.graph.initializer[[t.name for t in copy.graph.initializer].index(tensor.name)]
    try:
        text = onnx.printer.to_text(copy)
    except Exception as error:  # the printer does not know every type
        return f"(no text: {one_line(error)})"
    left_out = "".join(
        f"\n// weight {t.name}: {TensorProto.DataType.Name(t.data_type).lower()}{list(t.dims)}" for t in large
    )
    return f"{text.rstrip()}{left_out}\n"
