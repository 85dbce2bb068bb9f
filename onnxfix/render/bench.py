"""What `bench` has to say: a table of times, and what did not run."""

from __future__ import annotations

from collections.abc import Iterator

from onnxfix.bench import Bench, Ratio, Row
from onnxfix.render.layout import Block, Entries, Entry, Facts, Table

COLUMNS = ("model", "on", "runs", "p50 ms", "p90 ms", "p99 ms", "frames/s", "load s", "MiB", "time", "of", "")


def table(found: Bench) -> Iterator[Block]:
    """All of a measurement."""
    engines = {row.engine: row.by for row in found.rows if row.by}
    facts = [("machine", found.machine), ("inputs", found.inputs), *engines.items()]
    yield Facts([*facts, *(("note", note) for note in found.notes)])
    ran = [row for row in found.rows if row.runs]
    if ran:
        yield Table("times", COLUMNS, [_cells(row) for row in ran], frozenset(range(2, 10)))
    if len(ran) < len(found.rows):
        missing = dict.fromkeys(_missing(row) for row in found.rows if not row.runs)
        yield Entries("not measured", [Entry(word, text) for word, text in missing])


def _missing(row: Row) -> tuple[str, str]:
    """Why a row was not measured; of an engine that is not here the same for all models."""
    if row.failed:
        return "failed", f"{row.model} on {row.engine}: {row.why}"
    return "not run", f"{row.engine}: {row.why}"


def _cells(row: Row) -> tuple[str, ...]:
    times = (_figure(t) for t in (row.p50, row.p90, row.p99, row.fps))
    load = f"{row.load_seconds:.2f}"
    return (row.model, row.engine, str(row.runs), *times, load, str(row.memory_mib), *_ratio(row.ratio))


def _ratio(ratio: Ratio | None) -> tuple[str, str, str]:
    if ratio is None:
        return "", "", ""
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})", ratio.of, ratio.word


def _figure(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
