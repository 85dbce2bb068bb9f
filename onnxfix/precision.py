"""Precision written in the graph, as strongly typed networks (TensorRT-RTX, TensorRT 11) need it.

FP16 and BF16: what does not fit, by the values the model takes on data, stays in FP32. INT8: Q/DQ pairs with ranges
calibrated on data. The outcome is measured in ONNX Runtime beside the model it came from.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix import calibration, shapes
from onnxfix.backends import BackendError, compare, half, ort, quantize
from onnxfix.backends.metrics import Metric
from onnxfix.calibration import CALIBRATORS, NORMAL, Calibration, Data, Histogram
from onnxfix.errors import RequestError
from onnxfix.graph import Graph, Node
from onnxfix.model import load, write_atomic
from onnxfix.report import Check, Status

__all__ = ["CALIBRATORS", "KINDS", "Conversion", "Data", "convert"]

KINDS = ("fp16", "bf16", "int8")
COMPARED = 16  # samples for the accuracy
# The least cosine between an output before and after: below it the form is called wrong.
COSINES = {"fp16": 0.999, "bf16": 0.99, "int8": 0.95}

ROOM = 2.0  # how much larger than on the data a value may get and still fit FP16
# What is tried in turn: the share of a value's elements where FP16 loses digits that is too much for who minds, and
# whether bodies are converted, whose values are not measured. With none allowed, much of a model may stay FP32, but a
# spectrum scaled by its least value needs that.
TRIES = ((0.1, True), (0.0, False))
# For INT8 the least signal over noise, in dB, of a value that is quantised: tried in turn. Long-tailed values that a
# calibrator cuts have 3 to 10 dB, most others over 30.
SNRS = (-math.inf, 20.0, 30.0)
# They turn a small number into a large one, so that a few digits less, or zero in its place, change everything.
MIND_THE_SMALL = {"Log": (0,), "Reciprocal": (0,), "Div": (1,), "Pow": (0,), "Sqrt": (0,)}
# They square what they read on the way to their result.
SQUARES = frozenset(
    {
        "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization",
        "MeanVarianceNormalization", "ReduceL2", "ReduceSumSquare", "RMSNormalization",
    }
)  # fmt: skip

Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class Conversion:
    """What became of a model. `kept` says by node why it stays FP32; `ranges` hold what 127 stands for, by value."""

    kind: str
    kept: Mapping[str, str]
    check: Check  # "precision": the accuracy
    calibration_sha256: str = ""
    ranges: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


def convert(
    source: str | Path,
    to: str | Path,
    kind: str,
    *,
    data: Data | None = None,
    calibrator: str = "entropy",
    cache: str | Path | None = None,
    block: Sequence[str] = (),
    cosine: float | None = None,
    only_passed: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the model at `source` to `to` in FP16, BF16 or INT8 ("fp16", "bf16", "int8"); its interface stays FP32.

    The values it takes are measured on `data` (seeded inputs without); a `cache` file keeps them, and a later run with
    the same model and data goes on from it. `calibrator` chooses the ranges of INT8: "entropy", "percentile" or
    "minmax". `block` names nodes, or outputs of theirs, that stay FP32 besides those that must.

    Where the accuracy fails, forms with more in FP32 are tried (TRIES, SNRS), and the last one is what you get.

    The check fails where an output has NaN or infinity that was none before, or its cosine with what it was is below
    `cosine` (COSINES without); INT8 on seeded inputs is judged only when `cosine` is stated. The file is written all
    the same, for whoever wants to look, unless `only_passed`.

    Raises RequestError for arguments, data or a model that can't be used, BackendError when ONNX Runtime can't run or
    convert the model, UnavailableError without ONNX Runtime.
    """
    source, to = Path(source), Path(to)
    if kind not in KINDS:
        raise RequestError(f"no precision '{kind}'; there are {', '.join(KINDS)}")
    if calibrator not in CALIBRATORS:
        raise RequestError(f"no calibrator '{calibrator}'; there are {', '.join(CALIBRATORS)}")
    if to.is_dir() or not to.parent.is_dir():  # better now than after the calibration
        raise RequestError(f"{to}: cannot be written: {'is a folder' if to.is_dir() else 'its folder does not exist'}")
    if to.exists() and source.exists() and os.path.samefile(source, to):
        raise RequestError(f"{to}: is the input itself; give another name")
    graph = shapes.index(load(source))
    kept = _blocked(graph, block)
    data = data or Data()
    limit = COSINES[kind] if cosine is None else cosine
    with tempfile.TemporaryDirectory(prefix="onnxfix-precision-") as folder:
        work = _Work(
            source, graph, Path(folder), kind, data, calibrator, Path(cache) if cache else None, kept, progress
        )
        for made in _quantised(work) if kind == "int8" else _narrowed(work):
            check = _accuracy(work, made.evaluated, limit, stated=cosine is not None)
            if check.status is not Status.FAILED and _least_cosine(check.figures["outputs"], 1.0) >= limit:
                break
        if made.figures.get("weights") == 0:
            check = replace(check, detail=f"{check.detail}; no weight became {kind.upper()}")
        if check.status is not Status.FAILED or not only_passed:
            write_atomic(to, made.deployed.read_bytes())
    figures = {**made.figures, "calibrated": str(data), "samples": made.calibration.samples}
    texts = {str(node.where()): why for node, why in made.kept.items()}
    identity = calibration.sha256(made.ranges) if made.ranges else ""
    return Conversion(kind, texts, check, identity, made.ranges, figures)


@dataclass(frozen=True)
class _Work:
    """What is to be done."""

    source: Path
    graph: Graph
    folder: Path  # for what is tried
    kind: str
    data: Data
    calibrator: str
    cache: Path | None
    kept: Mapping[Node, str]  # by wish
    progress: Progress | None

    def calibrated(self, names: Sequence[str] | None = None) -> Calibration:
        return calibration.calibrate(self.source, self.data, names, cache=self.cache, progress=self.progress)


@dataclass(frozen=True)
class _Made:
    """One form that was tried."""

    deployed: Path
    evaluated: Path  # what ONNX Runtime is to run for the accuracy
    calibration: Calibration
    kept: Mapping[Node, str]
    figures: Mapping[str, Any]
    ranges: Mapping[str, float] = field(default_factory=dict)


def _blocked(graph: Graph, names: Sequence[str]) -> dict[Node, str]:
    """The nodes meant by name or output. Raises RequestError for a name of none."""
    kept = {}
    for name in names:
        meant = [n for n in graph.nodes() if name and (n.name == name or name in n.outputs)]
        if not meant:
            raise RequestError(f"no node or value '{name}' to keep in FP32")
        kept.update(dict.fromkeys(meant, "as asked"))
    return kept


def _outputs(nodes: Mapping[Node, str]) -> set[str]:
    return {output for node in nodes for output in node.outputs if output}


# ---- FP16 and BF16 ----


def _narrowed(work: _Work) -> Iterator[_Made]:
    """The form in FP16 or BF16, and another with more in FP32."""
    found = work.calibrated()
    deployed, evaluated = work.folder / "deployed.onnx", work.folder / "evaluated.onnx"
    for share, bodies in TRIES:
        unfit = _unfit(work.graph, found.values, share) if work.kind == "fp16" else {}  # BF16 reaches as far as FP32
        kept = {**unfit, **work.kept}
        weights = half.convert(work.source, deployed, work.kind, keep=_outputs(kept), bodies=bodies)
        half.convert(work.source, evaluated, work.kind, keep=_outputs(kept), bodies=bodies, rounded=True)
        yield _Made(deployed, evaluated, found, kept, {"weights": weights, "kept": len(kept)})


def _unfit(graph: Graph, values: Mapping[str, Histogram], share: float) -> dict[Node, str]:
    """The nodes of the main graph that read or make what FP16 does not hold, each with the first reason."""
    kept: dict[Node, str] = {}
    minded: dict[str, str] = {}  # value -> why its small numbers matter
    for node in graph.nodes():
        small = [n for n in _minding(graph, node) if n in values and values[n].least < NORMAL]
        minded |= {
            n: f"{node.op} of {n}, which gets as small as {values[n].least:.3g}, where FP16 loses digits" for n in small
        }
        reasons = itertools.chain(
            (_too_large(name, values) for name in (*node.inputs, *node.outputs)),
            (_too_small(name, values) for name in node.inputs),
            (_constant(graph, name) for name in node.inputs),
            (_squared(node, values),),
            (minded[name] for name in small),
        )
        if why := next(filter(None, reasons), ""):
            kept[node] = why
    return {**_makers(graph, minded, values, share), **kept}


def _minding(graph: Graph, node: Node) -> list[str]:
    """The values whose small numbers the node turns into large ones."""
    exponent = graph.const(node.input(1)) if node.op == "Pow" else None
    if exponent is not None and exponent.size and exponent.min() >= 1:
        return []
    return [node.input(position) for position in MIND_THE_SMALL.get(node.op, ())]


def _makers(graph: Graph, minded: Mapping[str, str], values: Mapping[str, Histogram], share: float) -> dict[Node, str]:
    """What made these values, as long as more than this share of them is small. Cost: linear in the nodes."""
    found: dict[Node, str] = {}
    pending = list(minded.items())
    while pending:
        name, why = pending.pop()
        seen, maker = values.get(name), graph.producers.get(name)
        if seen and maker and maker not in found and seen.small > share * seen.counted:
            found[maker] = why
            pending += [(read, why) for read in maker.inputs]
    return found


def _peak(name: str, values: Mapping[str, Histogram]) -> float:
    return values[name].peak if name in values else 0.0


def _too_large(name: str, values: Mapping[str, Histogram]) -> str:
    peak = _peak(name, values)
    if peak <= half.LARGEST / ROOM:
        return ""
    return f"{name} reaches {peak:.3g}, {'beyond' if peak > half.LARGEST else 'near'} FP16's end at {half.LARGEST:g}"


def _too_small(name: str, values: Mapping[str, Histogram]) -> str:
    peak = _peak(name, values)
    return f"{name} is at most {peak:.3g}, where FP16 loses digits" if 0 < peak < NORMAL else ""


def _squared(node: Node, values: Mapping[str, Histogram]) -> str:
    peak = _peak(node.input(0), values) if node.op in SQUARES else 0.0
    return f"{node.input(0)} reaches {peak:.3g}, whose square overflows" if peak**2 > half.LARGEST / ROOM else ""


def _constant(graph: Graph, name: str) -> str:
    if not name or not graph.is_const(name) or graph.dtype(name) != TensorProto.FLOAT:
        return ""
    array = graph.const(name)
    sizes = np.abs(array[np.isfinite(array)]) if array is not None else np.zeros(0)
    peak = float(sizes.max(initial=0.0))
    if peak > half.LARGEST:
        return f"the constant {name} holds {peak:.3g}, FP16 ends at {half.LARGEST:g}"
    return f"the constant {name} is at most {peak:.3g}, where FP16 loses digits" if 0 < peak < NORMAL else ""


# ---- INT8 ----


def _quantised(work: _Work) -> Iterator[_Made]:
    """The form in INT8, and others with less of it."""
    model = load(work.source)
    if quantize.quantised(model):
        raise RequestError(f"{work.source}: has QuantizeLinear or DequantizeLinear already; give the model in FP32")
    names = quantize.activations(model, _outputs(work.kept))
    if not names:
        operators = ", ".join(quantize.WEIGHTED)
        raise RequestError(f"{work.source}: no {operators} that reads FP32: nothing to quantise")
    found = work.calibrated(names)
    ranges = found.ranges(work.calibrator)
    tried: list[dict[Node, str]] = []
    for least in SNRS:
        kept = {**_noisy(work.graph, found.values, ranges, least), **work.kept}
        deployed = work.folder / f"{len(tried)}.onnx"
        count = 0 if kept in tried else quantize.convert(work.source, deployed, ranges, keep=_outputs(kept))
        if count or not tried:
            figures = {"quantised": count, "kept": len(kept), "calibrator": work.calibrator}
            yield _Made(deployed, deployed, found, kept, figures, ranges)
            tried.append(kept)


def _noisy(graph: Graph, values: Mapping[str, Histogram], ranges: Mapping[str, float], least: float) -> dict[Node, str]:
    """The weighted nodes that read a value with less signal over noise than this in INT8."""
    ratios = {name: values[name].snr(peak) for name, peak in ranges.items()}
    kept = {}
    for node in graph.nodes():
        noisy = [name for name in node.inputs[:2] if ratios.get(name, math.inf) < least]
        if noisy and node.op in quantize.WEIGHTED:
            kept[node] = f"{noisy[0]} has {ratios[noisy[0]]:.0f} dB of signal over noise in INT8"
    return kept


# ---- accuracy ----


def _accuracy(work: _Work, after: Path, limit: float, *, stated: bool) -> Check:
    """Both models on the first samples. `figures` hold for each output the errors, the cosine, and where it looks
    like classes the share of samples with the same best one."""
    with ort.Runner(work.source) as one:
        by = str(one)
        try:
            with ort.Runner(after) as other:
                compared, classes = _compared(work, one, other)
        except BackendError as error:  # of the form: the model itself has just been run on this data
            why = f"ONNX Runtime does not run the {work.kind.upper()} form: {error}"
            return Check("precision", Status.FAILED, by, why)
    outputs = compare.worst(compared)
    for name, scores in classes.items():
        outputs[name]["top1"] = float(np.mean(scores))
    figures = {"outputs": outputs, "samples": max(map(len, compared.values()), default=0)}
    status, detail = _judged(compared, figures, work, limit, stated)
    return Check("precision", status, by, detail, figures)


def _compared(
    work: _Work, one: ort.Runner, other: ort.Runner
) -> tuple[dict[str, list[compare.Compared]], dict[str, list[float]]]:
    """By output: the comparison of each sample, and its top-1 agreement where it looks like classes."""
    compared: dict[str, list[compare.Compared]] = defaultdict(list)
    classes: dict[str, list[float]] = defaultdict(list)
    for number, sample in enumerate(itertools.islice(calibration.samples(work.data, one), COMPARED)):
        if work.progress:
            work.progress("parity", number, None)
        had, has = one.run(sample), other.run(sample)
        for name, array in had.items():
            compared[name].append(compare.compare(name, array, has[name], float("inf")))
            if _looks_like_classes(array):
                classes[name].append(Metric("top", 0.0).score(array, has[name]))
    return compared, classes


def _looks_like_classes(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] > 1


def _judged(
    compared: Mapping[str, Sequence[compare.Compared]],
    figures: Mapping[str, Any],
    work: _Work,
    limit: float,
    stated: bool,
) -> tuple[Status, str]:
    kind = work.kind.upper()
    for name, results in compared.items():
        if odd := next((c for c in results if c.verdict in ("finite", "shape")), None):
            return Status.FAILED, f"output {name} in {kind}: {odd.note}"
    words = ", ".join(_words(name, held) for name, held in figures["outputs"].items())
    detail = f"{kind} over {figures['samples']} samples ({work.data}): {words}"
    if work.kind == "int8" and work.data.path is None and not stated:
        return Status.NOT_RUN, f"measured, not judged, on drawn inputs: {detail}"
    least = _least_cosine(figures["outputs"], math.nan)
    if math.isnan(least):
        return Status.NOT_RUN, f"measured, not judged, since all outputs are next to zero: {detail}"
    if least < limit:
        return Status.FAILED, f"{detail}; a cosine of {limit:g} at least is asked for"
    return Status.PASSED, detail


def _least_cosine(outputs: Mapping[str, Mapping[str, Any]], default: float) -> float:
    """Of the outputs that have a direction: what is zero, or next to it, has none."""
    cosines = [f["cosine"] for f in outputs.values() if max(map(abs, f["range"])) >= NORMAL]
    return min((c for c in cosines if c is not None), default=default)


def _words(name: str, held: Mapping[str, Any]) -> str:
    cosine = f", cosine {held['cosine']:.5f}" if held["cosine"] is not None else ""
    top = f", top-1 agreement {held['top1']:.3f}" if "top1" in held else ""
    return f"{name} error {held['max_rel']:.2g} of its largest magnitude{cosine}{top}"
