"""The gate: does a target take these models? One verdict for each, one exit status for all.

    report = onnxfix.gate(["models/"], target="jetson-nano", rules="jetson.yml")
    report.exit_status               # 0, 1 when a model is refused, 3 when a required parse could not run

Several models are judged in several processes, each with a parser of its own, so that a model on which one of them
crashes costs the verdict on that model alone. (The module is not called `gate`: `onnxfix.gate` is the function.)
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix import __version__, catalog, engine, inspection, matrix, prove, shapes, verdict
from onnxfix import freeze as freezing
from onnxfix.backends import child_environment
from onnxfix.catalog import RuleSet
from onnxfix.errors import ModelError, OnnxfixError, RequestError
from onnxfix.graph import Graph
from onnxfix.model import Draft, Model, external_field, external_path, is_external, load, one_line, write_atomic
from onnxfix.report import Check, Effect, Finding, Status, Where, from_dict, to_dict
from onnxfix.rule import REWRITABLE

PathLike = str | os.PathLike[str]
Progress = Callable[[str, int, int | None], None]  # (stage, done, of how many or None)

UNREADABLE = "model/unreadable"  # limit of the finding on a file that could not be judged at all
BASELINE_FORMAT = 1


@dataclass(frozen=True)
class Hit:
    """A finding on one model, with what tells it from others over time."""

    finding: Finding
    fingerprint: str  # of model, limit, operator and node; the same after another export
    level: str  # "error", "warning", or "note" for what the rules take away
    known: bool = False  # in the baseline


@dataclass(frozen=True)
class Gated:
    """One model and its verdict."""

    model: str  # relative to the report's root where it lies below it, with "/"
    verdict: str  # refused, unverified, accepted or proved
    judged: str  # who says so, for which target, and what is missing
    hits: tuple[Hit, ...] = ()
    changes: int = 0  # that the rules had to make first
    error: str = ""  # why the file could not be judged; it then counts as refused
    unproved: str = ""  # why a required parse did not run
    notes: tuple[str, ...] = ()
    sha256: str = ""
    seconds: float = 0.0

    @property
    def known(self) -> bool:
        """Whether all that speaks against the model is in the baseline."""
        against = [h for h in self.hits if h.level == "error"]
        return not self.error and bool(against) and all(h.known for h in against)

    @property
    def fails(self) -> bool:
        """Whether this model closes the gate."""
        return self.verdict == "refused" and not self.known


@dataclass(frozen=True)
class Expected:
    """A finding in a baseline."""

    fingerprint: str
    model: str
    limit: str
    where: str


@dataclass(frozen=True)
class GateReport:
    """All of one run of the gate."""

    target: str
    models: tuple[Gated, ...]
    rules: str = ""  # the rule file, "" when models are judged as they are
    baseline: str = ""  # the baseline file, "" when there is none
    vanished: tuple[Expected, ...] = ()  # what the baseline expects and is gone: it can be written anew
    notes: tuple[str, ...] = ()
    root: str = ""  # the folder that the models' paths start from
    onnxfix: str = __version__
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """The worst of the models' verdicts that no baseline excuses."""
        words = {m.verdict for m in self.models if m.fails or m.verdict != "refused"}
        return next((w for w in ("refused", "unverified", "accepted", "proved") if w in words), "refused")

    @property
    def exit_status(self) -> int:
        """0 fine; 1 a model is refused, or is no model; 3 a required parse could not run."""
        if any(m.fails for m in self.models):
            return 1
        return 3 if any(m.unproved for m in self.models) else 0

    def count(self) -> Counter[str]:
        """How many models have each verdict; those refused as the baseline expects are "known"."""
        return Counter("known" if m.known and m.verdict == "refused" else m.verdict for m in self.models)


def gate(
    paths: Iterable[PathLike],
    *,
    target: str | None = None,
    rules: PathLike | None = None,
    baseline: PathLike | None = None,
    require: Sequence[str] = (),
    freeze: freezing.Values | None = None,
    set_shape: freezing.Shapes | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> GateReport:
    """Judge models for a target: by the matrix, and by TensorRT's parser where one is installed.

    `paths` are files, folders (all `*.onnx` below, hidden folders left out) and glob patterns. With `rules`, a refused
    model is judged as `apply` would leave it; nothing is written. `target` may come from the rule file. Findings in
    `baseline`, as `write_baseline` wrote it, don't close the gate. `require=("parse",)` wants every model parsed, and
    taken, by the parser at hand even if that is not the target's own. With `freeze` and `set_shape` every model is
    judged as `apply` with them leaves it. `jobs` processes work at a time, by default one for each processor; a single
    model is judged in this one.

    A file that cannot be read or judged, or that `freeze` or `set_shape` do not fit, is an error of that model and
    counts as refused. Raises RequestError for a path that is not there, for paths without any model, a bad baseline,
    and whatever is wrong with rules or target.
    """
    began = time.monotonic()
    for name in require:
        if name != "parse":
            raise RequestError(f"the gate can require 'parse', not '{name}'; `onnxfix apply` runs the other proofs")
    if jobs is not None and jobs < 1:
        raise RequestError(f"{jobs} jobs: give a number from 1")
    root = find_root(Path.cwd())
    values = {name: np.asarray(value).tolist() for name, value in (freeze or {}).items()}
    sizes = {name: list(shape) for name, shape in (set_shape or {}).items()}
    rule_file = os.fspath(rules) if rules is not None else ""
    task = _Task(target or "", rule_file, "parse" in require, str(root), values, sizes)
    judge = _Judge(task)
    known = read_baseline(Path(baseline)) if baseline is not None else None
    models = tuple(_judge_all(list(expand(paths)), judge, jobs, progress))
    report = GateReport(
        target=judge.goal.label,
        models=models,
        rules=judge.ruleset.name if judge.ruleset else "",
        root=str(root),
        seconds=round(time.monotonic() - began, 3),
    )
    return report if known is None else compare(report, known, os.fspath(baseline or ""))


# ---- which models ----


def expand(paths: Iterable[PathLike]) -> Iterator[Path]:
    """The models that `paths` mean, each once, in the order given, those of a folder sorted.

    Raises RequestError for a path that is not there, a pattern or folder that holds none, and for no paths at all.
    """
    seen: set[Path] = set()
    for given in paths:
        for path in _files(os.fspath(given)):
            if (resolved := path.resolve()) not in seen:
                seen.add(resolved)
                yield path
    if not seen:
        raise RequestError("no model given: name files, folders or patterns such as 'models/**/*.onnx'")


def _files(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        found = sorted(_below(path))
        if not found:
            raise RequestError(f"{given}: no .onnx file in this folder or below it")
        return found
    if path.exists():
        return [path]
    if glob.has_magic(given):
        matches = [Path(p) for p in sorted(glob.glob(given, recursive=True)) if os.path.isfile(p)]
        if matches:
            return matches
        raise RequestError(f"{given}: no file matches this pattern")
    raise RequestError(f"{given}: no such file or folder")


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        yield from (Path(place, n) for n in names if n.endswith(".onnx") and not n.startswith("."))


def find_root(start: Path) -> Path:
    """What paths in reports and fingerprints are relative to: the repository around `start`, else `start` itself."""
    return next((p for p in (start, *start.parents) if (p / ".git").exists()), start)


def _shown(path: Path, root: Path) -> str:
    absolute = Path(os.path.abspath(path))
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()


# ---- one model ----


@dataclass(frozen=True)
class _Task:
    """What is asked about every model, in words a child process can be told."""

    target: str  # "" for the rule file's
    rules: str
    require_parse: bool
    root: str
    freeze: Mapping[str, Any] = field(default_factory=dict)
    set_shape: Mapping[str, Sequence[int | None]] = field(default_factory=dict)


class _Judge:
    """Judges one model after another. Raises RequestError when target or rules are wrong."""

    def __init__(self, task: _Task) -> None:
        self.task = task
        self.root = Path(task.root)
        self.ruleset: RuleSet | None = catalog.load_set(task.rules) if task.rules else None
        name = task.target or (self.ruleset.target if self.ruleset else "")
        if not name:
            raise RequestError("the gate needs a target: --target, or a rule file that names one")
        self.goal = matrix.target(name)
        self.rules = (
            self.ruleset.rules
            if self.ruleset
            else tuple(catalog.without_plugins(catalog.load_folder(catalog.shipped()).values()))
        )
        self.require_parse = task.require_parse or (self.ruleset is not None and "parse" in self.ruleset.require)

    def __call__(self, path: Path) -> Gated:
        """The verdict on the model at `path`; whatever goes wrong with it is in the verdict."""
        began = time.monotonic()
        name = _shown(path, self.root)
        try:
            gated = self._judge(path, name)
        except OnnxfixError as error:
            gated = _unreadable(name, str(error))
        except RecursionError:
            gated = _unreadable(name, f"{path}: bodies are nested too deeply")
        except Exception as error:  # a bug of ours on this model must not hide the verdict on the others
            what = f"{type(error).__name__}: {one_line(error)}"
            gated = _unreadable(name, f"{path}: a bug in onnxfix, please report it with this model: {what}")
        return replace(gated, seconds=round(time.monotonic() - began, 3))

    def _judge(self, path: Path, name: str) -> Gated:
        model = load(path)
        _look_for_data(model)
        frozen, _ = freezing.apply(model, self.task.freeze, self.task.set_shape)
        graph = shapes.index(model)
        with _draft(model, path.name) if frozen else contextlib.nullcontext(path) as place:
            seen = self._look(graph, place)
        notes = (*(f"judged with {change.message}" for change in frozen), *_notes(self.goal, seen))
        unproved = ""
        if self.require_parse and seen.parse.status is Status.NOT_RUN:
            unproved = f"parse is required and did not run: {seen.parse.detail}"
        changes = self._rewrite(graph) if seen.word == "refused" else 0
        if not changes:
            hits = _hits(name, seen.reported, refused=seen.word == "refused")
            return Gated(name, seen.word, seen.why, tuple(hits), 0, "", unproved, notes, model.sha256)
        with _draft(model, path.name) as place:
            after = self._look(graph, place)
        assert self.ruleset is not None
        done, why = f"{_plural(changes, 'change')} by {self.ruleset.name}", after.why
        if after.word == "refused":
            hits = _hits(name, after.reported, refused=True)
            notes = (*notes, f"still refused after {done}: what remains is listed")
        else:
            hits = _hits(name, seen.reported, refused=True, helped=True)
            why = f"{after.word} after apply: {done}; {why}"
            notes = (*notes, f"as it is, {seen.why}; `onnxfix apply` writes the rewritten model, numbers compared")
        return Gated(name, after.word, why, tuple(hits), changes, "", unproved, notes, model.sha256)

    def _look(self, graph: Graph, path: Path) -> _Seen:
        """Judge the model that `graph` indexes, and that lies just so at `path`."""
        options = self.ruleset.options if self.ruleset else {}
        found = tuple(inspection.findings(graph, self.goal, self.rules, options))
        parse = prove.parse(path)
        judged = verdict.judge(self.goal, found, [parse])
        word, why = judged.word, judged.why
        if self.require_parse and parse.status is Status.FAILED and word != "refused":
            word, why = "refused", f"refused by {parse.by}, which is required to take it; {why}"
        elif self.require_parse and parse.status is Status.NOT_RUN and word == "accepted":
            word, why = "unverified", f"{why}; the required parse did not run"
        own = verdict.own_parser(self.goal, [parse]) is not None
        reported = list(found)
        if own and parse.status is Status.PASSED:
            reported = [f for f in found if not verdict.overruled(f, [parse])]
        elif (own or self.require_parse) and parse.status is Status.FAILED:
            reported += _told_by_parser_alone(found, parse)
        return _Seen(word, why, found, parse, tuple(reported))

    def _rewrite(self, graph: Graph) -> int:
        """Apply the rules, in memory; how many changes they made."""
        if self.ruleset is None:
            return 0
        judge = functools.partial(matrix.judge, target=self.goal)
        allow, options = self.ruleset.allow, self.ruleset.options
        return len(engine.run(graph, self.rules, self.goal, judge, allow=allow, options=options).changes)


@contextlib.contextmanager
def _draft(model: Model, name: str) -> Iterator[Path]:
    """The model as it is now, in a file of its own for as long as that is needed."""
    with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder, Draft(model, Path(folder, name)) as draft:
        yield draft.path


def _look_for_data(model: Model) -> None:
    """Raises ModelError when a file with the model's external data is missing. Reads none of them."""
    tensors = {external_field(t, "location"): t for t in model.tensors() if is_external(t)}
    for location, tensor in tensors.items():
        if not external_path(tensor, model.directory).is_file():
            raise ModelError(f"{model.path}: its external data file '{location}' is missing; put it beside it")


def _unreadable(name: str, error: str) -> Gated:
    finding = Finding(Where("", "model"), Effect.REFUSED, error, f"onnxfix {__version__}", limit=UNREADABLE)
    hits = tuple(_hits(name, [finding], refused=True))
    return Gated(name, "refused", "not judged: the file cannot be used", hits, error=error)


@dataclass(frozen=True)
class _Seen:
    """What was found in a model, before or after rewriting."""

    word: str
    why: str
    found: tuple[Finding, ...]  # by the matrix
    parse: Check
    reported: tuple[Finding, ...]  # what of matrix and parser counts


def _told_by_parser_alone(found: Sequence[Finding], parse: Check) -> list[Finding]:
    """The parser's findings at places of which the matrix, which also knows limits and rules, says nothing."""
    told = {_place(f.where) for f in found if f.effect in REWRITABLE}
    more = [f for f in parse.findings if f.where.op and _place(f.where) not in told]
    if told or more:
        return more  # errors without a place follow from the others
    return list(parse.findings) or [Finding(Where("", "model"), Effect.REFUSED, parse.detail, parse.by)]


def _place(where: Where) -> tuple[object, ...]:
    if where.index >= 0:
        return where.graph, where.op, where.index
    return where.graph, where.op, where.node, where.outputs


def _notes(goal: matrix.Target, seen: _Seen) -> tuple[str, ...]:
    """Where matrix and parser do not agree."""
    if differ := verdict.disagreement(goal, seen.found, [seen.parse]):
        return (differ,)
    if seen.parse.status is Status.FAILED and verdict.by_matrix(seen.found) != "refused":
        return (f"the matrix takes it, but not {seen.parse.by}, the parser of another release: {seen.parse.detail}",)
    return ()


# ---- fingerprints ----


def limit_of(finding: Finding) -> str:
    """The stable id of what is wrong, e.g. "resize/mode" or "det/no-importer"."""
    limit = finding.limit or finding.effect.value.replace(" ", "-")
    return limit if "/" in limit else f"{finding.where.op.lower()}/{limit}"


def _hits(model: str, findings: Iterable[Finding], *, refused: bool, helped: bool = False) -> Iterator[Hit]:
    seen: Counter[str] = Counter()
    for finding in findings:
        fingerprint = _fingerprint(model, finding)
        seen[fingerprint] += 1
        if seen[fingerprint] > 1:  # nodes that nothing but their position tells apart
            fingerprint = f"{fingerprint}:{seen[fingerprint]}"
        against = refused and (finding.effect in REWRITABLE or finding.limit.startswith("parser/"))
        yield Hit(finding, fingerprint, "note" if helped else "error" if against else "warning")


def _fingerprint(model: str, finding: Finding) -> str:
    """No index and no wording in it: both change with the next export or the next release of ours."""
    where = finding.where
    name = where.node or next((o for o in where.outputs if o), "")
    parts = (model, limit_of(finding), where.domain, where.op, where.graph, name)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


# ---- baseline ----


def write_baseline(report: GateReport, path: Path) -> int:
    """Write what the report holds against its models as known; returns how many findings that are.

    A file that could not be judged is left out: it never counts as known. Raises RequestError.
    """
    held = [(m, h) for m in report.models if not m.error for h in m.hits if h.level == "error"]
    entries = [Expected(h.fingerprint, m.model, limit_of(h.finding), str(h.finding.where)) for m, h in held]
    entries.sort(key=lambda e: (e.model, e.limit, e.where, e.fingerprint))
    data = {"onnxfix_baseline": BASELINE_FORMAT, "target": report.target, "findings": to_dict(entries)}
    write_atomic(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    return len(entries)


def read_baseline(path: Path) -> dict[str, Any]:
    """A baseline file. Raises RequestError for one that is not there or that `write_baseline` did not write."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "; --write-baseline makes one" if isinstance(error, FileNotFoundError) else ""
        raise RequestError(f"{path}: cannot be read: {error.strerror}{hint}") from None
    except ValueError as error:
        raise RequestError(f"{path}: not a baseline: {one_line(error)}; write it with --write-baseline") from None
    if not isinstance(data, dict) or data.get("onnxfix_baseline") != BASELINE_FORMAT or not _entries_fit(data):
        raise RequestError(f"{path}: not a baseline of format {BASELINE_FORMAT}; write it with --write-baseline")
    return data


def _entries_fit(data: Mapping[str, Any]) -> bool:
    keys = {"fingerprint", "model", "limit", "where"}
    entries = data.get("findings")
    return isinstance(entries, list) and all(
        isinstance(e, dict) and set(e) == keys and all(isinstance(v, str) for v in e.values()) for e in entries
    )


def compare(report: GateReport, baseline: Mapping[str, Any], path: str) -> GateReport:
    """The report with what `baseline` (read from `path`) expects marked as known, and what of it is gone."""
    entries = {e["fingerprint"]: e for e in baseline["findings"]}
    models = tuple(
        replace(m, hits=tuple(replace(h, known=not m.error and h.fingerprint in entries) for h in m.hits))
        for m in report.models
    )
    looked_at = {m.model for m in models if not m.error}
    there = {h.fingerprint for m in models for h in m.hits if h.level == "error"}
    vanished = tuple(
        Expected(**e) for key, e in entries.items() if key not in there and e["model"] in looked_at
    )
    notes = report.notes
    if baseline.get("target") != report.target:
        notes = (*notes, f"{path} was written for {baseline.get('target')}, this is {report.target}")
    return replace(report, models=models, baseline=path, vanished=vanished, notes=notes)


# ---- many models ----


def _judge_all(
    files: Sequence[Path], judge: _Judge, jobs: int | None, progress: Progress | None
) -> list[Gated]:
    """All models, in the order of `files`."""
    total = len(files)
    if progress:
        progress("gate", 0, total)
    if total == 1:
        done = {0: judge(files[0])}
    else:
        done = {}
        for index, gated in _in_processes(files, judge.task, min(jobs or _processors(), total)):
            done[index] = gated
            if progress:
                progress("gate", len(done), total)
    return [done[i] for i in range(total)]


def _processors() -> int:
    """How many processes by default: some 300 MB each with their parsers, so no more than eight."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(usable or 1, 8)


def _in_processes(files: Sequence[Path], task: _Task, jobs: int) -> Iterator[tuple[int, Gated]]:
    """(index, verdict) as they come. Each thread here feeds one child; a child that dies costs one model."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[int, Gated] | BaseException] = queue.SimpleQueue()
    for index in range(len(files)):
        waiting.put(index)
    workers = [_Worker(task) for _ in range(jobs)]

    def feed(worker: _Worker) -> None:
        try:
            while True:
                index = waiting.get_nowait()
                finished.put((index, worker.judge(files[index])))
        except queue.Empty:
            return
        except BaseException as error:  # handed to the caller's thread
            finished.put(error)

    threads = [threading.Thread(target=feed, args=(w,), daemon=True) for w in workers]
    try:
        for thread in threads:
            thread.start()
        for _ in files:
            result = finished.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        while True:  # nothing more for the threads, should this end early
            try:
                waiting.get_nowait()
            except queue.Empty:
                break
        for worker in workers:
            worker.close()


class _Worker:
    """A child process that judges models one after another. Started when first needed, and again when it died."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def judge(self, path: Path) -> Gated:
        began = time.monotonic()
        process = self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(str(path)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (BrokenPipeError, ValueError):  # gone, or closed under our hands
            line = ""
        if line:
            gated = from_dict(Gated, json.loads(line))
            assert isinstance(gated, Gated)
            return gated
        status = process.wait()
        self._process = None
        name = _shown(path, Path(self._task.root))
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        died = _unreadable(name, f"{path}: the process that judged it died ({how}); the file may be damaged")
        return replace(died, seconds=round(time.monotonic() - began, 3))

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            if self._closed:
                raise RuntimeError("the gate was closed")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "onnxfix.gating", json.dumps(to_dict(self._task))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env=child_environment(),
            )
        return self._process

    def close(self) -> None:
        """Let the child end by itself, so that it ends its own parser too; make it when it does not."""
        self._closed = True
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError):
            assert process.stdin
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _serve(task: _Task) -> None:
    """The child: a path comes in as a line of JSON, a verdict goes out as one."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    judge = _Judge(task)
    for line in sys.stdin:
        answers.write(json.dumps(to_dict(judge(Path(json.loads(line))))) + "\n")
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the whole group; the parent says so
        _serve(_Task(**json.loads(sys.argv[1])))
