"""The proofs: structure, parse, parity, build. Each returns a Check; a failing model raises nothing.

A proof that could not run says so with Status.NOT_RUN and the reason; it is never taken for a passed one.
"""

from __future__ import annotations

import functools
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfix import skeleton
from onnxfix.backends import BackendError, feeds, trt
from onnxfix.backends.compare import Compared, compare, worst
from onnxfix.backends.images import Preprocessing
from onnxfix.backends.metrics import Metric
from onnxfix.errors import ModelError, OnnxfixError, RequestError, UnavailableError
from onnxfix.graph import Graph, Node
from onnxfix.model import load, one_line
from onnxfix.report import Check, Effect, Finding, Report, Safety, Status, Where

Progress = Callable[[str, "float | None"], None]

# The place of the main graph's node at an index of the parser.
Places = Callable[[int], "Where | None"]

# Up to here shape inference runs with the weights in place; beyond it they are left out, to keep memory flat.
INLINE_LIMIT = 256 << 20


def close() -> None:
    """End the child process that holds TensorRT. The next proof starts a new one."""
    trt.close()


# ---- structure ----


def structure(path: Path, *, before: Path | None = None) -> Check:
    """`onnx.checker` and strict shape inference. External data is looked for but not read.

    With `before`, a fault that the original has too is marked in the detail and as figures["in_original"].
    """
    by = f"onnx {onnx.__version__}"
    fault = _fault(path)
    if not fault:
        return Check("structure", Status.PASSED, by, "the checker and shape inference find no fault")
    inherited = before is not None and _fault(before) == fault
    detail = f"{fault}; the original has the same fault" if inherited else fault
    return Check("structure", Status.FAILED, by, detail, {"in_original": inherited})


def _fault(path: Path) -> str:
    """The first fault of the model, "" when there is none."""
    try:
        small = path.stat().st_size <= INLINE_LIMIT
        onnx.checker.check_model(str(path), full_check=small)
        if not small:
            # The weights' dtypes and shapes are all that inference needs of them.
            onnx.shape_inference.infer_shapes(skeleton.load(path).proto, check_type=True, strict_mode=True)
    except OSError as error:
        return f"{path}: {error.strerror}"
    except Exception as error:  # ValidationError, InferenceError and what their C++ side lets through
        return one_line(error)
    return ""


# ---- parse ----


def parse(path: Path, *, node_where: Places | None = None, seconds: float = 600.0) -> Check:
    """TensorRT's own parser. Each refusal is a Finding at its node, in the file at `path`.

    `node_where` gives the place of the main graph's node at an index; by default it is read from the file.
    """
    try:
        about = trt.shared().about()
        parsed = trt.shared().parse(path, seconds=seconds)
    except UnavailableError as error:
        return Check("parse", Status.NOT_RUN, "tensorrt", str(error))
    except BackendError as error:
        return _died("parse", path, error)
    by = str(about)
    figures = {"layers": parsed.layers, "warnings": list(parsed.warnings)}
    if not parsed.refusals:
        detail = f"the parser takes the model: {parsed.layers} layers"
        return Check("parse", Status.PASSED, by, detail, figures)
    findings = _findings(path, parsed.refusals, by, node_where)
    detail = f"the parser refuses {_plural(len(findings), 'node')}: {_first(findings)}"
    return Check("parse", Status.FAILED, by, detail, figures, findings)


def _died(name: str, path: Path, error: BackendError) -> Check:
    """The child died or failed on this model. A crash is told with the node it was at, where that is known."""
    by = str(trt.shared().about())
    where = Where("", "")
    if place := re.search(r", at node (\S.*?) \[(\w+)\]", str(error)):
        where = Where(place[1], place[2])
    detail = f"{_sentence(str(error)) or error} ({path.name})"
    effect = Effect.REFUSED if name == "parse" else Effect.BUILD_FAILS
    findings: tuple[Finding, ...] = ()
    if isinstance(error, trt.DiedError):
        findings = (Finding(where, effect, str(error), by),)
    elif name == "build":
        findings = _told(path, [str(error)], effect, by)
    return Check(name, Status.FAILED, by, detail, findings=findings)


def _told(path: Path, texts: Iterable[str], effect: Effect, by: str) -> tuple[Finding, ...]:
    """What TensorRT said of nodes that it named, as a Finding at each of them."""
    words = {text: list(filter(None, _BETWEEN_NAMES.split(text))) for text in texts}
    if not words:
        return ()
    try:
        scopes = Graph.of(load(path)).scopes()
    except ModelError:
        return ()
    nodes = {_parser_name(node): node for scope in scopes for node in scope.nodes()}
    return tuple(
        Finding(nodes[name].where(), effect, _sentence(text) or text, by, text, limit=f"builder/{effect.value}")
        for text, names in words.items()
        for name in dict.fromkeys(names)
        if name in nodes
    )


# What stands between the names in a message: "node {ForeignNode[a...b]}", "IElementWiseLayer a: ...", "node a + b.",
# and of a body "'$$myelin$$then^a'".
_BETWEEN_NAMES = re.compile(r"\.\.\.|[.:]?(?:[\s{}\[\](),;^'\"]+|$)")


def _findings(
    path: Path, refusals: Sequence[trt.Refusal], by: str, node_where: Places | None = None
) -> tuple[Finding, ...]:
    try:
        graph: Graph | None = Graph.of(load(path))
    except ModelError:
        graph = None
    return tuple(
        Finding(_place(r, graph, node_where), _effect(r), _reason(r), by, _evidence(r), limit=_limit(r))
        for r in refusals
    )


def _limit(refusal: trt.Refusal) -> str:
    return f"parser/{refusal.code.lower().replace('_', '-') or 'error'}"


def _place(refusal: trt.Refusal, graph: Graph | None, node_where: Places | None) -> Where:
    if node_where and not refusal.stack and (given := node_where(refusal.node)):
        return given
    scope = _scope(graph, refusal.stack) if graph else None
    if scope is None:
        return Where(refusal.node_name, refusal.node_operator, graph="/".join(refusal.stack))
    # Inside a body or function the index is that of the node around it, and only a node that stands out is known.
    alike = [n for n in scope.nodes() if (n.op, n.name) == (refusal.node_operator, refusal.node_name)]
    at_index = [n for n in alike if n.index == refusal.node and not refusal.stack]
    for candidates in (at_index, alike):
        if len(candidates) == 1:
            return candidates[0].where()
    return Where(refusal.node_name, refusal.node_operator, graph=scope.path)


def _scope(graph: Graph, stack: Sequence[str]) -> Graph | None:
    """The scope that a stack of the parser leads to, e.g. ("outer_if (If)", "tb (then_branch)")."""
    scope, owner = graph, None
    for entry in stack:
        name, _, kind = entry[:-1].rpartition(" (")
        if owner is not None and kind in owner.bodies:
            scope, owner = owner.bodies[kind], None
            continue
        owner = next((n for n in scope.nodes() if n.op == kind and _parser_name(n) == name), None)
        if owner is None:
            return None
        if function := graph.functions.get((owner.domain, owner.op)):
            scope, owner = function, None
    return scope


def _parser_name(node: Node) -> str:
    """What the parser calls a node: one without a name gets one from its first output."""
    return node.name or f"node_of_{node.outputs[0] if node.outputs else ''}"


def _effect(refusal: trt.Refusal) -> Effect:
    lacks_plugin = re.search(r"plugin.*not found|failed to load .*plugin", refusal.desc, re.I | re.S)
    return Effect.PLUGIN if lacks_plugin else Effect.REFUSED


def _reason(refusal: trt.Refusal) -> str:
    """The sentence in the parser's error: asserted conditions, code and source places left out."""
    text = " ".join(refusal.desc.split())
    if asserted := re.search(r'&& "(.+?)"', text):
        # In an error about a graph input, the parser's source file is the input's name.
        return f"graph input {refusal.file}: {asserted[1]}" if refusal.func == "importInput" else asserted[1]
    if usage := _sentence(text):
        return usage
    if failed := re.match(r"Assertion failed: .+?: (.+)", text):
        return failed[1].strip()
    if text not in ("false", ""):
        return text
    # The parser's error is bare; the logger may have said why just before.
    return refusal.said[-1] if refusal.said else f"the parser does not take {refusal.node_operator} here"


def _sentence(text: str) -> str:
    """What stands in TensorRT's frame of an error, "" where there is no such frame."""
    framed = re.search(r"Error Code \d+: [\w ]+ \((?:\[[\w.]+:\d+: \w+\] )?(.+?)\.? In \w+ at ", text)
    return framed[1] if framed else ""


def _evidence(refusal: trt.Refusal) -> str:
    place = f" ({refusal.func} in {refusal.file}:{refusal.line})" if refusal.func else ""
    said = "".join(f"; logged: {text}" for text in refusal.said if text not in refusal.desc)
    return f"{refusal.code}: {' '.join(refusal.desc.split())}{place}{said}"


def _first(findings: Sequence[Finding]) -> str:
    more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"{findings[0].where}: {findings[0].reason}{more}"


# ---- parity ----

SAMPLES_KEPT = 3  # for whoever looks for the place of a difference
HELD_BYTES = 256 << 20  # of outputs, while two large models take turns

# Relative to the output's largest magnitude.
TOLERANCES = {Safety.EXACT: 1e-6, Safety.CLOSE: 1e-5}


@dataclass
class _Samples:
    """What the parity has seen so far."""

    deadline: float
    compared: dict[str, list[Compared]] = field(default_factory=lambda: defaultdict(list))
    sizes: list[dict[str, int]] = field(default_factory=list)
    failing: list[str] = field(default_factory=list)  # where the original does not run, and why
    ran: int = 0
    integers: set[int] = field(default_factory=set)  # values given to single integers
    fault: str = ""  # why the fixed model is wrong
    missed: list[str] = field(default_factory=list)  # sizes that were asked for, where the original does not run
    kept: list[feeds.Feeds] = field(default_factory=list)
    beyond: tuple[feeds.Feeds, str] | None = None  # inputs and output of the first difference over tolerance

    def late(self) -> bool:
        return time.monotonic() > self.deadline


def proved_sizes(report: Report) -> dict[str, tuple[int, int, int]]:
    """Sizes of the dynamic axes that are known to work, as (min, opt, max): the first at which the parity ran."""
    check = report.check("parity")
    sizes: list[dict[str, int]] = check.figures.get("sizes", []) if check else []
    return {axis: (size, size, size) for axis, size in (sizes[0] if sizes else {}).items()}


def parity(
    before: Path,
    after: Path,
    *,
    safety: Safety = Safety.EXACT,
    inputs: Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    tolerances: Mapping[str, float] | None = None,
    frozen: Mapping[str, Any] | None = None,
    dims: Mapping[str, tuple[int, int, int]] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    preprocessing: Preprocessing | None = None,
    samples_to: list[feeds.Feeds] | None = None,
    seconds: float = 300.0,
    progress: Progress | None = None,
) -> Check:
    """The same numbers before and after, by ONNX Runtime on the CPU through Polygraphy.

    `safety` is the worst grade of the changes made. EXACT asks for equal values; where ONNX Runtime sums in another
    order, up to 1e-6 of the output's largest magnitude passes and is called that. CLOSE allows 1e-5 of it, or one
    unit in the last place of a 16-bit output. LOSSY is judged only against a stated tolerance. `tolerances` states
    others, by grade ("exact", "close", "lossy") or by output name. Integers, booleans and strings must be equal.

    `inputs` is an .npz, a Polygraphy .json, or a folder of images made inputs by `preprocessing`. Without it they are
    drawn for each of `seeds`: at two sizes of the dynamic axes where the original runs at two, or with `dims` (axis ->
    (min, opt, max)) at opt, and the first seed also at min and max. `frozen` are values that the original is fed on
    every run, for inputs that the fixed model no longer has. `metrics` (by output; "" for all others) judge in the
    tolerance's place. `samples_to` gets some of the inputs that were compared, those of the first difference in front.
    `seconds` bounds the time spent: at least one sample is compared.

    Raises RequestError when `inputs` is no usable file, or `dims` names an axis the model does not have.
    """
    try:
        one, other = _runners(before, after)
    except UnavailableError as error:
        return Check("parity", Status.NOT_RUN, "onnxruntime", str(error))
    except _After as error:
        return Check("parity", Status.FAILED, "onnxruntime", f"the fixed model does not load: {error}")
    except BackendError as error:
        return Check("parity", Status.NOT_RUN, "onnxruntime", f"these models can't be run here: {error}")
    if frozen:
        one = _Frozen(one, frozen)
    by = str(one)
    if mismatch := _interface(one, other):
        return Check("parity", Status.FAILED, by, mismatch)
    seen = _Samples(time.monotonic() + seconds)
    tolerance = _Tolerance(safety, tolerances or {}, metrics or {})
    tolerance.check(t.name for t in one.outputs)
    if unknown := [name for name in dims or {} if name not in feeds.axes(one.inputs)]:
        axes = ", ".join(feeds.axes(one.inputs)) or "none"
        raise RequestError(f"{before}: no dynamic axis called '{unknown[0]}'; there are {axes}")
    held = HELD_BYTES if _take_turns(before, after) else 0
    with one, other:
        if inputs is not None:
            samples: Iterator[feeds.Feeds] = iter(feeds.read(inputs, one.inputs, preprocessing))
        elif reason := feeds.unfillable(one.inputs):
            return Check("parity", Status.NOT_RUN, by, f"{reason}: give inputs with --inputs")
        else:
            samples = _profiled(one, other, seeds, seen, dims) if dims else _seeded(one, other, seeds, seen)
        _compare_all(one, other, samples, tolerance, seen, progress, held)
        if samples_to is not None:
            samples_to += [*([seen.beyond[0]] if seen.beyond else []), *seen.kept][:SAMPLES_KEPT]
        if seen.beyond and not _repeatable(one, *seen.beyond):
            output = seen.beyond[1]
            reason = f"the original itself gives other values of {output} on every run"
            return Check("parity", Status.NOT_RUN, by, reason, _figures(seen, tolerance, seeds, inputs))
    return _judge(by, seen, tolerance, seeds, inputs)


class _Frozen:
    """A runner some of whose inputs are always fed the same."""

    def __init__(self, runner: Any, values: Mapping[str, Any]) -> None:
        self.runner = runner
        self.values = {n: v for n, v in values.items() if n in {t.name for t in runner.inputs}}
        self.inputs = [t for t in runner.inputs if t.name not in values]
        self.outputs = runner.outputs

    def __enter__(self) -> _Frozen:
        self.runner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.runner.__exit__(*error)

    def rest(self) -> None:
        self.runner.rest()

    def __str__(self) -> str:
        return str(self.runner)

    def run(self, sample: feeds.Feeds) -> dict[str, Any]:
        outputs: dict[str, Any] = self.runner.run({**sample, **self.values})
        return outputs


class _After(BackendError):
    """The fixed model is at fault, not the original."""


def _runners(before: Path, after: Path) -> tuple[Any, Any]:
    """Both models in ONNX Runtime, or both in the reference evaluator where it lacks an operator of either."""
    from onnxfix.backends import ort, reference

    try:
        one = ort.Runner(before)
        if _take_turns(before, after):
            one.rest()
        try:
            return one, ort.Runner(after)
        except ort.UnsupportedError:
            raise
        except BackendError as error:
            raise _After(str(error)) from None
    except ort.UnsupportedError as error:
        try:
            return reference.Runner(before), reference.Runner(after)
        except OnnxfixError as second:
            raise BackendError(f"ONNX Runtime: {error}; {second}") from None


def _take_turns(before: Path, after: Path) -> bool:
    """Whether the two are too large to be in memory together."""
    return before.stat().st_size + after.stat().st_size > INLINE_LIMIT


def _interface(one: Any, other: Any) -> str:
    """What of the fixed model's interface makes a comparison impossible, "" when it fits."""
    had, has = ({t.name for t in runner.inputs} for runner in (one, other))
    if has - had:
        return f"the fixed model wants an input the original does not have: {', '.join(sorted(has - had))}"
    had, has = ({t.name for t in runner.outputs} for runner in (one, other))
    if had != has:
        gone, new = ", ".join(sorted(had - has)) or "none", ", ".join(sorted(has - had)) or "none"
        return f"the outputs differ: {gone} gone, {new} new"
    return ""


def _seeded(one: Any, other: Any, seeds: Sequence[int], seen: _Samples) -> Iterator[feeds.Feeds]:
    """Seeded samples at sizes the original runs at: all seeds at the first, and once more at a second."""
    parts = feeds.axes(one.inputs)
    fixed = _fixed(one.inputs, other.inputs)
    found, ways = _working(one, feeds.sizes(parts, fixed), seeds[0], seen)
    if found is None:
        return
    yield from _drawn(one, ways, seeds)
    if parts:
        second, ways = _working(one, feeds.other_sizes(found, parts, fixed), seeds[0], seen)
        if second is not None:
            yield from _drawn(one, ways, seeds)


def _profiled(
    one: Any, other: Any, seeds: Sequence[int], seen: _Samples, dims: Mapping[str, tuple[int, int, int]]
) -> Iterator[feeds.Feeds]:
    """Seeded samples at the sizes of a profile: all seeds at its opt, one at its min and one at its max."""
    opt = {**_fixed(one.inputs, other.inputs), **{name: sizes[1] for name, sizes in dims.items()}}
    found, ways = _working(one, feeds.sizes(feeds.axes(one.inputs), opt), seeds[0], seen)
    if found is None:
        return
    yield from _drawn(one, ways, seeds)
    for bound in (0, 2):
        sizes = {**found, **{name: dims[name][bound] for name in dims}}
        if sizes not in seen.sizes:
            working, ways = _working(one, iter([sizes]), seeds[0], seen)
            if working is None:
                seen.missed.append(feeds.words(sizes))
            else:
                yield from _drawn(one, ways, seeds[:1])


def _drawn(one: Any, ways: Sequence[feeds.Draw], seeds: Sequence[int]) -> Iterator[feeds.Feeds]:
    # Several ways, e.g. several sample rates, are taken in turn, to see more of the model's branches.
    for i, seed in enumerate(seeds):
        yield feeds.seeded(one.inputs, ways[i % len(ways)], seed)


def _fixed(before: Sequence[feeds.Tensor], after: Sequence[feeds.Tensor]) -> dict[str, int]:
    """Dynamic axes that the fixed model has at one size."""
    shapes = {t.name: t.shape for t in after}
    pairs = ((d, now) for t in before for d, now in zip(t.shape, shapes.get(t.name, t.shape), strict=False))
    return {d: now for d, now in pairs if isinstance(d, str) and isinstance(now, int)}


def _working(
    one: Any, sizes: Iterator[feeds.Sizes], seed: int, seen: _Samples
) -> tuple[feeds.Sizes | None, list[feeds.Draw]]:
    """The first sizes the original runs at, and the ways to fill its inputs that it takes there."""

    def late() -> bool:
        return seen.late() and bool(seen.sizes or seen.failing)

    ways = feeds.working(one.run, one.inputs, sizes, seed, seen.failing, late)
    if not ways:
        return None, []
    # The narrower integer range is for models that refuse the wider one.
    widest = [w for w in ways if w.ints == ways[0].ints]
    chosen = dict(ways[0].sizes)
    seen.sizes.append(chosen)
    if len(widest) > 1:
        seen.integers.update(w.scalar for w in widest)
    return chosen, widest


def _compare_all(
    one: Any,
    other: Any,
    samples: Iterator[feeds.Feeds],
    tolerance: _Tolerance,
    seen: _Samples,
    progress: Progress | None,
    held: int,
) -> None:
    """Run both on every sample. With `held` they take turns: one at a time is in memory, beside that many bytes of
    the first one's outputs."""
    waiting: list[tuple[feeds.Feeds, dict[str, Any]]] = []

    def compare_waiting() -> None:
        if held:
            one.rest()
        for sample, expected in waiting:
            _compare_sample(other, sample, expected, tolerance, seen)
        waiting.clear()
        if held:
            other.rest()

    if held:
        other.rest()
    for sample in samples:
        if seen.fault or (seen.ran and seen.late()):
            break
        if progress:
            progress(f"parity: sample {seen.ran + 1}", None)
        try:
            expected = one.run(sample)
        except BackendError as error:
            seen.failing.append(f"sample {seen.ran}: {error}")
            continue
        seen.ran += 1
        if len(seen.kept) < SAMPLES_KEPT:
            seen.kept.append(sample)
        waiting.append((sample, expected))
        if sum(getattr(value, "nbytes", 0) for _, outputs in waiting for value in outputs.values()) >= held:
            compare_waiting()
    compare_waiting()


def _compare_sample(
    other: Any, sample: feeds.Feeds, expected: Mapping[str, Any], tolerance: _Tolerance, seen: _Samples
) -> None:
    if seen.fault:
        return
    dtypes = {t.name: t.dtype for t in other.inputs}
    try:
        got = other.run({n: feeds.cast(a, dtypes[n]) for n, a in sample.items() if n in dtypes})
    except BackendError as error:
        seen.fault = f"the fixed model fails where the original runs: {error}"
        return
    for name, reference in expected.items():
        compared = compare(name, reference, got[name], tolerance.of(name, reference), tolerance.metric(name))
        seen.compared[name].append(compared)
        if compared.verdict not in ("equal", "within") and seen.beyond is None:
            seen.beyond = sample, name


def _repeatable(one: Any, sample: feeds.Feeds, output: str) -> bool:
    first, second = one.run(sample)[output], one.run(sample)[output]
    return compare(output, first, second, 0.0).verdict in ("equal", "kind")


class _Tolerance:
    """The error allowed, relative to the output's largest magnitude: stated for the output, for the grade, or its own.

    Lossy changes without a stated tolerance are measured, but there is nothing to judge them by.
    """

    def __init__(
        self, safety: Safety, stated: Mapping[str, float], metrics: Mapping[str, Metric] | None = None
    ) -> None:
        self.safety = safety
        self.stated = stated
        self.metrics = metrics or {}

    def check(self, outputs: Iterable[str]) -> None:
        """Raises RequestError for a metric that is stated for no output of the model."""
        known = list(outputs)
        if unknown := [name for name in self.metrics if name and name not in known]:
            raise RequestError(f"a metric is stated for '{unknown[0]}', no output; they are {', '.join(known)}")

    def metric(self, output: str) -> Metric | None:
        """What judges this output in the tolerance's place. A tolerance stated for it goes before a general metric."""
        return self.metrics.get(output, None if output in self.stated else self.metrics.get(""))

    def judges(self, output: str) -> bool:
        return self.metric(output) is not None or self.value(output) is not None

    def value(self, output: str) -> float | None:
        stated = self.stated.get(output, self.stated.get(self.safety.value))
        return TOLERANCES.get(self.safety) if stated is None else stated

    def of(self, output: str, reference: Any) -> float:
        value = self.value(output)
        if value is None:
            return float("inf")
        half = isinstance(reference, np.ndarray) and reference.dtype == np.float16
        if half and self.safety is Safety.CLOSE and value == TOLERANCES[Safety.CLOSE]:
            return float(np.finfo(np.float16).eps)  # one unit in the last place: rounding alone moves that much
        return value

    def words(self, output: str = "") -> str:
        value, own = self.value(output), TOLERANCES.get(self.safety)
        if value is None:
            return "none stated"
        wider = f", wider than the {own:g} of the grade, as asked" if own is not None and value > own else ""
        return f"{value:g} of the largest magnitude{wider}"


def _judge(by: str, seen: _Samples, tolerance: _Tolerance, seeds: Sequence[int], inputs: Path | None) -> Check:
    figures = _figures(seen, tolerance, seeds, inputs)

    def check(status: Status, detail: str) -> Check:
        return Check("parity", status, by, detail, figures)

    if seen.fault:
        return check(Status.FAILED, seen.fault)
    if not seen.ran:
        tried = seen.failing[0] if seen.failing else "no sample"
        return check(Status.NOT_RUN, f"the original runs on no input tried: {tried}; give some with --inputs")
    over = f"over {_plural(seen.ran, 'sample')}{_at(seen.sizes)}"
    for name, compared in seen.compared.items():
        for c in compared:
            if c.verdict in ("shape", "finite"):
                return check(Status.FAILED, f"output {name}: {c.note}")
            if c.verdict == "kind":
                return check(Status.NOT_RUN, f"output {name} is {c.note}: the parity compares tensors")
            if c.verdict == "beyond" and c.metric is not None:
                return check(Status.FAILED, f"output {name}: {c.note} (asked for: {c.metric.words()})")
            if c.verdict == "beyond":
                error = f"{c.max_abs:.3g}, {c.relative:.3g} of its largest magnitude {c.magnitude:.3g}"
                return check(Status.FAILED, f"output {name} differs by {error} (allowed: {tolerance.words(name)})")
    for name, compared in seen.compared.items():
        if not any(c.finite for c in compared):
            what = "has only NaN or infinity" if any(c.elements for c in compared) else "is empty"
            detail = f"output {name} {what} {over}, which proves nothing; give inputs with --inputs"
            return check(Status.NOT_RUN, detail)
    everything = [c for compared in seen.compared.values() for c in compared]
    if all(c.verdict == "equal" for c in everything):
        detail = f"{_plural(len(seen.compared), 'output')} equal in every value {over}"
        return check(Status.PASSED, detail + _weak(figures))
    largest = max(everything, key=lambda c: c.relative)
    error = f"largest error {largest.max_abs:.3g}, {largest.relative:.2g} of the output's largest magnitude"
    if not all(map(tolerance.judges, seen.compared)):
        detail = f"measured, not judged: {error} {over}; no tolerance is stated for lossy changes"
        return check(Status.NOT_RUN, detail)
    scores = "".join(
        f"; {name}: {f['metric']}: {f['score']:.6g}" for name, f in figures["outputs"].items() if "metric" in f
    )
    if scores and all(tolerance.metric(name) for name in seen.compared):
        return check(Status.PASSED, f"{scores[2:]} {over}" + _weak(figures))
    rounding = "equal but for rounding, as sums in another order are: " if tolerance.safety is Safety.EXACT else ""
    return check(Status.PASSED, f"{rounding}{error} {over} (allowed: {tolerance.words()}){scores}" + _weak(figures))


def _weak(figures: Mapping[str, Any]) -> str:
    """A word on sizes that were not run, and on outputs that are the same number everywhere: they say little."""
    flat = [n for n, f in figures["outputs"].items() if f["elements"] > 1 and f["range"][0] == f["range"][1]]
    missed = f"; not run at {' and at '.join(figures['not_run_at'])}" if figures["not_run_at"] else ""
    return missed + (f"; weak evidence: {', '.join(flat)} never varied" if flat else "")


def _figures(seen: _Samples, tolerance: _Tolerance, seeds: Sequence[int], inputs: Path | None) -> dict[str, Any]:
    return {
        "samples": seen.ran,
        "inputs": inputs.name if inputs else f"seeds {', '.join(map(str, seeds))}",
        "sizes": seen.sizes,
        "integers": sorted(seen.integers),
        "original_fails_at": seen.failing[:20],
        "not_run_at": seen.missed,
        "grade": tolerance.safety.value,
        "tolerance": tolerance.words(),
        "outputs": worst(seen.compared),
    }


def _at(sizes: Sequence[Mapping[str, int]]) -> str:
    named = [feeds.words(s) for s in sizes if s]
    return f" at {' and at '.join(named)}" if named else ""


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# ---- build and read back ----


def build(path: Path, plan: Path, options: trt.BuildOptions, progress: Progress | None = None) -> Check:
    """Build an engine from the model at `path`, written to `plan` whole or not at all.

    Raises RequestError for settings that the TensorRT at hand can't take.
    """
    return build_engine(path, plan, options, progress)[0]


def build_engine(
    path: Path, plan: Path, options: trt.BuildOptions, progress: Progress | None = None
) -> tuple[Check, trt.Built | None]:
    """`build`, and all that is known of the engine where there is one."""
    tensorrt = trt.shared()
    try:
        about = tensorrt.about()
        if about.no_driver and not about.capabilities:  # only TensorRT-RTX builds for a GPU that is not here
            reason = f"{about.no_driver}: {about.flavour} {about.version} builds for the GPU at hand only"
            return Check("build", Status.NOT_RUN, str(about), reason), None
        built = tensorrt.build(path, plan, options, progress)
    except UnavailableError as error:
        return Check("build", Status.NOT_RUN, "tensorrt", str(error)), None
    except BackendError as error:
        return _died("build", path, error), None
    by = str(about)
    if built.refusals:
        findings = _findings(path, built.refusals, by)
        refused = f"the parser refuses {_plural(len(findings), 'node')}: {_first(findings)}"
        return Check("build", Status.FAILED, by, refused, {"warnings": list(built.warnings)}, findings), None
    figures = {
        "bytes": built.bytes,
        "seconds": built.seconds,
        "layers": built.layers,
        "compute_capability": options.compute_capability if about.capabilities else "",
        "shapes": [dict(s) for s in built.shapes],
        "warnings": list(built.warnings),
    }
    warned = _told(path, built.warnings, Effect.WARNED, by)
    return Check("build", Status.PASSED, by, _built(about, built, options), figures, warned), built


def onnx_nodes(path: Path, layers: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The layers of an engine with the nodes of the model each is of, named as we name them, not as the parser does."""
    graph = Graph.of(load(path))
    labels = dict.fromkeys(label for layer in layers for label in layer["onnx"])
    index = functools.cache(lambda scope: {_parser_name(node): node for node in scope.nodes()})
    places = {label: _labelled(graph, label, index) for label in labels}
    return tuple(
        {**layer, "onnx": list(dict.fromkeys(filter(None, (places[label] for label in layer["onnx"]))))}
        for layer in layers
    )


def _labelled(graph: Graph, label: str, index: Callable[[Graph], Mapping[str, Node]]) -> str:
    """The node of a layer's label, e.g. "node_of_a | tb (then_branch) | node_of_y (If)", "" for the label of none."""
    name, *stack = label.split(" | ")
    outermost = stack[-1].rpartition(" (")[0] if stack else name
    for wanted, scope in ((name, _scope(graph, stack[::-1])), (outermost, graph)):
        if scope is not None and (node := index(scope).get(wanted)):
            return node.name or str(node.where())
    return ""


def _built(about: trt.About, built: trt.Built, options: trt.BuildOptions) -> str:
    goal = ""
    if options.compute_capability:
        goal = f" for compute capability {options.compute_capability}"
        if not about.capabilities:
            goal = f" for the GPU at hand ({about.flavour} builds for no other)"
    shapes = "".join(
        f"; {name} from {_dims(low)} to {_dims(high)}" if low != high else f"; {name} at {_dims(low)}"
        for profile in built.shapes
        for name, (low, _opt, high) in profile.items()
    )
    return f"serialised {built.bytes:,} bytes{goal} in {built.seconds:.1f} s{shapes}"


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
