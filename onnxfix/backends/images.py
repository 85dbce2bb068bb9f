"""A folder of images as inputs of a model, with a stated preprocessing. Needs Pillow (the extra `onnxfix[images]`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.backends import need
from onnxfix.errors import RequestError
from onnxfix.model import one_line

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
KEYS = "size, layout, color, scale, mean, std, fit, input, limit"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: opened as `color`, resized, divided by `scale`, less `mean`, divided by `std`."""

    size: tuple[int, int] | None = None  # (height, width) in pixels; None is the input's own
    layout: str = "nchw"  # or nhwc
    color: str = "rgb"  # bgr, gray
    scale: float = 255.0
    mean: tuple[float, ...] = ()  # by channel, or one for all; after the scaling
    std: tuple[float, ...] = ()
    fit: str = "stretch"  # to the size; "letterbox" keeps the proportions and fills with gray 114; "crop" the middle
    input: str = ""  # the input that takes the image, where there are several
    limit: int = 16  # images taken, in the order of their names

    def __str__(self) -> str:
        stated = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return ", ".join(f"{name} {value}" for name, value in stated.items())


def parse(text: str) -> Preprocessing:
    """From "size=224x224,color=rgb,mean=0.485/0.456/0.406,std=0.229/0.224/0.225" and the like.

    Sizes are height x width. Raises RequestError naming the key that is wrong.
    """
    given: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, _, value = part.partition("=")
        try:
            given[key] = _value(key, value)
        except ValueError:
            hint = f"keys are {KEYS}, e.g. size=224x224,scale=255"
            raise RequestError(f"preprocessing: '{part}' is wrong; {hint}") from None
    return Preprocessing(**given)


def _value(key: str, value: str) -> Any:
    choices = {"layout": ("nchw", "nhwc"), "color": ("rgb", "bgr", "gray"), "fit": ("stretch", "letterbox", "crop")}
    if key in choices:
        if value not in choices[key]:
            raise ValueError
        return value
    if key == "size":
        height, width = (int(v) for v in (value.split("x") if "x" in value else (value, value)))
        if min(height, width) < 1:
            raise ValueError
        return height, width
    if key in ("mean", "std"):
        numbers = tuple(float(v) for v in value.split("/"))
        if len(numbers) not in (1, 3) or (key == "std" and 0.0 in numbers):
            raise ValueError
        return numbers
    if key == "scale" and float(value):
        return float(value)
    if key == "limit" and int(value) > 0:
        return int(value)
    if key == "input" and value:
        return value
    raise ValueError


def files(folder: Path) -> list[Path]:
    """The images of a folder, in the order of their names. Raises RequestError when there are none."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
        raise RequestError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


def read(folder: Path, shape: tuple[int | str, ...], dtype: Any, how: Preprocessing) -> Iterator[np.ndarray]:
    """Each image of the folder as an array of one batch: (1, channels, height, width), or as the layout says.

    `shape` is the input's, whose fixed sizes stand in for those not stated. Raises RequestError for a folder without
    images, for one that can't be read and for sizes that don't fit, UnavailableError without Pillow.
    """
    need("PIL")
    found = files(folder)[: how.limit]
    if len(shape) not in (3, 4):
        raise RequestError(f"{folder}: the input has {len(shape)} axes; images fit three or four")
    height, width = how.size or _own_size(folder, shape, how.layout)
    for file in found:
        pixels = _pixels(file, (height, width), how).astype(np.float64) / how.scale
        pixels = (pixels - np.asarray(how.mean or 0.0)) / np.asarray(how.std or 1.0)
        if how.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        whole = np.dtype(dtype or np.float32).kind in "iu"
        array = (np.rint(pixels) if whole else pixels).astype(dtype or np.float32)
        yield array[None] if len(shape) == 4 else array


def _own_size(folder: Path, shape: tuple[int | str, ...], layout: str) -> tuple[int, int]:
    height, width = shape[-2:] if layout == "nchw" else shape[-3:-1]
    if not isinstance(height, int) or not isinstance(width, int):
        raise RequestError(f"{folder}: the input has no size of its own; state one: --preprocess size=HEIGHTxWIDTH")
    return height, width


def _pixels(file: Path, size: tuple[int, int], how: Preprocessing) -> np.ndarray:
    """(height, width, channels), uint8."""
    from PIL import Image, ImageOps

    height, width = size
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("L" if how.color == "gray" else "RGB")
    except Exception as error:  # Pillow raises what its decoders raise
        raise RequestError(f"{file}: can't be read as an image: {one_line(error)}") from None
    if how.fit == "crop":
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    elif how.fit == "letterbox":
        gray: Any = 114 if how.color == "gray" else (114, 114, 114)
        image = ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, color=gray)
    else:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    return array[..., ::-1] if how.color == "bgr" else array
