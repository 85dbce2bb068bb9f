"""From a model to an engine file: rewrite it, give it its precision, build it, read it back, and describe it beside.

The plan and its description (`model.plan.json`) appear together, once all proofs asked for have passed, or not at all.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.defs
from onnx import TensorProto

from onnxfix import __version__, api, backends, calibration, catalog, inspection, matrix, prove, record, shapes
from onnxfix import plan as plans
from onnxfix import precision as precisions
from onnxfix.api import PathLike, Progress
from onnxfix.backends import ort, trt
from onnxfix.backends.options import BuildOptions, fitting, read, unsupported
from onnxfix.calibration import Data
from onnxfix.catalog import RuleSet
from onnxfix.errors import RequestError, TargetError
from onnxfix.graph import Graph, Node
from onnxfix.model import Model, file_sha256, load, write_atomic
from onnxfix.report import Check, Effect, Finding, Report, Status

__all__ = ["BuildOptions", "Data", "build"]

KINDS = ("fp16", "bf16", "int8")
CHECKS = (*api.CHECKS, "plugins", "precision")
_OURS = ("plugins", "precision", "build", "readback")  # proved here alone; the others are `apply`'s
_DECISIVE = frozenset({*_OURS, "parse"})  # no plan where one of them failed


def build(
    model: PathLike,
    plan: PathLike,
    *,
    rules: PathLike | RuleSet | None = None,
    target: str | None = None,
    options: BuildOptions | None = None,
    precision: str = "",
    data: Data | None = None,
    calibrator: str = "",
    calibration_cache: PathLike | None = None,
    plugins: Sequence[PathLike] = (),
    require: Sequence[str] = (),
    report_to: PathLike | None = None,
    progress: Progress | None = None,
) -> Report:
    """Build an engine from the model at `model`, write it to `plan` with its description beside it, and prove both.

    With `rules` the model is first rewritten and proved as `api.apply` does. `precision` is fp16, bf16 or int8: a flag
    where TensorRT has one, and else, or with `options.strongly_typed`, written in the graph by `precision.convert`,
    with its accuracy measured on `data`. INT8 needs data (or a cache), unless the model has its Q/DQ nodes already.
    Without `options` and `precision` those of the rule file's `build:` hold. `require` names proofs beside the build
    that must not be missing; the engine is always read back in a fresh process, as far as this machine allows.

    Raises RequestError for what the TensorRT at hand can't do, before anything is built; UnavailableError without a
    TensorRT. What it says of the model is in the Report: see `api.exit_status`.
    """
    source, destination = Path(model), Path(plan)
    ruleset = rules if isinstance(rules, RuleSet) or rules is None else catalog.load_set(os.fspath(rules))
    section = ruleset.build if ruleset else {}
    _check_request(source, destination, report_to, require, rules)
    backends.use_plugins(plugins)
    about = trt.shared().about()
    goal = _goal(about, target or (ruleset.target if ruleset else ""))
    wanted = _wanted(
        options or read(section),
        precision or section.get("precision", ""),
        data or Data.of(section),
        calibrator or section.get("calibrator", "entropy"),
        calibration_cache or section.get("calibration_cache"),
    )
    fitting(wanted.options, _input_shapes(load(source)))
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.onnxfix-", dir=destination.parent) as scratch:
        run = _Run(source, destination, Path(scratch), wanted, progress)
        report = run.rewritten(ruleset, goal, target, plugins, require) if ruleset else _fresh(source, goal)
        if run.ready.is_file():  # else `apply` has said why nothing was written
            report = run.built(report, goal, (*require, *(ruleset.require if ruleset else ()), "build"), plugins)
    if report_to:
        write_atomic(Path(report_to), report.to_json() + "\n")
    return report


# ---- the request ----


@dataclass(frozen=True)
class _Wanted:
    """What the engine shall be, and which part of it is written in the graph."""

    options: BuildOptions  # with the precision flags where TensorRT has them
    precision: str
    data: Data | None
    calibrator: str
    cache: Path | None
    converted: bool  # the precision is to be written in the graph


def _wanted(
    options: BuildOptions, precision: str, data: Data | None, calibrator: str, cache: PathLike | None
) -> _Wanted:
    """Raises RequestError for what no TensorRT or not this one can do."""
    if precision not in ("", *KINDS):
        raise RequestError(f"no precision '{precision}' to build in; there are {', '.join(KINDS)}")
    if (data or cache) and not precision:
        raise RequestError("data to calibrate on is for a precision that needs it: name one, such as int8")
    converted = bool(precision) and _typed(options)
    if converted:
        options = replace(options, strongly_typed="STRONGLY_TYPED" in trt.shared().abilities().networks)
    elif precision:
        known = str(Path(cache).absolute()) if cache and precision == "int8" else ""
        flags: dict[str, Any] = {precision: True}
        options = replace(options, **flags, calibrator=calibrator, calibration_cache=known)
    for kept in (options.timing_cache, cache or ""):
        if not Path(kept).absolute().parent.is_dir():
            raise RequestError(f"{kept}: cannot be written: its folder does not exist")
    if problem := unsupported(trt.shared().about(), trt.shared().abilities(), options):
        raise RequestError(problem)
    return _Wanted(options, precision, data, calibrator, Path(cache) if cache else None, converted)


def _typed(options: BuildOptions) -> bool:
    """Whether the network takes its precision from the model, by wish or for want of flags."""
    return options.strongly_typed or "FP16" not in trt.shared().abilities().flags


def _goal(about: trt.About, target: str) -> matrix.Target:
    """The target asked for; without one the TensorRT at hand, be it one the matrix knows or not."""
    if target:
        return matrix.target(target)
    release = ".".join(about.version.split(".")[:2])
    name = f"{'rtx' if about.flavour == 'tensorrt_rtx' else 'trt'}-{release}"
    try:
        return matrix.target(name)
    except TargetError:
        return matrix.Target(name, name.removeprefix("trt-"), f"{about.flavour} {release}")


def _check_request(
    source: Path, destination: Path, report_to: PathLike | None, require: Sequence[str], rules: object
) -> None:
    for name in require:
        if name not in CHECKS:
            raise RequestError(f"no proof called '{name}'; there are {', '.join(CHECKS)}")
        if name in ("structure", "changes", "parity") and not rules:
            raise RequestError(f"{name} is a proof of what rules did: name the rules too")
    if destination.suffix == ".onnx":
        raise RequestError(f"{destination}: an engine is no ONNX model; name it model.plan or the like")
    api.check_places(source, destination, plans.sidecar_path(destination), report_to)


def _input_shapes(model: Model) -> dict[str, list[int | None] | None]:
    """By input; None is a dynamic axis, or in a shape's place one that a profile need not fit.

    That is an unknown rank, and a list of integers: where it is a shape itself, a profile holds its values.
    """
    graph, found = Graph.of(model), {}
    for value in filter(lambda v: graph.is_input(v.name), model.proto.graph.input):
        tensor = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        values = tensor.elem_type in (TensorProto.INT32, TensorProto.INT64) and len(dims) <= 1
        found[value.name] = dims if tensor.HasField("shape") and not values else None
    return found


# ---- the steps ----


def _fresh(source: Path, goal: matrix.Target) -> Report:
    """The report on a model that no rules change."""
    loaded = load(source)
    known = goal.name in matrix.targets() or goal.own is not None
    found = tuple(inspection.findings(shapes.index(loaded), goal)) if known else ()
    return Report(
        command="build", model=str(source), target=goal.label, verdict="", onnxfix=__version__,
        model_sha256=loaded.sha256, findings=found, remaining=found,
    )  # fmt: skip


@dataclass
class _Run:
    """A build under way: `ready` is the model as far as it has come."""

    source: Path
    destination: Path
    scratch: Path
    wanted: _Wanted
    progress: Progress | None
    rules: RuleSet | None = None
    calibration_sha256: str = ""

    def __post_init__(self) -> None:
        self.ready = self.source

    def rewritten(
        self,
        ruleset: RuleSet,
        goal: matrix.Target,
        target: str | None,
        plugins: Sequence[PathLike],
        require: Sequence[str],
    ) -> Report:
        """The model by the rules, proved; `ready` is not there when a proof that was asked for is missing."""
        self.rules, self.ready = ruleset, self.scratch / self.source.name
        wanted = [name for name in (*require, *ruleset.require) if name not in _OURS]
        report = api.apply(
            self.source,
            rules=replace(ruleset, require=()),
            output=self.ready,
            target=target or ruleset.target or goal.name,
            require=wanted,
            plugins=plugins,
            progress=self.progress,
        )
        return replace(report, command="build", output="", output_sha256="", record=None)

    def built(
        self, report: Report, goal: matrix.Target, required: Sequence[str], plugins: Sequence[PathLike]
    ) -> Report:
        """The engine of `ready` and its proofs; published unless one of them stands against it."""
        graph = Graph.of(load(self.ready))
        custom = list(_custom(graph))
        checks = [*report.checks, *([_plugins(custom)] if custom else [])]
        options = self._sized(report)
        if self.wanted.precision and not _quantised(graph, self.wanted.precision):
            options = self._made_precise(options, checks)
        plan = self.scratch / self.destination.name
        engine = self._engine(plan, options, checks)
        report = api.judged(replace(report, checks=tuple(checks)), goal)
        if reason := _stopped(report, required):
            told = "; ".join([reason, *_advice(reason)])
            return replace(report, notes=(*report.notes, f"nothing was written: {told}"))
        assert engine is not None
        plans.write_sidecar(plan, self._sidecar(report, engine, options, custom, plugins))
        sha256 = file_sha256(plan)
        _publish(plan, self.destination)
        notes = (*report.notes, *_remarks(goal, self.wanted))
        return replace(report, output=str(self.destination), output_sha256=sha256, notes=notes)

    def _engine(self, plan: Path, options: BuildOptions, checks: list[Check]) -> trt.Built | None:
        """Parse, build and read back, as far as it goes; each adds its check."""
        if not any(check.name == "parse" for check in checks):
            self._say("parse")
            checks.append(prove.parse(self.ready))
        if any(map(_stops, checks)):
            return None
        check, engine = prove.build_engine(self.ready, plan, options, self._share)
        checks.append(check)
        if engine is not None:
            self._say("readback")
            checks.append(plans.readback(plan, self.ready, trusted=True))
        return engine

    def _sized(self, report: Report) -> BuildOptions:
        """The options, dynamic axes that nothing was said of at a size that is known to work."""
        options = self.wanted.options
        return replace(options, dims={**prove.proved_sizes(report), **options.dims})

    def _made_precise(self, options: BuildOptions, checks: list[Check]) -> BuildOptions:
        """Give the network its precision: in the graph, or by calibration; a mere flag is among the options already."""
        if self.wanted.converted:
            checks.append(self._converted())
            return options
        return self._calibrated(options) if self.wanted.precision == "int8" else options

    def _converted(self) -> Check:
        """`ready` with its precision written in the graph, and its accuracy."""
        wanted = self.wanted
        output = self.scratch / f"{self.source.stem}.{wanted.precision}.onnx"
        try:
            done = precisions.convert(
                self.ready,
                output,
                wanted.precision,
                data=wanted.data,
                calibrator=wanted.calibrator,
                cache=wanted.cache,
                progress=self.progress,
            )
        except RequestError as error:  # told of the model that the user knows
            raise RequestError(str(error).replace(str(self.ready), str(self.source))) from None
        self.ready, self.calibration_sha256 = output, done.calibration_sha256
        return done.check

    def _calibrated(self, options: BuildOptions) -> BuildOptions:
        """The options with data for TensorRT's own calibration, spooled a sample a file, and with its cache."""
        data, cache = self.wanted.data or Data(), self.wanted.cache
        if self.wanted.data is None and cache and cache.is_file():
            return options
        folder = self.scratch / "calibration"
        with ort.Runner(self.ready) as session:
            self.calibration_sha256 = key = self._key(data, session)
            # The name holds what the cache is of, so that one of another model or other data is never read.
            kept = cache.absolute().with_name(f"{cache.name}.{key[:12]}.trt") if cache else None
            if kept and kept.is_file():
                return replace(options, calibration_cache=str(kept))
            folder.mkdir()
            self._spool(calibration.samples(data, session), folder, str(data))
        return replace(options, calibration=str(folder), calibration_cache=str(kept or ""))

    def _spool(self, samples: Iterator[Mapping[str, Any]], folder: Path, data: str) -> None:
        """Write the samples where TensorRT's process reads them. It would end at one of another size, with no word."""
        sizes: dict[str, tuple[int, ...]] = {}
        for number, sample in enumerate(samples, 1):
            given = {name: array.shape for name, array in sample.items()}
            sizes = sizes or given
            if given != sizes:
                raise RequestError(f"{data}: sample {number} is {given}, the first {sizes}: make them of one size")
            np.savez(folder / f"{number:06}.npz", *sample.values(), names=list(sample))
            self._say("calibrate", number)
        if not sizes:
            raise RequestError(f"{data}: gives no sample to calibrate on")

    def _key(self, data: Data, session: Any) -> str:
        """What a calibration cache is of: the bytes of the model and of the data, and the calibrator."""
        parts = [load(self.ready).sha256, calibration.fingerprint(data, session.inputs), self.wanted.calibrator]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _sidecar(
        self,
        report: Report,
        engine: trt.Built,
        options: BuildOptions,
        custom: Sequence[Node],
        plugins: Sequence[PathLike],
    ) -> plans.Sidecar:
        readback = report.check("readback")
        named = dict.fromkeys((node.op, _version(node)) for node in custom)
        libraries = ", ".join(Path(p).name for p in plugins)
        pools = {**options.pools, **({"workspace": options.workspace_mib} if options.workspace_mib else {})}
        return plans.Sidecar(
            model=str(self.source),
            model_sha256=report.model_sha256,
            rules={self.rules.name: record.digest(self.rules)} if self.rules else {},
            capabilities=options.capabilities or tuple(filter(None, [trt.shared().abilities().gpu])),
            precision=self.wanted.precision or "+".join(options.precision) or "as in the model",
            profiles=engine.shapes,
            pools=pools,
            settings=_settings(options),
            calibration_sha256=self.calibration_sha256,
            bindings=tuple(readback.figures.get("bindings", ()) if readback else ()) or plans.bindings(self.ready),
            layers=prove.onnx_nodes(self.ready, engine.layer_list),
            plugins=tuple({"name": name, "version": version, "library": libraries} for name, version in named),
        )

    def _say(self, stage: str, done: int = 0) -> None:
        if self.progress:
            self.progress(stage, done, None)

    def _share(self, _phase: str, share: float | None) -> None:
        if self.progress and share is not None:
            self.progress("build", int(share * 1000), 1000)


def _settings(options: BuildOptions) -> dict[str, Any]:
    """What was asked for beside what the sidecar has a place of its own for."""
    elsewhere = {"compute_capability", "workspace_mib", "pools", "profiles", "calibration", "seconds", "dims"}
    given = asdict(options)
    return {
        f.name: given[f.name]
        for f in fields(options)
        if f.name not in elsewhere and getattr(options, f.name) != f.default
    }


# ---- custom operators ----


def _custom(graph: Graph) -> Iterator[Node]:
    """The nodes that only a plugin can run: no function of the model, and nothing that the parser has an importer for.

    The parser looks at the name alone, whatever the domain.
    """
    imported: dict[str, bool] = {}
    for scope in graph.scopes():
        for node in scope.nodes():
            standard = node.domain in ("", "ai.onnx") and onnx.defs.has(node.op)
            if standard or (node.domain, node.op) in graph.functions:
                continue
            if node.op not in imported:
                imported[node.op] = trt.shared().supports(node.op)
            if not imported[node.op]:
                yield node


def _version(node: Node) -> str:
    """The plugin version a node asks for; the parser takes "1" when it says nothing."""
    return str(node.attr("plugin_version", "")) or "1"


def _plugins(nodes: Sequence[Node]) -> Check:
    """Whether each custom operator has a plugin creator of its name, version and namespace in TensorRT's registry."""
    by = str(trt.shared().about())
    creators = trt.shared().creators()
    findings = []
    for node in nodes:
        name, version, space = node.op, _version(node), str(node.attr("plugin_namespace", ""))
        if (name, version, space) in creators:
            continue
        there = sorted(f"{v} in namespace '{n}'" if n else v for c, v, n in creators if c == name)
        why = f"there is version {', '.join(there)}" if there else "give its library with --plugins"
        reason = f"no plugin {name} of version {version} is registered; {why}"
        findings.append(Finding(node.where(), Effect.PLUGIN, reason, by, limit="plugin"))
    if findings:
        detail = f"{findings[0].where}: {findings[0].reason}"
        return Check("plugins", Status.FAILED, by, detail, findings=tuple(findings))
    names = ", ".join(sorted({f"{node.op} {_version(node)}" for node in nodes}))
    return Check("plugins", Status.PASSED, by, f"there is a creator for {names}")


# ---- the end ----


def _quantised(graph: Graph, precision: str) -> bool:
    """Whether the model has the Q/DQ nodes of INT8 already."""
    ops = {node.op for node in graph.nodes()} if precision == "int8" else set()
    return "QuantizeLinear" in ops or "DequantizeLinear" in ops


def _stopped(report: Report, required: Sequence[str]) -> str:
    """Why no plan must be written, "" when it may be."""
    failed = next(filter(_stops, report.checks), None)
    return f"{failed.name} failed: {failed.detail}" if failed else api.stopped(report, required)


def _stops(check: Check) -> bool:
    return check.name in _DECISIVE and check.status is Status.FAILED


def _publish(plan: Path, destination: Path) -> None:
    """Both files into place. Raises RequestError, and takes back what is there, when one of them can't be."""
    done: list[Path] = []
    try:
        for here, place in ((plan, destination), (plans.sidecar_path(plan), plans.sidecar_path(destination))):
            os.replace(here, place)
            done.append(place)
    except OSError as error:
        for place in done:
            place.unlink(missing_ok=True)
        raise RequestError(f"{destination}: cannot be written: {error.strerror}") from None


def _advice(reason: str) -> Iterator[str]:
    """What to do about a reason whose words don't say."""
    if "FP32 GEMM is not supported" in reason:
        yield (
            "TensorRT-RTX has no matrix products in FP32 for compute capability 7.5: ask for --precision fp16, or for "
            "other compute capabilities"
        )


def _remarks(goal: matrix.Target, wanted: _Wanted) -> Iterator[str]:
    """What to know of a plan: its numbers were not measured; the target's own TensorRT did not build it."""
    if wanted.precision and not wanted.converted:
        yield (
            f"{wanted.precision} is a flag here, and TensorRT chooses layer by layer: "
            "what that does to the numbers was not measured"
        )
    about = trt.shared().about()
    release = goal.release.removeprefix("rtx-")
    own = about.flavour == ("tensorrt_rtx" if goal.release.startswith("rtx") else "tensorrt")
    if not own or not about.version.startswith(f"{release}."):
        yield (
            f"{about.flavour} {about.version} built this plan, and it loads there only: for {goal.label} build on it, "
            "or make it a bundle"
        )
