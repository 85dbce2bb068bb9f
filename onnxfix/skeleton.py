"""A large model without its weights in memory: they stay in the file, as external data in the model's own file.

The file is walked over as protobuf writes messages (protobuf.dev/programming-guides/encoding): a tag, which is the
field's number and the kind of its value, and the value. Only `ModelProto.graph`, `GraphProto.initializer` and
`TensorProto.raw_data` are looked at; everything else is copied as it stands.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxfix import model as models
from onnxfix.model import Model

SMALL_FILE = 64 << 20  # up to here there is nothing to save
SMALL_TENSOR = 1 << 10

TO_TENSORS = (onnx.ModelProto.GRAPH_FIELD_NUMBER, onnx.GraphProto.INITIALIZER_FIELD_NUMBER)
RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER
VARINT, EIGHT_BYTES, SIZED, FOUR_BYTES = 0, 1, 2, 5


def load(path: Path) -> Model:
    """As `model.load`, for reading only: what is saved elsewhere would lack its weights. Without a hash.

    Costs the memory of the nodes. Raises ModelError as `model.load` does.
    """
    if not path.is_file() or path.stat().st_size <= max(SMALL_FILE, 1):  # an empty file can't be mapped
        return models.load(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            light = _light(data, 0, len(data), TO_TENSORS, path.name)
        except ValueError:  # no protobuf; that is told better elsewhere
            light = b""
    return Model(models.parse(light, path), path) if light else models.load(path)


def _light(data: mmap.mmap, start: int, end: int, levels: tuple[int, ...], location: str) -> bytes:
    """The message between `start` and `end`; in the tensors, `levels` fields further down, references for raw data."""
    parts: list[bytes] = []
    for number, begin, at, stop in _fields(data, start, end):
        if levels and number == levels[0]:
            inner = _light(data, at, stop, levels[1:], location)
            parts += [_varint_of(number << 3 | SIZED), _varint_of(len(inner)), inner]
        elif not levels and number == RAW_DATA and stop - at > SMALL_TENSOR:
            parts.append(_reference(location, at, stop - at))
        else:
            parts.append(data[begin:stop])
    return b"".join(parts)


def _reference(location: str, offset: int, length: int) -> bytes:
    """The fields of a TensorProto that say where its values are."""
    tensor = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return bytes(tensor.SerializeToString())


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: the number, where the field begins, where its value begins, and where that ends.

    Raises ValueError where there is no such thing.
    """
    while start < end:
        tag, at = _varint(data, start)
        kind = tag & 7
        if kind == VARINT:
            _, stop = _varint(data, at)
        elif kind == SIZED:
            size, at = _varint(data, at)
            stop = at + size
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            stop = at + (8 if kind == EIGHT_BYTES else 4)
        else:
            raise ValueError(f"kind {kind}")
        if stop > end:
            raise ValueError("truncated")
        yield tag >> 3, start, at, stop
        start = stop


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("no end of a number")


def _varint_of(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])
