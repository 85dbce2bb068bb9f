"""ONNX Runtime's blocked layout (domain com.microsoft.nchwc) and the way back.

Shapes are those of plain tensors with the channels rounded up to whole blocks of B; the order in memory is another:
N, C/B, h, w, B for tensors and O/B, I/B, h, w, B of I, B of O for weights (OIHWBiBo), or O/B, I, h, w, B of O (OIHWBo)
where the convolution reads a plain tensor or has one filter for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxfix.backends import ort
from onnxfix.errors import OnnxfixError, Skip
from onnxfix.graph import Graph, Node

DOMAIN = "com.microsoft.nchwc"
BLOCKS = (8, 16)


def blocked_nodes(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes() if node.domain == DOMAIN]


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
