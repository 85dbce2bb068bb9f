"""How many of the ONNX standard's own node tests TensorRT takes, as they are and after the tools that rewrite models.

    python -m benchmarks.rescue                          # the table: raw, onnxsim, onnxslim, Polygraphy, onnxfix
    python -m benchmarks.rescue --list                   # and why each case is still refused
    python -m benchmarks.rescue --only 'resize_*' --tools raw,onnxfix --list
    python -m benchmarks.rescue --by-matrix trt-8.2,trt-8.5,trt-10.3
    python -m benchmarks.rescue --models                 # real models: before, after, parity

The judge is TensorRT-RTX's parser; the numbers are ONNX Runtime's on the test's own data, before and after, and the
standard's expected outputs. See benchmarks/README.md for what counts as what. Needs `pip install 'onnxfix[rtx,bench]'`.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import rescue_pool
from benchmarks.rescue_cases import Case, cases
from benchmarks.rescue_work import TOOLS, Job, Result, work
from onnxfix import catalog, matrix
from onnxfix.errors import OnnxfixError

SECONDS = 120.0  # for one tool on one case
TAKEN = ("unchanged", "taken", "wrong")
LABELS = {"raw": "as they are", "polygraphy": "Polygraphy fold + cleanup"}


def main() -> int:
    arguments = _arguments()
    start = time.monotonic()
    console = Console(width=max(Console().width, 132))
    if arguments.models:
        from benchmarks import rescue_models

        return rescue_models.run(arguments, console)
    chosen = cases(arguments.only)
    if not chosen:
        console.print(f"no node test is named like '{arguments.only}'")
        return 2
    with tempfile.TemporaryDirectory(prefix="rescue-") as folder:
        for case in chosen:
            _store(case, Path(folder))
        jobs = [Job(c.name, Path(folder), "reference") for c in chosen]
        results = {(r.case, r.tool): r for r in _all(jobs, arguments.jobs, "reference")}
        dos = [f"matrix {t}" for t in arguments.by_matrix] or arguments.tools
        jobs = [Job(c.name, Path(folder), do, arguments.rules) for do in dos for c in chosen]
        results |= {(r.case, r.tool): r for r in _all(jobs, arguments.jobs, "tools")}
        acted = [c.name for c in chosen if (c.name, "onnxfix") in results and results[c.name, "onnxfix"].rules]
        jobs = [Job(name, Path(folder), "others") for name in acted if results[name, "onnxfix"].outcome in TAKEN]
        results |= {(r.case, r.tool): r for r in _all(jobs, arguments.jobs, "other inputs")}
    checkable = [c.name for c in chosen if c.tensors and results[c.name, "reference"].outcome == "reproduced"]
    names = [c.name for c in chosen]
    if arguments.by_matrix:
        console.print(_matrix_table(arguments.by_matrix, names, checkable, results))
    else:
        console.print(_table(arguments.tools, names, checkable, results))
        if "onnxfix" in arguments.tools:
            console.print(_others(console, names, results))
    if arguments.list:
        _list(console, arguments.by_matrix or arguments.tools, names, checkable, results)
    console.print(_about(time.monotonic() - start), style="dim")
    if arguments.json:
        _write_json(arguments.json, chosen, checkable, results)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="node tests by name, e.g. 'resize_*'")
    parser.add_argument("--tools", default=",".join(TOOLS), type=_tools, help="of " + ", ".join(TOOLS))
    parser.add_argument("--rules", default="", help="rule file, or folder of rules; by default rtx.yml, else all rules")
    parser.add_argument("--list", action="store_true", help="why the cases are still refused, grouped")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every case with every tool")
    parser.add_argument("--by-matrix", default=[], type=_targets, metavar="TARGET,...", help="judge by matrices")
    parser.add_argument("--models", action="store_true", help="real models and their ONNX Runtime forms instead")
    parser.add_argument("--also", type=Path, nargs="+", default=[], metavar="FOLDER", help="models of your own, too")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="processes")
    arguments = parser.parse_args()
    arguments.rules = arguments.rules or ("rtx.yml" if "rtx.yml" in catalog.shipped_sets() else str(catalog.shipped()))
    return arguments


def _tools(text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in TOOLS:
            raise argparse.ArgumentTypeError(f"no tool '{name}'; there are {', '.join(TOOLS)}")
        if name in ("onnxsim", "onnxslim", "polygraphy") and importlib.util.find_spec(name) is None:
            raise argparse.ArgumentTypeError(f"{name} is not installed: pip install 'onnxfix[bench]', or leave it out")
    return chosen


def _targets(text: str) -> list[str]:
    try:
        return [matrix.target(t).name for t in text.split(",")]
    except OnnxfixError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _store(case: Case, folder: Path) -> None:
    (folder / f"{case.name}.onnx").write_bytes(case.model.SerializeToString())
    (folder / f"{case.name}.whole.onnx").write_bytes(case.whole.SerializeToString())
    data = {
        "feeds": case.feeds,
        "whole_feeds": case.whole_feeds,
        "expected": case.expected,
        "rtol": case.rtol,
        "atol": case.atol,
    }
    (folder / f"{case.name}.pickle").write_bytes(pickle.dumps(data))


def _all(jobs: Sequence[Job], count: int, what: str) -> Iterator[Result]:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=len(jobs))
        for job, result in rescue_pool.run(work, jobs, count, SECONDS):
            progress.advance(task)
            dead = isinstance(result, rescue_pool.Died)
            yield Result(job.case, job.do, "failed", result.how) if dead else result


# ---- the tables ----


def _table(
    tools: Sequence[str], names: Sequence[str], checkable: Sequence[str], results: Mapping[Any, Result]
) -> Table:
    table = Table(title=f"Taken by TensorRT-RTX's parser: {len(names):,} node tests of ONNX {onnx.__version__}")
    table.add_column("")
    for title in (
        "parser takes",
        f"takes, numbers unchanged (of {len(checkable):,} checkable)",
        "numbers wrong",
        "parser crashes",
        "made worse",
        "tool fails",
        "seconds",
    ):
        table.add_column(title, justify="right")
    for tool in tools:
        found = {name: results[name, tool] for name in names}
        count = collections.Counter(r.outcome for r in found.values())
        unchanged = sum(found[n].outcome == "unchanged" for n in checkable)
        table.add_row(
            LABELS.get(tool, tool),
            f"{sum(count[o] for o in TAKEN):,}",
            f"{unchanged:,} ({unchanged / max(len(checkable), 1):.1%})",
            str(count["wrong"]),
            str(count["crash"]),
            str(len(worse(tool, names, results))),
            str(count["failed"]),
            f"{sum(r.seconds for r in found.values()):.1f}",
        )
    return table


def worse(tool: str, names: Sequence[str], results: Mapping[Any, Result]) -> list[str]:
    """The cases the parser takes as they are and not after `tool`."""
    before = (n for n in names if (n, "raw") in results and results[n, "raw"].outcome in TAKEN)
    return [n for n in before if results[n, tool].outcome in ("refused", "crash")]


def _matrix_table(
    targets: Sequence[str], names: Sequence[str], checkable: Sequence[str], results: Mapping[Any, Result]
) -> Table:
    table = Table(title=f"Taken by the matrix of older releases: {len(names):,} node tests of ONNX {onnx.__version__}")
    table.add_column("")
    for title in (
        "takes as they are",
        "takes after apply",
        f"with numbers unchanged (of {len(checkable):,} checkable)",
        "undecided before, after",
        "numbers wrong",
        "made worse",
        "fails",
    ):
        table.add_column(title, justify="right")
    among = set(checkable)
    for target in targets:
        found = [results[n, f"matrix {target}"] for n in names]
        before, after = (collections.Counter(getattr(r, a) for r in found) for a in ("before", "outcome"))
        unchanged = sum(r.outcome == "takes" and r.numbers == "same" and r.case in among for r in found)
        table.add_row(
            matrix.target(target).label,
            f"{before['takes']:,} ({before['takes'] / len(names):.1%})",
            f"{after['takes']:,} ({after['takes'] / len(names):.1%})",
            f"{unchanged:,} ({unchanged / max(len(checkable), 1):.1%})",
            f"{before['undecided']}, {after['undecided']}",
            str(sum(r.numbers not in ("", "same", "unchecked") for r in found)),
            str(sum(r.before == "takes" and r.outcome != "takes" for r in found)),
            str(after["failed"]),
        )
    return table


def _others(console: Console, names: Sequence[str], results: Mapping[Any, Result]) -> str:
    """Prints where onnxfix' rewriting and the original differ on other inputs; returns the count as a sentence."""
    found = [results[n, "others"] for n in names if (n, "others") in results]
    count = collections.Counter(r.outcome for r in found)
    for result in found:
        if result.outcome in ("differ", "special", "beyond", "failed"):
            rules = ", ".join(results[result.case, "onnxfix"].rules)
            console.print(f"  {result.case}: {result.why} (rules: {rules})", markup=False, highlight=False)
    return (
        f"Of {len(found):,} models that onnxfix changed and the parser takes, on other inputs: {count['same']:,} give "
        f"what they gave before; {count['differ']} do not on noise, zeros and whole integer ranges, {count['special']} "
        f"only on infinities, NaN and the like; {count['beyond']} can't take or give UINT64 numbers from 2**63 on; "
        f"{count['not run'] + count['failed']} ONNX Runtime can't compare."
    )


# ---- why not ----


def _list(
    console: Console,
    dos: Sequence[str],
    names: Sequence[str],
    checkable: Sequence[str],
    results: Mapping[Any, Result],
) -> None:
    among = set(checkable)
    for do in dos:
        key = do if (names[0], do) in results else f"matrix {do}"
        groups: dict[tuple[str, str, str], list[Result]] = collections.defaultdict(list)
        for name in names:
            result = results[name, key]
            what, op, why = _verdict(result, name in worse(do, [name], results))
            if what:
                groups[what, op, _general(why)].append(result)
        console.print(f"\n[bold]{LABELS.get(do, do)}[/]: what is not taken with its numbers unchanged")
        for (what, op, _), found in sorted(groups.items(), key=lambda g: (g[0][0] == "refused", -len(g[1]), g[0])):
            counted = sum(r.case in among for r in found)
            console.print(
                f"\n{len(found)} x {what} ({counted} checkable) {op}: {_verdict(found[0], False)[2]}",
                markup=False, highlight=False, style="bold",
            )  # fmt: skip
            for result in found:
                mark = " " if result.case in among else "~"
                line = f"  {mark} {result.case}{_because(result)}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)


def _verdict(result: Result, made_worse: bool) -> tuple[str, str, str]:
    """What is wrong with a result, at which operator and why; all empty when nothing is."""
    if result.tool.startswith("matrix "):
        if result.numbers not in ("", "same", "unchecked"):
            return "wrong", "", result.numbers
        first = next(iter(result.findings), result.why)
        op, _, reason = first.partition(": ")
        return ("", "", "") if result.outcome == "takes" else (result.outcome, op, reason)
    if result.outcome in ("unchanged", "taken"):
        return "", "", ""
    return ("made worse" if made_worse else result.outcome), result.op, result.why


def _general(words: str) -> str:
    """A refusal without what is particular to one model, to group by."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|node_of_\w+|\b\w*_\w*\d\w*\b|-?\d+", "*", words)[:110]


def _because(result: Result) -> str:
    parts = []
    if result.rules:
        parts.append(f"acted: {', '.join(result.rules)}")
    if result.skips:
        parts.append(f"skipped: {'; '.join(dict.fromkeys(result.skips))}")
    if result.outcome == "refused" and not result.findings and result.tool == "onnxfix":
        parts.append("the matrix finds nothing")
    elif result.findings:
        parts.append(f"matrix: {'; '.join(dict.fromkeys(result.findings))}"[:300])
    return "".join(f"\n      {p}" for p in parts)


def _about(seconds: float) -> str:
    packages = ("onnxruntime", "tensorrt-rtx-cu13", "polygraphy", "onnxsim", "onnxslim", "onnxfix")
    return f"{', '.join(f'{p} {v}' for p in packages if (v := _version(p)))}; {seconds:.0f} s in all"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _write_json(path: Path, chosen: Sequence[Case], checkable: Sequence[str], results: Mapping[Any, Result]) -> None:
    among = set(checkable)
    document = {
        "cases": {
            c.name: {
                "checkable": c.name in among,
                "parameters": sorted(set(c.whole_feeds) - set(c.feeds)),
                "results": {t: dataclasses.asdict(r) for (n, t), r in results.items() if n == c.name},
            }
            for c in chosen
        }
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
