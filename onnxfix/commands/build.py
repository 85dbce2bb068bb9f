"""`onnxfix build`: from a model to an engine file that is known to load."""

from __future__ import annotations

import argparse
from typing import Any

from onnxfix.commands.common import (
    EXIT_STATUS,
    FINE,
    add_format,
    add_loudness,
    add_plugins,
    add_target,
    axis_sizes,
    emit,
    end,
    names,
    preprocessing,
    why,
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "build",
        help="build an engine, read it back, and describe it beside the plan",
        description="Build a TensorRT engine from a model, with --rules after rewriting and proving it. The plan is\n"
        "deserialised again in a fresh process, and PLAN.json beside it says what it was made of and where it\n"
        "runs. TensorRT-RTX builds with no GPU, for others by --compute-capability; TensorRT itself for the GPU at\n"
        "hand. What the release can't do is said before anything is built. Plan and description appear together, or\n"
        "not at all.",
        epilog="examples:\n"
        "  onnxfix build model.onnx -o model.plan --compute-capability 8.6\n"
        "  onnxfix build model.onnx -o model.plan --rules jetson.yml --precision fp16 --workspace 512\n"
        "  onnxfix build model.onnx -o model.plan --profile 'x:1x3x224x224,4x3x224x224,8x3x224x224'\n"
        "  onnxfix build model.onnx -o model.plan --precision int8 --calibrate photos/ --preprocess size=224x224\n"
        "  onnxfix build model.onnx -o model.plan --precision fp16 --dla-core 0 --gpu-fallback   (on a Jetson)\n"
        "  onnxfix build model.onnx -o model.plan --plugins libmyplugin.so --require readback\n\n" + EXIT_STATUS,
    )
    command.add_argument("model", metavar="MODEL", help="an .onnx file")
    command.add_argument("-o", "--output", metavar="PLAN", required=True, help="where to write the engine")
    command.add_argument(
        "-r", "--rules", metavar="R",
        help="first rewrite the model by this rule file, as `apply` does; what is not said here its `build:` says",
    )  # fmt: skip
    add_target(command, "judge the model for this target too (default: the TensorRT at hand)")
    _add_precision(command)
    _add_settings(command)
    add_plugins(command)
    command.add_argument(
        "--require", metavar="PROOFS", type=names, action="extend", default=[],
        help="proofs without which nothing is written, separated by commas: parse, precision, readback; "
        "with --rules also structure, changes, parity",
    )  # fmt: skip
    command.add_argument("--report", metavar="FILE", help="also write the whole report there, as JSON")
    add_format(command)
    add_loudness(command, "list every node of long groups", quiet="only the summary; no progress")
    command.set_defaults(run=_build)


def _add_precision(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("precision")
    group.add_argument(
        "--precision", choices=("fp16", "bf16", "int8"),
        help="a builder flag where TensorRT has one (up to 10), else written in the graph, its accuracy measured",
    )  # fmt: skip
    group.add_argument(
        "--strongly-typed", action="store_true", default=None,
        help="write the precision in the graph for TensorRT 10 too; TensorRT-RTX and TensorRT 11 know no other way",
    )  # fmt: skip
    group.add_argument(
        "--calibrate", metavar="DATA",
        help="data for the precision: a folder of images, .npz, Polygraphy's .json, or file.py:function",
    )  # fmt: skip
    group.add_argument("--preprocess", metavar="KEY=VALUE,...", help="how an image becomes an input; see `verify`")
    group.add_argument("--calibrator", choices=("entropy", "percentile", "minmax"), help="(default: entropy)")
    group.add_argument("--calibration-cache", metavar="FILE", help="where calibration is kept and taken up again")
    group.add_argument("--tf32", action="store_true", default=None, help="let FP32 layers round to TF32: faster")


def _add_settings(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("engine")
    group.add_argument(
        "--compute-capability", metavar="X.Y",
        help="of the GPU to build for, several with commas; TensorRT-RTX builds for GPUs that are not here",
    )  # fmt: skip
    group.add_argument(
        "--profile", metavar="INPUT:MIN,OPT,MAX", action="append",
        help="sizes an input with dynamic axes may have, e.g. x:1x3x224x224,4x3x224x224,8x3x224x224; further inputs of "
        "the same profile after a ';'; repeated for further profiles",
    )  # fmt: skip
    group.add_argument(
        "--dims", metavar="AXIS=MIN:OPT:MAX", type=axis_sizes, action="append",
        help="the same by the name of a dynamic axis, wherever it occurs, e.g. batch=1:4:8",
    )  # fmt: skip
    group.add_argument("--workspace", metavar="MIB", help="memory a layer may use for scratch")
    group.add_argument(
        "--pool", metavar="NAME=MIB", type=_pool, action="append",
        help="another memory pool: dla_sram, dla_local_dram, dla_global_dram, tactic_dram, tactic_shared_memory",
    )  # fmt: skip
    group.add_argument("--dla-core", metavar="N", type=int, help="build for that DLA core of a Jetson")
    group.add_argument(
        "--gpu-fallback", action="store_true", default=None, help="run what the DLA does not take on the GPU"
    )
    group.add_argument("--timing-cache", metavar="FILE", help="what TensorRT measured: read if there, then written")
    group.add_argument(
        "--version-compatible", action="store_true", default=None, help="newer releases load the engine too"
    )
    group.add_argument(
        "--hardware-compatible", action="store_true", default=None, help="all GPUs from Ampere on run the engine"
    )
    group.add_argument("--sparse-weights", action="store_true", default=None, help="use 2:4 sparsity where it is")
    group.add_argument("--optimization-level", metavar="N", type=int, help="0 (fast build) to 5 (fast engine)")


def _pool(text: str) -> tuple[str, str]:
    name, equals, size = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{text}': give a pool, '=' and MiB, as in dla_sram=1")
    return name.replace("-", "_"), size


# The options of the engine, by their names under `build:`.
_SETTINGS = (
    "compute_capability", "profile", "dims", "workspace", "pool", "dla_core", "gpu_fallback", "timing_cache",
    "version_compatible", "hardware_compatible", "sparse_weights", "optimization_level", "strongly_typed", "tf32",
)  # fmt: skip


def _build(args: argparse.Namespace) -> int:
    from onnxfix import api, build, catalog
    from onnxfix.backends import options
    from onnxfix.render import progress, text

    rules = catalog.load_set(args.rules) if args.rules else None
    given = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    for name in ("pool", "dims"):
        if name in given:
            given[name] = dict(given[name])
    data = None
    if args.calibrate:
        data = build.Data(args.calibrate, preprocessing(args))
    with progress.shown(not args.quiet) as bar:
        done = build.build(
            args.model,
            args.output,
            rules=rules,
            target=args.target,
            options=options.read(rules.build if rules else {}, **given),
            precision=args.precision or "",
            data=data,
            calibrator=args.calibrator or "",
            calibration_cache=args.calibration_cache,
            plugins=args.plugins,
            require=args.require,
            report_to=args.report,
            progress=bar,
        )
    emit(args, done, lambda: text.summary(done) if args.quiet else text.report(done, args.verbose))
    status = api.exit_status(done)
    return end(status, why(done)) if status else FINE
