"""What `bundle` has to say: what was packed, and what came back from the board."""

from __future__ import annotations

from collections.abc import Iterator

from onnxfix.bundle import Bundled
from onnxfix.render.layout import Block, Entries, Entry, Facts, Table
from onnxfix.render.text import checks, size
from onnxfix.report import Report

COLUMNS = ("p50", "p90", "p99", "mean", "min", "max")


def made(done: Bundled) -> Iterator[Block]:
    """A new bundle, its files, and what to do with it."""
    model, build = done.manifest["model"], done.manifest["build"]
    yield Facts(
        [
            ("bundle", f"{done.output} ({size(sum(done.files.values()))})"),
            ("target", done.manifest["target"]["label"]),
            ("verdict", f"{done.report.verdict}: {done.report.judged}"),
            ("model", f"opset {model['opset']}, IR version {model['ir_version']}"),
            ("builder flags", ", ".join(build["flags"]) or "none: FP32"),
            *(("note", note) for note in done.notes),
        ]
    )
    yield Table("files", ("name", "size"), [(n, size(s)) for n, s in done.files.items()], frozenset({1}))
    yield Entries("next", [Entry("there", "python3 run_board.py"), Entry("here", "onnxfix bundle read result.json")])


def came_back(report: Report, verbose: bool = False) -> Iterator[Block]:
    """What the board's script found, and how long the engine takes."""
    facts = [("model", report.model), ("target", report.target), ("verdict", report.verdict), ("judged", report.judged)]
    yield Facts([*facts, *(("note", note) for note in report.notes)])
    yield from checks(report.checks, verbose)
    found = report.check("bench")
    if found is None or "latency_ms" not in found.figures:
        return
    rows = [
        (name, *(f"{found.figures[key][c]:.3f}" for c in COLUMNS))
        for name, key in (("with copies", "latency_ms"), ("compute", "compute_ms"))
    ]
    yield Table(f"milliseconds, {found.figures['iterations']} runs", ("", *COLUMNS), rows, frozenset(range(1, 7)))
