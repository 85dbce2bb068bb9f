"""The ways a model fails, and who says so: TensorRT's parser and builder, ONNX Runtime, the comparison of numbers.

A judge says what is wrong with the model at a path. It tries the model in a long-lived child with time and memory
limits (`onnxfix.backends.trt`, `onnxfix.trial`), where a crash or a hang is one more way to fail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxfix import prove, shapes
from onnxfix.backends import BackendError, trt, workers
from onnxfix.backends.trt import BuildOptions
from onnxfix.cutting import between, write_inlined
from onnxfix.errors import UnavailableError
from onnxfix.model import Model, load
from onnxfix.report import Check, Status, Where

TWIN = "twin.onnx"


@dataclass(frozen=True)
class Failure:
    """One way a model fails. Two are the same when all but the place are, names and sizes in the reason included."""

    kind: str  # refused, build, load, run, differs, crash, hang or memory
    reason: str
    op: str = ""  # "" where no node is known
    code: str = ""  # the parser's own code
    where: Where | None = None

    def same(self, other: Failure) -> bool:
        one, two = ((f.kind, f.op, f.code, _essence(f)) for f in (self, other))
        return one == two

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where and self.where.op else ""
        return f"{place}{self.reason}"


Judge = Callable[[Path], "list[Failure]"]  # what is wrong with the model at a path; empty when nothing is


def _essence(failure: Failure) -> str:
    """A reason without what every run and every cut has otherwise."""
    if failure.kind in ("crash", "hang", "memory", "differs"):
        return ""
    text = re.sub(r"0x[0-9a-fA-F]+|\b\d+(\.\d+)? ?(s|ms|MiB|bytes)\b", "#", failure.reason)
    return text if failure.kind == "refused" else re.sub(r"\{[^}]*\}|\d+", "#", text)


def is_at(failure: Failure, name: str) -> bool:
    return failure.where is not None and name in (failure.where.node, *failure.where.outputs)


# ---- the judges ----


def parser_judge(seconds: float) -> Judge:
    """Everything TensorRT's parser refuses, or that it died."""

    def judge(path: Path) -> list[Failure]:
        return _from_check(prove.parse(path, seconds=seconds), "refused")

    return judge


def build_judge(folder: Path, seconds: float) -> Judge:
    """What the parser refuses, or why the builder fails. An engine that is built goes to the folder."""

    def judge(path: Path) -> list[Failure]:
        return _from_check(prove.build(path, folder / "trial.plan", BuildOptions(seconds=seconds)), "build")

    return judge


def _from_check(check: Check, kind: str) -> list[Failure]:
    if check.status is Status.NOT_RUN:
        raise UnavailableError(f"{check.name} can't be tried here: {check.detail}")
    if check.status is Status.PASSED:
        return []
    if not check.findings:
        return [Failure(kind, check.detail.rpartition(" (")[0] if check.detail.endswith(")") else check.detail)]
    failures = []
    for finding in check.findings:
        died = _death(finding.reason)
        where = finding.where if finding.where.op else None
        failures.append(
            died(where) if died else Failure("refused", finding.reason, finding.where.op, finding.limit, where)
        )
    return failures


def _death(text: str) -> Callable[[Where | None], Failure] | None:
    """What the text of a DiedError says became of the child."""
    for kind, pattern in (("crash", r"crashed \((.+?)\)"), ("hang", "did not finish"), ("memory", r"took \d+ MiB")):
        if found := re.search(rf"^[\w ]+? {pattern}", text):
            code = found[1] if kind == "crash" else ""
            return lambda where: Failure(kind, text, where.op if where else "", code, where)
    return None


@dataclass(frozen=True)
class Given:
    """What numbers are compared on: samples, a Polygraphy .json, of the inputs of the whole model."""

    model: str
    samples: str


@dataclass(frozen=True)
class Asking:
    """How trials are made in ONNX Runtime's child: within `seconds`, what has to be written goes to `folder`."""

    worker: workers.Worker
    folder: Path
    seconds: float
    given: Given | None = None

    def parity(self, do: str, path: Path, **what: str) -> list[Failure]:
        """How the numbers differ, on what `given` makes of the model's inputs, or on drawn ones."""
        given = vars(self.given) if self.given else None
        names = {"path": str(path), "folder": str(self.folder), "given": given, **what}
        return _asked(lambda: self.worker.ask(do, self.seconds, **names, budget=self.seconds / 2), _differs)


def ort_judge(asking: Asking) -> Judge:
    """Why ONNX Runtime does not load or run the model."""

    def judge(path: Path) -> list[Failure]:
        return _asked(lambda: asking.worker.ask("run", asking.seconds, path=str(path)), _loaded)

    return judge


def _loaded(answer: Mapping[str, Any]) -> list[Failure]:
    if not answer["stage"]:
        return []
    reason = re.sub(r"^Load model from .*? failed: ?", "", answer["reason"])
    op = re.search(r"(?:operator|Optype) \((\w+)\)|^(\w+) '|of (\w+)\(\d", reason)
    return [Failure(answer["stage"], reason, next(filter(None, op.groups()), "") if op else "")]


def rules_judge(asking: Asking, rules: str, target: str) -> Judge:
    """How the numbers differ once the rules have rewritten the model."""
    return lambda path: asking.parity("rules", path, rules=rules, target=target)


def against_judge(asking: Asking, other: Model, safety: str) -> Judge:
    """How the numbers differ from the other model's, cut at the same values: TWIN in the folder."""
    graph = shapes.index(other)
    twin = asking.folder / TWIN

    def judge(path: Path) -> list[Failure]:
        cut = load(path)
        fed = {t.name for t in cut.proto.graph.initializer} | {v.name for v in cut.proto.graph.input}
        proto = between(graph, fed, [v.name for v in cut.proto.graph.output])
        if proto is None or {v.name for v in proto.graph.input} - fed:
            return []
        _supply(proto, cut.proto)
        if not write_inlined(proto, other, twin):
            return []
        return asking.parity("parity", path, against=str(twin), safety=safety)

    return judge


def _supply(proto: onnx.ModelProto, cut: onnx.ModelProto) -> None:
    """What the cut made constant is constant in its twin too."""
    constants = {t.name: t for t in cut.graph.initializer}
    for i in range(len(proto.graph.input) - 1, -1, -1):
        if tensor := constants.get(proto.graph.input[i].name):
            proto.graph.initializer.append(tensor)
            del proto.graph.input[i]


def _differs(answer: Mapping[str, Any]) -> list[Failure]:
    if answer["status"] != Status.FAILED.value:
        return []
    kind = "run" if "fails where" in answer["detail"] or "does not load" in answer["detail"] else "differs"
    return [Failure(kind, answer["detail"])]


def _asked(ask: Callable[[], dict[str, Any]], read: Callable[[Mapping[str, Any]], list[Failure]]) -> list[Failure]:
    try:
        return read(ask())
    except trt.DiedError as error:
        died = _death(str(error))
        return [died(None) if died else Failure("crash", str(error))]
    except BackendError as error:
        return [Failure("run", str(error))]
