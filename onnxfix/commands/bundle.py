"""`onnxfix bundle`: what a board needs that can't install onnxfix, and what it sent back."""

from __future__ import annotations

import argparse
from typing import Any

from onnxfix.commands.common import (
    EXIT_STATUS,
    FINE,
    add_format,
    add_freezing,
    add_loudness,
    add_plugins_use,
    add_target,
    axis_sizes,
    emit,
    end,
    preprocessing,
    tolerance,
    why,
)
from onnxfix.errors import RequestError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "bundle",
        help="pack a model with all that a board needs to build, check and time its engine",
        description="Rewrite a model for a board, prove it, and write a folder (or .tar, .tar.gz) to carry there: the\n"
        "model, inputs, golden outputs, and one Python 3.6 script that needs TensorRT 8.0 to 10 and numpy.\n"
        "It builds the engine, reads it back, runs it, compares, times, and writes result.json.\n"
        "`onnxfix bundle read result.json` turns that into a report.",
        epilog="examples:\n"
        "  onnxfix bundle model.onnx --target jetson-nano -o for_the_nano\n"
        "  onnxfix bundle model.onnx --target jetson-nano --precision fp16 --workspace 512 -o nano.tar.gz\n"
        "  onnxfix bundle model.onnx --target jetson-orin-nano --precision int8 --calibrate photos/ \\\n"
        "      --preprocess size=224x224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225 -o orin\n"
        "  onnxfix bundle seg.onnx --target jetson-nano --deepstream segmenter --labels labels.txt -o seg\n"
        "  onnxfix bundle read result.json\n\n" + EXIT_STATUS,
    )
    command.add_argument("model", metavar="MODEL", help="an .onnx file, or the word read")
    command.add_argument("result", metavar="RESULT", nargs="?", help="after read: the result.json of the board")
    command.add_argument("-o", "--output", metavar="DIR|TAR", help="the bundle: a new folder, or a .tar or .tar.gz")
    add_target(command, "the board the bundle is for")
    command.add_argument("-r", "--rules", metavar="R", default="jetson.yml", help="the rule file (default: jetson.yml)")
    command.add_argument("--allow", choices=("exact", "close", "lossy"), help="the worst a rule may do to the numbers")
    add_freezing(command)
    command.add_argument("--inputs", metavar="DATA", help="samples: .npz, Polygraphy's .json, or a folder of images")
    command.add_argument(
        "--preprocess", metavar="KEY=VALUE,...", default="",
        help="how an image becomes an input, for --inputs, --calibrate and --deepstream; see `onnxfix verify --help`",
    )  # fmt: skip
    _add_building(command)
    _add_judging(command)
    _add_deepstream(command)
    add_format(command)
    add_loudness(command, "list every node of long groups")
    command.set_defaults(run=run)


def _add_building(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("the engine")
    group.add_argument("--precision", metavar="P", default="", help="fp32, fp16, bf16, int8 or fp8")
    group.add_argument("--calibrate", metavar="DATA", help="for INT8: .npz, .json, images, or file.py:function")
    group.add_argument(
        "--calibrator", choices=("entropy", "percentile", "minmax"), default="",
        help="how a range comes from the values seen (default: entropy)",
    )  # fmt: skip
    group.add_argument(
        "--ship-samples", metavar="N", type=int, default=0,
        help="also pack N samples of --calibrate, for a TensorRT that does not take the calibration cache",
    )  # fmt: skip
    group.add_argument("--workspace", metavar="MIB", help="memory the builder may use (default before TensorRT 8.4: "
                       "an eighth of the board's)")  # fmt: skip
    group.add_argument(
        "--pool", metavar="NAME=MIB", action="append", default=[], help="another memory pool, e.g. dla_sram=1"
    )  # fmt: skip
    group.add_argument(
        "--profile", metavar="X:MIN,OPT,MAX", action="append", default=[],
        help="sizes of dynamic inputs, e.g. x:1x3x224x224,4x3x224x224,8x3x224x224",
    )  # fmt: skip
    group.add_argument(
        "--dims", metavar="AXIS=MIN:OPT:MAX", type=axis_sizes, action="append", default=[],
        help="the same by the name of a dynamic axis, e.g. batch=1:4:8",
    )  # fmt: skip
    group.add_argument("--dla-core", metavar="N", type=int, help="build for this DLA core")
    group.add_argument("--gpu-fallback", action="store_true", help="what the DLA does not take runs on the GPU")
    group.add_argument("--tf32", action="store_true", help="let FP32 be computed in TF32")
    group.add_argument("--optimization-level", metavar="N", type=int, help="0 to 5")
    group.add_argument("--sparse-weights", action="store_true", help="use 2:4 sparsity where it is")
    group.add_argument("--strongly-typed", action="store_true", help="take the precision from the model")
    group.add_argument("--version-compatible", action="store_true", help="let newer TensorRTs run the engine too")
    add_plugins_use(group)


def _add_judging(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("the comparison on the board")
    group.add_argument(
        "--tolerance", metavar="[OUTPUT=]T", type=tolerance, action="append", default=[],
        help="the error allowed, relative to the output's largest magnitude (default: 1e-3; fp16: 1e-2; int8: "
        "measured only)",
    )  # fmt: skip
    group.add_argument(
        "--metric", metavar="[OUTPUT=]M[:LIMIT]", action="append", default=[],
        help="judge by absolute, relative, cosine, top (top5) or iou instead, as `onnxfix verify` does",
    )  # fmt: skip


def _add_deepstream(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("DeepStream")
    group.add_argument(
        "--deepstream", choices=("detector", "classifier", "segmenter"),
        help="also write nvinfer.txt, a configuration of DeepStream's nvinfer",
    )  # fmt: skip
    group.add_argument("--labels", metavar="FILE", help="names of the classes, one a line")
    group.add_argument("--classes", metavar="N", type=int, default=0, help="how many, where there are no labels")
    group.add_argument("--parser", metavar="FUNCTION:LIBRARY", default="", help="a custom parser of the outputs")


def run(args: argparse.Namespace) -> int:
    if args.model == "read":
        return _read(args)
    if args.result:
        raise RequestError(f"what is '{args.result}'? give one model, or: onnxfix bundle read result.json")
    if not args.target or not args.output:
        raise RequestError("name the board with --target and the bundle with -o")
    return _make(args)


def _read(args: argparse.Namespace) -> int:
    from onnxfix import api, bundle
    from onnxfix.render import bundle as render

    if not args.result:
        raise RequestError("name the result: onnxfix bundle read result.json")
    report = bundle.read(args.result)
    emit(args, report, lambda: render.came_back(report, args.verbose))
    status = api.exit_status(report)
    if status == FINE and (failed := next((c for c in report.checks if c.status.value == "failed"), None)):
        return end(1, f"{failed.name} failed on the board: {failed.detail}")
    return end(status, why(report)) if status else FINE


def _make(args: argparse.Namespace) -> int:
    from onnxfix import api, bundle, calibration, catalog
    from onnxfix.backends import metrics, options
    from onnxfix.render import bundle as render
    from onnxfix.render import progress

    how = preprocessing(args)
    rules = catalog.load_set(args.rules, args.plugins_use)
    labels = _label_names(args.labels)
    kind = bundle.Nvinfer(args.deepstream, labels, args.classes, args.parser) if args.deepstream else None
    if kind is None and (args.labels or args.classes or args.parser):
        raise RequestError("--labels, --classes and --parser are for --deepstream")
    with progress.shown(not args.quiet) as bar:
        done = bundle.bundle(
            args.model,
            args.target,
            args.output,
            rules=rules,
            allow=args.allow,
            inputs=args.inputs,
            preprocessing=how,
            precision=args.precision,
            data=calibration.Data(args.calibrate, how) if args.calibrate else None,
            calibrator=args.calibrator,
            ship_samples=args.ship_samples,
            options=options.read(rules.build, **_settings(args)),
            tolerances=dict(args.tolerance),
            metrics=metrics.parse(args.metric),
            freeze=dict(args.freeze),
            set_shape=dict(args.set_shape),
            plugins_use=args.plugins_use,
            deepstream=kind,
            progress=bar,
        )
    emit(args, done, lambda: render.made(done))
    status = api.exit_status(done.report)
    return end(status, why(done.report)) if status else FINE


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The builder's settings under the names of a rule file's `build:`."""
    given = {
        name: value
        for name in (
            "workspace", "dla_core", "gpu_fallback", "tf32", "optimization_level", "strongly_typed",
            "version_compatible", "sparse_weights", "profile",
        )
        if (value := getattr(args, name)) not in (None, False, [])
    }  # fmt: skip
    if args.dims:
        given["dims"] = dict(args.dims)
    if args.pool:
        given["pool"] = dict(text.partition("=")[::2] for text in args.pool)
    return given


def _label_names(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        with open(path, encoding="utf-8") as file:
            found = tuple(line.strip() for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read: {error}") from None
    if not found:
        raise RequestError(f"{path}: holds no labels; write one a line")
    return found
