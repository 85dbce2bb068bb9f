"""Load and save: one ONNX file and its external data, with hashes and an output that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, numpy_helper

from onnxfix import names
from onnxfix.errors import ModelError, RequestError

# protobuf refuses messages of 2 GiB; stay below it with room for what the caller adds.
PROTOBUF_LIMIT = 2**31 - 2**20


class Model:
    """A ModelProto and where it came from. External data stays on disk until a tensor is asked for."""

    def __init__(self, proto: onnx.ModelProto, path: Path | None = None, sha256: str = "") -> None:
        self.proto = proto
        self.path = path
        self.sha256 = sha256
        self.opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}

    @property
    def directory(self) -> Path:
        return self.path.parent if self.path else Path(".")

    def opset(self, domain: str = "") -> int:
        """The version imported for `domain`, 0 when it is not imported."""
        return self.opsets.get("" if domain == "ai.onnx" else domain, 0)

    def import_opset(self, domain: str, version: int) -> None:
        """Import `domain` at `version` unless it is imported already."""
        if self.opset(domain) == 0:
            self.proto.opset_import.add(domain=domain, version=version)
            self.opsets[domain] = version

    def array(self, tensor: TensorProto) -> np.ndarray:
        """The values of `tensor`; external data is read now, and only that tensor's range.

        Raises ModelError when the data is missing, short or outside the model's folder.
        """
        if is_external(tensor):
            external_path(tensor, self.directory)
            copy = TensorProto()
            copy.CopyFrom(tensor)
            try:
                external_data_helper.load_external_data_for_tensor(copy, str(self.directory))
            except (OSError, ValueError, onnx.checker.ValidationError) as error:
                raise ModelError(
                    f"{self.path}: cannot read the external data of '{tensor.name}': {one_line(error)}"
                ) from None
            tensor = copy
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{self.path}: tensor '{tensor.name}' is damaged: {one_line(error)}; export the model again"
            ) from None

    def tensors(self) -> Iterator[TensorProto]:
        """All stored tensors: initializers and tensor attributes, in the graph, its bodies and functions."""
        yield from _graph_tensors(self.proto.graph)
        for function in self.proto.functions:
            yield from _node_tensors(function.node)


def load(path: str | os.PathLike[str]) -> Model:
    """Read the model at `path`, without its external data.

    Raises ModelError, in one line, for a missing file, a folder, and for bytes that are no ONNX model.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    return Model(parse(data, path), path, hashlib.sha256(data).hexdigest())


def tapped(model: Model, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model that gives these inner values of the main graph as outputs too."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    known = {v.name for v in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    return proto


def file_sha256(path: Path) -> str:
    """Of a file of any size, in little memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def parse(data: bytes, name: object = "model") -> onnx.ModelProto:
    """Bytes to ModelProto. Raises ModelError naming what the bytes look like when they are no model."""
    if not data:
        raise ModelError(f"{name}: the file is empty; fetch or export the model again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"{name}: not an ONNX model ({looks_like(data)}); give a .onnx file") from None
    # Nearly any bytes parse as *some* protobuf, so ask for what every model has.
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{name}: not an ONNX model ({looks_like(data)}); give a .onnx file")
    if not proto.opset_import:
        raise ModelError(f"{name}: the model imports no opset; it is damaged or of 2017, export it again")
    names.check(proto, name)
    return proto


def looks_like(data: bytes) -> str:
    """What bytes that are no model, or no plan, seem to be instead."""
    for magic, kind in (
        (b"version https://git-lfs", "a git-lfs pointer: run `git lfs pull`"),
        (b"ftrt", "a TensorRT engine"),
        (b"ptrt", "a TensorRT engine"),
        (b"PK\x03\x04", "a zip file, perhaps a PyTorch checkpoint: export it with torch.onnx.export"),
        (b"\x89HDF", "an HDF5 file: convert it with tf2onnx"),
        (b"<", "HTML or XML: the download went wrong"),
        (b"{", "JSON"),
    ):
        if data.lstrip()[: len(magic)] == magic:
            return kind
    return "truncated, or another kind of file"


def one_line(error: object) -> str:
    """An exception's text on one line, shortened to what fits a message."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def external_field(tensor: TensorProto, key: str) -> str:
    return next((e.value for e in tensor.external_data if e.key == key), "")


def external_path(tensor: TensorProto, directory: Path) -> Path:
    """Where the data of an external `tensor` lies.

    Raises ModelError when the path leaves the model's folder: a model must not read the user's other files.
    """
    location = external_field(tensor, "location")
    parts = PurePosixPath(location.replace("\\", "/"))
    if (
        not location
        or "\0" in location
        or parts.is_absolute()
        or ".." in parts.parts
        or re.match(r"^[A-Za-z]:", location)
    ):
        raise ModelError(f"external data of '{tensor.name}' points outside the model's folder ({location!r}); refused")
    path = directory / parts
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ModelError(
            f"external data of '{tensor.name}' leaves the model's folder through a link ({location!r}); refused"
        )
    return path


def nbytes(tensor: TensorProto) -> int:
    """Size of the tensor's values in bytes, from its dims and dtype, without reading them."""
    count = 1
    for dim in tensor.dims:
        count *= dim
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    bits = {
        TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4,
        getattr(TensorProto, "INT2", -1): 2, getattr(TensorProto, "UINT2", -2): 2,
    }.get(tensor.data_type)  # fmt: skip
    if bits:
        return (count * bits + 7) // 8
    try:
        return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError):
        return 0


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: object) -> Iterator[TensorProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


class Draft:
    """A model written whole under a hidden name beside its destination, to be proved and then published.

    Nothing appears under the destination's name before `publish`, which renames; leaving the `with` block
    without it leaves no trace. What a killed run left is removed by the next one. `folder` is for other results that
    should be renamed into place too.

    External data is copied into the folder when the destination is elsewhere; beside the input the output refers to
    the same data file, and the draft lies next to it, since checkers accept neither links nor other folders.
    """

    def __init__(self, model: Model, destination: Path) -> None:
        self.destination = destination
        self._sources: list[tuple[Path, Path]] = []  # data files to rename: (in the folder, final)
        parent = destination.parent
        if destination.is_dir():
            raise RequestError(f"{destination}: is a folder; name a file with -o")
        if model.path and destination.exists() and os.path.samefile(model.path, destination):
            raise RequestError(f"{destination}: is the input itself; give another name with -o")
        remove_stale(destination)
        self.folder = parent / f".{destination.name}.onnxfix-{os.getpid()}-{secrets.token_hex(4)}"
        self._shares = any(is_external(t) for t in model.tensors()) and (model.directory.resolve() == parent.resolve())
        self.path = (
            self.folder.with_name(f"{self.folder.name}.onnx") if self._shares else self.folder / destination.name
        )
        try:
            self.folder.mkdir()
            self._write(model)
        except OSError as error:
            self.__exit__()
            raise RequestError(f"{destination}: cannot be written: {_reason(error)}") from None
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.path.unlink(missing_ok=True)

    def sha256(self) -> str:
        return file_sha256(self.path)

    def publish(self) -> None:
        """Rename into place: the data first, the model that refers to it last."""
        try:
            for here, final in self._sources:
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(here, final)
            os.replace(self.path, self.destination)
            with contextlib.suppress(OSError):  # a folder cannot be synced on every file system
                handle = os.open(self.destination.parent, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
        except OSError as error:
            raise RequestError(f"{self.destination}: cannot be written: {_reason(error)}") from None

    def _write(self, model: Model) -> None:
        external = [t for t in model.tensors() if is_external(t)]
        proto = model.proto
        renamed: dict[str, str] = {}
        for location in dict.fromkeys(external_field(t, "location") for t in external):
            tensor = next(t for t in external if external_field(t, "location") == location)
            source = external_path(tensor, model.directory)
            if not source.is_file():
                raise ModelError(f"{model.path}: its external data file '{location}' is missing; put it beside it")
            if self._shares:
                continue
            name = f"{self.destination.name}.data" + (f".{len(renamed)}" if renamed else "")
            renamed[location] = name
            shutil.copyfile(source, self.folder / name)
            self._sources.append((self.folder / name, self.destination.parent / name))
        entries = [e for t in external for e in t.external_data if e.key == "location" and e.value in renamed]
        originals = [e.value for e in entries]
        try:
            for entry in entries:
                entry.value = renamed[entry.value]
            if proto.ByteSize() > PROTOBUF_LIMIT:
                raise RequestError(
                    f"{self.destination}: the model exceeds protobuf's 2 GiB; save it with external data first "
                    "(onnx.save_model(..., save_as_external_data=True))"
                )
            # Deterministic: the same model gives the same bytes.
            data = proto.SerializeToString(deterministic=True)
        finally:
            for entry, value in zip(entries, originals, strict=True):
                entry.value = value
        with open(self.path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a small file whole or not at all. Raises RequestError."""
    temporary = path.with_name(f".{path.name}.onnxfix-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RequestError(f"{path}: cannot be written: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space or write elsewhere with -o"
    if error.errno == errno.ENOENT:
        return "its folder does not exist"
    return error.strerror or str(error)


def remove_stale(destination: Path) -> None:
    """Remove drafts of this destination whose process is gone."""
    pattern = re.compile(re.escape(f".{destination.name}.onnxfix-") + r"(\d+)-[0-9a-f]{8}(\.onnx)?$")
    with contextlib.suppress(OSError):
        for entry in os.scandir(destination.parent):
            match = pattern.match(entry.name)
            if match and not _alive(int(match[1])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
