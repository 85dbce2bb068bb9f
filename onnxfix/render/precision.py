"""What `convert` has to say: the accuracy by output, what stays FP32 and why, and the ranges of INT8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnxfix.precision import Conversion
from onnxfix.render.layout import Block, Entries, Entry, Facts, Table

ACCURACY = ("output", "largest error", "of largest", "cosine", "top-1", "range")
SHOWN = 12


def conversion(done: Conversion, output: str, verbose: bool = False) -> Iterator[Block]:
    """All of a conversion; of long lists the beginning, unless `verbose`."""
    facts = [("output", output), ("precision", done.kind)]
    facts += [(name, str(value)) for name, value in done.figures.items()]
    if done.calibration_sha256:
        facts.append(("ranges", done.calibration_sha256))
    yield Facts([*facts, ("accuracy", f"{done.check.status.value}: {done.check.detail}"), ("by", done.check.by)])
    outputs: Mapping[str, Mapping[str, Any]] = done.check.figures.get("outputs", {})
    yield Table("accuracy", ACCURACY, [_cells(name, held) for name, held in outputs.items()], frozenset(range(1, 5)))
    if done.kept:
        kept = list(done.kept.items())
        yield Entries("stays FP32", [Entry("", f"{node}: {why}") for node, why in (kept if verbose else kept[:SHOWN])])
    if done.ranges and verbose:
        yield Table("ranges", ("value", "127 is"), [(n, f"{r:.6g}") for n, r in done.ranges.items()], frozenset({1}))


def _cells(name: str, held: Mapping[str, Any]) -> tuple[str, ...]:
    cosine = "" if held["cosine"] is None else f"{held['cosine']:.6f}"
    top = f"{held['top1']:.3f}" if "top1" in held else ""
    low, high = held["range"]
    return name, f"{held['max_abs']:.3g}", f"{held['max_rel']:.2g}", cosine, top, f"{low:.4g} to {high:.4g}"
