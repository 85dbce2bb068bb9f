"""A folder of models, target by target: refused as it is, taken after `onnxfix apply`, with parity?

    python -m fixtures.export_models -o models/                                     # exports of our own, needs torch
    python -m fixtures.derive_models models/*.onnx -o models/ --forms all fp16      # what ONNX Runtime makes of them
    python -m benchmarks.models models/ --targets rtx-1.7,trt-8.2 --markdown docs/models.md

TensorRT-RTX is asked itself: parser, and builder with `--build`. Other releases are judged by their matrix.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import fnmatch
import json
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import rescue_pool
from onnxfix import api, matrix, model, prove
from onnxfix.errors import OnnxfixError
from onnxfix.report import Report, Safety, Status
from onnxfix.rule import REWRITABLE

SECONDS = 600.0
BAD = ("refused", "refuses", "crash")
GOOD = ("taken", "takes", "undecided")


@dataclass(frozen=True)
class Job:
    path: Path
    target: str
    rules: str
    build: bool


@dataclass
class Result:
    name: str  # of the file, without .onnx
    target: str
    nodes: int = 0
    before: str = ""  # taken, refused or crash by the parser; takes, undecided or refuses by the matrix
    refused: str = ""  # what for, before
    after: str = ""
    parity: str = ""  # passed, failed, not run
    build: str = ""
    grade: str = ""
    changes: int = 0
    why: str = ""  # what is still refused, or what went wrong
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.after in GOOD and self.parity == "passed" and self.build in ("", "passed")


def work(job: Job) -> Result:
    """One model for one target, in a child process."""
    os.environ["ONNXFIX_TRT_FLAVOUR"] = "tensorrt_rtx"
    result = Result(job.path.stem, job.target)
    start = time.perf_counter()
    try:
        result.nodes = len(model.load(job.path).proto.graph.node)
        if job.target.startswith("rtx"):
            check = prove.parse(job.path)
            result.before = _word(check.status, bool(check.figures))
            result.refused = _counted(f.where.op for f in check.findings)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "fixed.onnx")
            report = api.apply(job.path, rules=job.rules, target=job.target, output=output)
            if job.build and (found := report.check("build")):
                result.build = found.status.value
        _tell(report, job, result)
    except OnnxfixError as error:
        result.after, result.why = "failed", str(error)
    except Exception as error:  # a fault of ours, to be seen in the table
        result.after, result.why = "failed", model.one_line(f"{type(error).__name__}: {error}")
    result.seconds = time.perf_counter() - start
    return result


def _tell(report: Report, job: Job, result: Result) -> None:
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
        result.refused = _counted(f.where.op for f in report.findings if f.effect in REWRITABLE)
        refusals = [f"{f.where.op}: {f.reason}" for f in report.remaining if f.effect in REWRITABLE]
    reasons = [f"structure: {structure.detail}"] if structure.status is Status.FAILED else []
    if parity.status is not Status.PASSED:
        reasons.append(f"parity: {parity.detail}")
    if result.build == "failed" and (build := report.check("build")):
        reasons.append(f"build: {build.detail}")
    reasons += [f"{n} x {reason}" for reason, n in collections.Counter(refusals).most_common(4)]
    result.why = "; ".join(reasons)


def _word(status: Status, alive: bool) -> str:
    if status is Status.NOT_RUN:
        return "not run"
    return "taken" if status is Status.PASSED else "refused" if alive else "crash"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{n} {op}" for op, n in collections.Counter(names).most_common(4))


def _rules(target: str) -> str:
    return "rtx.yml" if target.startswith("rtx") else "jetson.yml"


# ---- telling ----


def summary(results: Sequence[Result]) -> str:
    """One sentence a target."""
    refused = [r for r in results if r.before in BAD]
    kept = [r for r in results if r.before in GOOD]
    rescued = sum(r.good for r in refused)
    worse = [r.name for r in kept if not r.good]
    share = f" ({rescued / len(refused):.0%})" if refused else ""
    lost = f" ({', '.join(worse)})" if worse else ""
    return (
        f"{len(results)} models: {len(refused)} refused as they are, {rescued} of them taken with parity "
        f"after apply{share}; {len(kept)} taken as they are, {len(worse)} of them not after apply{lost}"
    )


def markdown(results: Sequence[Result]) -> str:
    """The lines of the refused models and of what failed, by target."""
    lines = []
    for target in dict.fromkeys(r.target for r in results):
        chosen = [r for r in results if r.target == target]
        lines += [f"## {matrix.target(target).label}", "", f"{summary(chosen)}.", ""]
        lines += ["| model | nodes | refused for | after | parity | grade | changes |", "|---|---|---|---|---|---|---|"]
        for r in chosen:
            if r.before in BAD or not r.good:
                after = r.after if r.good else f"{r.after}: {r.why[:160]}".replace("|", "/")
                lines.append(f"| {r.name} | {r.nodes} | {r.refused} | {after} | {r.parity} | {r.grade} | {r.changes} |")
        lines.append("")
    return "\n".join(lines)


def _table(results: Sequence[Result], label: str) -> Table:
    table = Table(title=label)
    for title in ("model", "nodes", "before", "refused", "after", "parity", "build", "grade", "changes", "s"):
        table.add_column(title, justify="right" if title in ("nodes", "changes", "s") else "left")
    for r in results:
        after = r.after if r.good or not r.why else f"{r.after}: {r.why[:160]}"
        figures = str(r.changes), f"{r.seconds:.1f}"
        table.add_row(r.name, str(r.nodes), r.before, r.refused, after, r.parity, r.build, r.grade, *figures)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("places", nargs="+", type=Path, metavar="MODEL|FOLDER")
    parser.add_argument("--targets", default="rtx-1.7", help="comma-separated; default %(default)s")
    parser.add_argument("--only", default="", help="models whose name matches this pattern")
    parser.add_argument("--build", action="store_true", help="TensorRT-RTX must build an engine too")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--markdown", type=Path, help="append the tables to this file")
    args = parser.parse_args()
    console = Console(width=220)
    paths = [f for p in args.places for f in (sorted(p.rglob("*.onnx")) if p.is_dir() else [p])]
    paths = [p for p in paths if fnmatch.fnmatchcase(p.stem, f"*{args.only.strip('*')}*")]
    everything: list[Result] = []
    for target in args.targets.split(","):
        jobs = [Job(p, target, _rules(target), args.build) for p in paths]
        results: list[Result] = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(target, total=len(jobs))
            for job, result in rescue_pool.run(work, jobs, args.jobs, SECONDS):
                progress.advance(task)
                dead = isinstance(result, rescue_pool.Died)
                results.append(Result(job.path.stem, target, after="failed", why=result.how) if dead else result)
                if args.json:  # after each model, so that a long run can be looked at and loses nothing
                    found = [dataclasses.asdict(r) for r in (*everything, *results)]
                    args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        results.sort(key=lambda r: r.name)
        console.print(_table(results, matrix.target(target).label))
        console.print(summary(results))
        everything += results
    if args.markdown:
        with args.markdown.open("a", encoding="utf-8") as file:
            file.write(markdown(everything))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
