"""Where a bundle comes into being, and how it gets to its place: whole or not at all, as a folder or an archive."""

from __future__ import annotations

import contextlib
import gzip
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxfix.errors import RequestError
from onnxfix.model import remove_stale

ARCHIVES = (".tar", ".tar.gz", ".tgz")


@contextlib.contextmanager
def staging(destination: Path) -> Iterator[Path]:
    """A new folder beside the destination, gone afterwards; `publish` takes it before."""
    if not destination.parent.is_dir():
        raise RequestError(f"{destination}: cannot be written: its folder does not exist")
    empty = destination.is_dir() and not any(destination.iterdir()) and not destination.name.endswith(ARCHIVES)
    if destination.exists() and not empty:
        raise RequestError(f"{destination}: is there already; name a new folder or archive for the bundle")
    remove_stale(destination)
    folder = destination.parent / f".{destination.name}.onnxfix-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise RequestError(f"{destination}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, destination: Path) -> None:
    """Rename the folder, or an archive of it, into place. The same bundle gives the same archive."""
    if not destination.name.endswith(ARCHIVES):
        os.replace(folder, destination)
        return
    draft = folder.with_name(f"{folder.name}.onnx")  # a name that a later run would remove with the folder
    try:
        with draft.open("wb") as raw:
            if destination.suffix == ".tar":
                _pack(raw, folder, destination.name.split(".")[0])
            else:
                with gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed:
                    _pack(packed, folder, destination.name.split(".")[0])
        os.replace(draft, destination)
    finally:
        draft.unlink(missing_ok=True)


def _pack(stream: Any, folder: Path, name: str) -> None:
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, f"{name}/{path.relative_to(folder)}", recursive=False, filter=_constant)


def _constant(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what differs from run to run and from user to user."""
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
    return entry
