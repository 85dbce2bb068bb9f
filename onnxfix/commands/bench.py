"""`onnxfix bench`: latency, frames per second and memory, side by side."""

from __future__ import annotations

import argparse
from typing import Any

from onnxfix.commands.common import (
    FINE,
    REFUSED,
    UNPROVED,
    add_format,
    add_plugins,
    emit,
    end,
    names,
    preprocessing,
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "bench",
        help="measure models and engines side by side: latency, frames per second, memory",
        description="Run models in ONNX Runtime and TensorRT, and engines in TensorRT, on the same inputs, and show\n"
        "percentiles of their latency, frames per second, and memory. They run in turn, round by round, so that\n"
        "a busy machine is unfair to none; the ratio to the first comes with its spread over the rounds.",
        epilog="examples:\n"
        "  onnxfix bench model.onnx model.fixed.onnx          does the rewrite cost speed?\n"
        "  onnxfix bench model.onnx model.plan --against ort  ONNX Runtime's CPU beside TensorRT\n"
        "  onnxfix bench model.onnx --dims batch=8 --threads 1 --seconds 10\n"
        "  onnxfix bench model.onnx --inputs photos/ --preprocess size=224x224 --format json -o bench.json\n\n"
        "exit status: 0 when all that could run here did; 1 when a model fails on an engine that is here; 2 when the\n"
        "request is wrong; 3 when nothing could run here\n",
    )
    command.add_argument("paths", metavar="MODEL|PLAN", nargs="+", help=".onnx, or an engine: .plan, .engine, .trt")
    command.add_argument(
        "--against", metavar="ENGINES", type=names,
        help="what models run on beside TensorRT: ort (CPU), ort-cuda, ort-tensorrt, with commas (default: all here)",
    )  # fmt: skip
    command.add_argument("--inputs", metavar="DATA", help=".npz, Polygraphy's .json, or a folder of images; its first")
    command.add_argument("--preprocess", metavar="KEY=VALUE,...", default="", help="of images, as for `onnxfix verify`")
    command.add_argument(
        "--dims", metavar="AXIS=SIZE", type=_size, action="append", default=[],
        help="size of a dynamic axis of drawn inputs; may be given several times",
    )  # fmt: skip
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of drawn inputs (default: 0)")
    command.add_argument("--seconds", metavar="S", type=float, default=3.0, help="for each row (default: 3)")
    command.add_argument("--iterations", metavar="N", type=int, default=0, help="runs of each row, instead of seconds")
    command.add_argument("--warmup", metavar="N", type=int, default=5, help="runs before, not counted (default: 5)")
    command.add_argument("--rounds", metavar="N", type=int, default=10, help="shares of the time (default: 10)")
    command.add_argument("--threads", metavar="N", type=int, default=0, help="of ONNX Runtime (default: by processors)")
    add_plugins(command)
    add_format(command)
    command.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")
    command.add_argument("-q", "--quiet", action="store_true", help="no progress")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from onnxfix import bench
    from onnxfix.render import bench as shown
    from onnxfix.render import progress

    with progress.shown(not args.quiet) as bar:
        found = bench.bench(
            args.paths,
            against=args.against,
            inputs=args.inputs,
            preprocessing=preprocessing(args),
            dims=dict(args.dims),
            seed=args.seed,
            seconds=args.seconds,
            iterations=args.iterations,
            warmup=args.warmup,
            rounds=args.rounds,
            threads=args.threads,
            plugins=args.plugins,
            progress=bar,
        )
    emit(args, found, lambda: shown.table(found), args.output)
    if failed := [row for row in found.rows if row.failed]:
        return end(REFUSED, f"{failed[0].model} does not run on {failed[0].engine}: {failed[0].why}")
    if not any(row.runs for row in found.rows):
        return end(UNPROVED, f"nothing could run here: {found.rows[0].why}")
    return FINE


def _size(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name or not (size.isdecimal() and size.isascii()) or not int(size):
        raise argparse.ArgumentTypeError(f"'{text}': give an axis, '=' and a size, as in batch=8")
    return name, int(size)
