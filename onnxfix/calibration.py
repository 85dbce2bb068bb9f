"""What values a model takes on data, gathered a sample at a time: the ranges of INT8, and what FP16 can't hold.

One histogram of magnitudes for each value, whose width doubles when a larger number comes: adding bins in pairs loses
nothing, so the outcome depends neither on the order of the samples nor on where a run was interrupted. All three
calibrators read their range from it. Memory: the inner values of one sample, and 32 KiB for each value.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import itertools
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnx import TensorProto

from onnxfix import shapes
from onnxfix.backends import feeds, images, ort
from onnxfix.errors import RequestError
from onnxfix.model import Model, external_path, is_external, load, one_line, tapped, write_atomic

CALIBRATORS = ("entropy", "percentile", "minmax")
NORMAL = 2.0**-14  # the smallest FP16 number with all its digits
BINS = 4096  # TensorRT takes 2048 up to the largest magnitude, which here lies in the upper half
LEVELS = 128  # of INT8 on either side of zero
LEAST_TOP = -100  # exponent: below, FP32 does not hold what magnitudes are scaled by
STEP = 8  # bins between two ranges that the entropy is asked for
PERCENTILE = 0.9999
KEEP_EVERY = 16  # samples between two writes of the cache
CACHE_VERSION = 1

Progress = Callable[[str, int, "int | None"], None]


# ---- data ----


@dataclass(frozen=True)
class Data:
    """Where inputs come from.

    `path` is an .npz (input -> array; arrays with several times the model's first axis are that many samples), a
    Polygraphy .json, a folder of images made inputs by `preprocess`, or "file.py:function", a function without
    arguments that yields samples (input -> array). Without it inputs are drawn for each of `seeds`.
    """

    path: str | Path | None = None
    preprocess: images.Preprocessing | None = None
    samples: int = 500  # at most so many are taken
    seeds: tuple[int, ...] = (0, 1, 2)

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Data | None:
        """What the `build:` of a rule file calibrates on, None when it says nothing of that."""
        if "calibrate" not in section:
            return None
        return cls(section["calibrate"], images.parse(section["preprocess"]) if "preprocess" in section else None)

    def __str__(self) -> str:
        return Path(self.path).name if self.path else f"seeds {', '.join(map(str, self.seeds))}"


class Runner(Protocol):
    """A model that can be run, e.g. `ort.Runner`."""

    inputs: list[feeds.Tensor]

    def run(self, sample: feeds.Feeds, /) -> Any: ...


def samples(data: Data, runner: Runner) -> Iterator[feeds.Feeds]:
    """The samples one at a time, as the model in `runner` takes them; drawn inputs are tried on it.

    Raises RequestError when the data can't be read or does not fit, or when the model runs on no inputs drawn.
    """
    return itertools.islice(_samples(data, runner), data.samples)


def _samples(data: Data, runner: Runner) -> Iterator[feeds.Feeds]:
    if data.path is None:
        return _seeded(data.seeds, runner.inputs, runner.run)
    if script := _loader(data.path):
        return _loaded(*script, runner.inputs)
    path = _existing(data.path)
    return feeds.stream(path, runner.inputs, replace(data.preprocess or images.Preprocessing(), limit=data.samples))


def count(data: Data, inputs: Sequence[feeds.Tensor]) -> int | None:
    """How many samples there will be, None where only reading them tells."""
    if data.path is None:
        return min(data.samples, len(data.seeds))
    path = Path(data.path)
    if path.is_dir():
        return min(data.samples, sum(p.suffix.lower() in images.SUFFIXES for p in path.iterdir()))
    return min(data.samples, feeds.stacked(path, inputs)) or None if path.is_file() else None


def fingerprint(data: Data, inputs: Sequence[feeds.Tensor]) -> str:
    """A sha256 that changes with the data: of the files' bytes; of a loader also the arrays it yields."""
    digest = hashlib.sha256(repr((data.samples, data.seeds if data.path is None else (), data.preprocess)).encode())
    if data.path is None:
        return digest.hexdigest()
    if script := _loader(data.path):
        digest.update(script[0].read_bytes())
        for sample in itertools.islice(_loaded(*script, inputs), data.samples):
            for name in sorted(sample):
                digest.update(f"{name} {sample[name].shape} {sample[name].dtype}".encode())
                digest.update(np.ascontiguousarray(sample[name]).data)
        return digest.hexdigest()
    path = _existing(data.path)
    for file in images.files(path)[: data.samples] if path.is_dir() else [path]:
        _add_file(digest, file)
    return digest.hexdigest()


def _identity(model: Model) -> str:
    """A sha256 of the model's file, and of its external data where it has some."""
    external = {external_path(t, model.directory) for t in model.tensors() if is_external(t)}
    if not external:
        return model.sha256
    digest = hashlib.sha256(model.sha256.encode())
    for file in sorted(external):
        _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: Any, file: Path) -> None:
    digest.update(f"{file.name} {file.stat().st_size} ".encode())
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise RequestError(f"{path}: no such file; give an .npz, a .json, a folder of images or file.py:function")
    return Path(path)


def _seeded(
    seeds: Sequence[int], inputs: Sequence[feeds.Tensor], run: Callable[[feeds.Feeds], object]
) -> Iterator[feeds.Feeds]:
    """Drawn inputs at the first size the model runs at, in the first way it takes them there."""
    if why := feeds.unfillable(inputs):
        raise RequestError(f"{why}, which can't be drawn; give inputs as .npz")
    failing: list[str] = []
    ways = feeds.working(run, inputs, feeds.sizes(feeds.axes(inputs), {}), seeds[0], failing, most=1)
    if not ways:
        raise RequestError(f"the model runs on no inputs drawn: {failing[0]}; give data")
    return (feeds.seeded(inputs, ways[0], seed) for seed in seeds)


def _loader(path: str | Path) -> tuple[Path, str] | None:
    """File and function of "file.py:function", None for another path."""
    file, colon, function = str(path).rpartition(":")
    if not colon or not file.endswith(".py"):
        return None
    if not Path(file).is_file():
        raise RequestError(f"{file}: no such file")
    return Path(file), function


def _loaded(file: Path, function: str, inputs: Sequence[feeds.Tensor]) -> Iterator[feeds.Feeds]:
    try:
        spec = importlib.util.spec_from_file_location(f"onnxfix_data_{file.stem}", file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = iter(getattr(module, function)())
        for i in itertools.count():
            if (sample := next(found, None)) is None:
                return
            arrays = {name: np.asarray(array) for name, array in sample.items()}
            yield feeds.fitting(file, i, arrays, inputs)
    except RequestError:
        raise
    except Exception as error:  # the user's code
        raise RequestError(f"{file}:{function}: {type(error).__name__}: {one_line(error)}") from None


# ---- what is gathered ----


@dataclass
class Histogram:
    """Magnitudes of one value over all samples. Zeros are counted apart: every scale holds them exactly."""

    low: float = math.inf
    high: float = -math.inf
    zeros: int = 0
    least: float = math.inf  # the smallest magnitude but zero
    small: int = 0  # magnitudes below NORMAL, but zero
    odd: int = 0  # NaN and infinity
    top: float = 0.0  # upper edge of the last bin, a power of two
    bins: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, array: np.ndarray) -> None:
        """Count the values of a float32 array."""
        values = array.reshape(-1)
        finite = np.isfinite(values)
        if not finite.all():
            self.odd += int(values.size - finite.sum())
            values = values[finite]
        if not values.size:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        sizes = np.abs(values[values != 0])
        self.zeros += int(values.size - sizes.size)
        if not sizes.size:
            return
        self.least = min(self.least, float(sizes.min()))
        self.small += int((sizes < NORMAL).sum())
        self._reach(float(sizes.max()))
        places = (sizes * np.float32(BINS / self.top)).astype(np.intp)  # exact: a power of two
        counts = np.bincount(places, minlength=BINS + 1)
        counts[BINS - 1] += counts[BINS]  # the largest magnitude may be the upper edge itself
        self.bins += counts[:BINS]

    def _reach(self, peak: float) -> None:
        if not self.top:
            self.top = 2.0 ** max(math.ceil(math.log2(peak)), LEAST_TOP)
        while self.top < peak:
            pairs = self.bins.reshape(-1, 2).sum(axis=1)
            self.bins = np.concatenate([pairs, np.zeros(BINS // 2, np.int64)])
            self.top *= 2

    @property
    def counted(self) -> int:
        return int(self.bins.sum())

    @property
    def peak(self) -> float:
        """The largest magnitude, 0 when nothing was counted."""
        return max(-self.low, self.high, 0.0) if self.low <= self.high else 0.0

    def range(self, calibrator: str) -> float:
        """The magnitude that 127 stands for in INT8, by one of CALIBRATORS."""
        if self.counted <= LEVELS or calibrator == "minmax":  # each of so few has a level of its own
            return self.peak
        edge = self._percentile() if calibrator == "percentile" else self._entropy()
        return min(edge * self.top / BINS, self.peak)

    def _percentile(self) -> int:
        """Bins that hold PERCENTILE of all values, zeros among them."""
        wanted = PERCENTILE * (self.counted + self.zeros) - self.zeros
        return min(int(np.searchsorted(np.cumsum(self.bins), wanted)) + 1, BINS)

    def _entropy(self) -> int:
        """Bins of the range whose 128 levels lose the least information about the magnitudes.

        For each range: the relative entropy between what is kept of the histogram (with all that lies beyond in the
        last bin) and the same spread evenly over the occupied bins of each level. Source: S. Migacz, "8-bit inference
        with TensorRT", GTC 2017; this is what TensorRT's own entropy calibrator minimises.
        """
        used = int(np.flatnonzero(self.bins)[-1]) + 1
        candidates = [*range(LEVELS, used, STEP), max(used, LEVELS)]
        total = self.counted
        losses = [_divergence(self.bins[:end], total) for end in candidates]
        return int(candidates[int(np.argmin(losses))])

    def snr(self, peak: float) -> float:
        """Signal over noise in dB when the values are rounded and cut to INT8 with 127 at `peak`; inf without noise.

        Each bin counts as its middle, which is exact enough: a step of INT8 is many bins.
        """
        sizes = (np.arange(BINS) + 0.5) * (self.top / BINS)
        step = peak / 127
        held = np.minimum(np.rint(sizes / step), 127) * step if step else np.zeros(BINS)
        noise = float(np.dot(self.bins, (sizes - held) ** 2))
        return 10 * math.log10(float(np.dot(self.bins, sizes**2)) / noise) if noise else math.inf

    def to_dict(self) -> dict[str, Any]:
        packed = base64.b64encode(zlib.compress(self.bins.astype("<i8").tobytes(), 1)).decode()
        ends = {"low": self.low, "high": self.high} if self.low <= self.high else {}
        ends |= {"least": self.least} if self.counted else {}
        return {**ends, "zeros": self.zeros, "small": self.small, "odd": self.odd, "top": self.top, "bins": packed}

    @staticmethod
    def from_dict(held: Mapping[str, Any]) -> Histogram:
        bins = np.frombuffer(zlib.decompress(base64.b64decode(held["bins"])), "<i8").astype(np.int64)
        if bins.shape != (BINS,):
            raise ValueError("a histogram of another size")
        return Histogram(**{**held, "bins": bins})


def _divergence(kept: np.ndarray, total: int) -> float:
    """Relative entropy in nats of `kept`, with what is missing to `total` in its last bin, against its 128 levels.

    Less what chance alone makes of it, half a nat over `total` for each degree of freedom (as a likelihood ratio is
    half a chi-squared): otherwise few data would favour narrow ranges.
    """
    whole = kept.astype(np.float64)
    level = np.arange(kept.size) * LEVELS // kept.size
    occupied = kept > 0
    sums = np.bincount(level, whole, LEVELS)
    counts = np.bincount(level, occupied, LEVELS)
    coarse = np.where(occupied, (sums / np.maximum(counts, 1))[level], 0.0)
    fine = whole.copy()
    fine[-1] += total - whole.sum()
    # Where the last bin is empty but for what lies beyond, the coarse side has nothing to tell it by.
    coarse = np.maximum(coarse, 1e-4)
    p, q = fine / fine.sum(), coarse / coarse.sum()
    seen = p > 0
    freedom = np.count_nonzero(occupied) - np.count_nonzero(counts)
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen]))) - float(freedom) / (2 * total)


@dataclass(frozen=True)
class Calibration:
    """What was gathered of each value, and of which model and data."""

    model_sha256: str
    data_sha256: str
    data: str
    samples: int
    values: Mapping[str, Histogram]
    resumed: int = 0  # samples that came from the cache

    def ranges(self, calibrator: str) -> dict[str, float]:
        """The magnitude that 127 stands for, by value. Raises RequestError for an unknown calibrator."""
        if calibrator not in CALIBRATORS:
            raise RequestError(f"no calibrator '{calibrator}'; there are {', '.join(CALIBRATORS)}")
        return {name: histogram.range(calibrator) for name, histogram in self.values.items()}


def sha256(ranges: Mapping[str, float]) -> str:
    """The identity of a set of ranges."""
    return hashlib.sha256(json.dumps(sorted(ranges.items())).encode()).hexdigest()


# ---- gathering ----


def calibrate(
    path: Path,
    data: Data,
    names: Iterable[str] | None = None,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run the model at `path` on the data and gather its values `names` (all float values of the main graph).

    With a `cache`, a run that was interrupted goes on where it was, and a complete one is not repeated; a cache of
    another model or other data is begun anew.

    Raises RequestError for data or a cache file that can't be used, BackendError when ONNX Runtime can't run the model,
    UnavailableError without ONNX Runtime.
    """
    model = load(path)
    wanted = list(names) if names is not None else float_values(model)
    session = _Tapped(model, wanted)
    begun = _Begun(_identity(model), fingerprint(data, session.inputs), wanted)
    begun.read(cache)
    total = count(data, session.inputs)
    resumed = begun.samples
    if not begun.complete:
        begun.write(cache)  # or fail now, not when the first samples have run
        for sample in itertools.islice(samples(data, session), resumed, None):
            for name, array in session.run(sample).items():
                begun.values[name].add(array)
            begun.samples += 1
            if progress:
                progress("calibrate", begun.samples, total)
            if begun.samples % KEEP_EVERY == 0:
                begun.write(cache)
        begun.complete = True
        begun.write(cache)
    return Calibration(begun.model, begun.data, str(data), begun.samples, begun.values, resumed)


class _Begun:
    """The state of a calibration, and its cache."""

    def __init__(self, model: str, data: str, names: Sequence[str]) -> None:
        self.model, self.data = model, data
        self.samples, self.complete = 0, False
        self.values = {name: Histogram() for name in names}

    def read(self, cache: Path | None) -> None:
        """Take over what the cache holds of this very model, data and these values."""
        if cache is None or not cache.exists():
            return
        try:
            held = json.loads(cache.read_text("utf-8"))
            version, model, data = held["onnxfix_calibration"], held["model"], held["data"]
            if (version, model, data) != (CACHE_VERSION, self.model, self.data):
                return
            values = {name: Histogram.from_dict(held["values"][name]) for name in self.values if name in held["values"]}
            if len(values) == len(self.values):
                self.values, self.samples, self.complete = values, held["samples"], held["complete"]
        except (OSError, ValueError, TypeError, KeyError, zlib.error) as error:
            reason = one_line(error)
            raise RequestError(f"{cache}: no calibration cache ({reason}); remove it or name another file") from None

    def write(self, cache: Path | None) -> None:
        if cache is None:
            return
        values = {name: histogram.to_dict() for name, histogram in self.values.items()}
        head = {"onnxfix_calibration": CACHE_VERSION, "model": self.model, "data": self.data}
        write_atomic(cache, json.dumps({**head, "samples": self.samples, "complete": self.complete, "values": values}))


def float_values(model: Model) -> list[str]:
    """The FP32 inputs and computed values of the main graph, in its order; constants are none."""
    graph = shapes.index(model)
    names = [v.name for v in model.proto.graph.input if graph.is_input(v.name)]
    names += [o for node in graph.nodes() if node.op != "Constant" for o in node.outputs if o]
    return [n for n in dict.fromkeys(names) if graph.dtype(n) == TensorProto.FLOAT]


class _Tapped:
    """A model that gives these of its values."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        inputs = {v.name for v in model.proto.graph.input}
        self._given = [n for n in names if n in inputs]
        self._made = [n for n in names if n not in inputs]
        self._session = ort.Session(tapped(model, self._made).SerializeToString(), model.directory, exact=False)
        self.inputs = self._session.inputs

    def run(self, sample: feeds.Feeds) -> dict[str, Any]:
        made = self._session.run(sample, self._made)
        return {**{n: sample[n] for n in self._given}, **made}


# ---- TensorRT's cache ----


def trt_cache(ranges: Mapping[str, float], trt_version: str, calibrator: str = "entropy") -> bytes:
    """The ranges as TensorRT's implicit calibrators (up to TensorRT 10) read them, so that a board need not calibrate.

    The first line names version and algorithm, e.g. TRT-8201-EntropyCalibration2 for 8.2.1; then for each tensor the
    bits of its FP32 scale (range / 127) in hexadecimal. Layout: as TensorRT itself writes it.
    Raises RequestError for a version that is none.
    """
    parts = trt_version.split(".")
    if not all(p.isdigit() for p in parts[:3]):
        raise RequestError(f"'{trt_version}' is no version of TensorRT, such as 8.2.1")
    major, minor, patch = (int(p) for p in (*parts, "0", "0")[:3])
    # 10 and later write the version with two digits for each part.
    number = major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    algorithm = "MinMaxCalibration" if calibrator == "minmax" else "EntropyCalibration2"
    lines = [f"TRT-{number}-{algorithm}"]
    lines += [f"{name}: {struct.pack('>f', peak / 127).hex()}" for name, peak in ranges.items() if peak > 0]
    return ("\n".join(lines) + "\n").encode()
