"""What happens in a child process of the rescue benchmark: one tool on one node test, judged by parser and numbers.

Nothing a tool does may end the benchmark: its exceptions are outcomes here, its crashes are outcomes in the parent.
"""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfix import catalog, engine, matrix, model, prove, shapes
from onnxfix.backends.compare import compare
from onnxfix.backends.ort import DTYPES, LACKING
from onnxfix.errors import OnnxfixError
from onnxfix.report import Safety, Status
from onnxfix.rule import REWRITABLE

OUTCOMES = ("unchanged", "taken", "wrong", "refused", "crash", "failed")
# unchanged: the parser takes the model and the numbers are right; taken: taken, and nothing to check the numbers
# against; failed: the tool itself failed, or died.

CLOSE = prove.TOLERANCES[Safety.CLOSE]


@dataclass(frozen=True)
class Job:
    case: str
    folder: Path  # holds CASE.onnx, CASE.whole.onnx and CASE.pickle
    do: str  # "reference", a tool of TOOLS, "matrix TARGET", or "others", after onnxfix
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
    if job.do == "others":
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
    if kind == "onnxfix":
        (job.folder / f"{job.case}.fixed").write_bytes(pickle.dumps((made, tooled.safety)))
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
        found = _run(str(job.folder / f"{job.case}.whole.onnx"), data["whole_feeds"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
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


def _others(job: Job, data: Mapping[str, Any]) -> Result:
    """What onnxfix made of a case against the case itself, both in ONNX Runtime, on inputs harder than the test's."""
    result = Result(job.case, job.do, "not run")
    if not (job.folder / f"{job.case}.reference").is_file():
        return result  # ONNX Runtime's word on the original is worth nothing here
    made, safety = pickle.loads((job.folder / f"{job.case}.fixed").read_bytes())
    before = str(job.folder / f"{job.case}.onnx")
    for name, feeds in _harder(data["feeds"]):
        try:
            expected = _run(before, feeds)
        except Exception:  # an index out of range, say: the original says no
            continue
        result.outcome, result.why = "same", ""
        try:
            found = _run(made, feeds)
        except Exception as error:
            found, result.why = [], f"{name}: only the original runs: {_line(error)}"
        for was, got in zip(expected, found, strict=False):
            grade = Safety.CLOSE if _rounds(was, feeds) else safety
            difference = _same(was, got, grade)
            if difference and not result.why:
                result.why = f"{name}: {difference}"
            if not result.why and _wrapped(was, got):
                result.why = f"{name}: numbers from 2**63 on come out negative"
        if result.why:
            special = name == "special values"
            result.outcome = "special" if special else "beyond" if "2**63" in result.why else "differ"
            return result
    return result


def _rounds(output: Any, feeds: Mapping[str, Any]) -> bool:
    """Whether FP16 is at the border: how ONNX Runtime rounds that depends on a node's neighbours (see `_numbers`)."""
    return any(isinstance(v, np.ndarray) and v.dtype == np.float16 for v in (output, *feeds.values()))


SPECIALS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 1e-40, -1e-40, 1e30, -1e30, 88.0, -104.0, np.inf, -np.inf, np.nan)


def _harder(feeds: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Feeds of the same shapes: ordinary noise, wide noise, zeros, whole integer ranges, then infinities and NaN."""
    ways: Mapping[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
        "noise": lambda rng, v: _floats(rng, v, 1.0),
        "wide noise": lambda rng, v: _floats(rng, v, 100.0),
        "zeros": lambda rng, v: np.zeros_like(v) if v.dtype.kind == "f" else v,
        "whole range": lambda rng, v: _integers(rng, v),
        "special values": lambda rng, v: rng.choice(SPECIALS, v.shape).astype(v.dtype) if v.dtype.kind == "f" else v,
    }
    for seed, (name, way) in enumerate(ways.items()):
        rng = np.random.default_rng(seed)
        with np.errstate(all="ignore"):
            yield name, {n: way(rng, v) if isinstance(v, np.ndarray) else v for n, v in feeds.items()}


def _floats(rng: np.random.Generator, value: np.ndarray, scale: float) -> np.ndarray:
    return np.asarray(rng.normal(0.0, scale, value.shape)).astype(value.dtype) if value.dtype.kind == "f" else value


def _integers(rng: np.random.Generator, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "iu":
        return _floats(rng, value, 1.0)
    limits = np.iinfo(value.dtype)
    return rng.integers(limits.min, limits.max, value.shape, dtype=value.dtype, endpoint=True)


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
        found = _run(made, data["feeds"])
    except Exception as error:
        if not any(mark in str(error) for mark in LACKING):
            return f"it does not run: {_line(error)}"
        try:  # nothing is wrong with the model: ONNX Runtime has no such operator
            found = _evaluate(made, data["feeds"])
        except Exception as other:
            return f"it does not run: {_line(error)}; {_line(other)}"
    if len(found) != len(reference):
        return f"{len(found)} outputs where there were {len(reference)}"
    for want, was, got in zip(data["expected"], reference, found, strict=True):
        difference = _expected(want, got, data, by_value=tooled.widened)
        if difference:
            return difference
        difference = _same(was, got, tooled.safety)
        # Exact rewrites can still round differently in ONNX Runtime, which sums in an order of its choice and keeps
        # FP16 in FP32 between neighbours it has no FP16 kernels for. ONNX's reference evaluator does neither.
        if difference and not (tooled.safety is Safety.EXACT and _same_by_definition(made, data, was, got)):
            return difference
    return "same"


def _same_by_definition(made: bytes, data: Mapping[str, Any], was: Any, got: Any) -> bool:
    """Whether outputs that are close are the same to the bit in ONNX's reference evaluator."""
    if _same(was, got, Safety.CLOSE):
        return False
    try:
        before, after = _evaluate(data["before"], data["feeds"]), _evaluate(made, data["feeds"])
    except Exception:
        return False
    return not any(_same(b, a, Safety.EXACT) for b, a in zip(before, after, strict=True))


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


def _same(was: Any, got: Any, safety: Safety) -> str:
    """"" when an output is what ONNX Runtime made of the original, at the tolerance of the changes' worst grade."""
    if not isinstance(was, np.ndarray):
        return ""  # sequences were compared with what is expected
    half = was.dtype == np.float16
    allowed = 0.0 if safety is Safety.EXACT else float(np.finfo(np.float16).eps) if half else CLOSE
    compared = compare("y", was, got, allowed)
    if compared.verdict in ("equal", "within"):
        return ""
    note = compared.note or f"off by {compared.max_abs:.3g} of {compared.magnitude:.3g}"
    return f"graded {safety.value}: {note} ({compared.verdict})"


# ---- running ----


def _run(given: bytes | str, feeds: Mapping[str, Any]) -> list[Any]:
    """All outputs by ONNX Runtime, one thread, nothing optimised. Feeds take the dtype the model asks for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    wanted = {i.name: i.type for i in session.get_inputs()}
    return list(session.run(None, {n: _fed(v, wanted[n]) for n, v in feeds.items() if n in wanted}))


def _fed(value: Any, kind: str) -> Any:
    dtype = DTYPES.get(kind[len("tensor(") : -1]) if kind.startswith("tensor(") else None
    if dtype is None or not isinstance(value, np.ndarray):
        return value
    fed = value.astype(dtype, copy=False)
    if _wrapped(value, fed):
        raise ValueError(f"{fed.dtype} can't hold the inputs from 2**63 on")
    return fed


def _wrapped(was: Any, now: Any) -> bool:
    """Whether UINT64 values became negative INT64 ones: the same bits, other numbers. `compare` goes by the bits."""
    if not isinstance(was, np.ndarray) or not isinstance(now, np.ndarray):
        return False
    return was.dtype == np.uint64 and now.dtype == np.int64 and bool((was > np.iinfo(np.int64).max).any())


def _evaluate(made: bytes, feeds: Mapping[str, Any]) -> list[Any]:
    """The same by ONNX's reference evaluator, for what ONNX Runtime lacks."""
    from onnx.reference import ReferenceEvaluator

    proto = onnx.ModelProto.FromString(made)
    dtypes = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in proto.graph.input}
    evaluator = ReferenceEvaluator(proto)
    return list(evaluator.run(None, {n: np.asarray(feeds[n]).astype(dtypes[n]) for n in dtypes}))


def _line(error: object) -> str:
    return model.one_line(error)
