"""Values of an image between its pixels."""

from __future__ import annotations

import itertools

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.graph import Edit

LARGEST = 1 << 24  # pixels that FLOAT can number


def bilinear(edit: Edit, image: str, places: tuple[str, str], size: tuple[int, int], start: str = "") -> str:
    """What `image`, [batch, channels, height * width], holds at `places`: [batch, channels, points].

    `places` are rows and columns in pixels, FLOAT [batch, 1, points] each. Outside of the image, `size`, there is zero,
    and within a pixel of its edge what fades to it. Where the last axis of `image` holds several images one behind the
    other, `start` is the number of the first pixel of the one that a place is in, FLOAT [batch, 1, points].
    """
    graph = edit.graph
    taps = [_taps(edit, place, length) for place, length in zip(places, size, strict=True)]
    numbers, weights = [], []
    for (row, high), (column, wide) in itertools.product(*taps):
        number = edit.add("Add", [edit.add("Mul", [row, np.float32(size[1])]), column])
        numbers.append(edit.add("Add", [number, start]) if start else number)
        weights.append(edit.add("Mul", [high, wide]))
    index = edit.add("Cast", [emit.concat(edit, numbers, 2)], to=TensorProto.INT64)
    batch, channels, pixels = graph.static_shape(image) or (0, 0, 0)
    # A place that is NaN is nowhere; still no runtime may look there.
    index = edit.add("Min", [edit.add("Max", [index, np.int64(0)]), np.int64(pixels - 1)])
    if batch == 1:
        taken = edit.add("Gather", [image, emit.reshape(edit, index, [-1])], axis=2)
    else:
        taken = edit.add("GatherElements", [image, edit.add("Expand", [index, emit.ints([1, channels, 1])])], axis=2)
    weighted = edit.add("Mul", [taken, emit.cast(edit, emit.concat(edit, weights, 2), graph.dtype(image))])
    return emit.reduce(edit, "ReduceSum", emit.reshape(edit, weighted, [batch, channels, 4, -1]), [2], keepdims=0)


def _taps(edit: Edit, place: str, size: int) -> list[tuple[str, str]]:
    """The two pixels around each place along one axis, brought inside, and their weights, zero for those outside."""
    near = edit.add("Min", [edit.add("Max", [place, np.float32(-1)]), np.float32(size)])
    first = edit.add("Floor", [near])
    t = edit.add("Sub", [near, first])
    taps = []
    for pixel, weight in ((first, edit.add("Sub", [np.float32(1), t])), (edit.add("Add", [first, np.float32(1)]), t)):
        inside = edit.add("Min", [edit.add("Max", [pixel, np.float32(0)]), np.float32(size - 1)])
        hit = edit.add("Cast", [edit.add("Equal", [inside, pixel])], to=TensorProto.FLOAT)
        taps.append((inside, edit.add("Mul", [weight, hit])))
    return taps
