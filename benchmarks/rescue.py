"""How many of the ONNX standard's own node tests TensorRT takes, as they are and after the tools that rewrite models.

    python -m benchmarks.rescue                          # the tables: five tools, and older releases by their matrix
    python -m benchmarks.rescue --list                   # and why each case is still refused
    python -m benchmarks.rescue --only 'resize_*' --tools raw,onnxfix --by-matrix none --list
    python -m benchmarks.rescue --tools none --by-matrix trt-8.6

The judge is TensorRT-RTX's parser, of older releases their matrix; the numbers are ONNX Runtime's on the test's own
data, before and after, and the standard's expected outputs. See benchmarks/README.md for what counts as what. Needs
`pip install 'onnxfix[rtx,bench]'`.
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
from onnxfix import catalog, matrix, page
from onnxfix.errors import OnnxfixError
from onnxfix.rule import Rule

SECONDS = 120.0  # for one tool on one case
TAKEN = ("unchanged", "taken", "wrong")
RELEASES = "trt-8.2,trt-8.5,trt-10.3"  # of JetPack 4.6.1, 5.1 and 6.1
LABELS = {"raw": "as they are", "polygraphy": "Polygraphy fold + cleanup"}


def main() -> int:
    arguments = _arguments()
    start = time.monotonic()
    console = Console(width=max(Console().width, 132))
    chosen = cases(arguments.only)
    if not chosen:
        console.print(f"no node test is named like '{arguments.only}'")
        return 2
    with tempfile.TemporaryDirectory(prefix="rescue-") as folder:
        for case in chosen:
            _store(case, Path(folder))
        jobs = [Job(c.name, Path(folder), "reference") for c in chosen]
        results = {(r.case, r.tool): r for r in _all(jobs, arguments.jobs, "reference")}
        dos = [*arguments.tools, *(f"matrix {t}" for t in arguments.by_matrix)]
        jobs = [Job(c.name, Path(folder), do, arguments.rules) for do in dos for c in chosen]
        results |= {(r.case, r.tool): r for r in _all(jobs, arguments.jobs, "tools")}
        ours = [do for do in dos if do == "onnxfix" or do.startswith("matrix ")]
        ends = [results[c.name, do] for do in ours for c in chosen]
        acted = [r for r in ends if r.rules and r.outcome in (*TAKEN, "takes")]
        jobs = [Job(r.case, Path(folder), f"others {r.tool}") for r in acted]
        results |= {(r.case, r.tool): r for r in _all(jobs, arguments.jobs, "other inputs")}
    checkable = [c.name for c in chosen if c.tensors and results[c.name, "reference"].outcome == "reproduced"]
    names = [c.name for c in chosen]
    if arguments.tools:
        console.print(_table(arguments.tools, names, checkable, results))
    console.print(_release_table(arguments, names, checkable, results))
    console.print(_others_table(ours, names, results))
    if arguments.list:
        _list(console, dos, names, checkable, results)
        _list_others(console, ours, names, results)
    console.print(_about(time.monotonic() - start), style="dim")
    if arguments.json:
        _write_json(arguments.json, chosen, checkable, results)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="node tests by name, e.g. 'resize_*'")
    parser.add_argument("--tools", default=",".join(TOOLS), type=_tools, help="none, or of " + ", ".join(TOOLS))
    parser.add_argument("--rules", default="", help="rule file, or folder of rules; by default rtx.yml, else all rules")
    parser.add_argument("--list", action="store_true", help="why the cases are still refused, grouped")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every case with every tool")
    help_ = f"releases to judge by their matrix, by default {RELEASES}; or none"
    parser.add_argument("--by-matrix", default=RELEASES, type=_targets, metavar="TARGET,...", help=help_)
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="processes")
    arguments = parser.parse_args()
    arguments.rules = arguments.rules or ("rtx.yml" if "rtx.yml" in catalog.shipped_sets() else str(catalog.shipped()))
    return arguments


def _tools(text: str) -> list[str]:
    chosen = [] if text == "none" else text.split(",")
    for name in chosen:
        if name not in TOOLS:
            raise argparse.ArgumentTypeError(f"no tool '{name}'; there are {', '.join(TOOLS)}")
        if name in ("onnxsim", "onnxslim", "polygraphy") and importlib.util.find_spec(name) is None:
            raise argparse.ArgumentTypeError(f"{name} is not installed: pip install 'onnxfix[bench]', or leave it out")
    return chosen


def _targets(text: str) -> list[str]:
    try:
        return [] if text == "none" else [matrix.target(t).name for t in text.split(",")]
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


@dataclasses.dataclass(frozen=True)
class Share:
    """What one release takes before and after onnxfix; all but the first are case names."""

    label: str
    before: Sequence[str]
    after: Sequence[str]
    same_before: Sequence[str]  # with its numbers checked
    same_after: Sequence[str]
    wrong: Sequence[str]


def _release_table(
    arguments: argparse.Namespace, names: Sequence[str], checkable: Sequence[str], results: Mapping[Any, Result]
) -> Table:
    table = Table(title="As they are -> after onnxfix, by release")
    table.add_column("")
    checked = f"takes, numbers unchanged (of {len(checkable):,} checkable)"
    for title in ("judge", f"takes (of {len(names):,})", checked, "numbers wrong", "made worse"):
        table.add_column(title, justify="right")
    shares = [("matrix", by_matrix(t, names, checkable, results)) for t in arguments.by_matrix]
    if {"raw", "onnxfix"} <= set(arguments.tools):
        shares.append(("parser", by_parser(names, checkable, results)))
    for judge, share in shares:
        table.add_row(
            share.label,
            judge,
            f"{len(share.before):,} -> {len(share.after):,} ({len(share.after) / len(names):.1%})",
            f"{len(share.same_before):,} -> {len(share.same_after):,}"
            f" ({len(share.same_after) / max(len(checkable), 1):.1%})",
            str(len(share.wrong)),
            str(len(set(share.before) - set(share.after))),
        )
    return table


def by_parser(names: Sequence[str], checkable: Sequence[str], results: Mapping[Any, Result]) -> Share:
    before, after = ({n: results[n, tool].outcome for n in names} for tool in ("raw", "onnxfix"))
    return Share(
        matrix.target("rtx-1.7").label,
        [n for n in names if before[n] in TAKEN],
        [n for n in names if after[n] in TAKEN],
        [n for n in checkable if before[n] == "unchanged"],
        [n for n in checkable if after[n] == "unchanged"],
        [n for n in names if after[n] == "wrong"],
    )


def by_matrix(target: str, names: Sequence[str], checkable: Sequence[str], results: Mapping[Any, Result]) -> Share:
    """A limit that the matrix could not decide does not count as taken; a model as it is has its own numbers."""
    found = {n: results[n, f"matrix {target}"] for n in names}
    return Share(
        matrix.target(target).label,
        [n for n in names if found[n].before == "takes"],
        [n for n in names if found[n].outcome == "takes"],
        [n for n in checkable if found[n].before == "takes"],
        [n for n in checkable if found[n].outcome == "takes" and found[n].numbers == "same"],
        [n for n in names if found[n].numbers not in ("", "same", "unchecked")],
    )


def _others_table(ours: Sequence[str], names: Sequence[str], results: Mapping[Any, Result]) -> Table:
    table = Table(title="What onnxfix changed and is taken then, against the original on other inputs")
    table.add_column("")
    for title in (
        "models",
        "the same",
        "as the standard's reference, and ONNX Runtime's kernel is not",
        "differ on finite numbers",
        "on infinities or NaN, as a rule's page says",
        "and no page says",
        "not compared",
    ):
        table.add_column(title, justify="right")
    known = catalog.load_folder(catalog.shipped())
    for do in ours:
        found = [results[n, f"others {do}"] for n in names if (n, f"others {do}") in results]
        count = collections.Counter(r.outcome for r in found)
        said = sum(r.outcome == "special" and told(results[r.case, do].rules, known) for r in found)
        counts = (
            len(found), count["same"], count["by definition"], count["differ"], said, count["special"] - said,
            count["not run"] + count["failed"],
        )  # fmt: skip
        label = matrix.target("rtx-1.7" if do == "onnxfix" else do.removeprefix("matrix ")).label
        table.add_row(label, *(f"{n:,}" for n in counts))
    return table


def _list_others(
    console: Console, ours: Sequence[str], names: Sequence[str], results: Mapping[Any, Result]
) -> None:
    for do in ours:
        console.print(f"\n[bold]{LABELS.get(do, do)}[/]: what differs from the original on other inputs")
        for name in names:
            result = results.get((name, f"others {do}"))
            if result and result.outcome not in ("same", "by definition"):
                rules = ", ".join(results[name, do].rules)
                line = f"  {name}: {result.outcome}: {result.why} (rules: {rules})"
                console.print(line, markup=False, highlight=False, soft_wrap=True)


def told(rules: Sequence[str], known: Mapping[str, Rule]) -> bool:
    """Whether the page of one of these rules says what becomes of infinities and NaN."""
    return any(page.read(path).tells_of_special for r in rules if (path := known[r].page) is not None)


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
        groups: dict[tuple[str, str, str], list[Result]] = collections.defaultdict(list)
        for name in names:
            result = results[name, do]
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
