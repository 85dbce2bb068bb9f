"""Cut a few nodes out of a model, by ONNX GraphSurgeon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from onnxfix.backends import need


def extract(
    model: onnx.ModelProto,
    inputs: Mapping[str, onnx.TypeProto],
    outputs: Mapping[str, onnx.TypeProto],
    names: Mapping[str, str],
) -> onnx.ModelProto:
    """The part of `model` between these values, as a model of its own, with values renamed by `names`.

    Raises UnavailableError without ONNX GraphSurgeon. Cost: an import of the whole graph.
    """
    need("onnx_graphsurgeon")
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(model)
    tensors = graph.tensors()
    graph.inputs = [_typed(tensors[n], kind) for n, kind in inputs.items()]
    for tensor in graph.inputs:
        tensor.inputs.clear()
    graph.outputs = [_typed(tensors[n], kind) for n, kind in outputs.items()]
    graph.cleanup().toposort()
    for old, new in names.items():
        if old in tensors:
            tensors[old].name = new
    for node in graph.nodes:
        node.name = ""
    graph.name = "g"
    cut: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    cut.ir_version = min(model.ir_version, 10)
    cut.ClearField("producer_name")
    cut.ClearField("producer_version")
    return cut


def _typed(tensor: object, kind: onnx.TypeProto) -> object:
    shape = [d.dim_value if d.HasField("dim_value") else (d.dim_param or "N") for d in kind.tensor_type.shape.dim]
    tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)  # type: ignore[attr-defined]
    tensor.shape = shape  # type: ignore[attr-defined]
    return tensor


def values_between(names: Sequence[str]) -> dict[str, str]:
    """Short names for values: a, b, … in the order given, which ONNX's textual syntax can hold."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {n: letters[i] if i < 26 else f"v{i}" for i, n in enumerate(dict.fromkeys(names))}
