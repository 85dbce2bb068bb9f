"""Inputs for the parity: seeded by Polygraphy's DataLoader at chosen sizes, or read from the user's file."""

from __future__ import annotations

import contextlib
import itertools
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.backends import BackendError, images, need, quiet
from onnxfix.errors import RequestError
from onnxfix.model import one_line

Feeds = dict[str, np.ndarray]
Sizes = dict[str, int]

# One range for each seed in turn: images scaled to [0, 1], signals around zero, and wider ones.
FLOAT_RANGES = ((0.0, 1.0), (-1.0, 1.0), (-3.0, 3.0))
INT_RANGES = ((0, 7), (0, 1))  # small enough for an index into most things
# A lower and an upper bound that are inputs, by name: drawn like other numbers, nothing would lie between them.
BOUNDS = {"min": 0.0, "low": 0.0, "max": 1e4, "high": 1e4, "upper": 1e4}
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


def working(
    run: Callable[[Feeds], object],
    inputs: Sequence[Tensor],
    tries: Iterable[Sizes],
    seed: int,
    failing: list[str],
    late: Callable[[], bool] = lambda: False,
    most: int | None = None,
) -> list[Draw]:
    """The ways to fill the inputs (`most` of them) that `run` takes at the first of these sizes at which it takes any.

    Why it does not run at others goes to `failing`; once it is `late` no more are tried.
    """
    for chosen in tries:
        if late():
            break
        if too_large(inputs, chosen):
            failing.append(f"{words(chosen)}: over {LARGEST:,} input elements")
            continue
        ways: list[Draw] = []
        reason = ""
        for draw in draws(inputs, chosen):
            try:
                run(seeded(inputs, draw, seed))
                ways.append(draw)
            except BackendError as error:
                reason = reason or str(error)
            if len(ways) == most:
                break
        if ways:
            return ways
        failing.append(f"{words(chosen)}: {reason}")
    return []


def words(chosen: Mapping[str, int]) -> str:
    """Sizes of dynamic axes as a reader has them."""
    return ", ".join(f"{name}={value}" for name, value in chosen.items()) or "its own sizes"


def unfillable(inputs: Sequence[Tensor]) -> str:
    """Why seeded inputs can't be made, "" when they can."""
    odd = [t for t in inputs if t.dtype is None or t.dtype.kind not in "biuf"]
    return f"input {odd[0].name} is a {odd[0].kind}" if odd else ""


def seeded(inputs: Sequence[Tensor], draw: Draw, seed: int) -> Feeds:
    """One set of inputs, the same for the same arguments. Raises UnavailableError without Polygraphy."""
    need("polygraphy")
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
    return feeds | _bounds(inputs, feeds)


def _bounds(inputs: Sequence[Tensor], drawn: Feeds) -> Feeds:
    """Values for single numbers that are bounds by their names, where there are both a lower and an upper one."""
    numbers = [t for t in inputs if t.dtype is not None and t.dtype.kind == "f" and drawn[t.name].size == 1]
    found = {t.name: value for t in numbers for word, value in BOUNDS.items() if word in t.name.lower()}
    if len(set(found.values())) < 2:
        return {}
    return {name: np.full_like(drawn[name], value) for name, value in found.items()}


def filled(inputs: Sequence[Tensor]) -> Feeds:
    """Inputs that accompany others: with seed 0, dynamic axes at 1."""
    return seeded(inputs, Draw(dict.fromkeys(axes(inputs), 1)), 0) if inputs else {}


def write(path: Path, samples: Sequence[Feeds]) -> None:
    """Write samples as a Polygraphy .json. Raises UnavailableError without Polygraphy."""
    need("polygraphy")
    from polygraphy.json import save_json

    with quiet():
        save_json([dict(sample) for sample in samples], str(path))


def read(
    path: Path, inputs: Sequence[Tensor], preprocessing: images.Preprocessing | None = None
) -> list[Feeds]:
    """Samples from an .npz (input name -> array: one sample), from a Polygraphy .json (a list of samples), or from a
    folder of images, one sample each; further inputs of the model are drawn with seed 0.

    Raises RequestError when the file can't be read, or lacks an input, and UnavailableError for images
    without Pillow or a .json without Polygraphy.
    """
    if path.is_dir():
        return list(_read_images(path, inputs, preprocessing or images.Preprocessing()))
    try:
        samples = _read_npz(path) if path.suffix.lower() == ".npz" else _read_json(path)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file") from None
    except Exception as error:  # numpy, zipfile, json and Polygraphy raise what they like on damaged files
        reason = one_line(error)
        raise RequestError(f"{path}: no .npz or Polygraphy .json of inputs: {reason}") from None
    if not samples:
        raise RequestError(f"{path}: holds no inputs")
    return [fitting(path, i, sample, inputs) for i, sample in enumerate(samples)]


def _read_images(path: Path, inputs: Sequence[Tensor], how: images.Preprocessing) -> Iterator[Feeds]:
    taking = [t for t in inputs if (t.name == how.input if how.input else len(t.shape) == 4)]
    if len(taking) != 1:
        have = ", ".join(f"{t.name} {_dims(t.shape)}" for t in inputs)
        raise RequestError(f"{path}: which input takes the images? state input=NAME in --preprocess; there are {have}")
    (image,) = taking
    others = [t for t in inputs if t is not image]
    if reason := unfillable(others):
        raise RequestError(f"{path}: {reason}, which can't be drawn; give all inputs as .npz")
    drawn = filled(others)
    for i, array in enumerate(images.read(path, image.shape, image.dtype, how)):
        yield fitting(path, i, {image.name: array, **drawn}, inputs)


def stream(path: Path, inputs: Sequence[Tensor], preprocessing: images.Preprocessing | None = None) -> Iterator[Feeds]:
    """As `read`, but one sample at a time is in memory, and an .npz may hold many.

    Arrays that hold several times the model's first axis (several of it, where it is dynamic) are cut along it.
    """
    if path.is_dir():
        yield from _read_images(path, inputs, preprocessing or images.Preprocessing())
        return
    counts = stacked(path, inputs)
    if not counts:
        yield from read(path, inputs)
        return
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        members = {t.name: stack.enter_context(archive.open(f"{t.name}.npy")) for t in inputs}
        headers = {name: _header(member) for name, member in members.items()}
        for i in range(counts):
            sample = {}
            for name, (shape, _, dtype) in headers.items():
                rows = (shape[0] // counts, *shape[1:])
                data = members[name].read(math.prod(rows) * dtype.itemsize)
                sample[name] = np.frombuffer(data, dtype).reshape(rows)
            yield fitting(path, i, sample, inputs)


def stacked(path: Path, inputs: Sequence[Tensor]) -> int:
    """How many samples `stream` cuts the arrays of an .npz into; 0 where they are one, or the file is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            counts = {_times(archive, tensor) for tensor in inputs}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return 0
    return counts.pop() if len(counts) == 1 else 0


def _times(archive: zipfile.ZipFile, tensor: Tensor) -> int:
    """How many times the first axis of an input an array holds; 0 where it can't be cut."""
    with archive.open(f"{tensor.name}.npy") as member:
        shape, fortran, dtype = _header(member)
    size = tensor.shape[0] if tensor.shape else 0
    size = 1 if isinstance(size, str) else size
    whole = fortran or dtype.hasobject or len(shape) != len(tensor.shape) or not size or shape[0] % size
    return 0 if whole else shape[0] // size


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype of an open .npy, which then stands at its values."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return shape, fortran, dtype


def _read_npz(path: Path) -> list[Feeds]:
    if not path.exists():
        raise FileNotFoundError
    if not zipfile.is_zipfile(path):
        raise ValueError("not an .npz archive")
    with np.load(path) as archive:
        return [{name: np.asarray(archive[name]) for name in archive.files}]


def _read_json(path: Path) -> list[Feeds]:
    need("polygraphy")
    from polygraphy.json import load_json

    if not path.exists():
        raise FileNotFoundError
    with quiet():
        loaded = load_json(str(path))
    samples = loaded if isinstance(loaded, list) else [loaded]
    return [{name: np.asarray(value) for name, value in sample.items()} for sample in samples]


def fitting(path: Path, position: int, sample: Feeds, inputs: Sequence[Tensor]) -> Feeds:
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
