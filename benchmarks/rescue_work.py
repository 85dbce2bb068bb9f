"""What happens in a child process of the rescue benchmark: one tool on one node test, judged by parser and numbers.

Nothing a tool does may end the benchmark: its exceptions are outcomes here, its crashes are outcomes in the parent.
"""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfix import catalog, engine, matrix, model, prove, shapes
from onnxfix.backends import BackendError, hard, ort
from onnxfix.changeproof import RANDOM
from onnxfix.errors import OnnxfixError
from onnxfix.recorder import operators
from onnxfix.report import Safety, Status
from onnxfix.rule import REWRITABLE

OUTCOMES = ("unchanged", "taken", "wrong", "refused", "crash", "failed")
# unchanged: the parser takes the model and the numbers are right; taken: taken, and nothing to check the numbers
# against; failed: the tool itself failed, or died.


@dataclass(frozen=True)
class Job:
    case: str
    folder: Path  # holds CASE.onnx, CASE.whole.onnx and CASE.pickle
    do: str  # "reference", a tool of TOOLS, "matrix TARGET", and after these "others onnxfix" or "others matrix TARGET"
    rules: str = ""  # rule file or folder of rules


@dataclass
class Result:
    """What became of one case with one tool."""

    case: str
    tool: str
    outcome: str
    why: str = ""  # the parser's or the tool's words, or how the numbers differ
    op: str = ""  # of the first node refused
    seconds: float = 0.0  # in the tool alone
    rules: tuple[str, ...] = ()  # that acted, in order, each once
    safety: str = ""
    findings: tuple[str, ...] = ()  # what our matrix still refuses
    skips: tuple[str, ...] = ()
    before: str = ""  # by-matrix: the matrix' word on the model as it is: "takes", "undecided" or "refuses"
    numbers: str = ""  # of a model that was taken or that a matrix judged: "same", "unchecked" or how they differ


# ---- tools: model in, model out ----


@dataclass
class Tooled:
    proto: onnx.ModelProto
    rules: tuple[str, ...] = ()
    safety: Safety = Safety.CLOSE
    widened: bool = False  # an input or output changed its dtype, and this was reported
    findings: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()
    before: str = ""
    after: str = ""


def raw(proto: onnx.ModelProto, job: Job) -> Tooled:
    return Tooled(proto, safety=Safety.EXACT)


def onnxsim(proto: onnx.ModelProto, job: Job) -> Tooled:
    from onnxsim import simplify

    simplified, same = simplify(proto)
    if not same:
        raise RuntimeError("its own check of the numbers failed")
    return Tooled(simplified)


def onnxslim(proto: onnx.ModelProto, job: Job) -> Tooled:
    from onnxslim import slim

    slimmed = slim(proto)
    assert isinstance(slimmed, onnx.ModelProto)
    return Tooled(slimmed)


def polygraphy(proto: onnx.ModelProto, job: Job) -> Tooled:
    """The steps of `polygraphy surgeon sanitize --fold-constants --cleanup`."""
    import onnx_graphsurgeon
    from polygraphy.backend.onnx import fold_constants, gs_from_onnx, infer_shapes

    graph = gs_from_onnx(infer_shapes(proto))
    graph.cleanup()
    return Tooled(fold_constants(onnx_graphsurgeon.export_onnx(graph), allow_onnxruntime_shape_inference=True))


def onnxfix(proto: onnx.ModelProto, job: Job, target: str = "rtx-1.7") -> Tooled:
    goal = matrix.target(target)
    rules, options = _rules(job.rules)
    given = model.Model(proto)
    graph = shapes.index(given)
    before = _word(graph, goal)
    outcome = engine.run(
        graph, rules, goal, lambda node: matrix.judge(node, goal), allow=Safety.CLOSE, options=options
    )
    remaining = list(matrix.judge_graph(graph, goal))
    return Tooled(
        given.proto,
        rules=tuple(dict.fromkeys(c.rule for c in outcome.changes)),
        safety=max((c.safety for c in outcome.changes), key=lambda s: s.rank, default=Safety.EXACT),
        widened=bool(outcome.interface),
        findings=tuple(f"{n.op}: {v.reason}" for n, v in remaining),
        skips=tuple(f"{s.rule}: {s.reason}" for s in outcome.skipped),
        before=before,
        after=_word(graph, goal),
    )


TOOLS: Mapping[str, Callable[[onnx.ModelProto, Job], Tooled]] = {
    "raw": raw,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "polygraphy": polygraphy,
    "onnxfix": onnxfix,
}


@functools.cache
def _rules(place: str) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The rules of a folder, all of them, or those a rule file chooses."""
    if Path(place).is_dir():
        return tuple(catalog.load_folder(Path(place)).values()), {}
    chosen = catalog.load_set(place)
    return chosen.rules, chosen.options


def _word(graph: Any, goal: matrix.Target) -> str:
    effects = {v.effect for _, v in matrix.judge_graph(graph, goal)}
    return "refuses" if effects & REWRITABLE else "undecided" if effects else "takes"


# ---- judging ----


def work(job: Job) -> Result:
    """One job, start to end."""
    os.environ["ONNXFIX_TRT_FLAVOUR"] = "tensorrt_rtx"
    _be_quiet()
    path = job.folder / f"{job.case}.onnx"
    data = pickle.loads((job.folder / f"{job.case}.pickle").read_bytes())
    if job.do == "reference":
        return _reference(job, data)
    if job.do.startswith("others "):
        return _others(job, data)
    reference = job.folder / f"{job.case}.reference"
    data["reference"] = pickle.loads(reference.read_bytes()) if reference.is_file() else None
    data["before"] = path.read_bytes()
    kind, _, target = job.do.partition(" ")
    start = time.perf_counter()
    try:
        proto = onnx.load(path)
        tooled = onnxfix(proto, job, target) if kind == "matrix" else TOOLS[kind](proto, job)
        seconds = time.perf_counter() - start
        made = tooled.proto.SerializeToString()
    except Exception as error:  # a tool may fail in any way
        words = str(error) if isinstance(error, OnnxfixError) else f"{type(error).__name__}: {error}"
        return Result(job.case, job.do, "failed", _line(words), seconds=time.perf_counter() - start)
    result = Result(
        job.case, job.do, "", seconds=seconds, rules=tooled.rules, safety=tooled.safety.value,
        findings=tooled.findings, skips=tooled.skips, before=tooled.before,
    )  # fmt: skip
    result.numbers = (kind in ("onnxfix", "matrix") and _fault(tooled.proto, data)) or _numbers(made, data, tooled)
    if kind in ("onnxfix", "matrix"):
        _made(job, job.do).write_bytes(pickle.dumps((made, tooled.safety)))
    if kind == "matrix":
        result.outcome = tooled.after
        return result
    _parse(made, result)
    if result.outcome == "taken" and result.numbers != "unchecked":
        result.outcome = "unchanged" if result.numbers == "same" else "wrong"
        result.why = "" if result.numbers == "same" else result.numbers
    return result


def _be_quiet() -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    os.environ.setdefault("ONNXSLIM_LOG_LEVEL", "CRITICAL")


def _reference(job: Job, data: Mapping[str, Any]) -> Result:
    """Whether ONNX Runtime reproduces what the standard expects of the test as it is; keeps its outputs."""
    result = Result(job.case, job.do, "failed")
    try:
        found = hard.Loaded((job.folder / f"{job.case}.whole.onnx").read_bytes()).run(data["whole_feeds"])
    except BackendError as error:
        result.why = _line(error)
        return result
    if len(found) != len(data["expected"]):
        result.why = "another number of outputs"
        return result
    for want, got in zip(data["expected"], found, strict=True):
        difference = _expected(want, got, data, by_value=False)
        if difference:
            result.outcome, result.why = "differs", difference
            return result
    (job.folder / f"{job.case}.reference").write_bytes(pickle.dumps(found))
    result.outcome = "reproduced"
    return result


def _made(job: Job, do: str) -> Path:
    """Where a model that onnxfix rewrote is kept, with the worst grade of what acted."""
    return job.folder / f"{job.case}.{do.replace(' ', '-')}.made"


def _others(job: Job, data: Mapping[str, Any]) -> Result:
    """What onnxfix made of a case against the case itself, on inputs harder than the test's.

    Both run in ONNX Runtime, and where it can't, in ONNX's reference evaluator.
    """
    result = Result(job.case, job.do, "not run")
    made, safety = pickle.loads(_made(job, job.do.removeprefix("others ")).read_bytes())
    before = (job.folder / f"{job.case}.onnx").read_bytes()
    nodes = [n for model in (before, made) for n in onnx.ModelProto.FromString(model).graph.node]
    if drawn := sorted({op for n in nodes for _, op in operators(n)} & RANDOM):
        result.why = f"{drawn[0]} draws other numbers on every run"
        return result
    outcomes: list[hard.Outcome] = []
    for by in (hard.Loaded, hard.Evaluated):
        try:
            outcomes = outcomes or list(hard.outcomes(before, made, data["feeds"], safety, by))
        except BackendError as error:
            result.why = str(error)
    different = [o for o in outcomes if o.differs]
    if different:
        first = different[0]
        result.outcome = "special" if all(o.special for o in different) else "differ"
        result.why = f"{first.inputs}: {first.how}"
    elif outcomes:
        result.outcome, result.why = ("by definition" if any(o.how for o in outcomes) else "same"), ""
    return result


def _parse(made: bytes, result: Result) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(made)
        check = prove.parse(path, seconds=60.0)
    if check.status is Status.NOT_RUN:
        raise SystemExit(check.detail)
    if check.status is Status.PASSED:
        result.outcome = "taken"
        return
    # Refusals come with figures of the parse; a parser that died leaves none.
    result.outcome = "refused" if check.figures else "crash"
    first = next(iter(check.findings), None)
    result.op = first.where.op if first else ""
    result.why = _line(first.reason if first else check.detail)


def _fault(proto: onnx.ModelProto, data: Mapping[str, Any]) -> str:
    """What onnx's checker and strict shape inference have against a model of ours, "" when the original shares it."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # several unrelated types
        try:
            onnx.checker.check_model(onnx.ModelProto.FromString(data["before"]), full_check=True)
        except Exception:
            return ""
        return f"the checker refuses it: {_line(error)}"
    return ""


def _numbers(made: bytes, data: Mapping[str, Any], tooled: Tooled) -> str:
    """"same", "unchecked", or how the outputs of a tool's model differ from what they were."""
    reference = data["reference"]
    if reference is None:
        return "unchecked"
    try:
        found = hard.Loaded(made).run(data["feeds"])
    except ort.UnsupportedError as error:
        try:  # nothing is wrong with the model: ONNX Runtime has no such operator
            found = hard.evaluate(made, data["feeds"])
        except Exception as other:
            return f"it does not run: {_line(error)}; {_line(other)}"
    except BackendError as error:
        return f"it does not run: {_line(error)}"
    if len(found) != len(reference):
        return f"{len(found)} outputs where there were {len(reference)}"
    for want, was, got in zip(data["expected"], reference, found, strict=True):
        difference = _expected(want, got, data, by_value=tooled.widened)
        if difference:
            return difference
        difference = hard.same(was, got, tooled.safety)
        # Exact rewrites can still round differently in ONNX Runtime, which sums in an order of its choice and keeps
        # FP16 in FP32 between neighbours it has no FP16 kernels for. ONNX's reference evaluator does neither.
        if difference and not (tooled.safety is Safety.EXACT and _same_by_definition(made, data, was, got)):
            return difference
    return "same"


def _same_by_definition(made: bytes, data: Mapping[str, Any], was: Any, got: Any) -> bool:
    """Whether outputs that are close are the same to the bit in ONNX's reference evaluator."""
    if hard.same(was, got, Safety.CLOSE):
        return False
    return hard.defined_alike(data["before"], made, data["feeds"], Safety.EXACT)


def _expected(want: Any, got: Any, data: Mapping[str, Any], by_value: bool) -> str:
    """"" when an output is what the standard's test expects, by that test's own tolerances."""
    if isinstance(want, list):
        if not isinstance(got, list) or len(want) != len(got):
            return "another sequence"
        return next(filter(None, (_expected(w, g, data, by_value) for w, g in zip(want, got, strict=True))), "")
    if want is None or got is None:
        return "" if want is got else "an optional that should be empty, or the reverse"
    got = np.asarray(got)
    if want.shape != got.shape:
        return f"shape {list(got.shape)}, expected {list(want.shape)}"
    if want.dtype != got.dtype and not by_value:
        return f"dtype {got.dtype}, expected {want.dtype}"
    if want.dtype.kind in "OSU":
        return "" if bool((want == got).all()) else "other strings"
    left, right = got.astype(np.float64), want.astype(np.float64)
    if np.allclose(left, right, rtol=data["rtol"], atol=data["atol"], equal_nan=True):
        return ""
    with np.errstate(all="ignore"):
        return f"not what the test expects: largest error {np.nanmax(np.abs(left - right)):.3g}"


def _line(error: object) -> str:
    return model.one_line(error)
