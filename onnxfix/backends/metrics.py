"""Measures of agreement that fit a task: errors, cosine, top-k agreement of classifiers, IoU of masks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxfix.errors import RequestError

# What passes without a stated limit: at most for errors, at least for the others.
LIMITS = {"absolute": 1e-4, "relative": 1e-4, "cosine": 0.999, "top": 1.0, "iou": 0.99}
ERRORS = ("absolute", "relative")


@dataclass(frozen=True)
class Metric:
    """One measure and its limit.

    absolute: the largest error in the output's own unit. relative: that in units of the largest magnitude. cosine: of
    the two outputs as one vector each. top: the share of the k best classes that are the same, as sets, over all
    places; classes lie along axis 1 of four and more axes, else along the last. iou: of the masks, the mean over
    classes: the best class along axis 1 where there are several, values that are labels as they are, else what is over
    one half (outputs in [0, 1]) or over zero.
    """

    name: str
    limit: float
    k: int = 1

    def score(self, before: np.ndarray, after: np.ndarray) -> float:
        """The measure of two arrays of one shape, whose values are numbers."""
        if self.name in ERRORS:
            gap = np.abs(before.astype(np.float64) - after.astype(np.float64)).max(initial=0.0)
            magnitude = np.abs(before.astype(np.float64)).max(initial=0.0) if self.name == "relative" else 0.0
            return float(gap / magnitude) if magnitude else float(gap)
        if self.name == "cosine":
            one, other = before.astype(np.float64).reshape(-1), after.astype(np.float64).reshape(-1)
            norms = float(np.linalg.norm(one)), float(np.linalg.norm(other))
            return float(np.dot(one, other) / (norms[0] * norms[1])) if all(norms) else float(norms[0] == norms[1])
        return _top(before, after, self.k) if self.name == "top" else _iou(before, after)

    def passes(self, score: float) -> bool:
        return score <= self.limit if self.name in ERRORS else score >= self.limit

    def __str__(self) -> str:
        labels = {"absolute": "absolute error", "relative": "relative error", "iou": "mask IoU"}
        return f"top-{self.k} agreement" if self.name == "top" else labels.get(self.name, self.name)

    def words(self) -> str:
        """The measure with its limit, e.g. "top-5 agreement, at least 0.99"."""
        return f"{self}, at {'most' if self.name in ERRORS else 'least'} {self.limit:g}"


def parse(texts: Iterable[str]) -> dict[str, Metric]:
    """Metrics by output ("" is all others) from texts such as "cosine", "logits=top5:0.98" and "iou:0.95".

    Raises RequestError, which names the known ones.
    """
    found = {}
    for text in texts:
        # An output's name may hold '=' and ':' itself: split at the last '=', and the limit off what follows it.
        output, _, rest = text.rpartition("=")
        name, _, limit = rest.partition(":")
        base = name.rstrip("0123456789")
        k = name[len(base) :]
        if base not in LIMITS or (k and (base != "top" or not int(k))):
            known = ", ".join(LIMITS)
            raise RequestError(f"no metric '{rest}': give {known} (top5 for five), then ':' and a limit if need be")
        try:
            value = float(limit) if limit else LIMITS[base]
        except ValueError:
            raise RequestError(f"'{text}': the limit '{limit}' is no number") from None
        found[output] = Metric(base, value, int(k or 1))
    return found


def _axis(array: np.ndarray) -> int:
    return 1 if array.ndim >= 4 else array.ndim - 1


def _top(before: np.ndarray, after: np.ndarray, k: int) -> float:
    if not before.ndim or not before.size:
        return float(np.array_equal(before, after))
    one, other = (np.moveaxis(a, _axis(a), -1).reshape(-1, a.shape[_axis(a)]) for a in (before, after))
    k = min(k, one.shape[1])
    # Stable, so that of equal values the same one is taken on both sides.
    best = [np.argsort(-a.astype(np.float64), axis=1, kind="stable")[:, :k] for a in (one, other)]
    shared = (best[0][:, :, None] == best[1][:, None, :]).any(axis=2)
    return float(shared.mean())


def _iou(before: np.ndarray, after: np.ndarray) -> float:
    one, other = _labels(before, before), _labels(after, before)
    scores = []
    for label in np.union1d(one, other):
        mine, theirs = one == label, other == label
        scores.append(float((mine & theirs).sum() / (mine | theirs).sum()))
    return float(np.mean(scores)) if scores else 1.0


def _labels(array: np.ndarray, reference: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "biu":
        return array
    if array.ndim >= 3 and array.shape[1] > 1:
        return np.asarray(array.argmax(axis=1))
    within = reference.size and reference.min() >= 0 and reference.max() <= 1
    return np.asarray(array > (0.5 if within else 0.0))
