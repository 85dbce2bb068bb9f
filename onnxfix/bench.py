"""How fast models and engines run, side by side: latency, frames per second, memory.

    found = bench(["model.onnx", "model.fixed.onnx"])
    found.rows[1].ratio               # how much longer the fixed model takes than the original, with its spread

Each entrant, a model on an engine, is loaded in a process of its own. They run in turn, a share of the time in each
round, so that what else the machine does hits all alike; two are compared round by round.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix import backends
from onnxfix.backends import BackendError, feeds, images, ort, stopwatch, trt
from onnxfix.errors import OnnxfixError, RequestError, UnavailableError
from onnxfix.model import Model, load

PathLike = str | os.PathLike[str]
Progress = Callable[[str, int, "int | None"], None]

TENSORRT = "tensorrt"
ENGINES = (TENSORRT, *stopwatch.ENGINES)
PLANS = (".plan", ".engine", ".trt")
LOADING = 600.0  # seconds a model may take to load, or one run
UNBOUNDED = 10**9  # runs, or seconds


@dataclass(frozen=True)
class Ratio:
    """Time of a row over that of another, round by round: the median of the rounds, and their quartiles."""

    of: str  # the other row
    median: float
    low: float
    high: float

    @property
    def word(self) -> str:
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "the same within the noise"


@dataclass(frozen=True)
class Row:
    """One model on one engine. Times are in milliseconds; without `runs`, `why` says why there are none."""

    model: str
    engine: str  # one of ENGINES
    by: str = ""
    runs: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    fps: float = 0.0  # frames per second: images of the batch over the mean
    load_seconds: float = 0.0
    memory_mib: int = 0
    ratio: Ratio | None = None
    why: str = ""
    failed: bool = False  # the engine is here and the model does not run; otherwise the engine is not here


@dataclass(frozen=True)
class Bench:
    machine: str
    inputs: str  # what was fed
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Entrant:
    model: str
    engine: str
    path: Path
    child: trt.Child | None = None
    by: str = ""
    load_seconds: float = 0.0
    memory_mib: int = 0
    rounds: list[list[float]] = field(default_factory=list)
    why: str = ""
    failed: bool = False

    def give_up(self, error: OnnxfixError) -> None:
        self.why, self.failed = str(error), not isinstance(error, UnavailableError)
        self.rounds.clear()
        if self.child:
            self.child.end()
            self.child = None


def bench(
    paths: Sequence[PathLike],
    *,
    against: Sequence[str] | None = None,
    inputs: PathLike | None = None,
    preprocessing: images.Preprocessing | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    seconds: float = 3.0,
    iterations: int = 0,
    warmup: int = 5,
    rounds: int = 10,
    threads: int = 0,
    plugins: Sequence[PathLike] = (),
    progress: Progress | None = None,
) -> Bench:
    """Run ONNX models and engines (.plan, .engine, .trt), and measure.

    A model runs on TensorRT, where there is a GPU to build for, and on the engines named by `against`: by default all
    of ONNX Runtime's that are here. All get the same inputs: the first sample of `inputs` (as for the parity), or one
    drawn by `seed`, at the sizes `dims` (axis -> size) where given, that the first model runs on. Each row runs for
    `seconds`, or `iterations` times, in `rounds` shares, after `warmup` runs that don't count. ONNX Runtime uses
    `threads` processors (0: all).

    A row that can't be measured says why. Raises RequestError for bad arguments and files that are no models,
    UnavailableError without ONNX Runtime where inputs must be found.
    """
    _check(paths, against, seconds, iterations, rounds, warmup, threads)
    backends.use_plugins(plugins)
    models = [Path(p) for p in paths if Path(p).suffix.lower() not in PLANS]
    fixed = [_fixed(load(model)) for model in models]
    note = _busy()  # now: later the load is our own
    sample: feeds.Feeds = {}
    words = "drawn, seed 0"  # where only engines run, each draws for itself
    if models:
        sample, words = _sample(models, fixed, inputs, preprocessing, dims or {}, seed)
    with tempfile.TemporaryDirectory(prefix="onnxfix-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        np.savez(folder / "inputs.npz", *sample.values())
        entrants = list(_entrants(paths, against))
        stack.callback(_end, entrants)
        _load(entrants, folder, sample, threads, progress)
        _run(entrants, seconds, iterations, warmup, rounds, progress)
        rows = _rows(entrants, _frames(sample))
    return Bench(_machine(), words, rows, notes=(note,) if note else ())


def _check(
    paths: Sequence[PathLike], against: Sequence[str] | None, seconds: float, iterations: int, rounds: int,
    warmup: int, threads: int,
) -> None:  # fmt: skip
    if not paths:
        raise RequestError("name a model or an engine")
    for path in map(Path, paths):
        if not path.is_file():
            raise RequestError(f"{path}: {'is a folder; name files' if path.is_dir() else 'no such file'}")
    for engine in against or ():
        if engine not in ENGINES:
            raise RequestError(f"no engine called '{engine}'; there are {', '.join(ENGINES)}")
    if not 0 < seconds < math.inf or rounds < 1 or min(iterations, warmup, threads) < 0:
        raise RequestError("seconds and rounds must be above zero; iterations, warm-up runs and threads not below it")


# ---- what runs ----


def _entrants(paths: Sequence[PathLike], against: Sequence[str] | None) -> Iterator[_Entrant]:
    """Every model on every engine, those of an engine beside each other; engines by their place in ENGINES."""
    here = ort.providers()
    chosen = against if against is not None else [e for e, p in stopwatch.ENGINES.items() if e == "ort" or p[0] in here]
    for engine in (TENSORRT, *(e for e in stopwatch.ENGINES if e in chosen)):
        for path in paths:
            is_plan = Path(path).suffix.lower() in PLANS
            if engine == TENSORRT or not is_plan:
                yield _Entrant(os.fspath(path), engine, Path(path).absolute())


def _load(
    entrants: Sequence[_Entrant], folder: Path, sample: feeds.Feeds, threads: int, progress: Progress | None
) -> None:
    for position, entrant in enumerate(entrants):
        if progress:
            progress("load", position, len(entrants))
        try:
            if entrant.engine == TENSORRT:
                flavour, path = _planned(entrant, folder / f"{position}.plan", sample)
            else:
                flavour, path = _provided(entrant.engine), entrant.path
            entrant.child = trt.Child(
                flavour, trt.memory_limit(), "onnxfix.backends.stopwatch", "the process of the model"
            )
            request = {"path": str(path), "names": list(sample), "arrays": str(folder / "inputs.npz")}
            answer = entrant.child.ask({"do": "load", **request, "threads": threads}, LOADING, None)
            entrant.by, entrant.load_seconds = answer["by"], answer["seconds"]
        except (BackendError, UnavailableError) as error:
            entrant.give_up(error)


def _provided(engine: str) -> str:
    """The engine of ONNX Runtime. Raises UnavailableError where it is not here."""
    provider = stopwatch.ENGINES[engine][0]
    if provider not in ort.providers():
        raise UnavailableError(backends.absent("onnxruntime") or f"this onnxruntime has no {provider}")
    return engine


def _planned(entrant: _Entrant, plan: Path, sample: feeds.Feeds) -> tuple[str, Path]:
    """The flavour of TensorRT, and the engine: the file itself, or one built of it at the inputs' sizes.

    Raises UnavailableError where no engine can run, BackendError where it can't be built.
    """
    about = trt.shared().about()
    if about.no_driver:
        raise UnavailableError(f"{about.no_driver}: engines of {about.flavour} {about.version} can't run here")
    if entrant.path.suffix.lower() in PLANS:
        return about.flavour, entrant.path
    profile = {name: (array.shape,) * 3 for name, array in sample.items()}
    built = trt.shared().build(entrant.path, plan, trt.BuildOptions(profiles=(profile,)))
    if built.refusals:
        raise BackendError(f"TensorRT's parser refuses the model: {built.refusals[0].desc}")
    return about.flavour, plan


def _end(entrants: Sequence[_Entrant]) -> None:
    for child in [e.child for e in entrants if e.child]:
        child.end()


# ---- inputs ----


def _fixed(model: Model) -> dict[tuple[str, int], int]:
    """The sizes of the inputs that are no free choice: (input, axis) -> size."""
    shapes = {v.name: v.type.tensor_type.shape.dim for v in model.proto.graph.input}
    return {(name, i): d.dim_value for name, dims in shapes.items() for i, d in enumerate(dims) if d.dim_value}


def _sample(
    models: Sequence[Path],
    fixed: Sequence[Mapping[tuple[str, int], int]],
    data: PathLike | None,
    preprocessing: images.Preprocessing | None,
    dims: Mapping[str, int],
    seed: int,
) -> tuple[feeds.Feeds, str]:
    """One set of inputs that a model runs on, and what it is in words. The first model that loads decides.

    Axes that are dynamic in one model and have a size in another get that size.
    """
    reason = ""
    known = {axis: size for sizes in fixed for axis, size in sizes.items()}
    for model in models:
        try:
            with ort.Runner(model) as runner:
                if data is not None:
                    return feeds.read(Path(data), runner.inputs, preprocessing)[0], f"the first of {Path(data).name}"
                return _drawn(model, runner, known, dims, seed)
        except BackendError as error:
            reason = reason or f"{model}: {error}"
    raise RequestError(f"no inputs were found that a model runs on: {reason}")


def _drawn(
    model: Path, runner: ort.Runner, known: Mapping[tuple[str, int], int], dims: Mapping[str, int], seed: int
) -> tuple[feeds.Feeds, str]:
    if reason := feeds.unfillable(runner.inputs):
        raise RequestError(f"{model}: {reason}: give inputs with --inputs")
    parts = feeds.axes(runner.inputs)
    if unknown := [name for name in dims if name not in parts]:
        raise RequestError(f"{model}: no dynamic axis called '{unknown[0]}'; there are {', '.join(parts) or 'none'}")
    shapes = [(t.name, i, d) for t in runner.inputs for i, d in enumerate(t.shape) if isinstance(d, str)]
    elsewhere = {dim: known[name, i] for name, i, dim in shapes if (name, i) in known}
    failing: list[str] = []
    tries = feeds.sizes(parts, {**elsewhere, **dims})
    ways = feeds.working(runner.run, runner.inputs, tries, seed, failing, most=1)
    if not ways:
        raise BackendError(f"{failing[0]}; give some with --inputs")
    sample = feeds.seeded(runner.inputs, ways[0], seed)
    return sample, f"drawn, seed {seed}: " + ", ".join(_words(n, a) for n, a in sample.items())


def _words(name: str, array: Any) -> str:
    return f"{name} {array.dtype} {'x'.join(map(str, array.shape)) or 'scalar'}"


def _frames(sample: feeds.Feeds) -> int:
    """Images that one run takes: the batch of the first input with four axes, else 1."""
    return next((a.shape[0] for a in sample.values() if a.ndim == 4), 1)


# ---- running ----


def _run(
    entrants: Sequence[_Entrant], seconds: float, iterations: int, warmup: int, rounds: int, progress: Progress | None
) -> None:
    running = [e for e in entrants if e.child]
    for entrant in running if warmup else []:
        _ask(entrant, warmup, max(seconds, 1.0), counts=False)
    rounds = min(rounds, iterations or rounds)
    for number in range(rounds):
        if progress:
            progress("bench", number, rounds)
        # There and back: what drifts from the start of a round to its end favours nobody.
        for entrant in running[:: -1 if number % 2 else 1]:
            if iterations:
                share = iterations * (number + 1) // rounds - iterations * number // rounds
                _ask(entrant, share, UNBOUNDED, counts=True)
            else:
                _ask(entrant, UNBOUNDED, seconds / rounds, counts=True)


def _ask(entrant: _Entrant, runs: int, seconds: float, *, counts: bool) -> None:
    if entrant.child is None:  # it gave up in an earlier round
        return
    try:
        answer = entrant.child.ask({"do": "run", "runs": runs, "seconds": seconds}, LOADING + seconds, None)
    except BackendError as error:
        entrant.give_up(error)
        return
    entrant.memory_mib = answer["memory_mib"]
    if counts:
        entrant.rounds.append(answer["times"])


# ---- figures ----


def _rows(entrants: Sequence[_Entrant], frames: int) -> tuple[Row, ...]:
    return tuple(map(functools.partial(_row, entrants, frames), entrants))


def _row(entrants: Sequence[_Entrant], frames: int, entrant: _Entrant) -> Row:
    if not entrant.rounds:
        return Row(entrant.model, entrant.engine, entrant.by, why=entrant.why, failed=entrant.failed)
    times = np.concatenate(entrant.rounds)
    p50, p90, p99 = (float(p) for p in np.percentile(times, (50, 90, 99)))
    return Row(
        entrant.model,
        entrant.engine,
        entrant.by,
        runs=len(times),
        mean=float(times.mean()),
        p50=p50,
        p90=p90,
        p99=p99,
        fps=1e3 * frames / float(times.mean()),
        load_seconds=entrant.load_seconds,
        memory_mib=entrant.memory_mib,
        ratio=_ratio(entrants, entrant),
    )


def _ratio(entrants: Sequence[_Entrant], entrant: _Entrant) -> Ratio | None:
    """Over the first model on the same engine; of the first model itself, over what it does on ONNX Runtime's CPU."""
    first = entrants[0].model
    for engine in (entrant.engine, "ort"):
        other = next((e for e in entrants if e.rounds and (e.model, e.engine) == (first, engine)), None)
        if other is not None and other is not entrant:
            medians = [np.median(a) / np.median(b) for a, b in zip(entrant.rounds, other.rounds, strict=True)]
            low, median, high = (float(p) for p in np.percentile(medians, (25, 50, 75)))
            return Ratio(f"{other.model} on {other.engine}", median, low, high)
    return None


def _machine() -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return f"{model}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}"


def _busy() -> str:
    """A word on a machine that has other things to do, "" when it has none or doesn't say."""
    if not hasattr(os, "getloadavg"):
        return ""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    return f"the machine is busy (load {load:.1f}): compare the ratios" if load > 0.5 * processors else ""
