"""The node tests of the ONNX standard as an exporter would write them: what is a parameter becomes an initializer.

A node test hands every input of its operator to the graph from outside, the axes of a ReduceSum as well as its data.
No exporter does: shapes, axes, sizes, weights and zero points lie in the file. PARAMETERS says which inputs of which
operator those are; the graph inputs that feed one become initializers with the test's own value, the data stays
outside. What an `_expanded` test (the operator's function body, written out) makes constant is what the test of the
operator itself does.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

# Operator -> names in the standard's schema. Left outside on purpose: masks, indices, sequence lengths, initial states,
# positions, labels and all second operands of arithmetic, which in real models are computed.
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "AffineGrid": ("size",),
    "BatchNormalization": ("scale", "B", "input_mean", "input_var"),
    "BlackmanWindow": ("size",),
    "CausalConvWithState": ("weight", "bias"),
    "CenterCropPad": ("shape",),
    "Clip": ("min", "max"),
    "Col2Im": ("image_shape", "block_shape"),
    "ConstantOfShape": ("input",),
    "Conv": ("W", "B"),
    "ConvInteger": ("w", "x_zero_point", "w_zero_point"),
    "ConvTranspose": ("W", "B"),
    "CumProd": ("axis",),
    "CumSum": ("axis",),
    "DFT": ("dft_length", "axis"),
    "DeformConv": ("W", "B"),
    "DequantizeLinear": ("x_scale", "x_zero_point"),
    "Dropout": ("ratio", "training_mode"),
    "Expand": ("shape",),
    "GRU": ("W", "R", "B"),
    "Gemm": ("B", "C"),
    "GroupNormalization": ("scale", "bias"),
    "HammingWindow": ("size",),
    "HannWindow": ("size",),
    "InstanceNormalization": ("scale", "B"),
    "LSTM": ("W", "R", "B", "P"),
    "LayerNormalization": ("Scale", "B"),
    "Loop": ("M", "cond"),
    "MatMulInteger": ("B", "a_zero_point", "b_zero_point"),
    "MaxUnpool": ("output_shape",),
    "MelWeightMatrix": ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz"),
    "NegativeLogLikelihoodLoss": ("weight",),
    "NonMaxSuppression": ("max_output_boxes_per_class", "iou_threshold", "score_threshold"),
    "OneHot": ("depth", "values"),
    "PRelu": ("slope",),
    "Pad": ("pads", "constant_value", "axes"),
    "QLinearConv": (
        "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "B",
    ),
    "QLinearMatMul": (
        "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point",
    ),
    "QuantizeLinear": ("y_scale", "y_zero_point"),
    "RMSNormalization": ("scale",),
    "RNN": ("W", "R", "B"),
    "Range": ("start", "limit", "delta"),
    **{f"Reduce{kind}": ("axes",) for kind in (
        "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare",
    )},
    "Reshape": ("shape",),
    "Resize": ("roi", "scales", "sizes"),
    "RotaryEmbedding": ("cos_cache", "sin_cache"),
    "STFT": ("frame_step", "window", "frame_length"),
    "Slice": ("starts", "ends", "axes", "steps"),
    "SoftmaxCrossEntropyLoss": ("weights",),
    "Split": ("split",),
    "SplitToSequence": ("split",),
    "Squeeze": ("axes",),
    "Tile": ("repeats",),
    "TopK": ("K",),
    "Trilu": ("k",),
    "Unsqueeze": ("axes",),
    "Upsample": ("scales",),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One node test. `feeds` and `whole_feeds` are by input name, `expected` by output position."""

    name: str
    model: onnx.ModelProto  # with its parameters as initializers
    feeds: Mapping[str, Any]
    whole: onnx.ModelProto  # as the standard has it
    whole_feeds: Mapping[str, Any]
    expected: Sequence[Any]
    rtol: float
    atol: float
    tensors: bool  # whether all inputs and outputs are tensors: no sequences, optionals or maps


def cases(pattern: str = "*") -> list[Case]:
    """The installed ONNX's node tests whose names match, with `test_` or without, in the standard's order."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests divide by zero on purpose
        found = collect_testcases(None)
    by_name = {t.name: t for t in found}
    return [
        _case(t, by_name.get(t.name.split("_expanded")[0], t))
        for t in found
        if fnmatch.fnmatchcase(t.name, pattern) or fnmatch.fnmatchcase(t.name, f"test_{pattern}")
    ]


def _case(test: Any, plain: Any) -> Case:
    inputs, outputs = test.data_sets[0]
    names = [i.name for i in test.model.graph.input]
    whole_feeds = {n: _value(v) for n, v in zip(names, inputs, strict=True)}
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    graph = model.graph
    constant = parameters(plain.model)
    kept = []
    for info, given in zip(graph.input, inputs, strict=True):
        if info.name in constant and info.type.HasField("tensor_type"):
            tensor = given if isinstance(given, TensorProto) else numpy_helper.from_array(np.asarray(given))
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = info.name
        else:
            kept.append(info)
    outside = {i.name for i in kept}
    del graph.input[:]
    graph.input.extend(kept)
    return Case(
        name=test.name,
        model=model,
        feeds={n: v for n, v in whole_feeds.items() if n in outside},
        whole=test.model,
        whole_feeds=whole_feeds,
        expected=[_value(v) for v in outputs],
        rtol=test.rtol,
        atol=test.atol,
        tensors=all(v.type.HasField("tensor_type") for v in (*test.model.graph.input, *test.model.graph.output)),
    )


def parameters(model: onnx.ModelProto) -> set[str]:
    """Names of the values that reach a parameter of a node of the main graph."""
    versions = {o.domain: o.version for o in model.opset_import}
    found: set[str] = set()
    for node in model.graph.node:
        wanted = PARAMETERS.get(node.op_type)
        if wanted and node.domain == "":
            formal = onnx.defs.get_schema(node.op_type, versions[""], "").inputs
            found.update(n for n, f in zip(node.input, formal, strict=False) if n and f.name in wanted)
    return found


def _value(given: Any) -> Any:
    """A test's datum as numpy: tensors as arrays, sequences as lists, an absent optional as None."""
    if isinstance(given, TensorProto):
        return numpy_helper.to_array(given)
    if isinstance(given, list):
        return [_value(v) for v in given]
    return None if given is None else np.asarray(given)
