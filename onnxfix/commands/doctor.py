"""`onnxfix doctor`: which backends are here."""

from __future__ import annotations

import argparse
from typing import Any

from onnxfix.commands.common import FINE, add_format, emit


def add(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="which backends are here, which are not, and how to get them",
        description="Which backends the proofs can use on this machine, which are missing, why, and how to get\n"
        "them. An installed TensorRT is started and asked itself.",
        epilog="examples:\n  onnxfix doctor\n  onnxfix doctor --format json\n",
    )
    add_format(command)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from onnxfix import api
    from onnxfix.render import text

    found = api.doctor()
    emit(args, found, lambda: text.doctor(found))
    return FINE
