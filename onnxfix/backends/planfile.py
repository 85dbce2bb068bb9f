"""The header of a plan file, read without any TensorRT.

TensorRT checks a plan only as far as its own machine allows: without a driver it takes one of another version, or for
another GPU, as well as a good one. The first bytes say more. All numbers are little endian:

    offset  bytes  meaning
    0       4      "ftrt" for TensorRT from 8.6 on, "vtrt" for TensorRT-RTX, "ptrt" for TensorRT before
    4       4      layout of the header; only 0 is known
    8       8      number n of sections
    16      8      size of the whole plan
    24      4      version of the builder: major, minor, patch, build
    32      4      TensorRT-RTX: a bit for each compute capability
    48      4      TensorRT-RTX up to 1.6: version of CUDA, 13020 for 13.2
    64      24 n   TensorRT-RTX: each section's name (8 bytes, spelt backwards), offset and size

and the last 4 bytes of TensorRT-RTX's are the complement of "ftrt". How sure this is: the first two and the version of
"ftrt" are what NVIDIA's own `trtexec --getPlanVersionOnly` reads; everything of "vtrt" was seen in plans that the
releases 1.4, 1.5, 1.6 and 1.7 wrote for all their compute capabilities; the size of "ftrt" is taken over from there.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from onnxfix.errors import RequestError
from onnxfix.model import looks_like

PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_FLAVOURS = {b"ftrt": "tensorrt", b"ptrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # bit 0, 1, …
_FIXED = 64  # bytes before the sections
_END = bytes(255 - byte for byte in b"ftrt")
_PLAUSIBLE = 1 << 40  # a larger size is no size
_AGAIN = "copy or build it again"


class PlanError(RequestError):
    """The file is there, and no plan or not a whole one."""


@dataclass(frozen=True)
class Header:
    """What the header says, "" or () for what it does not."""

    flavour: str  # as imported: tensorrt, tensorrt_rtx
    version: str  # of the builder, "1.7.1.116"
    capabilities: tuple[str, ...]  # compute capabilities the plan runs on
    cuda: str
    bytes: int
    names: tuple[int, int] = (0, 0)  # where the section with the bindings' names begins and ends

    def __str__(self) -> str:
        return f"{PRODUCTS[self.flavour]} {self.version or '8.5 or before'}"


def read(path: Path) -> Header:
    """The header of the plan at `path`.

    Raises RequestError, one line, when there is no file to read, and PlanError for what is no plan or not a whole one:
    empty, another kind of file, cut short, longer than it says, with an end that is not its own.
    """
    if path.exists() and not path.is_file():
        raise RequestError(f"{path}: is a {'folder' if path.is_dir() else 'pipe or device'}; give the plan itself")
    try:
        with path.open("rb") as file:
            return _header(path, file, path.stat().st_size)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None


def names(path: Path, header: Header, wanted: list[str]) -> list[str]:
    """Those of `wanted` that the plan does not name; none where the header does not say where names are.

    TensorRT-RTX keeps the name of every input and output, also of an unused one, behind its length in 8 bytes.
    """
    start, end = header.names
    if not end:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        texts = {name: name.encode() for name in wanted}
        return [n for n, text in texts.items() if data.find(struct.pack("<Q", len(text)) + text, start, end) < 0]


def _header(path: Path, file: BinaryIO, size: int) -> Header:
    start = file.read(4096)
    tag = start[:4]
    if tag not in _FLAVOURS:
        raise PlanError(f"{path}: {_what_else(file, start)}")
    if tag == b"ptrt":
        return Header(_FLAVOURS[tag], "", (), "", size)
    if size < _FIXED:
        raise PlanError(f"{path}: the plan is cut short: {size} bytes are less than its header; {_AGAIN}")
    layout, sections, told = struct.unpack_from("<IQQ", start, 4)
    if layout != 0:
        raise PlanError(f"{path}: a plan with a header of layout {layout}, which onnxfix does not know")
    version = ".".join(map(str, start[24:28]))
    flavour = _FLAVOURS[tag]
    if told > size and (flavour == "tensorrt_rtx" or told < _PLAUSIBLE):
        raise PlanError(f"{path}: the plan is cut short: {size:,} of {told:,} bytes are there; {_AGAIN}")
    if flavour == "tensorrt":
        return Header(flavour, version, (), "", size)
    file.seek(max(told - len(_END), 0))
    if told != size:
        raise PlanError(f"{path}: the plan is damaged: it says {told:,} bytes and has {size:,}; {_AGAIN}")
    if file.read() != _END:
        raise PlanError(f"{path}: the plan is damaged: its end is not that of a plan; {_AGAIN}")
    bits, cuda = struct.unpack_from("<I12xI", start, 32)
    capabilities = tuple(c for bit, c in enumerate(_CAPABILITIES) if bits >> bit & 1)
    return Header(flavour, version, capabilities, _cuda(cuda), size, _engine(start, sections, size))


def _engine(start: bytes, sections: int, size: int) -> tuple[int, int]:
    """First byte and end of the section with the engine, (0, 0) when there is none where it should be."""
    for at in range(_FIXED, min(_FIXED + 24 * sections, len(start) - 24), 24):
        name, offset, length = struct.unpack_from("<8sQQ", start, at)
        if name == b"NGNE\0\0\0\0" and offset + length <= size:
            return offset, offset + length
    return 0, 0


def _cuda(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _what_else(file: BinaryIO, start: bytes) -> str:
    """What a file without a plan's tag is, and what to do about it."""
    if not start:
        return "the file is empty; build the plan again"
    if re.match(rb"[a-z]trt", start):
        return (
            f"a TensorRT plan of the kind '{start[:4].decode()}', which onnxfix does not know: perhaps for the safety "
            "runtime or of another operating system"
        )
    length = int.from_bytes(start[:4], "little")
    file.seek(4 + length)
    if start[4:5] == b"{" and file.read(4) in _FLAVOURS:
        return (
            f"a plan with {4 + length} bytes of Ultralytics' metadata in front, which only Ultralytics reads; "
            f"for TensorRT: tail -c +{5 + length} FILE > plain.plan"
        )
    # Field 1 of a ModelProto is a small number, and a name, the graph or the opsets follow.
    if re.match(rb"\x08[\x03-\x20][\x12\x1a\x22\x2a\x3a\x42\x72]", start):
        return "an ONNX model, not a plan; make a plan of it with onnxfix build"
    return f"not a TensorRT plan ({looks_like(start)}); give a file that onnxfix build or trtexec wrote"
