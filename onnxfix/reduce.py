"""The smallest model that still fails the same way: delta debugging over nodes, then shapes, then weights.

A trial is a cut (`onnxfix.cutting`), looked at by a judge (`onnxfix.judges`). What the first trial blames is tried
alone first, then with more and more of its neighbourhood; without a culprit the search halves the node list from both
ends. Every result was seen to fail.
"""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, TensorProto, numpy_helper

from onnxfix import __version__, catalog, shapes
from onnxfix.backends import feeds, reference, trt, version
from onnxfix.backends.images import Preprocessing
from onnxfix.cutting import all_nodes, cut, write_inlined
from onnxfix.errors import ModelError, RequestError
from onnxfix.graph import Node
from onnxfix.judges import (
    TWIN,
    Asking,
    Failure,
    Given,
    Judge,
    against_judge,
    build_judge,
    is_at,
    ort_judge,
    parser_judge,
    rules_judge,
)
from onnxfix.model import Model, load, one_line, write_atomic
from onnxfix.trial import INPUTS, Worker

KINDS = ("parse", "build", "parity", "ort")
TRIALS = 400  # at most
SHAPE_TRIALS = 24
SMALL = 64  # elements up to which a weight is shown, and may be left as it is

Progress = Callable[[str, int, "int | None"], None]


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
        fitting = [f for f in failures if not wanted or wanted == f.op or is_at(f, wanted)]
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
        everything = all_nodes(self.graph)
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
        core = {node, *(n for body in node.bodies.values() for n in all_nodes(body))}
        if len(core) > 1:
            yield {node}
        yield core
        owner = node.graph.owner
        while owner is not None:
            core = {*core, owner}
            yield core
            yield {owner, *(n for body in owner.bodies.values() for n in all_nodes(body))}
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
        return [n for n in all_nodes(self.graph) if n in seen]

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
    inputs: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> Reduced:
    """Write the smallest model found that still fails the way `model` does, to `output` (MODEL.reduced.onnx).

    `fails` is what to look at: "parse" and "build" ask TensorRT, "ort" asks ONNX Runtime to load and run it, and
    "parity" compares it with `against`, a model with the same value names, or with what the `rules` make of it for
    `target`. `node` chooses among several failures, by a node's name, its operator or one of its outputs. `seconds`
    and `memory_mib` limit each trial, `trials` their number. For parity, `inputs` (as `verify` takes them, images by
    `preprocessing`) are what the whole model is run on, to feed each trial the values it reads; without it inputs are
    drawn. `judge` replaces the way models are judged.

    Raises RequestError when the model does not fail or the request is wrong, UnavailableError when the judge is not
    installed.
    """
    source = Path(model)
    destination = Path(output) if output else source.with_name(f"{source.stem}.reduced.onnx")
    _check(fails, source, destination, against, rules, inputs)
    loaded = load(source)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="onnxfix-reduce-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(scratch))
        if judge is None and fails in ("parse", "build"):
            judge = _tensorrt_judge(stack, folder, fails, seconds, memory_mib)
        elif judge is None:
            worker = stack.enter_context(Worker(memory_mib=memory_mib))
            given = _given(loaded, folder, Path(inputs), preprocessing) if inputs else None
            judge = _numbers_judge(Asking(worker, folder, seconds, given), fails, against, rules, target, safety)
        search = _Search(loaded, judge, folder, trials, progress)
        failure = search.first(source.absolute(), node)
        before = len(all_nodes(search.graph))
        search = _inlined(search, failure) or search
        search.nodes(search.seen or failure)
        if search.seen is None or not search.best:
            raise RequestError(
                f"{source}: no part of it can be tried by itself within {trials} trials, so it can't be made smaller"
            )
        search.shapes()
        notes = ["the weights are random numbers, not the model's own"] if search.weights() else []
        if search.trials >= trials:
            notes.append(f"stopped after {trials} trials; more may make it smaller")
        proto = onnx.ModelProto.FromString(search.best)
        proto.producer_name, proto.producer_version = "onnxfix", __version__
        write_atomic(destination, proto.SerializeToString(deterministic=True))
        beside = _write_beside(search, destination) if fails == "parity" else {}
    if TWIN in beside:
        notes.append(f"the other model, cut the same way, is {beside[TWIN]}")
    if INPUTS in beside:
        notes.append(f"what it is fed is {beside[INPUTS]}")
    return Reduced(
        model=str(source),
        output=str(destination),
        fails=fails,
        failure=search.seen,
        by=_by(fails),
        nodes_before=before,
        nodes=_count(proto.graph),
        bytes_before=source.stat().st_size,
        bytes=destination.stat().st_size,
        trials=search.trials,
        seconds=time.monotonic() - started,
        command=_command(fails, destination.name, beside, rules, target),
        text=as_text(proto),
        notes=tuple(notes),
    )


def _given(model: Model, folder: Path, inputs: Path, preprocessing: Preprocessing | None) -> Given:
    """The user's inputs, read once. Raises RequestError when the model can't take them."""
    stored = {t.name for t in model.proto.graph.initializer}
    tensors = [reference.tensor(v) for v in model.proto.graph.input if v.name not in stored]
    samples = folder / "samples.json"
    feeds.write(samples, feeds.read(inputs, tensors, preprocessing))
    assert model.path is not None
    return Given(str(model.path.absolute()), str(samples))


def _write_beside(search: _Search, destination: Path) -> dict[str, str]:
    """Write what the comparison of the smallest model needs: the other one, and the inputs. The names they get."""
    path = search.folder / "trial.onnx"
    path.write_bytes(search.best)
    search.judge(path)  # leaves those of this model, not of the last trial
    written = {}
    for name, ending in ((TWIN, "against.onnx"), (INPUTS, "inputs.json")):
        if (search.folder / name).exists():
            written[name] = f"{destination.stem}.{ending}"
            write_atomic(destination.with_name(written[name]), (search.folder / name).read_bytes())
    return written


def _count(graph: onnx.GraphProto) -> int:
    inner = (a.g for n in graph.node for a in n.attribute if a.type == AttributeProto.GRAPH)
    return len(graph.node) + sum(map(_count, inner))


def _check(
    fails: str,
    source: Path,
    destination: Path,
    against: str | Path | None,
    rules: str,
    inputs: str | Path | None,
) -> None:
    if fails not in KINDS:
        raise RequestError(f"no failure called '{fails}'; there are {', '.join(KINDS)}")
    if (fails == "parity") != bool(against or rules) or (against and rules):
        raise RequestError("parity, and only parity, needs the other side: --against MODEL, or --rules R")
    if inputs and fails != "parity":
        raise RequestError("inputs are for the comparison of numbers: --fails parity")
    if destination.is_dir() or not destination.absolute().parent.is_dir():
        raise RequestError(f"{destination}: is a folder, or its folder does not exist")
    if source.exists() and destination.exists() and source.samefile(destination):
        raise RequestError(f"{destination}: is the input itself; give another name with -o")


def _tensorrt_judge(
    stack: contextlib.ExitStack, folder: Path, fails: str, seconds: float, memory_mib: int | None
) -> Judge:
    if memory_mib:
        tensorrt = trt.shared()
        tensorrt.memory_mib, kept = memory_mib, tensorrt.memory_mib
        tensorrt.close()  # the limit is the child's from its start

        def restore() -> None:
            tensorrt.memory_mib = kept
            tensorrt.close()

        stack.callback(restore)
    return parser_judge(seconds) if fails == "parse" else build_judge(folder, seconds)


def _numbers_judge(
    asking: Asking, fails: str, against: str | Path | None, rules: str, target: str, safety: str
) -> Judge:
    if fails == "ort":
        return ort_judge(asking)
    if against:
        return against_judge(asking, load(against), safety)
    catalog.load_set(rules)  # a wrong rule file is no failure of the model
    return rules_judge(asking, rules, target)


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


def _command(fails: str, name: str, beside: Mapping[str, str], rules: str, target: str) -> str:
    """A command of the tools at hand that shows the failure of the output."""
    if fails == "parity":
        fed = f" --inputs {beside[INPUTS]}" if INPUTS in beside else ""
        if TWIN in beside:
            return f"onnxfix verify {name} {beside[TWIN]}{fed}"
        goal = f" --target {target}" if target else ""
        return f"onnxfix apply {name} --rules {rules}{goal}{fed} --require parity -o fixed.onnx"
    if fails == "ort":
        return f"polygraphy run {name} --onnxrt"
    switch = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if trt.shared().about().flavour == "tensorrt_rtx" else ""
    return f"{switch}polygraphy convert {name} --convert-to trt -o reduced.plan"


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
