"""`onnxfix plan`: judge a plan before it is loaded, and show what it was made of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onnxfix.commands.common import FINE, WRONG, add_format, add_plugins, add_target, emit, end


def add(commands: Any) -> None:
    group = commands.add_parser(
        "plan",
        help="say in words why a plan won't load, and what it was made of",
        description="A plan belongs to one version of TensorRT and one kind of GPU. What is in its header, and in the\n"
        "model.plan.json that `onnxfix build` writes beside it, is read without TensorRT.",
        epilog="examples:\n"
        "  onnxfix plan check model.plan\n"
        "  onnxfix plan check model.plan --target jetson-nano\n"
        "  onnxfix plan show model.plan\n",
    ).add_subparsers(title="commands", metavar="COMMAND", dest="plan_command", required=True)
    check = group.add_parser(
        "check",
        help="whether anything speaks against loading it here, or on a target",
        description="Look at a plan before TensorRT does: is it whole, of which version, for which GPU, is it the one\n"
        "its model.plan.json describes, are its plugins there. Where TensorRT is installed it is asked too,\n"
        "in a process of its own, as far as this machine's driver and GPU allow.",
        epilog="examples:\n"
        "  onnxfix plan check model.plan                              on this machine\n"
        "  onnxfix plan check model.plan --model model.onnx           the same inputs and outputs too\n"
        "  onnxfix plan check model.plan --target jetson-orin-nano    on a board\n"
        "  onnxfix plan check model.plan --compute-capability 8.9     on another GPU\n"
        "  onnxfix plan check model.plan --format json | jq .verdict\n\n"
        "exit status: 0 when nothing speaks against it (what could not be looked at is said), 2 when it can't load\n",
    )
    check.add_argument("plan", metavar="PLAN", type=Path, help="a plan (.plan, .engine, .trt)")
    add_target(check, "judge for this instead of this machine")
    check.add_argument("--compute-capability", metavar="CC", default="", help="of the GPU it is to run on, e.g. 8.6")
    check.add_argument("--model", metavar="MODEL", type=Path, help="compare inputs and outputs with this .onnx file's")
    add_plugins(check)
    add_format(check)
    check.set_defaults(run=_check)
    show = group.add_parser(
        "show",
        help="what it was made of and for",
        description="The header of a plan and the model.plan.json beside it: model, rules, version, GPUs, precision,\n"
        "profiles, inputs and outputs, layers and the ONNX nodes they came from.",
        epilog="examples:\n  onnxfix plan show model.plan\n  onnxfix plan show model.plan --format json\n",
    )
    show.add_argument("plan", metavar="PLAN", type=Path, help="a plan (.plan, .engine, .trt)")
    add_format(show)
    show.add_argument("-v", "--verbose", action="store_true", help="list all layers")
    show.set_defaults(run=_show)


def _check(args: argparse.Namespace) -> int:
    from onnxfix import backends, plan
    from onnxfix.render import plan as words

    backends.use_plugins(args.plugins)
    found = plan.check(
        args.plan, args.target or "", compute_capability=args.compute_capability.strip(), model=args.model
    )
    emit(args, found, lambda: words.checked(found))
    return end(WRONG, words.why(found)) if found.verdict == "refused" else FINE


def _show(args: argparse.Namespace) -> int:
    from onnxfix import plan
    from onnxfix.render import plan as words

    found = plan.describe(args.plan)
    emit(args, found, lambda: words.described(found, args.verbose))
    return FINE
