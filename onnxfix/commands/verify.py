"""`onnxfix verify`: the same numbers, or the first node that differs."""

from __future__ import annotations

import argparse
from typing import Any

from onnxfix.commands.common import (
    EXIT_STATUS,
    FINE,
    REFUSED,
    UNPROVED,
    add_feeding,
    add_format,
    add_loudness,
    emit,
    end,
    preprocessing,
    tolerance,
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "verify",
        help="compare two models by their numbers, and name the first node that differs",
        description="Compare the outputs of two models on the same inputs, by ONNX Runtime on the CPU. When they\n"
        "differ, their inner values are compared too: the first node that differs is named, and the\n"
        "error along the path is shown, worst first. With --precision fp16, compare with the FP16 form.",
        epilog="examples:\n"
        "  onnxfix verify model.onnx model.fixed.onnx\n"
        "  onnxfix verify a.onnx b.onnx --inputs data.npz --tolerance 1e-4 --tolerance boxes=1e-2\n"
        "  onnxfix verify a.onnx b.onnx --dims batch=1:4:8 --seeds 0,1,2,3\n"
        "  onnxfix verify a.onnx b.onnx --inputs photos/ --preprocess size=224x224,mean=0.485/0.456/0.406 "
        "--metric top5:0.99\n"
        "  onnxfix verify model.onnx --precision fp16 --metric masks=iou:0.95\n\n" + EXIT_STATUS,
    )
    command.add_argument("before", metavar="MODEL", help="an .onnx file")
    command.add_argument("after", metavar="OTHER", nargs="?", help="the one that should give the same numbers")
    command.add_argument("--precision", metavar="P", default="", help="fp16: run the FP16 form; say what it can't hold")
    add_feeding(command)
    command.add_argument(
        "--tolerance", metavar="[OUTPUT=]T", type=tolerance, action="append", default=[],
        help="the error allowed, relative to the output's largest magnitude (default: 1e-5; fp16: 1e-2)",
    )  # fmt: skip
    command.add_argument(
        "--metric", metavar="[OUTPUT=]M[:LIMIT]", action="append", default=[],
        help="judge by absolute, relative, cosine, top (top5 for five best classes) or iou (of masks) instead",
    )  # fmt: skip
    command.add_argument("--require", action="store_true", help="not run counts as not passed: exit status 3")
    add_format(command)
    command.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")
    add_loudness(command, "list every value that differs")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from onnxfix import verify
    from onnxfix.backends import metrics
    from onnxfix.render import progress, proof

    with progress.shown(not args.quiet) as bar:
        found = verify.verify(
            args.before,
            args.after,
            precision=args.precision,
            inputs=args.inputs,
            preprocessing=preprocessing(args),
            seeds=args.seeds,
            dims=dict(args.dims),
            tolerances=dict(args.tolerance),
            metrics=metrics.parse(args.metric),
            progress=bar,
        )
    emit(args, found, lambda: proof.verification(found, args.verbose), args.output)
    if found.check.status.value == "failed":
        return end(REFUSED, proof.why(found))
    if args.require and proof.unproved(found):
        return end(UNPROVED, f"the parity did not run: {found.check.detail}")
    return FINE
