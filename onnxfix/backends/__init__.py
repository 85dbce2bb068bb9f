"""One seam, three backends: ONNX Runtime, TensorRT and TensorRT-RTX. Each says whether it is here, or why not.

    ort.py        ONNX Runtime in this process: constant folding, and both sides of the parity
    reference.py  ONNX's reference evaluator, in a child process: for what ONNX Runtime lacks
    feeds.py      inputs for the parity: seeded, or from the user's file
    compare.py    two sets of outputs, judged by Polygraphy
    trt.py        TensorRT and TensorRT-RTX, driven through Polygraphy in a long-lived child process
    worker.py     that child
    workers.py    long-lived children of our own, for trials and the reference evaluator

Importing this package imports none of the heavy ones.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxfix.errors import OnnxfixError, RequestError, UnavailableError

# Libraries of plugins, as PATH separates its folders, that TensorRT loads before it parses.
PLUGINS_VARIABLE = "ONNXFIX_TRT_PLUGINS"
_PLUGINS_GIVEN = os.environ.get(PLUGINS_VARIABLE, "")


class BackendError(OnnxfixError):
    """A backend could not do what was asked; `str(error)` is its own reason, on one line."""

    exit_status = 1


@dataclass(frozen=True)
class BackendInfo:
    """What `onnxfix doctor` shows of one backend."""

    name: str  # as imported: onnxruntime, tensorrt, tensorrt_rtx
    available: bool
    version: str = ""
    why_not: str = ""
    how_to_get: str = ""
    notes: tuple[str, ...] = field(default=())


HOW_TO_GET = {
    "onnxruntime": "pip install 'onnxfix[prove]'",
    "polygraphy": "pip install 'onnxfix[prove]'",
    "onnx_graphsurgeon": "pip install 'onnxfix[prove]'",
    "PIL": "pip install 'onnxfix[images]'",
    "tensorrt": "on a Jetson it comes with JetPack (apt install python3-libnvinfer; a virtual environment "
    "needs --system-site-packages); elsewhere: pip install 'onnxfix[tensorrt]'",
    "tensorrt_rtx": "pip install 'onnxfix[rtx]' (Linux or Windows on x86-64; needs no GPU)",
}

DISTRIBUTIONS = {
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11"),
}


def absent(module: str) -> str:
    """Why `module` can't be imported, "" when it can as far as a look at the disk tells. Imports nothing."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    # A folder of that name on the path is found too, as a namespace package without origin.
    if spec is None or spec.origin is None:
        return f"the Python package {module} is not installed"
    if module == "tensorrt" and not _has_binary(Path(spec.origin).parent):
        return "the tensorrt installed here is a mere placeholder, without NVIDIA's libraries"
    return ""


def need(*modules: str) -> None:
    """Raises UnavailableError for the first of them that is not installed, with how to get it."""
    for module in modules:
        if why := absent(module):
            raise UnavailableError(f"{why}: {HOW_TO_GET[module]}")


def _has_binary(package: Path) -> bool:
    """Whether a TensorRT package carries, or stands beside, its compiled bindings."""
    if importlib.util.find_spec("tensorrt_bindings") is not None:
        return True
    return any(p.suffix in (".so", ".pyd") for p in package.iterdir())


def version(module: str) -> str:
    """Version from the package's metadata, "" when there is none."""
    for name in DISTRIBUTIONS.get(module, (module,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def child_environment() -> dict[str, str]:
    """For a child running one of our modules: this very package, and none of the current folder in front of it."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}


def use_plugins(libraries: Sequence[str | os.PathLike[str]]) -> None:
    """Have TensorRT load these libraries of plugins from its next call on, and those of ONNXFIX_TRT_PLUGINS when none.

    Raises RequestError for a file that isn't there. Whether it loads is known at the call.
    """
    for library in libraries:
        if not Path(library).is_file():
            raise RequestError(f"{library}: no such library of plugins")
    wanted = os.pathsep.join(str(Path(library).absolute()) for library in libraries) or _PLUGINS_GIVEN
    if wanted != os.environ.get(PLUGINS_VARIABLE, ""):
        from onnxfix.backends import trt

        os.environ[PLUGINS_VARIABLE] = wanted
        trt.close()  # a running child has loaded what it was started with


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Polygraphy says nothing inside: what it finds is told in our own reports."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield


def survey() -> list[BackendInfo]:
    """All backends, the missing ones with the reason. An installed TensorRT is asked itself, in a child process."""
    return [_survey_ort(), _survey_tensorrt("tensorrt"), _survey_tensorrt("tensorrt_rtx")]


def _survey_ort() -> BackendInfo:
    missing = [(m, why) for m in ("onnxruntime", "polygraphy") if (why := absent(m))]
    if missing:
        module, why = missing[0]
        return BackendInfo("onnxruntime", False, version("onnxruntime"), why, HOW_TO_GET[module])
    notes = (f"through polygraphy {version('polygraphy')}",)
    return BackendInfo("onnxruntime", True, version("onnxruntime"), notes=notes)


def _survey_tensorrt(flavour: str) -> BackendInfo:
    from onnxfix.backends import trt

    for module in (flavour, "polygraphy"):
        if why := absent(module):
            return BackendInfo(flavour, False, version(flavour), why, HOW_TO_GET[module])
    try:
        with trt.TensorRT(flavour) as tensorrt:
            about = tensorrt.about()
    except OnnxfixError as error:
        return BackendInfo(flavour, False, version(flavour), str(error), HOW_TO_GET[flavour])
    notes = [f"through polygraphy {about.polygraphy}"]
    if about.capabilities:
        notes.append(f"builds for compute capability {', '.join(about.capabilities)}")
    if about.no_driver:
        # Only TensorRT-RTX builds for a GPU that is not here.
        left = "built but not run" if about.capabilities else "neither built nor run"
        notes.append(f"{about.no_driver}: models can be parsed, engines {left}")
    return BackendInfo(flavour, True, about.version, notes=tuple(notes))
