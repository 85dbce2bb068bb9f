"""Two models by their numbers: the parity of their outputs, and where it breaks the first node that differs.

Inner values of the two are matched by provenance (`onnxfix.from` on the nodes rules made), by name, and where names say
nothing by structure. They are compared on the inputs on which the outputs differed, a batch of values at a time, so
that memory is bounded by `BATCH_BYTES` and not by the size of the models.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfix import difference, prove, shapes, skeleton
from onnxfix.backends import BackendError, feeds, half, ort, reference
from onnxfix.backends.compare import Compared, compare
from onnxfix.backends.images import Preprocessing
from onnxfix.backends.metrics import Metric
from onnxfix.cutting import write_inlined
from onnxfix.errors import OnnxfixError, RequestError
from onnxfix.graph import FROM_KEY, RULE_KEY, Graph, Node
from onnxfix.model import PROTOBUF_LIMIT, Model, load, tapped
from onnxfix.report import Check, Safety, Status

BATCH_BYTES = 256 << 20  # of values held at a time, on either side
UNKNOWN_BYTES = 1 << 20  # what a value of unknown shape is taken to need
HALF_TOLERANCE = 1e-2  # relative to the largest magnitude: FP16 keeps three digits
REGION = 12  # nodes named between the last values that agree and the first that differ

Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class Step:
    """One value of both models. Errors are over all samples; `low` and `high` are the range before."""

    before: str
    after: str
    node: str  # that makes it in the first model
    verdict: str  # equal, within, beyond, shape or finite
    max_abs: float
    relative: float  # the largest error in units of the largest magnitude
    low: float
    high: float
    cosine: float | None = None
    rules: tuple[str, ...] = ()  # that made the second model's node
    note: str = ""
    matched: str = "name"  # or provenance, structure

    @property
    def differs(self) -> bool:
        return self.verdict not in ("equal", "within")


@dataclass(frozen=True)
class Unfit:
    """A value or weight that FP16 does not hold well."""

    name: str
    node: str  # that makes it; "" for a weight
    why: str  # overflow, underflow or accuracy
    low: float
    high: float
    text: str
    origin: bool = True  # its node reads nothing that is unfit already


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`. `path` is worst first."""

    before: str
    after: str
    check: Check
    precision: str = ""
    first: Step | None = None
    between: tuple[str, ...] = ()  # nodes of the second model from the last values that agree to the first that differs
    path: tuple[Step, ...] = ()
    compared: int = 0  # inner values
    unfit: tuple[Unfit, ...] = ()
    notes: tuple[str, ...] = field(default=())


def verify(
    before: str | Path,
    after: str | Path | None = None,
    *,
    precision: str = "",
    inputs: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    dims: Mapping[str, tuple[int, int, int]] | None = None,
    tolerances: Mapping[str, float] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    seconds: float = 300.0,
    progress: Progress | None = None,
) -> Verification:
    """Compare two models, or one with its own FP16 form (`precision="fp16"`, of `after` where that is given).

    Outputs may differ by 1e-5 of their largest magnitude (FP16: 1e-2); `tolerances` states others by output name, ""
    for all. The other arguments are those of `prove.parity`. Inner values are compared when the outputs differ, and
    always for FP16.

    Raises RequestError for models, inputs and arguments that can't be used, UnavailableError without ONNX Runtime for
    the FP16 form.
    """
    if precision not in ("", "fp16"):
        raise RequestError(f"no precision '{precision}' here; there is fp16")
    if after is None and not precision:
        raise RequestError("give the other model, or --precision fp16")
    one, other = Path(before), Path(after or before)
    lights = skeleton.load(one), skeleton.load(other)
    stated = dict(tolerances or {})
    general = stated.pop("", HALF_TOLERANCE if precision else prove.TOLERANCES[Safety.CLOSE])
    samples: list[feeds.Feeds] = []
    with tempfile.TemporaryDirectory(prefix="onnxfix-verify-") as folder:
        compared = other
        if precision:
            compared = Path(folder, "fp16.onnx")
            try:
                weights = half.convert(other, compared, rounded=True)
            except BackendError as error:
                check = Check("parity", Status.NOT_RUN, "onnxruntime", str(error))
                return Verification(str(one), str(other), check, precision)
        elif renamed := _under_names(lights[1], like=lights[0]):
            compared = Path(folder, "renamed.onnx")
            if not write_inlined(renamed, lights[1], compared):
                raise RequestError(f"{other}: too large to give its inputs and outputs the other model's names")
        # Lossy, since nothing else has its limits stated, and by both names, since "close" widens FP16 outputs.
        safety = Safety.LOSSY if precision or "" in (tolerances or {}) else Safety.CLOSE
        check = prove.parity(
            one,
            compared,
            safety=safety,
            inputs=Path(inputs) if inputs else None,
            preprocessing=preprocessing,
            seeds=seeds,
            dims=dims,
            tolerances={**({"lossy": general} if safety is Safety.LOSSY else {}), **stated},
            metrics=metrics,
            samples_to=samples,
            seconds=seconds,
            progress=progress and (lambda text, _fraction: progress("parity", 0, None)),
        )
        if precision and check.status is Status.FAILED and "does not load" in check.detail:
            reason = check.detail.partition(" failed:")[2]
            reason = f"ONNX Runtime does not load the FP16 form its own converter makes: {reason}"
            check = replace(check, status=Status.NOT_RUN, detail=reason)
        found = Verification(str(one), str(other), _told(check), precision)
        if samples and (precision or check.status is Status.FAILED):
            # Where only inputs and outputs were renamed, the inner values bear the names of the model as it was.
            twin = compared if precision else other
            pairs = match(Graph.of(skeleton.load(one)), Graph.of(skeleton.load(twin)))
            found = _locate(found, one, compared, pairs, samples, general, progress)
        if precision:
            found = replace(found, unfit=(*_weights(other), *found.unfit))
            if not weights:
                found = replace(found, notes=(*found.notes, "the FP16 form has no FP16 weights"))
    return found


def _under_names(model: Model, like: Model) -> onnx.ModelProto | None:
    """The model with the inputs and outputs of another, paired by place. None where the names are the same, or where
    they can't be paired: then the parity says what is amiss."""
    one, other = Graph.of(like), Graph.of(model)
    pairs = {kind: difference.ports(one, other, kind) for kind in ("input", "output")}
    renamed = {b: a for ports in pairs.values() for a, b in ports if a != b}
    if not renamed or any(a in other.producers or a in other.initializers for a in renamed.values()):
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    heads = []
    for value in proto.graph.input:
        if value.name in renamed:
            heads.append(onnx.helper.make_node("Identity", [renamed[value.name]], [value.name]))
            value.name = renamed[value.name]
    for value in proto.graph.output:
        if value.name in renamed:
            proto.graph.node.append(onnx.helper.make_node("Identity", [value.name], [renamed[value.name]]))
            value.name = renamed[value.name]
    nodes = [*heads, *(onnx.NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _told(check: Check) -> Check:
    """The parity in the words of two models, neither of which was fixed."""
    words = check.detail.replace("the fixed model", "the second model").replace("the original", "the first model")
    return replace(check, detail=words)


# ---- matching ----


@dataclass(frozen=True)
class Pair:
    """A value of the first model and the one of the second that should equal it."""

    before: str
    after: str
    matched: str


def match(one: Graph, other: Graph) -> list[Pair]:
    """The values of the main graphs that correspond, in the first model's order. A value has one partner at most.

    By provenance: what rules put in a node's place hands on one value, or as many as the node did. By name. By
    structure where a name is of one model only (see `onnxfix.difference`).
    """
    pairs: dict[str, Pair] = {}
    taken: set[str] = set()

    def add(a: str, b: str, how: str) -> None:
        if a in one.producers and b in other.producers and a not in pairs and b not in taken:
            pairs[a] = Pair(a, b, how)
            taken.add(b)

    for a, b in _by_provenance(one, other):
        add(a, b, "name" if a == b else "provenance")
    for name in one.producers:
        if name in other.producers:
            add(name, name, "name")
    for a, b in difference.ports(one, other, "output"):
        add(a, b, "structure")
    pairing = difference.Pairing(one, other)
    pairing.run()
    for (scope, a), (_, b) in pairing.values.items():
        if scope is one and a not in other.producers and b not in one.producers:
            add(a, b, "structure")
    return [pairs[o] for node in one.nodes() for o in node.outputs if o in pairs]


def _by_provenance(one: Graph, other: Graph) -> Iterator[tuple[str, str]]:
    groups: dict[str, list[Node]] = defaultdict(list)
    for node in other.nodes():
        if origin := next((m.value for m in node.proto.metadata_props if m.key == FROM_KEY), ""):
            groups[origin].append(node)
    names = {n.name: n for n in one.nodes() if n.name}
    for origin, group in groups.items():
        source = names.get(origin) or one.producers.get(origin)
        if source is None:
            continue
        had = [o for o in source.outputs if o and not one.unused(o)]
        members = set(group)
        has = [
            o
            for node in group
            for o in node.outputs
            if o and (other.is_output(o) or any(user not in members for user, _ in other.uses(o)))
        ]
        if len(had) == len(has) and (len(had) == 1 or had == has):
            yield from zip(had, has, strict=True)


# ---- comparing inner values ----


def _locate(
    found: Verification,
    one: Path,
    other: Path,
    pairs: Sequence[Pair],
    samples: Sequence[feeds.Feeds],
    tolerance: float,
    progress: Progress | None,
) -> Verification:
    """With the error of every matched value, the first that differs, and for FP16 the values it does not hold."""
    graph, twin = shapes.index(skeleton.load(one)), shapes.index(skeleton.load(other))
    if not pairs:
        return replace(found, notes=(*found.notes, "no inner values of the two models correspond"))
    steps: list[Step] = []
    lost: dict[str, int] = defaultdict(int)
    try:
        for number, batch in enumerate(_batches(graph, pairs)):
            if progress:
                progress("bisect", number, None)
            steps += _compared(graph, twin, batch, samples, tolerance, lost)
    except OnnxfixError as error:
        return replace(found, notes=(*found.notes, f"inner values could not be compared: {error}"))
    found = replace(found, compared=len(steps))
    if found.precision:
        return replace(found, unfit=tuple(_unfit(graph, steps, lost, tolerance)))
    wrong = [s for s in steps if s.differs]
    if not wrong:
        return found
    path = sorted(wrong, key=lambda s: (s.verdict == "within", s.verdict == "beyond", -s.relative))
    between = _between(twin, wrong[0], {s.after for s in steps if not s.differs})
    return replace(found, first=wrong[0], between=tuple(between), path=tuple(path))


def _batches(graph: Graph, pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    held = 0
    for pair in pairs:
        size = _nbytes(graph, pair.before)
        if batch and held + size > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(pair)
        held += size
    if batch:
        yield batch


def _nbytes(graph: Graph, name: str) -> int:
    shape, dtype = graph.static_shape(name), graph.dtype(name)
    if shape is None or not dtype:
        return UNKNOWN_BYTES
    try:
        return math.prod(shape) * onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize
    except KeyError:
        return UNKNOWN_BYTES


def _compared(
    graph: Graph,
    twin: Graph,
    batch: Sequence[Pair],
    samples: Sequence[feeds.Feeds],
    tolerance: float,
    lost: dict[str, int],
) -> list[Step]:
    results: dict[Pair, list[Compared]] = defaultdict(list)
    names, names_b = [p.before for p in batch], [p.after for p in batch]
    with _tapped(graph, names) as one, _tapped(twin, names_b) as other:
        dtypes = {t.name: t.dtype for t in other.inputs}
        renamed = dict(zip((t.name for t in other.inputs), (t.name for t in one.inputs), strict=False))
        for sample in samples:
            had = one.run(sample, names)
            fed = {n: feeds.cast(sample[n if n in sample else renamed[n]], dtypes[n]) for n in dtypes}
            has = other.run(fed, names_b)
            for pair in batch:
                a, b = had[pair.before], has[pair.after]
                if getattr(b, "dtype", None) == np.float16 and getattr(a, "dtype", None) == np.float32:
                    tiny = np.abs(a[a != 0]) < half.SMALLEST / 2
                    if tiny.sum() * 10 > tiny.size:  # few are noise
                        lost[pair.before] += int(tiny.sum())
                results[pair].append(compare(pair.before, a, b, tolerance))
            had.clear()
            has.clear()
    return [_step(graph, twin, pair, r) for pair, r in results.items() if not _apart(pair, r)]


def _apart(pair: Pair, results: Sequence[Compared]) -> bool:
    """No tensor, or a partner by mere structure that turns out to be another value."""
    verdicts = {r.verdict for r in results}
    return "kind" in verdicts or ("shape" in verdicts and pair.matched == "structure")


@contextlib.contextmanager
def _tapped(graph: Graph, names: Sequence[str]) -> Iterator[Any]:
    """The model with inner values as outputs, in ONNX Runtime or else in the reference evaluator."""
    model = tapped(graph.model, names)
    if model.ByteSize() > PROTOBUF_LIMIT:
        raise BackendError("the model exceeds protobuf's 2 GiB")
    data = model.SerializeToString()
    del model
    try:
        yield ort.Session(data, graph.model.directory, exact=True)
    except ort.UnsupportedError:
        yield reference.Session(data)


def _step(graph: Graph, twin: Graph, pair: Pair, results: Sequence[Compared]) -> Step:
    order = ("equal", "within", "beyond", "finite", "shape")
    worst = max(results, key=lambda r: (order.index(r.verdict), r.relative))
    cosines = [r.cosine for r in results if r.cosine is not None]
    maker, maker_b = graph.producers[pair.before], twin.producers[pair.after]
    return Step(
        before=pair.before,
        after=pair.after,
        node=str(maker.where()),
        verdict=worst.verdict,
        max_abs=worst.max_abs,
        relative=worst.relative,
        low=min(r.low for r in results),
        high=max(r.high for r in results),
        cosine=min(cosines) if cosines else None,
        rules=_rules(maker_b),
        note=worst.note,
        matched=pair.matched,
    )


def _rules(node: Node) -> tuple[str, ...]:
    return tuple(m.value for m in node.proto.metadata_props if m.key == RULE_KEY)


def _between(twin: Graph, first: Step, good: set[str]) -> Iterator[str]:
    """What the second model computes between the values that agree and the first that does not."""
    seen: dict[Node, None] = {}
    pending = [twin.producers[first.after]]
    while pending and len(seen) < REGION:
        node = pending.pop(0)
        if node in seen:
            continue
        seen[node] = None
        makers = (twin.producers.get(n) for n in (*node.inputs, *node.captured) if n and n not in good)
        pending += [m for m in makers if m is not None]
    for node in seen:
        rules = ", ".join(_rules(node))
        yield f"{node.where()} (by rule {rules})" if rules else str(node.where())


# ---- FP16 ----


def _unfit(
    graph: Graph, steps: Sequence[Step], lost: Mapping[str, int], tolerance: float
) -> Iterator[Unfit]:
    """Values that overflow, vanish or lose accuracy; those that started it first."""
    found: dict[str, Unfit] = {}
    for step in steps:
        node = graph.producers[step.before]
        largest = max(abs(step.low), abs(step.high))
        if step.verdict == "finite" or (largest > half.LARGEST and step.differs):
            over = f"reaches {largest:.3g}, FP16 ends at {half.LARGEST:g}"
            why, text = "overflow", over if largest > half.LARGEST else step.note
        elif step.verdict == "beyond":
            why, text = "accuracy", f"error {step.max_abs:.3g}, {step.relative:.2g} of its largest magnitude"
        elif step.before in lost:
            why, text = "underflow", f"{lost[step.before]} values are below the smallest FP16 number"
        else:
            continue
        origin = not any(name in found for name in (*node.inputs, *node.captured))
        found[step.before] = Unfit(step.before, step.node, why, step.low, step.high, text, origin)
    ranks = {"overflow": 0, "accuracy": 1, "underflow": 2}
    yield from sorted(found.values(), key=lambda u: (not u.origin, ranks[u.why]))


def _weights(path: Path) -> Iterator[Unfit]:
    for name, (low, high, text) in half.unfit_weights(load(path)).items():
        yield Unfit(name, "", "overflow" if high > half.LARGEST else "underflow", low, high, text)
