"""`onnxfix diff`: what two models differ in."""

from __future__ import annotations

import argparse
from typing import Any

from onnxfix.commands.common import FINE, REFUSED, add_format, emit


def add(commands: Any) -> None:
    command = commands.add_parser(
        "diff",
        help="what two models differ in, in words",
        description="Compare two models by structure: nodes, attributes, connections, weights by their values, inputs\n"
        "and outputs, opsets, functions, metadata. The order of nodes and the names of values and nodes\n"
        "are no difference; other names of inputs and outputs are told, and count with --names.",
        epilog="examples:\n"
        "  onnxfix diff model.onnx model.fixed.onnx\n"
        "  onnxfix diff a.onnx b.onnx --format json | jq .same\n\n"
        "exit status: 0 when they are the same, 1 when they differ, 2 when the request is wrong\n",
    )
    command.add_argument("before", metavar="MODEL", help="an .onnx file")
    command.add_argument("after", metavar="OTHER", help="another")
    command.add_argument("--names", action="store_true", help="other names of inputs and outputs are differences too")
    add_format(command)
    command.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")
    command.add_argument("-v", "--verbose", action="store_true", help="list everything")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from onnxfix import difference
    from onnxfix.render import proof

    found = difference.diff(args.before, args.after, names=args.names)
    emit(args, found, lambda: proof.difference(found, args.verbose), args.output)
    return FINE if found.same else REFUSED
