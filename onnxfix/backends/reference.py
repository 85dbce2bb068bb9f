"""ONNX's reference evaluator, for models with operators ONNX Runtime lacks. Slow Python: small models only.

It runs in a child process, `python -m onnxfix.backends.reference MODEL INPUTS OUTPUTS`, since it can only be
stopped from outside. Arrays travel in .npz files under their positions, as names may hold anything.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfix.backends import BackendError, child_environment, version
from onnxfix.backends.feeds import Feeds, Tensor
from onnxfix.graph import Graph
from onnxfix.model import load

NODES = 400
SECONDS = 60.0


class Runner:
    """A model in the reference evaluator. Raises BackendError for models too large for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        model = load(path)
        graph = Graph.of(model)
        nodes = [node for scope in graph.scopes() for node in scope.nodes()]
        if len(nodes) > NODES:
            raise BackendError(f"{len(nodes)} nodes are too many for the reference evaluator (up to {NODES})")
        for node in nodes:
            if node.domain and not node.domain.startswith("ai.onnx") and (node.domain, node.op) not in graph.functions:
                raise BackendError(f"the reference evaluator has no {node.domain}::{node.op} either")
        self.inputs = [_tensor(v) for v in model.proto.graph.input if graph.is_input(v.name)]
        self.outputs = [_tensor(v) for v in model.proto.graph.output]

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def __str__(self) -> str:
        return f"onnx {version('onnx')}'s reference evaluator"

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Outputs by name. Raises BackendError with the evaluator's reason, or after SECONDS."""
        with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
            given, made = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
            np.savez(given, *[feeds[t.name] for t in self.inputs])
            files = map(str, (self.path.absolute(), given, made))
            command = [sys.executable, "-m", "onnxfix.backends.reference", *files]
            try:
                done = subprocess.run(
                    command, capture_output=True, timeout=SECONDS, env=child_environment(), check=False
                )
            except subprocess.TimeoutExpired:
                raise BackendError(f"the reference evaluator took over {SECONDS:g} s") from None
            if done.returncode:
                last = done.stderr.decode("utf-8", "replace").strip().splitlines()
                raise BackendError(last[-1][:300] if last else f"exit status {done.returncode}")
            with np.load(made) as arrays:
                return {t.name: arrays[f"arr_{i}"] for i, t in enumerate(self.outputs)}


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


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
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


def main(path: str, given: str, made: str) -> None:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(path)
    constants = {t.name for t in onnx.load(path, load_external_data=False).graph.initializer}
    names = [n for n in evaluator.input_names if n not in constants]
    with np.load(given) as arrays:
        feeds = {name: arrays[f"arr_{i}"] for i, name in enumerate(names)}
    np.savez(made, *[np.asarray(v) for v in evaluator.run(None, feeds)])


if __name__ == "__main__":
    main(*sys.argv[1:4])
