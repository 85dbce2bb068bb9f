"""`onnxfix inspect`: what a model is, and what a target refuses of it."""

from __future__ import annotations

import argparse
from typing import Any

from onnxfix.commands.common import FINE, REFUSED, add_format, add_freezing, add_target, emit, end


def add(commands: Any) -> None:
    command = commands.add_parser(
        "inspect",
        help="show what a model is, and what a target refuses of it",
        description="Show a model as its file says it is: opsets, inputs and outputs, weights, nodes, functions.\n"
        "With --target also what that target refuses, node by node, and the rules that would help.\n"
        "External data is never read.",
        epilog="examples:\n"
        "  onnxfix inspect model.onnx\n"
        "  onnxfix inspect model.onnx --target jetson-nano\n"
        "  onnxfix inspect model.onnx --target trt-8.2 --format json --output model.json\n"
        "  onnxfix inspect model.onnx --target jetson-agx-orin --precision int8 --dla\n"
        "  onnxfix inspect model.onnx --target jetpack-6.1 | grep -A3 '^  refused'\n\n"
        "exit status: 0, also when the target could not decide on some nodes; 1 when --target is given and\n"
        "refuses the model; 2 when the request is wrong\n",
    )
    command.add_argument("model", metavar="MODEL", help="an .onnx file")
    add_target(command, "judge the nodes for this target")
    command.add_argument("--precision", metavar="P", default="", help="the one wanted: fp16, bf16, int8, fp8, fp4")
    add_freezing(command)
    command.add_argument("--dla", action="store_true", help="show which nodes the DLA of the target's board would take")
    add_format(command)
    command.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")
    command.add_argument("-v", "--verbose", action="store_true", help="list every node of long groups")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from itertools import chain

    from onnxfix import api
    from onnxfix.render import matrix, text

    found = api.inspect(
        args.model,
        target=args.target,
        precision=args.precision,
        dla=args.dla,
        freeze=dict(args.freeze),
        set_shape=dict(args.set_shape),
    )
    split = matrix.split(found.dla) if found.dla else ()
    emit(args, found, lambda: chain(text.inspection(found, args.verbose), split), args.output)
    if found.verdict == "refused":
        nodes = f"{found.refused} of {text.plural(found.nodes, 'node')}"
        return end(REFUSED, f"{found.target} does not take {args.model} as it is: {nodes}")
    return FINE
