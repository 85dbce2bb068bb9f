"""Inputs harder than a proof's, and whether two small models agree on them, by ONNX Runtime on the CPU.

A proof draws ordinary numbers, while a rule's grade speaks of all. Where ONNX Runtime's kernel of the original departs
from what the standard says (the largest of values with a NaN, say), agreement in ONNX's reference evaluator counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnxfix.backends import BackendError, ort
from onnxfix.backends.compare import compare
from onnxfix.model import one_line
from onnxfix.report import Safety

CLOSE = 1e-5  # of the output's largest magnitude: what rounding may do
EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e-40, -1e-40, 88.0, -104.0, 255.5, -128.5)
INFINITE = (np.inf, -np.inf, 1e30, -1e30)  # the square of 1e30 is
NOT_FINITE = ("zeros", "infinities", "NaN", "infinities and NaN")  # zero by zero is NaN
WIDE = ("wide noise", "edge values")  # whose exponentials may be infinite
SIGNS = "zeros of another sign"  # as `how` ends then
_AGAIN = 4  # runs of the original that must agree for a difference to mean something


class Outcome(NamedTuple):
    """How two models compare on one of the harder inputs."""

    inputs: str  # which of them
    how: str  # what differs in ONNX Runtime, "" for nothing
    defined_alike: bool = True  # whether the standard's reference evaluator has both give the same, all the same

    @property
    def differs(self) -> bool:
        return bool(self.how) and not self.defined_alike

    @property
    def special(self) -> bool:
        """Whether infinities, NaN, an overflow or the sign of a zero may be behind it: ordinary numbers agree."""
        overflow = self.inputs in WIDE and "(finite)" in self.how  # by the verdict of `compare`
        return self.inputs in NOT_FINITE or overflow or self.how.endswith(SIGNS)


class Loaded:
    """A small model in memory, in ONNX Runtime. Raises as `ort.Session` does."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._session = ort.Session(model, Path(), exact=True)
        self._names = [o.name for o in onnx.ModelProto.FromString(model).graph.output]
        self._dtypes = {t.name: t.dtype for t in self._session.inputs}

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """All outputs in order. Inputs take the dtype the model asks for; UINT64 goes into INT64 bit for bit."""
        fed = {n: _as(v, self._dtypes[n]) for n, v in feeds.items() if n in self._dtypes}
        made = self._session.run(fed, self._names)
        return [made[name] for name in self._names]


def _as(value: Any, dtype: np.dtype[Any] | None) -> Any:
    if dtype is None or not isinstance(value, np.ndarray):
        return value
    with np.errstate(all="ignore"):
        return value.astype(dtype, copy=False)


def evaluate(model: bytes, feeds: Mapping[str, Any]) -> list[Any]:
    """All outputs by ONNX's reference evaluator, in this process. Raises whatever it raises."""
    from onnx.reference import ReferenceEvaluator

    proto = onnx.ModelProto.FromString(model)
    dtypes = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in proto.graph.input}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        evaluator = ReferenceEvaluator(proto)
        return list(evaluator.run(None, {n: np.asarray(feeds[n]).astype(dtypes[n]) for n in dtypes if n in feeds}))


class Evaluated:
    """The same in ONNX's reference evaluator, for what ONNX Runtime lacks. Raises BackendError when it does not run."""

    def __init__(self, model: bytes) -> None:
        self.model = model

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        try:
            return evaluate(self.model, feeds)
        except Exception as error:  # of whatever type numpy raises
            raise BackendError(one_line(error)) from None


def same(was: Any, got: Any, safety: Safety) -> str:
    """How an output differs from what it was beyond what a grade allows, "" when it does not."""
    if not isinstance(was, np.ndarray):
        return ""  # a sequence: only tensors are compared
    # BFLOAT16, FLOAT8 and the like, in which numpy knows no NaN.
    was, got = (v.astype(np.float32) if v.dtype.kind == "V" else v for v in (was, got))
    half = was.dtype == np.float16
    allowed = 0.0 if safety is Safety.EXACT else float(np.finfo(np.float16).eps) if half else CLOSE
    with np.errstate(all="ignore"):
        compared = compare("y", was, got, allowed)
    if compared.verdict in ("equal", "within"):
        return _zeros(was, got) if safety is Safety.EXACT else ""
    note = compared.note or f"off by {compared.max_abs:.3g} of {compared.magnitude:.3g}"
    return f"graded {safety.value}: {note} ({compared.verdict})"


def _zeros(was: np.ndarray, got: np.ndarray) -> str:
    """What `compare` passes over: zeros of another sign are not the same bits."""
    if was.dtype.kind != "f" or got.dtype.kind != "f":
        return ""
    other = (np.signbit(was) != np.signbit(got)) & ~np.isnan(was)
    return f"graded exact: {int(other.sum())} {SIGNS}" if other.any() else ""


def defined_alike(before: bytes, after: bytes, feeds: Mapping[str, Any], safety: Safety) -> bool:
    """Whether both models give the same in ONNX's reference evaluator."""
    try:
        pairs = zip(evaluate(before, feeds), evaluate(after, feeds), strict=True)
        return not any(same(was, got, safety) for was, got in pairs)
    except Exception:  # the evaluator lacks operators, too, and raises whatever numpy does
        return False


def outcomes(
    before: bytes,
    after: bytes,
    sample: Mapping[str, Any],
    safety: Safety,
    by: type[Loaded] | type[Evaluated] = Loaded,
) -> Iterator[Outcome]:
    """How two models compare on each of the harder inputs that the original runs on.

    `sample` are inputs by name, which give shapes and dtypes. Raises BackendError when a model does not load.
    """
    one, other = by(before), by(after)
    for name, feeds in harder(sample):
        try:
            expected = one.run(feeds)
        except BackendError:  # an index out of range, say: the original says no
            continue
        how = _apart(other, feeds, expected, safety)
        if how and any(_apart(one, feeds, expected, Safety.EXACT) for _ in range(_AGAIN)):
            continue  # random numbers: the original differs from itself
        yield Outcome(name, how, not how or defined_alike(before, after, feeds, safety))


def _apart(model: Loaded | Evaluated, feeds: Mapping[str, Any], expected: list[Any], safety: Safety) -> str:
    """How a model's outputs differ from those expected, "" when they don't."""
    try:
        found = model.run(feeds)
    except BackendError as error:
        return f"only the original runs: {error}"
    grades = [Safety.CLOSE if _rounds(was, feeds) else safety for was in expected]
    return next(filter(None, map(same, expected, found, grades)), "")


def _rounds(output: Any, feeds: Mapping[str, Any]) -> bool:
    """Whether FP16 is at the border: without FP16 kernels ONNX Runtime keeps FP32 between neighbours."""
    return any(isinstance(v, np.ndarray) and v.dtype == np.float16 for v in (output, *feeds.values()))


def harder(sample: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Feeds of the same shapes and dtypes, the same on every call.

    Ordinary and wide noise, zeros, ties and denormal numbers, whole ranges of integers, and infinities and NaN strewn
    among ordinary numbers.
    """
    ways: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Any]] = {
        "noise": lambda rng, shape: rng.normal(0.0, 1.0, shape),
        "wide noise": lambda rng, shape: rng.normal(0.0, 100.0, shape),
        "zeros": lambda rng, shape: np.zeros(shape),
        "edge values": lambda rng, shape: rng.choice(EDGES, shape),
        "whole ranges": lambda rng, shape: rng.normal(0.0, 1.0, shape),
        "infinities": lambda rng, shape: _strewn(rng, shape, INFINITE, 4),
        "NaN": lambda rng, shape: _strewn(rng, shape, (np.nan,), 4),
        "infinities and NaN": lambda rng, shape: _strewn(rng, shape, (*INFINITE, np.nan), 2),
    }
    for seed, (name, way) in enumerate(ways.items()):
        rng = np.random.default_rng(seed)
        yield name, {n: _filled(rng, v, way, name == "whole ranges") for n, v in sample.items()}


def _strewn(rng: np.random.Generator, shape: tuple[int, ...], values: tuple[float, ...], every: int) -> np.ndarray:
    """Noise with one in so many numbers replaced, at least one."""
    found = np.asarray(rng.normal(0.0, 3.0, shape)).reshape(-1)
    at = rng.permutation(found.size)[: -(-found.size // every)]
    found[at] = rng.choice(values, at.size)
    return found.reshape(shape)


def _filled(rng: np.random.Generator, value: Any, way: Callable[..., Any], whole: bool) -> Any:
    """Another tensor of this shape and dtype; integers stay, as they are often indices, but for their `whole` range."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        return value
    if value.dtype.kind == "f":
        with np.errstate(all="ignore"):
            return np.asarray(way(rng, value.shape)).astype(value.dtype)
    limits = np.iinfo(value.dtype)
    return rng.integers(limits.min, limits.max, value.shape, value.dtype, endpoint=True) if whole else value
