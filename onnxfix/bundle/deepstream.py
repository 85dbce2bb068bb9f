"""A configuration for DeepStream's nvinfer, from what the model says and from the preprocessing that was stated.

nvinfer computes net-scale-factor * (x - offsets[channel]) on pixels x of 0 to 255. Ours is (x / scale - mean) / std, so
net-scale-factor = 1 / (scale * std) and offsets = mean * scale: one std for all channels, since nvinfer has one factor.

Its own parsers of outputs are few (libs/nvdsinfer, output parsing): of classifiers the largest probability of each
output, of segmenters the best class of each pixel, of detectors the two outputs of DetectNet_v2 alone. What needs more
is said in comments, and left for the user to fill in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from onnxfix import shapes
from onnxfix.backends.images import Preprocessing
from onnxfix.bundle.samples import axes
from onnxfix.errors import RequestError
from onnxfix.graph import Graph
from onnxfix.matrix import Target
from onnxfix.model import Model

KINDS = ("detector", "classifier", "segmenter")
OTHER = 100  # network-type that leaves the outputs to the application
FILE = "nvinfer.txt"
LABELS = "labels.txt"
COLORS = {"rgb": 0, "bgr": 1, "gray": 2}
NMS = ("NonMaxSuppression", "EfficientNMS_TRT", "EfficientNMS_ONNX_TRT", "BatchedNMS_TRT", "BatchedNMSDynamic_TRT")


@dataclass(frozen=True)
class Nvinfer:
    """What the user says of the network. `parser` is "FUNCTION:LIBRARY" of a custom output parser."""

    kind: str
    labels: tuple[str, ...] = ()
    classes: int = 0
    parser: str = ""


@dataclass(frozen=True)
class _Output:
    name: str
    dtype: int
    shape: tuple[int | str | None, ...]  # without the batch
    softmax: bool


def config(
    wanted: Nvinfer, model: Model, settings: Mapping[str, Any], preprocessing: Preprocessing | None, target: Target
) -> tuple[dict[str, str], list[str]]:
    """The files of the configuration by name, and notes on what it can't express.

    `settings` are those of the bundle's build. Raises RequestError where the network can't be one of that kind.
    """
    if wanted.kind not in KINDS:
        raise RequestError(f"no kind of network '{wanted.kind}' for DeepStream; there are {', '.join(KINDS)}")
    how = preprocessing or Preprocessing()
    graph = shapes.index(model)
    outputs = _outputs(model, graph)
    notes: list[str] = []
    lines = [
        f"# DeepStream nvinfer: a {wanted.kind}, for {target.label}. Made by onnxfix; no DeepStream has tried it yet.",
        "[property]",
        "gpu-id=0",
        "gie-unique-id=1",
        "# 1: whole frames; 2: the objects of an earlier detector (then add operate-on-gie-id)",
        "process-mode=1",
        "interval=0",
        *_engine(settings),
        *_input(model, graph, settings, how, notes),
    ]
    kinds = {"detector": _detector, "classifier": _classifier, "segmenter": _segmenter}
    files = {}
    lines += kinds[wanted.kind](wanted, graph, outputs, notes)
    if wanted.labels:
        # A classifier's labels stand on one line for each output, a detector's on a line each.
        files[LABELS] = (";" if wanted.kind == "classifier" else "\n").join(wanted.labels) + "\n"
    files[FILE] = "\n".join(lines) + "\n"
    return files, notes


def _outputs(model: Model, graph: Graph) -> list[_Output]:
    found = []
    for value in model.proto.graph.output:
        producer = graph.producers.get(value.name)
        shape = graph.shape(value.name) or ()
        softmax = producer is not None and producer.op in ("Softmax", "Sigmoid")
        found.append(_Output(value.name, graph.dtype(value.name), tuple(shape[1:]), softmax))
    return found


def _engine(settings: Mapping[str, Any]) -> list[str]:
    mode = 1 if "INT8" in settings["flags"] else 2 if "FP16" in settings["flags"] else 0
    lines = [
        "onnx-file=model.onnx",
        "# the engine that run_board.py builds; without it nvinfer builds one of its own from onnx-file",
        "model-engine-file=model.plan",
        "# 0: FP32, 1: INT8, 2: FP16",
        f"network-mode={mode}",
    ]
    if settings["calibration"]:
        lines.append(f"int8-calib-file={settings['calibration']['cache']}")
    if "WORKSPACE" in settings["pools_mib"]:
        lines.append(f"workspace-size={settings['pools_mib']['WORKSPACE']}")
    if settings["dla_core"] is not None:
        lines += ["enable-dla=1", f"use-dla-core={settings['dla_core']}"]
    return lines


def _input(
    model: Model, graph: Graph, settings: Mapping[str, Any], how: Preprocessing, notes: list[str]
) -> list[str]:  # fmt: skip
    values = [v for v in model.proto.graph.input if v.name not in graph.initializers]
    taking = [v for v in values if v.name == how.input] if how.input else values
    if len(taking) != 1 or len(values) != 1:
        raise RequestError(
            f"nvinfer feeds one input; this network has {len(values)}: make the others constant (--freeze)"
        )
    name = taking[0].name
    if graph.dtype(name) != TensorProto.FLOAT:
        raise RequestError(f"nvinfer feeds FP32; input {name} is {TensorProto.DataType.Name(graph.dtype(name))}")
    batch, sizes = _sizes(name, axes(model)[name], settings)
    order = 0 if how.layout == "nchw" else 1
    channels, height, width = sizes if order == 0 else (sizes[2], *sizes[:2])
    colors = 1 if how.color == "gray" else 3
    if channels != colors:
        raise RequestError(f"input {name} has {channels} channels, {how.color} images have {colors}; see --preprocess")
    lines = [
        f"# preprocessing: {str(how) or 'as by default: RGB, divided by 255, stretched to the size'}",
        f"batch-size={batch}",
        "# channels;height;width, in any input order",
        f"infer-dims={channels};{height};{width}",
        "# 0: NCHW, 1: NHWC",
        f"network-input-order={order}",
        "# 0: RGB, 1: BGR, 2: GRAY",
        f"model-color-format={COLORS[how.color]}",
    ]
    return lines + _scaling(how, colors, notes) + _fit(how, notes)


def _sizes(name: str, shape: Sequence[int | str], settings: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """The largest batch, and the other three sizes."""
    profile = settings["profiles"][0].get(name) if settings["profiles"] else None
    found = [d if isinstance(d, int) else profile[2][i] if profile else 0 for i, d in enumerate(shape)]
    if len(found) != 4 or not all(found):
        raise RequestError(f"nvinfer feeds images of four axes; input {name} has {len(found)}")
    return found[0], tuple(found[1:])


def _scaling(how: Preprocessing, colors: int, notes: list[str]) -> list[str]:
    stds = how.std or (1.0,)
    std = sum(stds) / len(stds)
    lines = ["# y = net-scale-factor * (x - offset), x from 0 to 255"]
    if max(stds) != min(stds):
        off = max(abs(s / std - 1) for s in stds)
        listed = "/".join(map(str, stds))
        words = f"nvinfer has one scale for all channels: the mean of the stds {listed} is up to {off:.1%} off"
        lines.append(f"# {words}")
        notes.append(f"nvinfer.txt: {words}; for equal numbers fold the exact ones into the first Conv")
    lines.append(f"net-scale-factor={1.0 / (how.scale * std):.12g}")
    if any(how.mean):
        means = how.mean if len(how.mean) == colors else how.mean * colors
        lines.append("offsets=" + ";".join(f"{m * how.scale:.9g}" for m in means))
    return lines


def _fit(how: Preprocessing, notes: list[str]) -> list[str]:
    if how.fit == "crop":
        notes.append("nvinfer.txt: nvinfer does not crop to the middle; frames are stretched instead")
    if how.fit != "letterbox":
        return ["maintain-aspect-ratio=0"]
    notes.append("nvinfer.txt: nvinfer pads with black, not with the gray 114 of the stated preprocessing")
    return ["# padded with black on both sides, where the stated preprocessing has gray 114",
            "maintain-aspect-ratio=1", "symmetric-padding=1"]  # fmt: skip


# ---- outputs ----


def _names(outputs: Sequence[_Output]) -> str:
    return "output-blob-names=" + ";".join(o.name for o in outputs)


def _custom(wanted: Nvinfer, key: str) -> list[str]:
    function, _, library = wanted.parser.partition(":")
    if not function or not library:
        raise RequestError(f"'{wanted.parser}': give a custom parser as FUNCTION:LIBRARY")
    return [f"{key}={function}", f"custom-lib-path={library}"]


def _classes(wanted: Nvinfer, found: int = 0) -> int:
    """How many, as stated and as the model has them. Raises RequestError where they differ or none is known."""
    stated = {n for n in (len(wanted.labels), wanted.classes, found) if n}
    if len(stated) > 1:
        has = f"the model has {found}, " if found else ""
        raise RequestError(f"classes: {has}--labels names {len(wanted.labels)}, --classes says {wanted.classes}")
    if not stated:
        raise RequestError("how many classes has the detector? give --labels or --classes")
    return stated.pop()


def _labels(wanted: Nvinfer) -> list[str]:
    return [f"labelfile-path={LABELS}"] if wanted.labels else ["# labelfile-path=labels.txt, once there are labels"]


def _detector(wanted: Nvinfer, graph: Graph, outputs: Sequence[_Output], notes: list[str]) -> list[str]:
    suppressed = any(node.op in NMS for node in graph.nodes())
    lines = [
        "# 0: detector",
        "network-type=0",
        f"num-detected-classes={_classes(wanted)}",
        *_labels(wanted),
        _names(outputs),
        "# 2: NMS over the boxes of the parser; 4: none, for a network that has its own",
        f"cluster-mode={4 if suppressed else 2}",
    ]
    detectnet = all(any(part in o.name for o in outputs) for part in ("bbox", "cov"))
    if wanted.parser:
        lines += _custom(wanted, "parse-bbox-func-name")
    elif detectnet:
        lines.append("# outputs with bbox and cov in their names: read by nvinfer's own parser of DetectNet_v2")
    else:
        shown = ", ".join(f"{o.name} {'x'.join(map(str, o.shape))}" for o in outputs)
        lines += [
            f"# nvinfer has no parser for these outputs ({shown}): it needs one that turns them into boxes of pixels.",
            "# Build one after NvDsInferParseCustomFunc in nvdsinfer_custom_impl.h and fill in both lines:",
            "#parse-bbox-func-name=",
            "#custom-lib-path=",
        ]
        notes.append("nvinfer.txt: this detector's outputs need a custom parser; its two lines are left to fill in")
    return [*lines, "", "[class-attrs-all]", "pre-cluster-threshold=0.25",
            *([] if suppressed else ["nms-iou-threshold=0.45", "topk=300"])]  # fmt: skip


def _classifier(wanted: Nvinfer, _graph: Graph, outputs: Sequence[_Output], notes: list[str]) -> list[str]:
    sizes = [[d for d in o.shape if d != 1] for o in outputs]
    if not wanted.parser and any(len(s) != 1 or not isinstance(s[0], int) for s in sizes):
        raise RequestError("a classifier has one value for each class; is this another kind of network?")
    if len(outputs) == 1 and isinstance(sizes[0][0], int):
        _classes(wanted, sizes[0][0])
    lines = ["# 1: classifier", "network-type=1", *_labels(wanted), _names(outputs), "classifier-threshold=0.5"]
    if wanted.parser:
        return [*lines, *_custom(wanted, "parse-classifier-func-name")]
    if not all(o.softmax for o in outputs):
        lines.insert(-1, "# the outputs end in no Softmax: what is compared with the threshold are raw scores")
        notes.append("nvinfer.txt: the classifier ends in no Softmax; classifier-threshold is a raw score")
    return lines


def _segmenter(wanted: Nvinfer, _graph: Graph, outputs: Sequence[_Output], notes: list[str]) -> list[str]:
    if len(outputs) != 1:
        raise RequestError(f"a segmenter has one output here; this network has {len(outputs)}")
    (output,) = outputs
    if output.dtype != TensorProto.FLOAT or len(output.shape) != 3:
        notes.append("nvinfer.txt: nvinfer does not parse a map of labels: the output is handed on as a tensor")
        return [
            "# the output holds labels and not the scores of classes: nvinfer hands it to the application as it is",
            f"network-type={OTHER}", "output-tensor-meta=1", _names(outputs),
        ]  # fmt: skip
    channels, last = output.shape[0], output.shape[2]
    nhwc = isinstance(last, int) and last in (len(wanted.labels), wanted.classes) and last != channels
    classes = last if nhwc else channels
    if not isinstance(classes, int):
        raise RequestError(f"output {output.name} has no fixed number of classes")
    lines = [
        "# 2: segmentation", "network-type=2", f"num-detected-classes={_classes(wanted, classes)}", *_labels(wanted),
        _names(outputs), "# 0: NCHW, 1: NHWC", f"segmentation-output-order={int(nhwc)}",
    ]  # fmt: skip
    if wanted.parser:
        return [*lines, "segmentation-threshold=0.0", *_custom(wanted, "parse-segmentation-func-name")]
    if output.softmax:
        return [*lines, "segmentation-threshold=0.0"]
    notes.append("nvinfer.txt: the segmenter ends in no Softmax; a pixel whose best score is -1 or less gets no class")
    return [
        *lines,
        "# the output ends in no Softmax. nvinfer takes a pixel's best class when its score is over this threshold,",
        "# and over -1 whatever stands here: pixels whose scores are all lower get class -1",
        "segmentation-threshold=-1.0",
    ]
