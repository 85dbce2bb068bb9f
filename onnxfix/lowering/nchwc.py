"""ONNX Runtime's blocked layout (domain com.microsoft.nchwc) and the way back.

Shapes are those of plain tensors with the channels rounded up to whole blocks of B; the order in memory is another:
N, C/B, h, w, B for tensors and O/B, I/B, h, w, B of I, B of O for weights (OIHWBiBo), or O/B, I, h, w, B of O (OIHWBo)
where the convolution reads a plain tensor or has one filter for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxfix.backends import ort
from onnxfix.errors import OnnxfixError, Skip
from onnxfix.graph import Graph, Node

DOMAIN = "com.microsoft.nchwc"
BLOCKS = (8, 16)


def blocked_nodes(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes() if node.domain == DOMAIN]


def nodes_between(graph: Graph) -> list[Node]:
    """Nodes of other domains (activations, sums) that work on blocked tensors."""
    blocked: set[str] = set()
    between = []
    for node in graph.nodes():
        if node.domain != DOMAIN and not blocked.isdisjoint(node.proto.input):
            between.append(node)
        elif node.domain != DOMAIN or node.op == "ReorderOutput":
            continue
        blocked.update(node.proto.output)
    return between


def weights(node: Node) -> np.ndarray:
    """The filters of a Conv as they lie, O x I x h x w by shape. Raises Skip when they aren't constant."""
    found = node.graph.const(node.input(1))
    if found is None or found.ndim != 4:
        raise Skip("its weights are no constants; save the model without ONNX Runtime's optimisation")
    return found


def block_size(convs: Sequence[Node]) -> int:
    """The block that the file was written with: what its weights tell, else what ONNX Runtime uses here."""
    if any(weights(node).shape[0] % 16 for node in convs):
        return 8
    if any(_filled_half(weights(node)) or 8 < weights(node).shape[1] < 16 for node in convs):
        return 16
    try:
        return ort.channel_block()
    except OnnxfixError:
        raise Skip("how many channels a block has can't be told here; set the option 'block' to 8 or 16") from None


def _filled_half(array: np.ndarray) -> bool:
    """Whether the last block of 16 outputs has zeros in its second half: channels that only fill it up."""
    tail = array.reshape(array.shape[0] // 16, -1, 16)[-1, :, 8:]
    return bool(tail.size) and not tail.any()


def plain_weights(node: Node, block: int) -> np.ndarray:
    """The filters in ONNX's order, O x I x h x w, as many channels as the file has."""
    array = weights(node)
    outputs, inputs, height, width = array.shape
    group = node.attr("group", 1)
    one_each = group > 1 and inputs == 1 and outputs == group
    if outputs % block:
        raise Skip(f"its {outputs} output channels are no whole blocks of {block}")
    if one_each or (group == 1 and inputs < block):
        stored = array.reshape(outputs // block, inputs, height, width, block)
        return np.ascontiguousarray(stored.transpose(0, 4, 1, 2, 3)).reshape(array.shape)
    if inputs % block:
        raise Skip(f"its {inputs} input channels are no whole blocks of {block}")
    stored = array.reshape(outputs // block, inputs // block, height, width, block, block)
    return np.ascontiguousarray(stored.transpose(0, 5, 1, 4, 2, 3)).reshape(array.shape)


def missing_channels(node: Node, filters: Mapping[Node, np.ndarray], block: int) -> int:
    """How many channels of zeros a ReorderInput adds to fill its last block.

    From the shape, or, where that isn't known, from what made the value; else the convolutions behind must read every
    channel, so that none is missing. Raises Skip when all that tells nothing.
    """
    channels = _size(node.graph, node.input(0), 3 if node.attr("channels_last", 0) else 1)
    if isinstance(channels, int):
        return -channels % block
    if _all_read(node, filters):
        return 0
    raise Skip(f"the number of channels of '{node.input(0)}' is not known; freeze the dynamic axes")


def _size(graph: Graph, name: str, axis: int, depth: int = 32) -> int | None:
    """The size of a plain value of rank 4 along `axis`, followed upwards through what keeps it; None when that ends."""
    shape = graph.shape(name)
    if shape is not None:
        size = shape[axis] if len(shape) == 4 else None
        return size if isinstance(size, int) else None
    node = graph.producer(name)
    if node is None or depth == 0:
        return None
    if node.domain == DOMAIN:
        last = node.attr("channels_last", 0)
        return int(node.attr("channels")) if node.op == "ReorderOutput" and axis == (3 if last else 1) else None
    if node.op == "Transpose":
        return _size(graph, node.input(0), node.attr("perm", [3, 2, 1, 0])[axis], depth - 1)
    if node.op == "Pad":
        pads = node.attr("pads", []) or graph.known(node.input(1)) or []
        added = [pads[axis], pads[axis + 4]] if len(pads) == 8 and not node.input(3) else [None]
        return _size(graph, node.input(0), axis, depth - 1) if added == [0, 0] else None
    if node.op in _BROADCASTS:
        # A size of one is spread over the other side's, so anything above one is the answer.
        found = (_side(graph, i, axis, depth) for i in node.inputs)
        return next((c for c in found if c is not None and c > 1), None)
    if node.op == "Reshape":
        sizes = graph.known(node.input(1)) or []
        return sizes[axis] if len(sizes) == 4 and (sizes[axis] or 0) > 0 else None
    if axis == 3 and node.op in ("LayerNormalization", "MatMul"):
        weights = graph.shape(node.input(1))
        size = weights[-1] if weights else None
        return size if isinstance(size, int) else None
    keeps = node.op in _KEEPS or (axis == 1 and node.op in _KEEPS_CHANNELS)
    return _size(graph, node.input(0), axis, depth - 1) if keeps else None


def _side(graph: Graph, name: str, axis: int, depth: int) -> int | None:
    """As `_size`, of one side of a broadcast: its axes are counted from the back."""
    shape = graph.shape(name)
    if shape is None:
        return _size(graph, name, axis, depth - 1)
    size = shape[axis - 4] if 4 - axis <= len(shape) <= 4 else None
    return size if isinstance(size, int) else None


# fmt: off
_KEEPS = frozenset((
    "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish", "Elu", "Softplus", "Softsign", "PRelu",
    "Gelu", "QuickGelu", "FastGelu", "Erf", "Sqrt", "Exp", "Neg", "Abs", "Identity", "Dropout", "Cast", "Softmax",
))
_KEEPS_CHANNELS = frozenset((
    "BatchNormalization", "InstanceNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
    "Resize", "Upsample",
))
# fmt: on
_BROADCASTS = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"))


def _all_read(node: Node, filters: Mapping[Node, np.ndarray]) -> bool:
    """Whether every convolution behind has a filter for the last channel, and one there is."""
    graph, found = node.graph, False
    for user, index in graph.uses(node.output(0)):
        if user.domain != DOMAIN or user.op == "ReorderOutput" or index != 0:
            return False
        if user.op == "Conv":
            last = filters[user][:, -1] if user.attr("group", 1) == 1 else filters[user][-1]
            if not last.any():
                return False
            found = True
        elif not _all_read(user, filters):
            return False
        else:
            found = True
    return found
