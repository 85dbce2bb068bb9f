"""Two sets of outputs, judged by Polygraphy's simple comparison; NaN and infinity count and are not passed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfix.backends import quiet
from onnxfix.backends.metrics import ERRORS, Metric


@dataclass(frozen=True)
class Compared:
    """One output of one sample. Errors are in the output's own unit; `magnitude` is max |before|."""

    verdict: str  # "equal", "within", "beyond", or what differs besides the values: "shape", "finite", "kind"
    elements: int = 0
    finite: int = 0  # elements that are numbers on both sides: only these prove anything
    max_abs: float = 0.0
    magnitude: float = 0.0
    low: float = 0.0
    high: float = 0.0
    cosine: float | None = None
    note: str = ""
    metric: Metric | None = None  # what judged, when it was not the tolerance
    score: float | None = None  # by that metric

    @property
    def relative(self) -> float:
        """The largest error in units of the output's largest magnitude."""
        return self.max_abs / self.magnitude if self.magnitude else self.max_abs


def compare(name: str, before: Any, after: Any, tolerance: float, metric: Metric | None = None) -> Compared:
    """Compare by value. `tolerance` is relative to max |before|; integers, bools and strings must be equal.

    A `metric` judges instead of both. NaN and infinity must agree, whatever judges.
    """
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray):
        return Compared("kind", note="not a tensor")
    if before.shape != after.shape:
        return Compared("shape", note=f"{list(before.shape)} before, {list(after.shape)} after")
    if before.dtype.kind not in "biuf":
        same = bool(np.array_equal(before, after))
        return Compared("equal" if same else "beyond", before.size, before.size, 0.0 if same else 1.0)
    # Both whole: int64 keeps every digit. Otherwise float64 holds either side's values.
    common = np.int64 if {before.dtype.kind, after.dtype.kind} <= set("biu") else np.float64
    reference, found = before.astype(common), after.astype(common)
    lost = ~np.isfinite(reference), ~np.isfinite(found)
    # NaN against NaN and inf against the same inf agree; anything else is a difference no tolerance covers.
    odd = lost[0] | lost[1]
    agree = np.array_equal(reference[odd], found[odd], equal_nan=True)
    if not agree:
        note = f"{int(lost[0].sum())} NaN or infinite values before, {int(lost[1].sum())} after, of {before.size}"
        held = reference[~lost[0]]
        low, high = (float(held.min()), float(held.max())) if held.size else (0.0, 0.0)
        return Compared("finite", before.size, int((~odd).sum()), low=low, high=high, note=note)
    numbers, others = reference[~odd], found[~odd]
    if not numbers.size:
        return Compared("equal", before.size, 0)
    magnitude = float(np.abs(numbers).max())
    allowed = max(tolerance * magnitude, _underflow(before.dtype)) if before.dtype.kind == "f" and tolerance else 0.0
    equal = np.array_equal(numbers, others)  # needs no judge
    passed, max_abs = (True, 0.0) if equal else _polygraphy(name, numbers, others, allowed)
    score, note = None, ""
    if metric is not None:
        score = metric.score(*((before, after) if not odd.any() else (numbers, others)))
        passed, note = metric.passes(score), f"{metric} of {score:.6g}"
    return Compared(
        "equal" if max_abs == 0.0 else "within" if passed else "beyond",
        before.size,
        int(numbers.size),
        max_abs,
        magnitude,
        float(numbers.min()),
        float(numbers.max()),
        _cosine(numbers, others),
        note,
        metric,
        score,
    )


def _underflow(dtype: np.dtype[Any]) -> float:
    """Below the smallest normal number digits are lost on the way, however a formula is written.

    FP16 computed in FP32 loses none, and its smallest normal number is not small.
    """
    return float(np.finfo(dtype).tiny) if dtype.itemsize > 2 else 0.0


def _polygraphy(name: str, before: np.ndarray, after: np.ndarray, allowed: float) -> tuple[bool, float]:
    from polygraphy import comparator
    from polygraphy.comparator import IterationResult

    # CompareFunc.simple goes away in Polygraphy 0.60; its successor came during 0.53.
    make = getattr(comparator, "SimpleCompareFunc", None) or comparator.CompareFunc.simple
    simple = make(atol=allowed, rtol=0.0, check_error_stat="elemwise")
    with quiet(), np.errstate(all="ignore"):
        result = simple(IterationResult({name: before}), IterationResult({name: after}))[name]
    return bool(result), float(result.max_absdiff)


def _cosine(before: np.ndarray, after: np.ndarray) -> float | None:
    one, other = before.astype(np.float64), after.astype(np.float64)
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.dot(one, other)) / norms if norms else None


def worst(samples: Mapping[str, list[Compared]]) -> dict[str, dict[str, Any]]:
    """Figures for each output, over its samples."""
    figures = {}
    for name, compared in samples.items():
        cosines = [c.cosine for c in compared if c.cosine is not None]
        figures[name] = {
            "max_abs": max(c.max_abs for c in compared),
            "max_rel": max(c.relative for c in compared),
            "range": [min(c.low for c in compared), max(c.high for c in compared)],
            "cosine": min(cosines) if cosines else None,
            "elements": sum(c.elements for c in compared),
            "not_finite": sum(c.elements - c.finite for c in compared),
            "equal": all(c.verdict == "equal" for c in compared),
        }
        if metric := compared[0].metric:
            scores = [c.score for c in compared if c.score is not None]
            figures[name]["metric"] = metric.words()
            figures[name]["score"] = (max if metric.name in ERRORS else min)(scores, default=None)
    return figures
