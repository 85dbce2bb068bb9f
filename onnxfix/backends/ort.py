"""ONNX Runtime on the CPU: evaluates small graphs for constant folding, and runs both sides of the parity."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.backends import BackendError, absent, need, quiet, version
from onnxfix.backends.feeds import Feeds, Tensor
from onnxfix.model import one_line

DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "object",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
# How ONNX Runtime says that it is at its own limits, and not the model at fault.
LACKING = (
    "NOT_IMPLEMENTED",
    "is not a registered function/op",
    "No Op registered",
    "Unsupported model IR version",
    "under development and support for this is limited",
    "Batchwise recurrent operations (layout == 1) are not supported",
    "No corresponding Numpy type",  # for what it computed
)


class UnsupportedError(BackendError):
    """The evaluator has no implementation of something in the model: no fault of the model."""


def evaluate(model: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a small model, by name. One thread, no graph optimisations, nothing logged.

    Raises BackendError when ONNX Runtime can't load or run it, UnavailableError when it is not installed.
    """
    session = _session(model)
    try:
        values = session.run(None, dict(feeds))
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise _failure(error) from None
    return {o.name: v for o, v in zip(session.get_outputs(), values, strict=True)}


@functools.cache
def channel_block() -> int:
    """How many channels ONNX Runtime puts into a block on this CPU, in the layout of its own convolutions.

    Found by having it optimise one convolution of 8 channels. Raises UnavailableError when it can't be asked.
    """
    need("onnxruntime")
    import onnx
    import onnxruntime
    from onnx import parser

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[1, 3, 4, 4] x) => (float[1, 8, 4, 4] y)'
        " <float[8, 3, 1, 1] w = {" + ", ".join(["1"] * 24) + "}> { y = Conv(x, w) }"
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "model.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath)
    return next((t.dims[0] for t in optimised.graph.initializer if len(t.dims) == 4), 8)


class Runner:
    """A model at `path` in ONNX Runtime, as Polygraphy's OnnxrtRunner. A context manager.

    Raises UnavailableError without ONNX Runtime or Polygraphy, UnsupportedError when ONNX Runtime lacks an operator
    of the model, BackendError when it can't load it.
    """

    def __init__(self, path: Path) -> None:
        need("onnxruntime", "polygraphy")
        self._path = str(path)
        self._runner: Any = None
        session = self._open()
        self.inputs = [_tensor(i) for i in session.get_inputs()]
        self.outputs = [_tensor(o) for o in session.get_outputs()]

    def _open(self) -> Any:
        from polygraphy.backend.onnxrt import OnnxrtRunner

        session = _session(self._path)  # not Polygraphy's SessionFromOnnx, which leaves ONNX Runtime's log on
        self._runner = OnnxrtRunner(session)
        return session

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_error: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Give the memory back. The next run loads the model again."""
        if self._runner is not None and self._runner.is_active:
            self._runner.deactivate()
        self._runner = None

    def __str__(self) -> str:
        return f"onnxruntime {version('onnxruntime')} through polygraphy {version('polygraphy')}"

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Outputs by name. Raises BackendError with ONNX Runtime's reason."""
        if self._runner is None:
            self._open()
        try:
            with quiet():
                if not self._runner.is_active:
                    self._runner.activate()
                return dict(self._runner.infer(feeds, check_inputs=False))
        except Exception as error:
            raise _failure(error) from None


class Session:
    """A model in memory, its external data in `folder`. Raises as `Runner` does.

    `exact` computes as the parity does, so that equal nodes give equal bits; otherwise ONNX Runtime runs the model as
    fast as it can, on all processors.
    """

    def __init__(self, model: bytes, folder: Path, *, exact: bool) -> None:
        self._session = _session(model, folder, exact)
        self.inputs = [_tensor(i) for i in self._session.get_inputs()]

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """The named outputs. Raises BackendError with ONNX Runtime's reason."""
        if not outputs:
            return {}
        try:
            return dict(zip(outputs, self._session.run(list(outputs), dict(feeds)), strict=True))
        except Exception as error:
            raise _failure(error) from None


class Deployed:
    """A model at `path` as it is deployed: optimised, on the first of `providers`, on `threads` (0: all processors).

    Raises as `Runner` does, and BackendError where ONNX Runtime would fall back to another provider.
    """

    def __init__(self, path: Path, providers: Sequence[str], threads: int = 0) -> None:
        need("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:
            raise _failure(error) from None
        if (used := self._session.get_providers()[0]) != providers[0]:
            raise BackendError(f"ONNX Runtime falls back to {used}")
        self.inputs = [_tensor(i) for i in self._session.get_inputs()]

    def run(self, feeds: Feeds) -> None:
        """One run, its outputs thrown away. Raises BackendError with ONNX Runtime's reason."""
        try:
            self._session.run(None, feeds)
        except Exception as error:
            raise _failure(error) from None


def providers() -> tuple[str, ...]:
    """The execution providers of the ONNX Runtime installed here; none without it."""
    if absent("onnxruntime"):
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _session(model: bytes | str, folder: Path | None = None, exact: bool = True) -> Any:
    """A session that computes what the model says and nothing else, so that models are compared and not what ONNX
    Runtime makes of each: no graph optimisation; no packing of weights in advance, which sums in another order when a
    weight is an initializer than when it is computed; one thread, since operators that quantise dynamically do so for
    each thread's share and give other numbers with more.
    """
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.disable_prepacking", "1")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _failure(error) from None


def _tensor(value: Any) -> Tensor:
    kind: str = value.type
    dtype = DTYPES.get(kind[len("tensor(") : -1]) if kind.startswith("tensor(") else None
    shape = tuple(d if isinstance(d, (int, str)) else f"{value.name}[{i}]" for i, d in enumerate(value.shape))
    return Tensor(value.name, np.dtype(dtype) if dtype else None, shape, kind)


def _failure(error: Exception) -> BackendError:
    text = " ".join(str(error).split())
    # "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : reason" -> "reason"
    reason = text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
    # Of nested nodes, the innermost is the one that failed.
    reason = re.sub(r".*while running (\w+) node\. Name:'([^']*)' Status Message: ", r"\1 '\2': ", reason)
    kind = UnsupportedError if any(mark in text for mark in LACKING) else BackendError
    return kind(one_line(reason or type(error).__name__))
