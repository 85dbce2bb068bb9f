"""Inputs for the parity: seeded by Polygraphy's DataLoader at chosen sizes, or read from the user's file."""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.backends import images, quiet
from onnxfix.errors import RequestError
from onnxfix.model import one_line

Feeds = dict[str, np.ndarray]
Sizes = dict[str, int]

# One range for each seed in turn: images scaled to [0, 1], signals around zero, and wider ones.
FLOAT_RANGES = ((0.0, 1.0), (-1.0, 1.0), (-3.0, 3.0))
INT_RANGES = ((0, 7), (0, 1))  # small enough for an index into most things
# A single integer is often a sample rate, a count or a switch.
SCALARS = (16000, 1, 0, 8000)
LENGTHS = (64, 32, 224, 128, 256, 512, 16, 8, 4, 640, 1024, 2, 1)
LARGEST = 1 << 26  # elements of all inputs together


@dataclass(frozen=True)
class Tensor:
    """An input or output. An axis is its size, or its name where it is dynamic ("input[axis]" without one)."""

    name: str
    dtype: np.dtype[Any] | None  # None for what numpy can't hold, and for sequences and maps
    shape: tuple[int | str, ...]
    kind: str  # as the evaluator calls it, e.g. "tensor(float)"


@dataclass(frozen=True)
class Draw:
    """How to fill inputs: sizes of dynamic axes, the range of integers, the value of a single integer."""

    sizes: Mapping[str, int]
    ints: tuple[int, int] = INT_RANGES[0]
    scalar: int = SCALARS[0]


def axes(inputs: Sequence[Tensor]) -> dict[str, str]:
    """The dynamic axes by name, each with its part: batch, channel, length, or other.

    The first input that has an axis decides. Lengths that only later inputs have are "other": often a state's batch.
    """
    parts: dict[str, str] = {}
    for order, tensor in enumerate(inputs):
        for position, dim in enumerate(tensor.shape):
            if isinstance(dim, str) and dim not in parts:
                batch = position == 0 or "batch" in dim.lower()
                # A fixed last axis of four is the channels, as TensorFlow has them.
                channel = position == 1 and len(tensor.shape) == 4 and isinstance(tensor.shape[3], str)
                parts[dim] = "batch" if batch else "channel" if channel else "other" if order else "length"
    return parts


def sizes(parts: Mapping[str, str], fixed: Mapping[str, int]) -> Iterator[Sizes]:
    """Sizes worth trying first, the likeliest first. `fixed` are not free to choose."""

    def fill(batch: int, channel: int, length: int, other: int) -> Sizes:
        values = {"batch": batch, "channel": channel, "length": length, "other": other}
        return {name: fixed.get(name, values[part]) for name, part in parts.items()}

    tries = [fill(1, 3, n, n) for n in LENGTHS]
    tries += [fill(1, 3, n, 1) for n in LENGTHS]
    tries += [fill(1, 1, n, n) for n in LENGTHS[:6]]
    tries += [fill(n, n, n, n) for n in LENGTHS]  # the first axis need not be a batch
    return _distinct(tries)


def other_sizes(found: Sizes, parts: Mapping[str, str], fixed: Mapping[str, int]) -> Iterator[Sizes]:
    """Once `found` is known to work: sizes that differ from it, those that differ in most axes first."""
    lengths = [n for n in LENGTHS if n not in found.values()][:6]

    def vary(batch: int, length: int) -> Sizes:
        """Add to what is 1 and to batches; 0 keeps the length."""

        def new(name: str, part: str) -> int:
            if part in ("batch", "other") and (part == "batch" or found[name] == 1):
                return found[name] + batch
            return found[name] if part == "channel" else length or found[name]

        return {name: fixed.get(name, new(name, part)) for name, part in parts.items()}

    tries = [vary(1, n) for n in lengths[:2]]
    tries += [vary(1, 0)]
    tries += [vary(0, n) for n in lengths]
    return (s for s in _distinct(tries) if s != found)


def _distinct(tries: Sequence[Sizes]) -> Iterator[Sizes]:
    return (s for i, s in enumerate(tries) if s not in tries[:i])


def draws(inputs: Sequence[Tensor], chosen: Sizes) -> Iterator[Draw]:
    """Ways to fill the inputs at these sizes, the likeliest first; one where no integer input has a say."""
    ints = [t for t in inputs if t.dtype is not None and t.dtype.kind in "iu" and t.dtype.itemsize > 1]
    ranges = INT_RANGES if any(count(t, chosen) != 1 for t in ints) else INT_RANGES[:1]
    scalars = SCALARS if any(count(t, chosen) == 1 for t in ints) else SCALARS[:1]
    return (Draw(chosen, r, s) for r, s in itertools.product(ranges, scalars))


def count(tensor: Tensor, chosen: Mapping[str, int]) -> int:
    """Number of elements at these sizes."""
    return math.prod(chosen.get(d, 1) if isinstance(d, str) else d for d in tensor.shape)


def too_large(inputs: Sequence[Tensor], chosen: Mapping[str, int]) -> bool:
    return sum(count(t, chosen) for t in inputs) > LARGEST


def unfillable(inputs: Sequence[Tensor]) -> str:
    """Why seeded inputs can't be made, "" when they can."""
    odd = [t for t in inputs if t.dtype is None or t.dtype.kind not in "biuf"]
    return f"input {odd[0].name} is a {odd[0].kind}" if odd else ""


def seeded(inputs: Sequence[Tensor], draw: Draw, seed: int) -> Feeds:
    """One set of inputs, the same for the same arguments."""
    from polygraphy.common import TensorMetadata
    from polygraphy.comparator import DataLoader

    metadata, ranges = TensorMetadata(), {}
    for tensor in inputs:
        assert tensor.dtype is not None
        shape = tuple(draw.sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        metadata.add(tensor.name, tensor.dtype, shape)
        if tensor.dtype.kind == "f":
            ranges[tensor.name] = FLOAT_RANGES[seed % len(FLOAT_RANGES)]
        elif tensor.dtype.kind == "b":
            ranges[tensor.name] = (False, True)
        else:
            ranges[tensor.name] = (0, 127) if tensor.dtype.itemsize == 1 else draw.ints
    with quiet():
        feeds = dict(DataLoader(seed=seed, input_metadata=metadata, val_range=ranges)[0])
    for tensor in inputs:
        if tensor.dtype is not None and tensor.dtype.kind in "iu" and tensor.dtype.itemsize > 1:
            # Polygraphy takes a short integer vector for a shape and fills in one; ours are ordinary values.
            shape = tuple(draw.sizes[d] if isinstance(d, str) else d for d in tensor.shape)
            if math.prod(shape) == 1:
                feeds[tensor.name] = np.full(shape, draw.scalar, tensor.dtype)
            elif len(shape) == 1:
                rng = np.random.RandomState(seed)
                feeds[tensor.name] = rng.randint(draw.ints[0], draw.ints[1] + 1, shape).astype(tensor.dtype)
    return feeds


def read(
    path: Path, inputs: Sequence[Tensor], preprocessing: images.Preprocessing | None = None
) -> list[Feeds]:
    """Samples from an .npz (input name -> array: one sample), from a Polygraphy .json (a list of samples), or from a
    folder of images, one sample each; further inputs of the model are drawn with seed 0.

    Raises RequestError when the file can't be read, or lacks an input, UnavailableError for images without Pillow.
    """
    if path.is_dir():
        return _read_images(path, inputs, preprocessing or images.Preprocessing())
    try:
        samples = _read_npz(path) if path.suffix.lower() == ".npz" else _read_json(path)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file") from None
    except Exception as error:  # numpy, zipfile, json and Polygraphy raise what they like on damaged files
        reason = one_line(error)
        raise RequestError(f"{path}: no .npz or Polygraphy .json of inputs: {reason}") from None
    if not samples:
        raise RequestError(f"{path}: holds no inputs")
    return [_fitting(path, i, sample, inputs) for i, sample in enumerate(samples)]


def _read_images(path: Path, inputs: Sequence[Tensor], how: images.Preprocessing) -> list[Feeds]:
    taking = [t for t in inputs if (t.name == how.input if how.input else len(t.shape) == 4)]
    if len(taking) != 1:
        have = ", ".join(f"{t.name} {_dims(t.shape)}" for t in inputs)
        raise RequestError(f"{path}: which input takes the images? state input=NAME in --preprocess; there are {have}")
    (image,) = taking
    others = [t for t in inputs if t is not image]
    if reason := unfillable(others):
        raise RequestError(f"{path}: {reason}, which can't be drawn; give all inputs as .npz")
    drawn: Feeds = {}
    if others:
        drawn = seeded(others, Draw(dict.fromkeys(axes(others), 1)), 0)
    samples = [{image.name: array, **drawn} for array in images.read(path, image.shape, image.dtype, how)]
    return [_fitting(path, i, sample, inputs) for i, sample in enumerate(samples)]


def _read_npz(path: Path) -> list[Feeds]:
    if not path.exists():
        raise FileNotFoundError
    if not zipfile.is_zipfile(path):
        raise ValueError("not an .npz archive")
    with np.load(path) as archive:
        return [{name: archive[name] for name in archive.files}]


def _read_json(path: Path) -> list[Feeds]:
    from polygraphy.json import load_json

    if not path.exists():
        raise FileNotFoundError
    with quiet():
        loaded = load_json(str(path))
    samples = loaded if isinstance(loaded, list) else [loaded]
    return [{name: np.asarray(value) for name, value in sample.items()} for sample in samples]


def _fitting(path: Path, position: int, sample: Feeds, inputs: Sequence[Tensor]) -> Feeds:
    """The sample's arrays for these inputs, in the model's own dtypes."""
    missing = [t.name for t in inputs if t.name not in sample]
    if missing:
        have = ", ".join(sample) or "nothing"
        raise RequestError(f"{path}: sample {position} lacks input {missing[0]}; it has {have}")
    feeds = {}
    for tensor in inputs:
        array = sample[tensor.name]
        dims = zip(tensor.shape, array.shape, strict=False)
        if len(tensor.shape) != array.ndim or any(isinstance(d, int) and d != got for d, got in dims):
            wanted, got = _dims(tensor.shape), _dims(array.shape)
            raise RequestError(f"{path}: sample {position}: {tensor.name} is {got}, the model takes {wanted}")
        feeds[tensor.name] = cast(array, tensor.dtype)
    return feeds


def _dims(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def cast(array: np.ndarray, dtype: np.dtype[Any] | None) -> np.ndarray:
    """The same values in another dtype."""
    return array if dtype is None or array.dtype == dtype else array.astype(dtype)
