"""From a model to an engine: build it, then read it back."""

from __future__ import annotations

from pathlib import Path

from onnxfix import prove
from onnxfix.backends.trt import BuildOptions
from onnxfix.prove import Progress
from onnxfix.report import Check, Status

__all__ = ["BuildOptions", "build"]


def build(
    path: Path, plan: Path, options: BuildOptions | None = None, progress: Progress | None = None
) -> tuple[Check, ...]:
    """The checks `build` and, once a plan is there, `readback`.

    Raises RequestError for settings that the TensorRT at hand can't take.
    """
    built = prove.build(path, plan, options or BuildOptions(), progress)
    if built.status is not Status.PASSED:
        return (built,)
    return built, prove.readback(plan)
