"""The node tests that come with onnx, as models: as they are, and with their parameters stored."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

AS_IS, STORED = "as-is", "stored"
# Larger ones only test the size of a protobuf.
_LARGEST = 20_000_000


def with_values() -> Iterator[tuple[str, ModelProto, Any]]:
    """(name, model, values of its inputs) of every node test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reference numbers are computed that overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases("")
    for case in cases:
        if case.model is not None and case.model.ByteSize() <= _LARGEST:
            yield case.name, case.model, case.data_sets[0][0] if case.data_sets else ()


def node_tests() -> Iterator[tuple[str, str, ModelProto]]:
    """(name, form, model) of every node test: form "as-is", and "stored" where inputs can be initializers.

    In the stored form all inputs but the first are initializers with the test's own values, as the parameters of a
    trained model are. Where the first is the only input there is no such form.
    """
    for name, model, values in with_values():
        yield name, AS_IS, model
        if len(model.graph.input) > 1 and len(values) > 1:
            yield name, STORED, store(model, values)


def store(model: ModelProto, values: Any) -> ModelProto:
    """A copy with all inputs but the first as initializers holding `values`, where those are tensors."""
    stored = ModelProto()
    stored.CopyFrom(model)
    graph = stored.graph
    kept = [graph.input[0]]
    for info, value in list(zip(graph.input, values, strict=False))[1:]:
        tensor = _tensor(value, info.name)
        if tensor is None or tensor.data_type != info.type.tensor_type.elem_type:
            kept.append(info)
        else:
            graph.initializer.append(tensor)
    kept = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in kept]
    del graph.input[:]
    graph.input.extend(kept)
    return stored


def _tensor(value: Any, name: str) -> TensorProto | None:
    if isinstance(value, TensorProto):
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.name = name
        return tensor
    if isinstance(value, (np.ndarray, np.generic)):
        return numpy_helper.from_array(np.asarray(value), name)
    return None  # a sequence, an optional or a map
