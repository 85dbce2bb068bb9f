"""The Python API: `inspect`, `apply`, `doctor`, each a straight line of steps that reads like the command line.

    import onnxfix
    report = onnxfix.apply("model.onnx", rules="jetson.yml", output="fixed.onnx", require=("parse",))
    report.verdict                   # "refused", "unverified", "accepted", "proved"
    onnxfix.exit_status(report)      # 0, 1 or 3, as the command line would end
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxfix import (
    __version__,
    backends,
    catalog,
    changeproof,
    engine,
    inspection,
    matrix,
    prove,
    record,
    shapes,
    skeleton,
    verdict,
)
from onnxfix import freeze as freezing
from onnxfix import plan as plans
from onnxfix.backends import options
from onnxfix.catalog import RuleSet
from onnxfix.errors import RequestError
from onnxfix.graph import Graph
from onnxfix.model import Draft, Model, load, write_atomic
from onnxfix.report import Change, Check, Finding, Report, Safety, Site, Status

PathLike = str | os.PathLike[str]
Progress = Callable[[str, int, int | None], None]  # (stage, done, of how many or None)

CHECKS = ("structure", "changes", "parse", "parity", "build", "readback")
DEFAULT_RULES = "jetson.yml"
MISMATCHES = ("undo", "stop", "keep")
UNDO_ROUNDS = 10  # undoing changes may lead to others that are wrong too; not without end


def inspect(
    model: PathLike,
    *,
    target: str | None = None,
    precision: str = "",
    dla: bool = False,
    freeze: freezing.Values | None = None,
    set_shape: freezing.Shapes | None = None,
) -> inspection.Inspection:
    """What the file is, and with `target` what that target refuses of it, node by node.

    `precision` ("fp16", "int8", …) is one the engine shall have, which not every board can do; `dla` asks which nodes
    the DLA of the target's board would take; with `freeze` and `set_shape` the model is looked at as `apply` with them
    would. External data is not read. Raises ModelError, TargetError, and RequestError for a precision or a DLA
    without a target it makes sense for, and for values and sizes that don't fit the model.
    """
    if (precision or dla) and not target:
        raise RequestError("a precision and the DLA are questions about a target: name one")
    loaded = load(model)
    freezing.apply(loaded, freeze, set_shape)
    goal = matrix.target(target) if target else None
    rules = catalog.without_plugins(catalog.load_folder(catalog.shipped()).values()) if goal else []
    return inspection.inspect_model(loaded, goal, rules, precision=precision, dla=dla)


def doctor() -> list[backends.BackendInfo]:
    """Which backends are here, which are not, why, and how to get them."""
    return backends.survey()


def apply(
    model: PathLike,
    *,
    rules: PathLike | RuleSet = DEFAULT_RULES,
    output: PathLike | None = None,
    target: str | None = None,
    allow: str | Safety | None = None,
    dry_run: bool = False,
    require: Sequence[str] = (),
    inputs: PathLike | None = None,
    on_mismatch: str = "undo",
    left_out: Mapping[Site, str] | None = None,
    freeze: freezing.Values | None = None,
    set_shape: freezing.Shapes | None = None,
    plugins: Sequence[PathLike] = (),
    plugins_use: Sequence[str] = (),
    build_to: PathLike | None = None,
    report_to: PathLike | None = None,
    progress: Progress | None = None,
) -> Report:
    """Rewrite a model by a rule file, prove the result, and write it.

    `rules` names a shipped rule file or gives a path; `target`, `allow` and `require` override what it says. The
    proofs structure, changes, parse and parity run where they can; `require` makes one that fails or cannot run keep
    the output from being written. `inputs` is an .npz or Polygraphy .json for the parity; `build_to` builds an engine
    there. `freeze` (input name -> value) makes inputs constants, and `set_shape` (input name -> sizes, None for an axis
    that stays) dynamic axes fixed, before the rules look at the model. `plugins` are libraries TensorRT loads before it
    parses and builds; `plugins_use` names plugins that rules may write, beside those of the rule file. The output,
    `MODEL.fixed.onnx` by default, appears whole or not at all; the input is never touched.

    `on_mismatch` says what becomes of a change whose numbers are wrong when it is proved by itself: "undo" leaves it
    out and goes on, "stop" keeps the output from being written, "keep" only says so. Changes at the sites `left_out`
    are not made; its values are the reasons shown.

    Raises RequestError (bad model, rules, target, arguments, disk). What TensorRT or the proofs say is in the Report,
    never an exception: see `exit_status`.
    """
    if on_mismatch not in MISMATCHES:
        raise RequestError(f"on_mismatch is '{on_mismatch}'; it can be {', '.join(MISMATCHES)}")
    source = Path(model)
    ruleset = rules if isinstance(rules, RuleSet) else catalog.load_set(os.fspath(rules), plugins_use)
    goal = matrix.target(target or ruleset.target or "rtx-1.7")
    safety = Safety(allow) if allow else ruleset.allow
    required = _required(require, ruleset, build_to)
    destination = Path(output) if output else source.with_name(f"{source.stem}.fixed.onnx")
    backends.use_plugins(plugins)
    if not dry_run:
        check_places(source, destination, build_to, report_to)

    def run(leave: Mapping[Site, str], observer: engine.Observer | None) -> Rewritten:
        shown = functools.partial(progress, "rules") if progress else None
        return rewrite(source, ruleset, goal, safety, freeze, set_shape, leave, observer, shown)

    left_out, proved = dict(left_out or {}), None
    if dry_run:
        done = run(left_out, None)
    else:
        original = functools.partial(_as_rules_saw_it, source, freeze, set_shape)
        data = Path(inputs) if inputs else None
        done, proved = _run_proved(run, original, left_out, data, ruleset, undo=on_mismatch == "undo")
    loaded, graph, outcome = done.model, done.graph, done.outcome
    settings = {"freeze": freeze, "set_shape": set_shape, "plugins_use": list(plugins_use)}
    kept = record.make(ruleset, target or ruleset.target or "rtx-1.7", safety, settings, left_out)
    if kept is not None and done.changes:
        record.embed(loaded, kept, source.name)
    remaining = _findings(graph, goal, ruleset)
    report = Report(
        command="apply",
        model=str(source),
        target=goal.label,
        verdict="",
        onnxfix=__version__,
        output="" if dry_run else str(destination),
        model_sha256=loaded.sha256,
        rules=ruleset.name,
        findings=done.findings,
        remaining=remaining,
        changes=done.changes,
        skipped=tuple(outcome.skipped),
        notes=(
            *(f"the model's interface changed: {what}" for what in (c.message for c in done.fixed)),
            *(f"the model's interface changed: {what}" for what in outcome.interface),
            *freezing.advice(graph, remaining, outcome.skipped),
        ),
        record=kept,
    )
    if dry_run:
        notes = (*report.notes, "dry run: nothing was proved or written")
        report = replace(judged(report, goal), notes=notes)
    else:
        report = _prove_and_write(
            report, loaded, goal, ruleset, destination, required, inputs, done.frozen, build_to, progress, proved,
            stop=on_mismatch != "keep",
        )  # fmt: skip
    if report_to:
        write_atomic(Path(report_to), report.to_json() + "\n")
    return report


def _prove_and_write(
    report: Report,
    model: Model,
    goal: matrix.Target,
    ruleset: RuleSet,
    destination: Path,
    required: Sequence[str],
    inputs: PathLike | None,
    frozen: Mapping[str, Any],
    build_to: PathLike | None,
    progress: Progress | None,
    proved: Check | None,
    stop: bool,
) -> Report:
    with Draft(model, destination) as draft:
        plan = draft.folder / "engine.plan"
        checks: list[Check] = []
        for name in CHECKS:
            if name in ("build", "readback") and not (build_to or name in required):
                continue
            if name == "readback":
                if checks[-1].name == "build" and checks[-1].status is Status.PASSED:
                    checks.append(plans.readback(plan, draft.path))
                continue
            if name == "changes":
                checks += [proved] if proved is not None else []
                continue
            if progress:
                progress(name, len(checks), None)
            so_far = replace(report, checks=tuple(checks))
            checks.append(_check(name, draft.path, plan, so_far, ruleset, inputs, frozen))
        report = replace(report, checks=tuple(checks), output_sha256=draft.sha256())
        report = judged(report, goal)
        reason = stopped(report, (*required, *(["changes"] if stop and _failed(proved) else [])))
        if reason:
            notes = (*report.notes, f"nothing was written: {reason}")
            report = replace(report, output="", output_sha256="", notes=notes)
        else:
            draft.publish()
            if build_to and plan.is_file():
                os.replace(plan, build_to)
    return report


def _check(
    name: str,
    path: Path,
    plan: Path,
    report: Report,
    ruleset: RuleSet,
    inputs: PathLike | None,
    frozen: Mapping[str, Any],
) -> Check:
    source = Path(report.model)
    if name == "structure":
        return prove.structure(path, before=source)
    if name == "parse":
        return prove.parse(path)
    if name == "parity":
        worst = max((c.safety for c in report.changes), key=lambda s: s.rank, default=Safety.EXACT)
        return prove.parity(
            source,
            path,
            safety=worst,
            inputs=Path(inputs) if inputs else None,
            tolerances=ruleset.tolerances,
            frozen=frozen,
        )
    # Dynamic axes are built at a size that is known to work: the first at which the original ran.
    return prove.build(path, plan, options.read(ruleset.build, dims=prove.proved_sizes(report)))


def _findings(graph: Graph, goal: matrix.Target, ruleset: RuleSet) -> tuple[Finding, ...]:
    return tuple(inspection.findings(graph, goal, ruleset.rules, ruleset.options))


def _required(require: Sequence[str], ruleset: RuleSet, build_to: PathLike | None) -> tuple[str, ...]:
    wanted = dict.fromkeys((*require, *ruleset.require))
    for name in wanted:
        if name not in CHECKS:
            raise RequestError(f"no proof called '{name}'; there are {', '.join(CHECKS)}")
    if build_to:
        wanted["build"] = None
    return tuple(wanted)


def check_places(source: Path, destination: Path, build_to: PathLike | None, report_to: PathLike | None) -> None:
    """Find out before the work, not after it, that its results have no place to go."""
    places = [destination, *(Path(p) for p in (build_to, report_to) if p)]
    if len({p.absolute() for p in places}) < len(places):
        raise RequestError(f"{destination}: the output, the engine and the report need different names")
    for place in places:
        if not place.parent.is_dir():
            raise RequestError(f"{place}: cannot be written: its folder does not exist")
        if place.is_dir():
            raise RequestError(f"{place}: is a folder; name a file")
        if source.exists() and place.exists() and os.path.samefile(source, place):
            raise RequestError(f"{place}: is the input itself; give another name")
        if not os.access(place.parent, os.W_OK):
            raise RequestError(f"{place}: cannot be written: no permission in {place.parent}")


@dataclass
class Rewritten:
    """What the rules made of a model, in memory."""

    model: Model
    graph: Graph
    findings: tuple[Finding, ...]  # in the input
    fixed: list[Change]  # inputs and axes that were made constant before the rules
    frozen: Mapping[str, Any]
    outcome: engine.Outcome

    @property
    def changes(self) -> tuple[Change, ...]:
        return (*self.fixed, *(replace(c, id=c.id + len(self.fixed)) for c in self.outcome.changes))


def rewrite(
    source: Path,
    ruleset: RuleSet,
    goal: matrix.Target,
    allow: Safety,
    freeze: freezing.Values | None = None,
    set_shape: freezing.Shapes | None = None,
    left_out: Mapping[Site, str] | None = None,
    observer: engine.Observer | None = None,
    progress: engine.Progress | None = None,
) -> Rewritten:
    """The part of `apply` that makes the output: the same for the same arguments, byte for byte."""
    model = load(source)
    graph = shapes.index(model)
    findings = _findings(graph, goal, ruleset)
    fixed, frozen = freezing.apply(model, freeze, set_shape)
    if fixed:
        graph = shapes.index(model)
    outcome = engine.run(
        graph,
        ruleset.rules,
        goal,
        lambda node: matrix.judge(node, goal),
        allow=allow,
        options=ruleset.options,
        left_out=left_out,
        observer=observer,
        progress=progress,
    )
    return Rewritten(model, graph, findings, fixed, frozen, outcome)


def _run_proved(
    run: Callable[[Mapping[Site, str], engine.Observer | None], Rewritten],
    original: Callable[[], Model],
    left_out: dict[Site, str],
    inputs: Path | None,
    ruleset: RuleSet,
    *,
    undo: bool,
) -> tuple[Rewritten, Check]:
    """Run the rules and prove each change; with `undo` again without the wrong ones, which `left_out` gets."""
    undone: list[changeproof.Proof] = []
    for rounds in range(UNDO_ROUNDS + 1):
        recorder = changeproof.Recorder()
        done = run(left_out, recorder)
        proofs = changeproof.prove(original, recorder, inputs=inputs, tolerances=ruleset.tolerances)
        changes = done.changes[len(done.fixed) :]  # with the numbers that the report gives them
        proofs = [replace(p, change=c) for p, c in zip(proofs, changes, strict=True)]
        wrong = [(p, site) for p, site in zip(proofs, done.outcome.sites, strict=True) if p.verdict == "differs"]
        if not wrong or not undo or rounds == UNDO_ROUNDS:
            break
        left_out.update((site, f"undone, for its numbers were wrong: {p.detail}") for p, site in wrong)
        undone += [p for p, _ in wrong]
    return done, changeproof.check(proofs, undone)


def _as_rules_saw_it(source: Path, freeze: freezing.Values | None, set_shape: freezing.Shapes | None) -> Model:
    model = skeleton.load(source)
    freezing.apply(model, freeze, set_shape)
    return model


def _failed(check: Check | None) -> bool:
    return check is not None and check.status is Status.FAILED


# ---- how it ended ----


def judged(report: Report, goal: matrix.Target) -> Report:
    """The report with its verdict, and where the matrix and the target's own parser differ a note on that."""
    said = verdict.judge(goal, report.remaining, report.checks)
    differ = verdict.disagreement(goal, report.remaining, report.checks)
    return replace(report, verdict=said.word, judged=said.why, notes=(*report.notes, *([differ] if differ else [])))


def stopped(report: Report, required: Sequence[str]) -> str:
    """Why the output must not be written, "" when it may be."""
    for check in report.checks:
        if check.status is Status.FAILED and (check.name in required or verdict.is_broken(check)):
            return f"{check.name} failed: {check.detail}"
    for name in required:
        found = report.check(name)
        if name == "readback" and found is None:
            return "readback did not run, because the build failed"
        if found is not None and found.status is Status.NOT_RUN:
            return f"{name} is required and did not run: {found.detail}"
    return ""


def exit_status(report: Report) -> int:
    """0 fine; 1 the model is refused or a proof failed; 3 a required proof could not run."""
    if report.verdict in ("refused", "failed"):
        return 1
    for note in report.notes:
        if note.startswith("nothing was written"):
            return 3 if "did not run" in note else 1
    return 0
