"""The bundle for a board that can't install onnxfix: model, inputs, golden outputs, and a script for the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx import TensorProto

from onnxfix import __version__, api, boards, calibration, catalog, matrix, prove, shapes
from onnxfix import freeze as freezing
from onnxfix.backends.images import Preprocessing
from onnxfix.backends.metrics import Metric
from onnxfix.backends.options import (
    CALIBRATORS,
    POOLS,
    PRECISION_FLAGS,
    Abilities,
    BuildOptions,
    read,
    unsupported,
)
from onnxfix.backends.trt import About
from onnxfix.bundle import board, place, samples, texts
from onnxfix.bundle import deepstream as nvinfer
from onnxfix.bundle.lower import Lowered, lower
from onnxfix.catalog import RuleSet
from onnxfix.errors import RefusedError, RequestError, UnavailableError
from onnxfix.graph import Graph, schema
from onnxfix.model import Draft, Model, load
from onnxfix.report import Effect, Report, Safety, Status, to_dict

FORMAT = board.FORMAT
CACHE = "calibration.cache"
REMAINING = 20  # findings of the matrix that travel along

# The error allowed, relative to an output's largest magnitude. FP32 on a GPU sums in other orders than the CPU, and
# Winograd convolutions round more; FP16 keeps three digits. INT8 has no limit that fits all models.
TOLERANCES: dict[str, float | None] = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": None, "fp8": None}

# What the Python API of TensorRT 8.0 to 10 has, in its own names, and since when.
FLAGS = {
    **dict.fromkeys(("FP16", "INT8", "TF32", "GPU_FALLBACK", "SPARSE_WEIGHTS"), "8.0"),
    **dict.fromkeys(("FP8", "VERSION_COMPATIBLE"), "8.6"),
    "BF16": "9.0",
}
MEMORY_POOLS = {
    "WORKSPACE": "8.0",  # as max_workspace_size before 8.4
    **dict.fromkeys(("DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM"), "8.4"),
    "TACTIC_DRAM": "8.6",
    "TACTIC_SHARED_MEMORY": "10.1",
}
SETTINGS = {"create_timing_cache": "8.0", "builder_optimization_level": "8.6"}
NETWORKS = {"EXPLICIT_BATCH": "8.0", "STRONGLY_TYPED": "9.0"}

Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class Bundled:
    """What was written. `report` is that of the rewriting; `files` maps names in the bundle to their bytes."""

    output: str
    report: Report
    manifest: Mapping[str, Any]
    files: Mapping[str, int]
    notes: tuple[str, ...] = field(default=())


def bundle(
    model: str | os.PathLike[str],
    target: str,
    output: str | os.PathLike[str],
    *,
    rules: str | os.PathLike[str] | RuleSet = api.DEFAULT_RULES,
    allow: str | Safety | None = None,
    inputs: str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | None = None,
    precision: str = "",
    data: calibration.Data | None = None,
    calibrator: str = "",
    ship_samples: int = 0,
    options: BuildOptions | None = None,
    tolerances: Mapping[str, float] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    freeze: freezing.Values | None = None,
    set_shape: freezing.Shapes | None = None,
    plugins_use: Sequence[str] = (),
    deepstream: nvinfer.Nvinfer | None = None,
    progress: Progress | None = None,
) -> Bundled:
    """Write a folder, or a .tar or .tar.gz, that a board with TensorRT 8.0 to 10, numpy and Python 3.6 can run.

    The model is rewritten by `rules` for `target`, proved, and brought to the opset and IR version of that TensorRT.
    Golden outputs come from ONNX Runtime on the original model, on `inputs` (as those of `prove.parity`) or on drawn
    ones. `precision` is "", "fp16", "bf16", "int8" or "fp8"; INT8 of a model without Q/DQ needs `data`, whose ranges
    travel as a calibration cache, with `ship_samples` of the samples beside it. `options` are the builder's settings.
    Outputs are judged by `tolerances` (relative to the largest magnitude, by output, "" for all; by default those of
    the precision) or by `metrics`. `deepstream` asks for a configuration of its nvinfer. What is left out of precision,
    data, calibrator ("entropy" at last) and options is taken from the rule file's `build:`.

    Raises RequestError for settings the target can't have and for an output that exists, RefusedError when a proof of
    the rewriting fails, UnavailableError when golden outputs can't be made here.
    """
    source, destination = Path(model), Path(output)
    goal = matrix.target(target)
    ruleset = rules if isinstance(rules, RuleSet) else catalog.load_set(os.fspath(rules), plugins_use)
    section = ruleset.build
    options = options or read(section)
    precision = precision or section.get("precision", "")
    calibrator = calibrator or section.get("calibrator", "entropy")
    data = data or calibration.Data.of(section)
    if precision not in ("", "fp32", *PRECISION_FLAGS):
        raise RequestError(f"no precision '{precision}' here; there are fp32, {', '.join(PRECISION_FLAGS)}")
    flag: dict[str, Any] = {precision: True} if precision in PRECISION_FLAGS else {}
    options = replace(options, **flag)
    _check_request(goal, options)
    with place.staging(destination) as folder:
        fixed = folder / "work" / "fixed.onnx"
        fixed.parent.mkdir()
        report = api.apply(
            source,
            rules=replace(ruleset, require=tuple(name for name in ruleset.require if name != "parity")),
            output=fixed,
            target=target,
            allow=allow,
            require=("structure",),
            inputs=None if inputs is not None and Path(inputs).is_dir() else inputs,  # images come with `draw`
            freeze=freeze,
            set_shape=set_shape,
            plugins_use=plugins_use,
            progress=progress,
        )
        _require_written(report)
        lowered, final = _write_model(fixed, folder, goal)
        plugins = _plugins(final)
        if progress:
            progress("computing golden outputs", 0, None)
        frozen = freezing.apply(load(source), freeze, set_shape)[1]
        dims = samples.sizes(final, options, preprocessing)
        if inputs is None:  # what nothing was said of gets the first size at which the original ran
            dims = {**prove.proved_sizes(report), **dims}
        runnable = source if plugins else folder / "model.onnx"  # plugins run in TensorRT only
        drawn = samples.draw(source, runnable, report, inputs, preprocessing, frozen, dims)
        outputs = [value.name for value in final.proto.graph.output]
        golden = samples.golden(source, drawn, frozen, outputs)
        samples.write(folder, final, drawn, golden)
        settings = {**_settings(goal, options), "profiles": samples.profiles(final, options, dims, drawn)}
        notes = [*_notes(goal, lowered, report, plugins), *samples.faint(golden)]
        if options.int8:
            scales, said = _calibration(folder, final, goal, data, calibrator, ship_samples, progress)
            settings["calibration"] = scales
            notes.append(said)
        if deepstream is not None:
            files, warnings = nvinfer.config(deepstream, final, settings, preprocessing, goal)
            notes += warnings
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
        manifest = {
            **_manifest(source, goal, report, lowered, final),
            "build": settings,
            "judge": _judge(options.precision, tolerances, metrics, outputs),
            "plugins": plugins,
            "samples": [{n: f"samples/{i}/{n}.npz" for n in ("inputs", "outputs")} for i in range(len(drawn))],
            "notes": notes,
        }
        texts.write(folder, manifest)
        sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in _files(folder)}
        place.publish(folder, destination)
    report = replace(report, output=str(destination), output_sha256=final.sha256)
    return Bundled(str(destination), report, manifest, sizes, tuple(notes))


def _require_written(report: Report) -> None:
    if not report.output:
        kind = UnavailableError if api.exit_status(report) == 3 else RefusedError
        raise kind(next(n for n in reversed(report.notes) if n.startswith("nothing was written")))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


# ---- the request ----


def _check_request(goal: matrix.Target, options: BuildOptions) -> None:
    """Raises RequestError for what the target can't have."""
    if goal.release.startswith("rtx") or not 8 <= _version(goal.release)[0] <= 10:
        raise RequestError(f"{goal.label}: a bundle is for a board with TensorRT 8.0 to 10; name such a target")
    for precision in options.precision:
        found = boards.board_findings(goal, precision=precision)
        if refused := [f for f in found if f.effect is Effect.BUILD_FAILS]:
            raise RequestError(refused[0].reason)
    if options.compute_capability or options.hardware_compatible:
        raise RequestError("a bundle's engine is built on the board that runs it: name no other GPU")
    if options.dla_core is not None and not goal.facts.get("dla_cores"):
        raise RequestError(f"{goal.label} has no DLA")
    about = About("tensorrt", goal.release, "", "", ())
    if problem := unsupported(about, _abilities(goal), options):
        raise RequestError(problem)


def _abilities(goal: matrix.Target) -> Abilities:
    """What the target's TensorRT offers for builds."""

    def had(since: Mapping[str, str]) -> frozenset[str]:
        return frozenset(name for name, release in since.items() if _version(release) <= _version(goal.release))

    cores = goal.facts.get("dla_cores", 0)
    return Abilities(
        had(FLAGS), had(MEMORY_POOLS), had(SETTINGS), had(NETWORKS), frozenset(CALIBRATORS.values()),
        dla_cores=max(cores.values()) if isinstance(cores, dict) else cores,
    )  # fmt: skip


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(p) for p in release.split("."))


# ---- the model ----


def _write_model(fixed: Path, folder: Path, goal: matrix.Target) -> tuple[Lowered, Model]:
    """model.onnx in the target's versions, or as the rules left it when that changes its structure or its numbers."""
    loaded, plain = load(fixed), load(fixed)
    newest = (goal.opsets or (0, loaded.opset()))[1]
    lowered = lower(loaded, newest)
    if lowered.changed and (why := _spoilt(loaded, fixed)):
        loaded, lowered = plain, Lowered(plain.opset(), plain.proto.ir_version, changed=False, held=why)
    with Draft(loaded, folder / "model.onnx") as draft:
        draft.publish()
    shutil.rmtree(fixed.parent)
    return lowered, load(folder / "model.onnx")


def _spoilt(lowered: Model, before: Path) -> str:
    """Why the lowered model must not be taken, "" when it is as good."""
    with Draft(lowered, before.with_name("lowered.onnx")) as draft:
        for check in (prove.structure(draft.path, before=before), prove.parity(before, draft.path, seeds=(0,))):
            if check.status is Status.FAILED and not check.figures.get("in_original"):
                return f"in opset {lowered.opset()} its {check.name} fails: {check.detail}"
    return ""


def _plugins(model: Model) -> list[dict[str, str]]:
    """The nodes TensorRT looks for among its plugins: operators that no standard has."""
    found = {}
    for scope in Graph.of(model).scopes():
        for node in scope.nodes():
            if (node.domain, node.op) in scope.root.functions or schema(node.op, node.domain, node.opset):
                continue
            version = str(next((a.s.decode() for a in node.proto.attribute if a.name == "plugin_version"), "1"))
            found[node.op, version] = {"name": node.op, "version": version}
    return [found[key] for key in sorted(found)]


# ---- settings ----


def _settings(goal: matrix.Target, options: BuildOptions) -> dict[str, Any]:
    """What the builder is told, in TensorRT's own names."""
    flags = [p.upper() for p in options.precision]
    if "INT8" in flags and "FP16" not in flags:
        flags.append("FP16")  # what has no INT8 form is quicker so, on every board that has INT8
    flags += ["SPARSE_WEIGHTS"] * options.sparse_weights + ["GPU_FALLBACK"] * options.gpu_fallback
    flags += ["VERSION_COMPATIBLE"] * options.version_compatible + ["TF32"] * options.tf32
    pools: dict[str, float] = {POOLS[name]: mib for name, mib in options.pools.items()}
    if options.workspace_mib:
        pools["WORKSPACE"] = options.workspace_mib
    elif _version(goal.release) < (8, 4):  # there it is 0 until it is set, too little for many layers
        pools["WORKSPACE"] = min(goal.facts.get("memory_gb", [2])) * 1024 // 8
    return {
        "flags": flags,
        "pools_mib": pools,
        "dla_core": options.dla_core,
        "optimization_level": options.optimization_level,
        "strongly_typed": options.strongly_typed,
        "profiles": [],
        "timing_cache": "timing.cache",
        "calibration": None,
    }


def _calibration(
    folder: Path,
    model: Model,
    goal: matrix.Target,
    data: calibration.Data | None,
    calibrator: str,
    ship: int,
    progress: Progress | None,
) -> tuple[dict[str, Any] | None, str]:
    """INT8 ranges of the final model on the data, as TensorRT's calibration cache, and a note on them.

    None for a model with Q/DQ, which has its scales.
    """
    assert model.path
    if any(node.op_type == "QuantizeLinear" for node in model.proto.graph.node):
        return None, "the model has its own INT8 scales (Q/DQ): nothing is calibrated"
    if data is None:
        raise RequestError("INT8 needs the values the model takes: give data with --calibrate")
    gathered = calibration.calibrate(model.path, data, progress=progress)
    release = str(goal.facts.get("tensorrt", f"{goal.release}.0"))
    algorithm = "minmax" if calibrator == "minmax" else "entropy"
    cache = calibration.trt_cache(gathered.ranges(calibrator), release, algorithm)
    (folder / CACHE).write_bytes(cache)
    files, batch = samples.ship(folder, model.path, data, ship)
    otherwise = "measures them on the bundle's samples" if files else "fails; --ship-samples 32 would let it measure"
    note = (
        f"the INT8 scales are of {gathered.samples} samples ({gathered.data}), by onnxfix's {calibrator} calibrator; "
        f"a TensorRT that does not take them {otherwise}"
    )
    return {"cache": CACHE, "data": files, "algorithm": algorithm, "batch": batch}, note


def _judge(
    precisions: Sequence[str],
    tolerances: Mapping[str, float] | None,
    metrics: Mapping[str, Metric] | None,
    outputs: Sequence[str],
) -> dict[str, Any]:
    """Tolerances and metrics by output, "" for all others."""
    stated: dict[str, float | None] = dict(tolerances or {})
    for name in (*stated, *(metrics or {})):
        if name and name not in outputs:
            raise RequestError(f"'{name}' is no output; they are {', '.join(outputs)}")
    lowest = next((p for p in ("fp8", "int8", "bf16", "fp16") if p in precisions), "fp32")
    stated.setdefault("", TOLERANCES[lowest])
    return {"tolerances": stated, "metrics": {name: to_dict(metric) for name, metric in (metrics or {}).items()}}


# ---- what stands around the model ----


def _notes(
    goal: matrix.Target, lowered: Lowered, report: Report, plugins: Sequence[Mapping[str, str]]
) -> Iterator[str]:  # fmt: skip
    if plugins:
        named = ", ".join(f"{p['name']} version {p['version']}" for p in plugins)
        yield f"plugins run in TensorRT only ({named}): the model was compared with the original nowhere yet"
    elif (parity := report.check("parity")) is not None and parity.status is Status.NOT_RUN:
        yield f"the numbers were not judged here: {parity.detail}"
    if lowered.held:
        newest = (goal.opsets or (0, 0))[1]
        yield (
            f"the model stays at opset {lowered.opset}, newer than the {newest} that TensorRT {goal.release} was made "
            f"for: {lowered.held}; its parser goes on with a warning, and the matrix judged it as it is"
        )
    if report.verdict in ("refused", "unverified"):
        yield f"by the matrix: {report.judged}; the board's own parser has the last word"
    if unverified := goal.facts.get("unverified"):
        facts = "all that is" if "all" in unverified else f"the {' and '.join(unverified)}"
        yield f"{facts} said here of JetPack {goal.jetpack} comes from no page of NVIDIA's: look on the board"


def _manifest(
    source: Path, goal: matrix.Target, report: Report, lowered: Lowered, final: Model
) -> dict[str, Any]:  # fmt: skip
    """What the script and `read` need to know of the model."""
    return {
        "format": FORMAT,
        "onnxfix": __version__,
        "model": {
            "file": "model.onnx",
            "sha256": final.sha256,
            "opset": lowered.opset,
            "ir_version": lowered.ir_version,
            "original": source.name,
            "original_sha256": report.model_sha256,
        },
        "target": {"name": goal.name, "label": goal.label, "release": goal.release},
        "rules": {"name": report.rules, "sha256": report.record.rules_sha256 if report.record else ""},
        "verdict": report.verdict,
        "judged": report.judged,
        "remaining": [to_dict(f) for f in report.remaining[:REMAINING]],
        "inputs": _values(final, final.proto.graph.input),
        "outputs": _values(final, final.proto.graph.output),
    }


def _values(model: Model, values: Any) -> list[dict[str, Any]]:
    graph = shapes.index(model)
    return [
        {
            "name": v.name,
            "dtype": TensorProto.DataType.Name(graph.dtype(v.name)),
            "shape": ["?" if d is None or d == -1 else d for d in graph.shape(v.name) or ()],
        }
        for v in values
        if v.name not in graph.initializers
    ]
