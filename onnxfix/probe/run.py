"""The probe as a whole: questions, answers, matrix. And the same with the parser on another machine.

    result = measure("tensorrt_rtx")       # or bundle(folder), carry it to a board, read(its result)
    found = evaluate(result)               # the matrix, and how well it explains the answers
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import platform
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from onnxfix import matrix
from onnxfix.backends.trt import TensorRT
from onnxfix.errors import RequestError
from onnxfix.model import write_atomic
from onnxfix.probe import board, standard
from onnxfix.probe.ask import Outcome, Progress, ask_all
from onnxfix.probe.assemble import Agreement, agreement, assemble, curated, written
from onnxfix.probe.models import Case, cases

FORMAT = 1  # of bundles and results
COMMAND = "onnxfix matrix probe"


@dataclass(frozen=True)
class Result:
    """What one parser said."""

    package: str  # "tensorrt" or "tensorrt_rtx"
    version: str
    onnx: str  # the version of onnx whose models were asked about
    date: str
    importers: Mapping[str, bool]  # operator -> whether the parser claims it, as far as it can be asked
    outcomes: Mapping[str, Outcome]
    machine: str = ""

    @property
    def release(self) -> str:
        """The name of its matrix: "rtx-1.7", "8.2"."""
        minor = ".".join(self.version.split(".")[:2])
        return f"rtx-{minor}" if self.package == "tensorrt_rtx" else minor


@dataclass(frozen=True)
class Found:
    """A measured matrix."""

    data: Mapping[str, Any]
    dropped: list[str]  # derived limits that some other outcome contradicts
    own: Agreement  # with the probe's own models
    tests: Agreement  # with the node tests of onnx

    @property
    def text(self) -> str:
        """The matrix file."""
        return written(self.data)


@functools.cache
def _questions() -> tuple[tuple[Case, ...], tuple[tuple[str, ModelProto], ...]]:
    own = tuple(cases())
    tests = tuple((f"test/{name}/{form}", model) for name, form, model in standard.node_tests())
    return own, tests


def questions() -> list[tuple[str, ModelProto]]:
    """(name, model) of everything that is asked: the probe's own models, then the node tests of onnx."""
    own, tests = _questions()
    return [*((c.name, c.model) for c in own), *tests]


def operators() -> list[str]:
    """All operators of ONNX, as "Add" or "ai.onnx.ml::Scaler"."""
    found = {f"{s.domain}::{s.name}" if s.domain else s.name for s in onnx.defs.get_all_schemas()}
    return sorted(found)


def measure(flavour: str | None = None, progress: Progress | None = None) -> Result:
    """Ask the parser on this machine. About a minute. Raises UnavailableError where there is none."""
    with TensorRT(flavour) as parser:
        about = parser.about()
        if progress:
            progress("making the models", 0, None)
        asked = questions()
        # The parser knows names, not domains: other domains are tried, not claimed.
        importers = {op: parser.supports(op) if "::" not in op else False for op in operators()}
        outcomes = ask_all(parser, asked, progress)
    today = datetime.date.today().isoformat()
    return Result(about.flavour, about.version, onnx.__version__, today, importers, outcomes, platform.machine())


def evaluate(result: Result, progress: Progress | None = None) -> Found:
    """The matrix that follows from a result, and how well it explains it.

    Raises RequestError when the result is about the models of another onnx.
    """
    own, tests = _questions()
    known = {c.name for c in own} | {name for name, _ in tests}
    if result.onnx != onnx.__version__ or known != set(result.outcomes):
        raise RequestError(
            f"the result is about the models of onnx {result.onnx}, here is onnx {onnx.__version__}: "
            "read it where the bundle was made, or with that onnx"
        )
    if progress:
        progress("working out the limits", 0, None)
    source = {"package": result.package.replace("_", "-"), "version": result.version}
    data, dropped = assemble(
        result.release,
        list(own),
        result.outcomes,
        result.importers,
        curated(result.release),
        source,
        dict(tests),
    )
    target = matrix.of_data(data)
    ours = agreement(((c.name, c.model) for c in own), result.outcomes, target)
    theirs = agreement(tests, result.outcomes, target)
    data["source"]["measured"] = {
        "command": COMMAND,
        "date": result.date,
        "machine": result.machine,
        "onnx": result.onnx,
        "models": ours.total + theirs.total,
        "crashes": sum(o.code == "CRASH" for o in result.outcomes.values()),
        "own_models_agree": f"{ours.right} of {ours.total}",
        "node_tests_agree": f"{theirs.right} of {theirs.total}",
    }
    return Found(data, dropped, ours, theirs)


# ---- on another machine ----


def bundle(
    folder: Path, progress: Progress | None = None, asked: Sequence[tuple[str, ModelProto]] | None = None
) -> int:
    """Write a folder to carry to a board: the models, and the script that asks about them. Returns their number.

    `asked` are other models by name than all `questions`.

    Raises RequestError when the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder}: is there already; name a new folder for the bundle")
    if progress:
        progress("making the models", 0, None)
    asked = questions() if asked is None else asked
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "models.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (_, model) in enumerate(asked):
            # A fixed date: the same models make the same archive.
            archive.writestr(zipfile.ZipInfo(f"{number:06d}.onnx", (1980, 1, 1, 0, 0, 0)), model.SerializeToString())
    names = [name for name, _ in asked]
    content = {"format": FORMAT, "id": _id(names), "onnx": onnx.__version__, "operators": operators(), "models": names}
    write_atomic(folder / "bundle.json", json.dumps(content))
    shutil.copyfile(board.__file__, folder / "probe_tensorrt.py")
    return len(asked)


def _id(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def read(path: Path) -> Result:
    """What the script wrote on the board. Raises RequestError for another kind of file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT or data["bundle"] != _id(list(data["outcomes"])):
            raise ValueError("written by another version of the probe, or cut short")
        outcomes = {str(name): Outcome(**answer) for name, answer in data["outcomes"].items()}
        importers = {op: bool(claimed) and "::" not in op for op, claimed in data["importers"].items()}
        return Result(
            str(data["package"]), str(data["version"]), str(data["onnx"]), str(data["date"]), importers, outcomes,
            str(data["machine"]),
        )  # fmt: skip
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path}: is no result of the probe ({error})") from error


def save(result: Result, path: Path) -> None:
    """Keep a result, in the form `read` takes."""
    content = {**asdict(result), "format": FORMAT, "bundle": _id(list(result.outcomes))}
    write_atomic(path, json.dumps(content))
