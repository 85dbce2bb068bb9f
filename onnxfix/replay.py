"""Do a run again, byte for byte, or without some of its changes.

Both start from the input model and from the record of the run, which the report holds, and the output model too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfix import __version__, api, catalog, matrix, record
from onnxfix.backends import version
from onnxfix.errors import ModelError, RequestError
from onnxfix.model import Draft, file_sha256, load
from onnxfix.report import Change, Record, Report

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Replayed:
    """The output made again. `sha256` is its hash: the one on record, or nothing would have been written."""

    output: str
    sha256: str
    changes: int


@dataclass(frozen=True)
class Undone:
    """A run without some changes. `asked` were named; `followed` needed them and went too; `came` are new instead."""

    asked: tuple[Change, ...]
    followed: tuple[Change, ...]
    came: tuple[Change, ...]
    report: Report


@dataclass(frozen=True)
class _Run:
    """A run as it was written down, with the files it needs found and checked."""

    name: str  # the file that told
    source: Path
    input: str  # its file name at the time of the run
    record: Record
    ruleset: catalog.RuleSet
    output: Path
    sha256: str  # of the output, "" when unknown

    def rewrite(self) -> api.Rewritten:
        kept = self.record
        return api.rewrite(
            self.source,
            self.ruleset,
            matrix.target(kept.target),
            kept.allow,
            kept.settings.get("freeze"),
            kept.settings.get("set_shape"),
            dict.fromkeys(kept.left_out, "left out"),
        )


def replay(
    told: PathLike, *, model: PathLike | None = None, rules: PathLike | None = None, output: PathLike | None = None
) -> Replayed:
    """Make the output of a run again from its input and its record: the same bytes, or an error and no file.

    `told` is the run's JSON report, or its output. `model` and `rules` say where the input and the rule file are now,
    where they are not where they were. Nothing is proved again: the bytes are those that were.

    Raises RequestError when the input, the rules or onnxfix are not the recorded ones, or the bytes differ; ModelError
    for a report without a record.
    """
    run = _read(Path(told), model, rules)
    destination = Path(output) if output else run.output
    done = run.rewrite()
    if done.changes:
        record.embed(done.model, run.record, run.input)
    with Draft(done.model, destination) as draft:
        sha256 = draft.sha256()
        if run.sha256 and sha256 != run.sha256:
            raise RequestError(f"{run.name}: the same input and rules gave other bytes{_blame(run.record)}")
        draft.publish()
    return Replayed(str(destination), sha256, len(done.changes))


def undo(
    told: PathLike,
    changes: Sequence[int],
    *,
    model: PathLike | None = None,
    rules: PathLike | None = None,
    output: PathLike | None = None,
    **settings: Any,
) -> Undone:
    """Make the output of a run again without the changes of these numbers, and prove it as `apply` does.

    Arguments as of `replay`; `settings` are further ones of `apply` (require, inputs, report_to, progress). Without
    `output` the new one takes the place of the run's. Raises RequestError for a number that is no change of that run.
    """
    run = _read(Path(told), model, rules)
    before = run.rewrite()
    numbers = {c.id: site for c, site in zip(before.changes[len(before.fixed) :], before.outcome.sites, strict=True)}
    for number in changes:
        if 0 < number <= len(before.fixed):
            raise RequestError(f"change {number} was asked for when the model was fixed: run apply without it")
        if number not in numbers:
            have = f"it has 1 to {len(before.changes)}" if before.changes else "it has none"
            raise RequestError(f"{run.name}: no change {number}; {have}")
    asked = {numbers[n] for n in changes}
    reasons = {site: "undone" for site in run.record.left_out} | dict.fromkeys(asked, "left out, as asked")
    report = api.apply(
        run.source,
        rules=run.ruleset,
        output=output or run.output,
        target=run.record.target,
        allow=run.record.allow,
        left_out=reasons,
        freeze=run.record.settings.get("freeze"),
        set_shape=run.record.settings.get("set_shape"),
        plugins_use=run.record.settings.get("plugins_use", ()),
        **settings,
    )
    gone = _without(before.changes, report.changes)
    named = {n for n, site in numbers.items() if site in asked}
    return Undone(
        asked=tuple(c for c in before.changes if c.id in named),
        followed=tuple(c for c in gone if c.id not in named),
        came=_without(report.changes, before.changes),
        report=report,
    )


def _without(changes: Sequence[Change], others: Sequence[Change]) -> tuple[Change, ...]:
    """The changes that have no equal among the others, whatever their numbers."""

    def kind(change: Change) -> tuple[Any, ...]:
        where = change.where
        return change.rule, where.graph, where.node, where.op, where.outputs

    left = Counter(map(kind, others))
    found = []
    for change in changes:
        if left[kind(change)] > 0:
            left[kind(change)] -= 1
        else:
            found.append(change)
    return tuple(found)


# ---- what was written down ----


def _read(told: Path, model: PathLike | None, rules: PathLike | None) -> _Run:
    """Raises RequestError where the input or the rules are gone, or are no longer what they were."""
    if told.suffix.lower() == ".json":
        kept, source, output, input_sha, output_sha = _of_report(told)
    else:
        kept, source, output, input_sha, output_sha = _of_output(told)
    path = Path(model) if model else source
    if not path.is_file():
        raise RequestError(f"{path}: the input of the run is not there; say where it is with --model")
    found = file_sha256(path)
    if found != input_sha:
        hashes = f"its hash is {found[:12]}…, on record {input_sha[:12]}…"
        raise RequestError(f"{path}: is not the input of the run: {hashes}")
    if kept.versions.get("onnxfix") != __version__:
        was = kept.versions.get("onnxfix", "unknown")
        raise RequestError(f"{told}: was made by onnxfix {was}, and this is {__version__}: pip install onnxfix=={was}")
    name = _rule_file(kept, told, rules)
    ruleset = catalog.load_set(name, kept.settings.get("plugins_use", ()))
    if record.digest(ruleset) != kept.rules_sha256:
        raise RequestError(f"{told}: the rules of {name} are no longer those of the run; take the same version of them")
    return _Run(str(told), path, source.name, kept, ruleset, output, output_sha)


def _rule_file(kept: Record, told: Path, rules: PathLike | None) -> str:
    if rules:
        return os.fspath(rules)
    beside = told.parent / kept.rules
    return str(beside) if not Path(kept.rules).is_file() and beside.is_file() else kept.rules


def _of_report(path: Path) -> tuple[Record, Path, Path, str, str]:
    try:
        report = Report.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelError(f"{path}: is no report of onnxfix; give one that --report wrote") from None
    if report.record is None:
        raise ModelError(f"{path}: holds no record of the run; run apply again with --report")
    output = report.output or f"{Path(report.model).with_suffix('')}.fixed.onnx"
    return report.record, _beside(Path(report.model), path), Path(output), report.model_sha256, report.output_sha256


def _of_output(path: Path) -> tuple[Record, Path, Path, str, str]:
    fixed = load(path)
    found = record.read(fixed)
    if found is None:
        raise ModelError(f"{path}: holds no record of a run; give the report instead")
    kept, name, sha256 = found
    source = path.parent / name
    return kept, source, path, sha256, fixed.sha256


def _beside(path: Path, told: Path) -> Path:
    """A path of the report's, or the file of that name beside the report when the two have moved."""
    moved = told.parent / path.name
    return moved if not path.is_file() and moved.is_file() else path


def _blame(kept: Record) -> str:
    here = {p: version(p) for p in kept.versions if p != "onnxfix"}
    other = [f"{p} was {kept.versions[p]}, here it is {v}" for p, v in here.items() if kept.versions[p] != v]
    return f": {'; '.join(other)}" if other else "; nothing was written"
