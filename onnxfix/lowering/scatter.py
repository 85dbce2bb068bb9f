"""Where scatter operators write."""

from __future__ import annotations

import math

import numpy as np

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit


def from_front(edit: Edit, indices: str, size: int) -> str:
    """Indices into an axis of `size`, with those that count from the end made to count from the front."""
    below = edit.add("Less", [indices, emit.scalar(edit, 0, indices)])
    return str(edit.add("Where", [below, edit.add("Add", [indices, emit.scalar(edit, size, indices)]), indices]))


def flat_places(indices: np.ndarray, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    """Which place of the flattened data each update writes, in the order of the updates.

    With `axis`, as ScatterElements has it, places are single numbers; without, as ScatterND, they are what the last
    dimension of `indices` selects. Raises Skip for an index that lies outside.
    """
    depth = len(shape) if axis is not None else indices.shape[-1]
    if axis is not None:
        grid = np.indices(indices.shape)
        columns = [(indices if i == axis else grid[i]).reshape(-1) for i in range(depth)]
    else:
        columns = list(indices.reshape(-1, depth).T)
    sizes = shape[:depth]
    if any(((c < -s) | (c >= s)).any() for c, s in zip(columns, sizes, strict=True)):
        raise Skip("one of its indices lies outside the data")
    steps = [math.prod(sizes[i + 1 :]) for i in range(depth)]
    places = sum(np.where(c < 0, c + s, c) * step for c, s, step in zip(columns, sizes, steps, strict=True))
    return np.asarray(places, np.int64)


def contributors(places: np.ndarray, count: int) -> np.ndarray:
    """INT64 [most updates of one place, count]: for each place its updates in order, filled up with len(places)."""
    order = np.argsort(places, kind="stable")
    sorted_places = places[order]
    first = np.searchsorted(sorted_places, np.arange(count))
    turn = np.arange(len(places)) - first[sorted_places]
    table = np.full((int(turn.max(initial=-1)) + 1, count), len(places), np.int64)
    table[turn, sorted_places] = order
    return table
