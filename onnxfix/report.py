"""What a run has to say: findings, changes, skipped rules and checks, as frozen dataclasses with JSON.

Four words, used alike in code, reports and on the command line: a *Finding* is a node the target does not take;
a *Change* says a rule acted; a *Skipped* says a rule declined, and why; a *Check* is a proof and its outcome.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any


class Safety(str, enum.Enum):
    """What a rewrite does to the numbers."""

    EXACT = "exact"  # the same numbers, bit for bit
    CLOSE = "close"  # rounding only
    LOSSY = "lossy"  # numbers change; never done unless asked for

    @property
    def rank(self) -> int:
        return list(Safety).index(self)


class Effect(str, enum.Enum):
    """What becomes of a node the target does not fully take."""

    REFUSED = "refused"  # the parser reports an error
    WRONG = "silently wrong"  # accepted, but what the node asks for is ignored
    BUILD_FAILS = "build fails"  # parsed, but the engine build is expected to fail
    PLUGIN = "needs a plugin"
    UNDECIDED = "undecided"  # a limit exists that could not be decided (unknown shape, no predicate)
    UNKNOWN = "unknown"  # the matrix has no row for this op; never counted as fine
    WARNED = "warned"  # built, with a word of TensorRT's on the node


class Status(str, enum.Enum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Where:
    """A node's place. `graph` is the path of scopes, "" for the main graph, e.g. "If_3/then_branch"."""

    node: str  # the node's name; "" when it has none
    op: str
    domain: str = ""
    index: int = -1  # position among the nodes of its graph in the input model, from 0; -1 when not in it
    outputs: tuple[str, ...] = ()
    graph: str = ""

    def __str__(self) -> str:
        name = self.node or (f"#{self.index}" if self.index >= 0 else "")
        op = f"{self.domain}::{self.op}" if self.domain else self.op
        place = f" in {self.graph}" if self.graph else ""
        outputs = f" -> {', '.join(o for o in self.outputs if o)}" if self.outputs else ""
        return f"{op} {name}{outputs}{place}".strip()


@dataclass(frozen=True)
class Finding:
    """A node that `by` (a matrix or a parser, with version) does not take as it is."""

    where: Where
    effect: Effect
    reason: str
    by: str  # e.g. "matrix trt-8.2" or "tensorrt_rtx 1.7.1"
    evidence: str = ""  # the matrix row or the parser's own code and words
    rules: tuple[str, ...] = ()  # ids of the rules that would help
    limit: str = ""  # the limit of the matrix, e.g. "resize/mode", or "parser/" and the parser's code; stable


@dataclass(frozen=True)
class Change:
    """A rule acted."""

    id: int
    rule: str
    safety: Safety
    where: Where
    message: str  # what was done, in one sentence
    removed: tuple[str, ...] = ()  # nodes that are gone, as str(Where)
    added: tuple[str, ...] = ()  # nodes that came
    interface: bool = False  # a graph input or output changed its dtype or shape


@dataclass(frozen=True)
class Site:
    """Where a rule acted, told by what a second run of the same rules on the same model finds again."""

    rule: str
    graph: str
    node: str
    op: str
    outputs: tuple[str, ...]
    time: int = 0  # how often the rule had acted right there before


@dataclass(frozen=True)
class Record:
    """What it takes, beside the input model, to make the output again: `onnxfix replay`, `onnxfix undo`."""

    rules: str  # the rule file: a shipped one's name, or its path as it was given
    rules_sha256: str  # of the rule file, of its rules and of what they call
    target: str
    allow: Safety
    versions: dict[str, str]  # of onnxfix and of the packages whose numbers can get into a model
    settings: dict[str, Any] = field(default_factory=dict)  # further arguments of `apply` that shape the output
    left_out: tuple[Site, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A rule declined a node it looks after."""

    rule: str
    where: Where
    reason: str


@dataclass(frozen=True)
class Check:
    """A proof and its outcome: structure, changes, parse, parity; of an engine plugins, precision, build, readback."""

    name: str
    status: Status
    by: str  # who judged, with version, e.g. "tensorrt_rtx 1.7.1.116 through polygraphy 0.53.6"
    detail: str  # one sentence: what was proved, or what failed, or why it did not run
    figures: dict[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Report:
    """All of one run."""

    command: str
    model: str
    target: str
    verdict: str  # see onnxfix/verdict.py
    onnxfix: str
    output: str = ""
    model_sha256: str = ""
    output_sha256: str = ""
    rules: str = ""
    findings: tuple[Finding, ...] = ()  # in the input model
    remaining: tuple[Finding, ...] = ()  # in the output model
    changes: tuple[Change, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    judged: str = ""  # who gave the verdict, for which target, and what is missing, in one sentence
    record: Record | None = None

    def check(self, name: str) -> Check | None:
        return next((c for c in self.checks if c.name == name), None)

    def to_json(self) -> str:
        return json.dumps(to_dict(self), indent=2, ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Report:
        report = from_dict(Report, json.loads(text))
        assert isinstance(report, Report)
        return report


def to_dict(value: Any) -> Any:
    """Dataclasses, enums, tuples and numpy scalars as plain JSON values.

    Numbers that JSON has no word for (infinities, NaN) become the strings "inf", "-inf" and "nan".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_dict(v) for k, v in value.items()}
    if hasattr(value, "item"):  # a numpy scalar among the figures of a check
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_dict(kind: Any, value: Any) -> Any:
    """The reverse of `to_dict` for the types used in this module; unknown keys are an error (TypeError)."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(k for k in typing.get_args(kind) if k is not type(None))
        return None if value is None else from_dict(inner, value)
    if origin is tuple:
        return tuple(from_dict(typing.get_args(kind)[0], v) for v in value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        assert isinstance(kind, type)
        return kind(**{k: from_dict(hints.get(k, Any), v) for k, v in value.items()})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    return value
