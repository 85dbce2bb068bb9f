"""The geometry of sliding windows: Conv, ConvTranspose and the pools."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Node
from onnxfix.rule import Context

OPERATORS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")


@dataclass(frozen=True)
class Window:
    """One entry for each spatial axis; pads are explicit whatever the node says."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """How far the window reaches, dilation counted."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def padded(self) -> bool:
        return any((*self.begins, *self.ends))

    @property
    def pads(self) -> list[int]:
        return [*self.begins, *self.ends]

    @property
    def axes(self) -> list[int]:
        """The axes of the tensor that the window slides over."""
        return list(range(2, len(self.kernel) + 2))


def read(node: Node) -> Window:
    """The window of a Conv, ConvTranspose or pool. Raises Skip when its size or its padding is not known."""
    kernel = node.attr("kernel_shape")
    if kernel is None:
        shape = node.graph.shape(node.input(1)) if node.input(1) else None
        if shape is None or not all(isinstance(d, int) for d in shape[2:]):
            raise Skip("the size of the kernel is not known")
        kernel = list(shape[2:])
    ones = [1] * len(kernel)
    strides, dilations = node.attr("strides") or ones, node.attr("dilations") or ones
    begins, ends = _pads(node, kernel, strides, dilations)
    window = Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(begins), tuple(ends))
    sizes = (node.graph.shape(node.input(0)) or ())[2:]
    if node.op != "ConvTranspose" and any(
        isinstance(s, int) and b + s + e < p for s, b, e, p in zip(sizes, begins, ends, window.spans, strict=False)
    ):
        raise Skip("its window is larger than the padded input")
    return window


def _pads(node: Node, kernel: list[int], strides: list[int], dilations: list[int]) -> tuple[list[int], list[int]]:
    auto, zeros = node.attr("auto_pad") or "NOTSET", [0] * len(kernel)
    if auto == "NOTSET":
        pads = node.attr("pads") or zeros * 2
        return list(pads[: len(kernel)]), list(pads[len(kernel) :])
    if auto == "VALID":
        return zeros, zeros
    sizes = spatial(node, node.input(0))
    if node.op == "ConvTranspose" or sizes is None or any(d != 1 for d in dilations):
        raise Skip(f"auto_pad is {auto}, which fixes the pads only for known sizes; export with explicit pads")
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return begins, ends


def spatial(node: Node, name: str) -> list[int] | None:
    """The sizes behind batch and channels, None unless all are known."""
    shape = node.graph.shape(name)
    if shape is None:
        return None
    sizes = [d for d in shape[2:] if isinstance(d, int)]
    return sizes if len(sizes) == len(shape) - 2 else None


def rounds_down(node: Node, window: Window, begins: tuple[int, ...] = (), ends: tuple[int, ...] = ()) -> bool:
    """Whether rounding up (ceil_mode) makes no difference; `begins` and `ends` are added to the window's pads.

    Where it does make one, runtimes disagree on the last window, so rules leave such nodes alone.
    """
    if not node.attr("ceil_mode"):
        return True
    if node.attr("auto_pad") not in (None, "NOTSET"):
        return False
    sizes = spatial(node, node.input(0))
    if sizes is None:
        return False
    total = [s + b + e - p for s, b, e, p in zip(sizes, window.begins, window.ends, window.spans, strict=True)]
    extra = [b + e for b, e in zip(begins, ends, strict=True)] if begins else [0] * len(total)
    return all((t + x) % s == 0 for t, x, s in zip(total, extra, window.strides, strict=True))


def ceiled(node: Node, window: Window) -> Window:
    """The window with end pads as large as ceil_mode makes them, so that rounding down gives the same windows.

    Raises Skip where the sizes that this takes are not known.
    """
    if rounds_down(node, window):
        return window
    sizes = spatial(node, node.input(0))
    if sizes is None or node.attr("auto_pad") not in (None, "NOTSET"):
        raise Skip("ceil_mode adds a last window here; export with ceil_mode=False or freeze the sizes")
    ends, counts = [], []
    for size, s, b, e, span in zip(sizes, window.strides, window.begins, window.ends, window.spans, strict=True):
        count = -(-(size + b + e - span) // s) + 1
        if (count - 1) * s >= size + b:  # a window that would lie in the end pad altogether is left out
            count -= 1
        counts.append(count)
        ends.append(max(e, (count - 1) * s + span - size - b))
    declared = spatial(node, node.output(0))
    if declared is not None and list(declared) != counts:
        # Before opset 22 ONNX's shape inference counts the window in the end pad, and runtimes don't.
        raise Skip(f"ceil_mode: its output is declared {list(declared)} and computed {counts}; turn it off")
    return dataclasses.replace(window, ends=tuple(ends))


def accepted(node: Node, attributes: dict[str, Any], ctx: Context) -> bool:
    """Whether the target would take the node with these attributes changed (None removes one)."""
    proto = NodeProto()
    proto.CopyFrom(node.proto)
    kept = [a for a in node.proto.attribute if a.name not in attributes]
    del proto.attribute[:]
    proto.attribute.extend(kept)
    proto.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items() if v is not None)
    return not ctx.refused(Node(proto, node.graph, node.index))


def channels(node: Node) -> int:
    """The number of channels of the first input. Raises Skip when it is not known."""
    shape = node.graph.shape(node.input(0))
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        raise Skip(f"the number of channels of '{node.input(0)}' is not known")
    return shape[1]


def weighted(edit: Edit, x: str, window: Window, count: int, dtype: np.dtype[Any], weight: float) -> str:
    """The sum of each window of each of `count` channels times `weight`: a depthwise Conv with equal weights."""
    weights = np.full((count, 1, *window.kernel), weight, dtype)
    return str(
        edit.add(
            "Conv",
            [x, weights],
            group=count,
            kernel_shape=list(window.kernel),
            strides=list(window.strides),
            dilations=list(window.dilations),
            pads=window.pads,
        )
    )


def counts(window: Window, sizes: list[int], counted: Window | None = None) -> np.ndarray:
    """How many elements of each window lie on data, or on the pads of `counted`; the shape of the spatial output."""
    per_axis = []
    nothing = (0,) * len(sizes)
    before, after = (counted.begins, counted.ends) if counted else (nothing, nothing)
    for i, (k, s, d, size) in enumerate(zip(window.kernel, window.strides, window.dilations, sizes, strict=True)):
        begin, end = window.begins[i], window.ends[i]
        starts = np.arange(0, size + begin + end - (k - 1) * d, s)[:, None] - begin
        taps = starts + np.arange(k) * d
        per_axis.append(((taps >= -before[i]) & (taps < size + after[i])).sum(axis=1))
    return np.asarray(math.prod(np.ix_(*per_axis), start=np.int64(1)))


def taps(window: Window) -> list[tuple[int, ...]]:
    """The offsets of a window's elements, in the order of its kernel."""
    steps = [range(0, k * d, d) for k, d in zip(window.kernel, window.dilations, strict=True)]
    return list(itertools.product(*steps))


def tap(edit: Edit, x: str, offset: int, span: int, stride: int, axis: int) -> str:
    """What lies at `offset` of every window along one axis of `x`, which is padded already; any size."""
    end = offset - span + 1
    return emit.slice_(edit, x, [offset], [end or np.iinfo(np.int64).max], [axis], [stride] if stride != 1 else None)
