"""INT8 written in the graph: QuantizeLinear and DequantizeLinear by ONNX Runtime's quantisation, for TensorRT.

Symmetric, one scale for an activation, one for each output channel of a weight; what the weighted operators read is
quantised and not what they give, so that TensorRT may fuse what follows; biases stay FP32. Weights are stored in FP32
with a pair in front, which every TensorRT since 8.0 takes (already quantised ones only since 10), and which leaves
the rounding to the builder.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from onnxfix import shapes
from onnxfix.backends import BackendError, half, need
from onnxfix.graph import Graph, Node
from onnxfix.model import PROTOBUF_LIMIT, Model, load, nbytes, one_line

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SUFFIXES = ("_scale", "_zero_point", "_QuantizeLinear_Output", "_DequantizeLinear_Output")  # of ONNX Runtime's names
OPSET = 13  # the first with a scale for each channel


def quantised(model: Model) -> bool:
    """Whether the model has Q/DQ pairs, or one of the two, already."""
    nodes = (node for scope in Graph.of(model).scopes() for node in scope.nodes())
    return any(node.op in ("QuantizeLinear", "DequantizeLinear") for node in nodes)


def activations(model: Model, keep: Collection[str] = ()) -> list[str]:
    """The FP32 values that need a range: what the weighted operators of the main graph read and compute themselves.

    Nodes whose outputs `keep` names are left alone.
    """
    graph = shapes.index(model)
    read = (name for node in _weighted(graph, keep) for name in node.inputs[:2])
    return [n for n in dict.fromkeys(read) if n and not graph.is_const(n) and graph.dtype(n) == TensorProto.FLOAT]


def _weighted(graph: Graph, keep: Collection[str]) -> list[Node]:
    """Those whose first operand is an activation: of a weight in front, the channels would be summed over."""
    wanted = set(keep)
    nodes = (n for n in graph.nodes() if n.op in WEIGHTED and not n.domain and wanted.isdisjoint(n.outputs))
    return [n for n in nodes if not graph.is_const(n.input(0))]


def convert(path: Path, to: Path, ranges: Mapping[str, float], *, keep: Collection[str] = ()) -> int:
    """Write the model at `path` with Q/DQ pairs; `ranges` holds the magnitude that 127 stands for, by value.

    Operators that read a value without a range stay FP32. Returns the number of operators in INT8.
    Raises BackendError when it fails, UnavailableError without ONNX Runtime.
    """
    need("onnxruntime")
    if sum(map(nbytes, load(path).tensors())) > PROTOBUF_LIMIT // 2:
        raise BackendError("over 1 GiB of weights can't be quantised in one piece")
    try:
        model = half.plain(onnx.load(path), OPSET)
        known = {t.name for t in model.graph.initializer} | {name for name, peak in ranges.items() if peak > 0}
        names = [n.name for n in _weighted(shapes.index(Model(model)), keep) if known.issuperset(n.inputs[:2])]
        if names:
            renamed = _make_room(model)
            model = _quantised(model, names, {renamed.get(name, name): peak for name, peak in ranges.items()})
        to.write_bytes(model.SerializeToString(deterministic=True))
    except BackendError:
        raise
    except Exception as error:  # it raises what it likes
        raise BackendError(f"ONNX Runtime can't quantise the model: {one_line(error)}") from None
    return len(names)


def _make_room(model: onnx.ModelProto) -> dict[str, str]:
    """Rename inner values and constants that are called as the quantiser calls its own; old name -> new."""
    graph = model.graph
    made = [o for node in graph.node for o in node.output] + [t.name for t in graph.initializer]
    kept = {v.name for v in graph.output}
    names = {name: f"{name}/own" for name in made if name.endswith(SUFFIXES) and name not in kept}
    half.rename_read(graph, names)
    for node in graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    return names


def _quantised(model: onnx.ModelProto, names: list[str], ranges: Mapping[str, float]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": True,
        "DedicatedQDQPair": True,
        "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
        "QDQOpTypePerChannelSupportToAxis": {"MatMul": -1},
    }
    bounds = {
        name: TensorData(lowest=np.float32(-peak), highest=np.float32(peak)) for name, peak in ranges.items() if peak
    }
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=bounds,
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=list(WEIGHTED),
        extra_options=options,
    )
    quantizer.quantize_bias_tensor = lambda *_, **__: None  # nor copied for each reader, under names that may be taken
    logging.disable(logging.WARNING)
    try:
        quantizer.quantize_model()
    finally:
        logging.disable(logging.NOTSET)
    quantizer.model.topological_sort()
    model = quantizer.model.model
    return model
