"""One loaded model in a process of its own, which runs it on request and says how long each run took.

    python -m onnxfix.backends.stopwatch ENGINE FOLDER

ENGINE is one of ENGINES, or a flavour of TensorRT for a built engine. Speaks as `onnxfix.backends.worker` does. In a
process of its own a model's memory can be told from the others', and one that crashes takes only itself away.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.backends import BackendError, feeds, ort, trt, version, worker

# What ONNX Runtime calls its ways to run a model. What a provider can't take runs on the CPU.
ENGINES = {
    "ort": ("CPUExecutionProvider",),
    "ort-cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "ort-tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}

Send = Callable[[dict[str, Any]], None]


class OrtWatch:
    """A model in ONNX Runtime, optimised as it comes out of the box."""

    def __init__(self, engine: str, _folder: Path, _send: Send) -> None:
        self.messages: list[tuple[str, str]] = []
        self.providers = ENGINES[engine]

    def load(self, path: str, names: Sequence[str], arrays: str, threads: int) -> dict[str, Any]:
        """Load the model; its inputs are the `names` in `arrays`, an .npz by position. Raises BackendError."""
        import onnxruntime  # noqa: F401  here already, so that its own size is not taken for the model's

        self.before = _settled_mib()
        started = time.perf_counter()
        self.model = ort.Deployed(Path(path), self.providers, threads)
        seconds = time.perf_counter() - started
        self.inputs = _fitting(_read(names, arrays), self.model.inputs)
        return {"seconds": seconds, "by": f"onnxruntime {version('onnxruntime')}, {self.providers[0]}"}

    def run(self, runs: int, seconds: float) -> dict[str, Any]:
        """Run until `seconds` are over, once at least and `runs` times at most. -> times in milliseconds."""
        times = _timed(lambda: self.model.run(self.inputs), runs, seconds)
        return {"times": times, "memory_mib": max(0, _peak_mib() - self.before)}


class PlanWatch(worker.Session):
    """A built engine in TensorRT, by Polygraphy's runner: with the copies to the GPU and back."""

    def load(self, path: str, names: Sequence[str], arrays: str, threads: int) -> dict[str, Any]:
        """Load the engine. Without `names` its inputs are drawn at the sizes its first profile is made for."""
        from polygraphy.backend.trt import TrtRunner, engine_from_bytes

        self._load_plugins()
        started = time.perf_counter()
        self.engine = engine_from_bytes(Path(path).read_bytes())
        self.runner = TrtRunner(self.engine)
        self.runner.activate()
        seconds = time.perf_counter() - started
        wanted = self._inputs()
        given = _read(names, arrays) if names else feeds.seeded(wanted, feeds.Draw({}), 0)
        self.inputs = _fitting(given, wanted)
        return {"seconds": seconds, "by": f"{self.flavour} {self.trt.__version__}"}

    def run(self, runs: int, seconds: float) -> dict[str, Any]:
        """As OrtWatch.run; the memory is what the engine asks for on the GPU while it runs, without its weights."""
        times = _timed(lambda: self.runner.infer(self.inputs, check_inputs=False), runs, seconds)
        return {"times": times, "memory_mib": worker.device_memory(self.engine) >> 20}

    def _inputs(self) -> list[feeds.Tensor]:
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = [n for n in names if self.engine.get_tensor_mode(n) == self.trt.TensorIOMode.INPUT]
        dtypes = {n: np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(n))) for n in inputs}
        return [feeds.Tensor(n, dtypes[n], self._shape(n), str(dtypes[n])) for n in inputs]

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self.engine.get_tensor_shape(name))
        return tuple(self.engine.get_tensor_profile_shape(name, 0)[1]) if -1 in shape else shape


def _fitting(given: feeds.Feeds, wanted: Sequence[feeds.Tensor]) -> feeds.Feeds:
    """The arrays for these inputs, in their own dtypes. Raises BackendError for one that isn't there."""
    if missing := [t.name for t in wanted if t.name not in given]:
        raise BackendError(f"it wants an input that the first model does not have: {', '.join(missing)}")
    return {t.name: feeds.cast(given[t.name], t.dtype) for t in wanted}


def _read(names: Sequence[str], arrays: str) -> feeds.Feeds:
    with np.load(arrays, allow_pickle=False) as archive:
        return {name: archive[f"arr_{i}"] for i, name in enumerate(names)}


def _timed(once: Callable[[], object], runs: int, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (len(times) < runs and time.perf_counter() < end):
        started = time.perf_counter()
        once()
        times.append(1e3 * (time.perf_counter() - started))
    return times


def _settled_mib() -> int:
    """Resident memory now, in MiB; from here on the peak counts anew. 0 where /proc doesn't tell."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return trt.resident_mib(os.getpid())


def _peak_mib() -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10
    return 0


def make(engine: str, folder: Path, send: Send) -> Any:
    return OrtWatch(engine, folder, send) if engine in ENGINES else PlanWatch(engine, folder, send)


if __name__ == "__main__":
    worker.main(make)
