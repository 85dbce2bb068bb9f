"""`onnxfix reduce`: the smallest model that still fails the same way."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onnxfix.commands.common import FINE, add_format, add_preprocess, add_target, emit, preprocessing


def add(commands: Any) -> None:
    command = commands.add_parser(
        "reduce",
        help="find the smallest model that still fails the same way",
        description="Cut a model down to the fewest nodes that still fail the same way: the same operator, the same\n"
        "words. Writes that model, with random weights, and an issue in Markdown beside it.\n"
        "Crashes and hangs are failures like others; trials run in a child process with limits.",
        epilog="examples:\n"
        "  onnxfix reduce model.onnx --fails parse\n"
        "  onnxfix reduce model.onnx --fails build -o small.onnx --seconds 120\n"
        "  onnxfix reduce model.onnx --fails parse --node Resize_17\n"
        "  onnxfix reduce model.onnx --fails parity --against model.fixed.onnx\n"
        "  onnxfix reduce model.onnx --fails parity --rules jetson.yml\n"
        "  onnxfix reduce model.onnx --fails ort\n\n"
        "exit status: 0 when a smaller model was written; 2 when the model does not fail, or the request is wrong;\n"
        "3 when what should judge it is not installed\n",
    )
    command.add_argument("model", metavar="MODEL", help="an .onnx file that fails")
    command.add_argument(
        "--fails", choices=("parse", "build", "parity", "ort"), required=True,
        help="parse, build: in TensorRT; ort: ONNX Runtime does not load or run it; parity: other numbers",
    )  # fmt: skip
    command.add_argument("-o", "--output", metavar="FILE", help="where to write (default: MODEL.reduced.onnx)")
    other = command.add_mutually_exclusive_group()
    other.add_argument("--against", metavar="OTHER", help="for parity: the model that should give the same numbers")
    other.add_argument("-r", "--rules", metavar="R", default="", help="for parity: rules that should not change it")
    add_target(command, "with --rules, the target instead of the rule file's own")
    command.add_argument("--inputs", metavar="DATA", help="for parity: .npz, Polygraphy's .json, or a folder of images")
    add_preprocess(command)
    command.add_argument("--node", metavar="NAME", default="", help="of several failures, that of this node or op")
    command.add_argument("--seconds", metavar="S", type=float, default=60.0, help="limit of one trial (default: 60)")
    command.add_argument("--memory", metavar="MIB", type=int, help="memory limit of one trial, in MiB")
    command.add_argument("--trials", metavar="N", type=int, default=400, help="at most so many (default: 400)")
    add_format(command)
    command.add_argument("-q", "--quiet", action="store_true", help="no progress")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from onnxfix import reduce
    from onnxfix.model import write_atomic
    from onnxfix.render import progress, proof

    with progress.shown(not args.quiet) as bar:
        found = reduce.reduce(
            args.model,
            args.fails,
            args.output,
            against=args.against,
            rules=args.rules,
            target=args.target or "",
            node=args.node,
            seconds=args.seconds,
            memory_mib=args.memory,
            trials=args.trials,
            inputs=args.inputs,
            preprocessing=preprocessing(args),
            progress=bar,
        )
    page = Path(found.output).with_suffix(".md")
    found = replace(found, issue=str(page))
    write_atomic(page, proof.issue(found))
    emit(args, found, lambda: proof.reduced(found))
    return FINE
