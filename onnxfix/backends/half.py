"""A model in FP16, by the converter that comes with ONNX Runtime.

`onnxruntime.transformers.float16` is the one that is looked after: onnxconverter-common, which it grew out of, is
no longer released, and onnxruntime is needed for the proof anyway. Importing it needs neither torch nor transformers.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from onnxfix import shapes
from onnxfix.backends import HOW_TO_GET, BackendError, absent
from onnxfix.errors import UnavailableError
from onnxfix.graph import Graph, schema
from onnxfix.model import PROTOBUF_LIMIT, Model, load, nbytes, one_line

LARGEST = 65504.0  # of FP16
SMALLEST = 2.0**-24  # that is not zero


def convert(path: Path, to: Path) -> int:
    """Write the model at `path` with FP16 inside; inputs and outputs keep their types. Returns the FP16 weights.

    Operators the converter or ONNX knows to have no FP16 form stay in FP32, between casts. Every FP16 value passes two
    Identities: on the CPU ONNX Runtime computes much of FP16 in FP32, and would leave out the rounding between two such
    operators (a single FP16 node among them it takes into FP32 too). So each operator rounds its result to FP16 once,
    as a GPU that sums in FP32 does. Raises BackendError when it fails,
    UnavailableError without ONNX Runtime.
    """
    if why := absent("onnxruntime"):
        raise UnavailableError(f"{why}: {HOW_TO_GET['onnxruntime']}")
    from onnxruntime.transformers import float16

    if sum(map(nbytes, load(path).tensors())) > PROTOBUF_LIMIT // 2:
        raise BackendError("over 1 GiB of weights can't be converted to FP16 in one piece")
    logging.getLogger(float16.__name__).setLevel(logging.ERROR)
    try:
        model = onnx.load(path)
        blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *_without_half(model)]
        converted = float16.convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked)
        _round_everywhere(converted)
        to.write_bytes(converted.SerializeToString())
    except Exception as error:  # it asserts and raises what it likes
        raise BackendError(f"ONNX Runtime's converter can't make FP16 of the model: {one_line(error)}") from None
    return sum(t.data_type == TensorProto.FLOAT16 for t in Model(converted).tensors())


def _without_half(model: onnx.ModelProto) -> set[str]:
    """Operators of the model that take FP32 and not FP16 in its opset, e.g. DynamicQuantizeLinear, or may not."""
    found = set()
    for scope in Graph.of(Model(model)).scopes():
        for node in scope.nodes():
            known = schema(node.op, node.domain, node.opset)
            if node.domain not in ("", "ai.onnx.ml") or known is None:
                found.add(node.op)  # nobody says what it takes
                continue
            types = [set(t.allowed_type_strs) for t in known.type_constraints]
            types += [{p.type_str} for p in (*known.inputs, *known.outputs)]  # of one type, or a constraint's name
            if any("tensor(float)" in t and "tensor(float16)" not in t for t in types):
                found.add(node.op)
    return found


def _round_everywhere(model: onnx.ModelProto) -> None:
    for scope in reversed(list(shapes.index(Model(model)).walk())):  # bodies before what holds them
        nodes = []
        for node in scope.nodes():
            nodes.append(node.proto)
            for i, name in enumerate(node.outputs):
                if name and node.op != "Constant" and scope.dtype(name) == TensorProto.FLOAT16:
                    node.proto.output[i] = f"{name}/exact"
                    nodes.append(onnx.helper.make_node("Identity", [f"{name}/exact"], [f"{name}/rounded"]))
                    nodes.append(onnx.helper.make_node("Identity", [f"{name}/rounded"], [name]))
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del scope.proto.node[:]
        scope.proto.node.extend(copies)


def unfit_weights(model: Model) -> dict[str, tuple[float, float, str]]:
    """FP32 weights that FP16 can't hold: name -> (smallest and largest magnitude but zero, what becomes of them)."""
    found = {}
    for tensor in model.proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        sizes = np.abs(model.array(tensor))
        sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
        if not sizes.size:
            continue
        low, high = float(sizes.min()), float(sizes.max())
        lost = int((sizes < SMALLEST / 2).sum())
        if high > LARGEST:
            found[tensor.name] = (low, high, f"values over {LARGEST:g} are cut to it")
        elif lost * 100 > sizes.size:
            found[tensor.name] = (low, high, f"{lost} of {sizes.size} values are below the smallest FP16 number")
    return found

