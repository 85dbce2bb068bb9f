"""`onnxfix convert`: FP16, BF16 or INT8 written in the graph."""

from __future__ import annotations

import argparse
from typing import Any

from onnxfix.commands.common import (
    EXIT_STATUS,
    FINE,
    REFUSED,
    UNPROVED,
    add_format,
    add_loudness,
    emit,
    end,
    preprocessing,
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "convert",
        help="write FP16, BF16 or INT8 in the graph, and measure what that costs in accuracy",
        description="Write a model's precision in its graph, as strongly typed networks (TensorRT-RTX, TensorRT 11)\n"
        "need it. Inner values are measured on data: what FP16 does not hold stays FP32, and INT8 gets its\n"
        "ranges. Then both models run in ONNX Runtime, and the errors are shown. The input is never changed.",
        epilog="examples:\n"
        "  onnxfix convert model.onnx --precision fp16 -o model.fp16.onnx\n"
        "  onnxfix convert model.onnx --precision int8 --calibrate photos/ --preprocess size=224x224 \\\n"
        "      --cache calib.json -o model.int8.onnx          interrupted, the same command goes on where it was\n"
        "  onnxfix convert model.onnx --precision int8 --calibrate data.npz --calibrator minmax -o model.int8.onnx\n"
        "  onnxfix convert model.onnx --precision fp16 --keep /head/Softmax --calibrate loader.py:samples -o m.onnx\n\n"
        + EXIT_STATUS,
    )
    command.add_argument("model", metavar="MODEL", help="an .onnx file in FP32")
    command.add_argument("--precision", choices=("fp16", "bf16", "int8"), required=True)
    command.add_argument("-o", "--output", metavar="FILE", required=True, help="where the converted model goes")
    _add_data(command)
    command.add_argument(
        "--keep", metavar="NODE", action="append", default=[],
        help="a node, or a value it makes, that stays FP32 too; may be given several times",
    )  # fmt: skip
    command.add_argument(
        "--cosine", metavar="C", type=float,
        help="the least cosine between an output before and after (default: fp16 0.999, bf16 0.99, int8 0.95)",
    )  # fmt: skip
    command.add_argument("--require", action="store_true", help="accuracy that can't be judged fails: exit status 3")
    add_format(command)
    add_loudness(command, "list every node that stays FP32, and every range")
    command.set_defaults(run=run)


def _add_data(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("data")
    group.add_argument(
        "--calibrate", metavar="DATA",
        help="a folder of images, .npz, Polygraphy's .json, or file.py:function that yields input -> array "
        "(default: drawn inputs, which tell little about INT8)",
    )  # fmt: skip
    group.add_argument(
        "--preprocess", metavar="KEY=VALUE,...", default="",
        help="how an image becomes an input: size=HEIGHTxWIDTH, layout=nchw|nhwc, color=rgb|bgr|gray, scale=255, "
        "mean=A/B/C, std=A/B/C, fit=stretch|letterbox|crop, input=NAME",
    )  # fmt: skip
    group.add_argument("--samples", metavar="N", type=int, default=500, help="at most so many (default: 500)")
    group.add_argument(
        "--calibrator", choices=("entropy", "percentile", "minmax"), default="entropy",
        help="how a range of INT8 follows from the values seen (default: entropy)",
    )  # fmt: skip
    group.add_argument(
        "--cache", "--calibration-cache", metavar="FILE", dest="cache",
        help="where the values seen are kept: read when it is of this model and data, written as the run goes on",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from onnxfix import precision
    from onnxfix.errors import RequestError
    from onnxfix.render import precision as shown
    from onnxfix.render import progress

    if args.samples < 1:
        raise RequestError("--samples: give 1 or more")
    how = preprocessing(args)
    with progress.shown(not args.quiet) as bar:
        done = precision.convert(
            args.model,
            args.output,
            args.precision,
            data=precision.Data(args.calibrate, how, args.samples),
            calibrator=args.calibrator,
            cache=Path(args.cache) if args.cache else None,
            block=args.keep,
            cosine=args.cosine,
            only_passed=True,
            progress=bar,
        )
    failed = done.check.status.value == "failed"
    emit(args, done, lambda: shown.conversion(done, "nothing was written" if failed else args.output, args.verbose))
    if failed:
        return end(REFUSED, f"nothing was written: {done.check.detail}")
    if args.require and done.check.status.value != "passed":
        return end(UNPROVED, done.check.detail)
    return FINE
