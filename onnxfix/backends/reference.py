"""ONNX's reference evaluator, for models with operators ONNX Runtime lacks. Slow Python: small models only.

It runs in a long-lived child process, `python -m onnxfix.backends.reference`, since it can only be stopped from
outside. Arrays travel in .npz files under their positions, as names may hold anything.
"""

from __future__ import annotations

import atexit
import functools
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfix.backends import BackendError, version, worker, workers
from onnxfix.backends.feeds import Feeds, Tensor
from onnxfix.graph import Graph
from onnxfix.model import load

NODES = 400
SECONDS = 60.0
KEPT = 4  # models in the child's memory


class Runner:
    """A model in the reference evaluator. Raises BackendError for models too large for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = uuid.uuid4().hex  # the file may change; what this runner runs does not
        model = load(path)
        graph = Graph.of(model)
        nodes = [node for scope in graph.scopes() for node in scope.nodes()]
        if len(nodes) > NODES:
            raise BackendError(f"{len(nodes)} nodes are too many for the reference evaluator (up to {NODES})")
        for node in nodes:
            if node.domain and not node.domain.startswith("ai.onnx") and (node.domain, node.op) not in graph.functions:
                raise BackendError(f"the reference evaluator has no {node.domain}::{node.op} either")
        self.inputs = [tensor(v) for v in model.proto.graph.input if graph.is_input(v.name)]
        self.outputs = [tensor(v) for v in model.proto.graph.output]

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def rest(self) -> None:
        """As `ort.Runner`'s: there is nothing to give back here, the child sees to it."""

    def __str__(self) -> str:
        return f"onnx {version('onnx')}'s reference evaluator"

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Outputs by name. Raises BackendError with the evaluator's reason, or after SECONDS."""
        with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
            given, made = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
            dtypes = _write(given, [feeds[t.name] for t in self.inputs])
            names = {"path": str(self.path.absolute()), "given": str(given), "made": str(made)}
            answer = _worker().ask("run", SECONDS, key=self._key, dtypes=dtypes, **names)
            arrays = _read(made, answer["dtypes"])
            return {t.name: array for t, array in zip(self.outputs, arrays, strict=True)}


class Session:
    """A small model in memory, without external data. As `onnxfix.backends.ort.Session`."""

    def __init__(self, model: bytes) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="onnxfix-")
        path = Path(self._folder.name, "model.onnx")
        path.write_bytes(model)
        self._runner = Runner(path)
        self.inputs = self._runner.inputs

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """The named outputs. Raises BackendError with the evaluator's reason."""
        made = self._runner.run(dict(feeds)) if outputs else {}
        return {name: made[name] for name in outputs}


def tensor(value: onnx.ValueInfoProto) -> Tensor:
    """A graph's input or output as the backends see it."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return Tensor(value.name, None, (), str(value.type.WhichOneof("value")))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or f"{value.name}[{i}]"
        for i, d in enumerate(kind.shape.dim)
    )
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    return Tensor(value.name, dtype, shape, f"tensor({name})")


# ---- the child ----


def _write(path: str | Path, arrays: Sequence[np.ndarray]) -> list[str]:
    """Write arrays, and say their dtypes: NumPy's files know none but its own, and not e.g. bfloat16."""
    own = [a.dtype.isbuiltin == 1 for a in arrays]
    np.savez(path, *[a if k else a.view(f"V{a.dtype.itemsize}") for a, k in zip(arrays, own, strict=True)])
    return [a.dtype.str if k else a.dtype.name for a, k in zip(arrays, own, strict=True)]


def _read(path: str | Path, dtypes: Sequence[str]) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[f"arr_{i}"].view(np.dtype(d)) for i, d in enumerate(dtypes)]


@functools.cache
def _worker() -> workers.Worker:
    """The one child of this process, which ends with it."""
    shared = workers.Worker("onnxfix.backends.reference", "the reference evaluator")
    atexit.register(shared.close)
    return shared


class Evaluators:
    """What the child can do: run models, of which it keeps the last few."""

    def __init__(self, _flavour: str, _folder: Path, _send: object) -> None:
        self.messages: list[tuple[str, str]] = []
        self.held: dict[str, Any] = {}

    def ready(self) -> dict[str, Any]:
        """Import what `run` needs."""
        import onnx.reference

        return {"module": onnx.reference.__name__}

    def run(self, key: str, path: str, given: str, made: str, dtypes: list[str]) -> dict[str, Any]:
        """Run the model at `path`, kept under `key`, with the arrays of the file `given`; its outputs go to `made`."""
        evaluator, names = self.held.pop(key, None) or self._load(path)
        self.held[key] = evaluator, names  # the latest stands last
        for old in list(self.held)[:-KEPT]:
            del self.held[old]
        feeds = dict(zip(names, _read(given, dtypes), strict=True))
        return {"dtypes": _write(made, [np.asarray(v) for v in evaluator.run(None, feeds)])}

    def _load(self, path: str) -> tuple[Any, list[str]]:
        from onnx.reference import ReferenceEvaluator

        evaluator: Any = ReferenceEvaluator(path)
        constants = {t.name for t in onnx.load(path, load_external_data=False).graph.initializer}
        return evaluator, [n for n in evaluator.input_names if n not in constants]


if __name__ == "__main__":
    worker.main(Evaluators)
