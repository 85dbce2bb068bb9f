"""`onnxfix matrix`: what each TensorRT takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onnxfix.commands.common import FINE, add_format, add_target, emit, emit_page


def add(commands: Any) -> None:
    group = commands.add_parser(
        "matrix",
        help="what each TensorRT takes: show, compare, measure",
        description="The support matrix: what the ONNX parser of each TensorRT takes, and what it ignores in silence.",
        epilog="examples:\n"
        "  onnxfix matrix show --target jetson-nano\n"
        "  onnxfix matrix show Resize --target trt-8.2\n"
        "  onnxfix matrix diff jetpack-4.6 jetpack-6.1\n"
        "  onnxfix matrix targets\n"
        "  onnxfix matrix probe --output mine.json\n",
    ).add_subparsers(title="commands", metavar="COMMAND", dest="matrix_command", required=True)
    show = group.add_parser(
        "show",
        help="what a target takes, all operators or one",
        description="What a target takes: all operators, or one with each of its limits.",
        epilog="examples:\n  onnxfix matrix show --target jetson-nano\n  onnxfix matrix show Resize --target trt-8.2\n",
    )
    show.add_argument("op", metavar="OP", nargs="?", default="", help="an operator, such as Resize")
    add_target(show, "the target, or a matrix file", required=True)
    show.set_defaults(run=_show)
    diff = group.add_parser(
        "diff",
        help="what a move from one target to another changes",
        description="What a move from one target to another frees, and what gets harder, operator by operator.",
        epilog="examples:\n  onnxfix matrix diff jetpack-4.6 jetpack-6.1\n  onnxfix matrix diff trt-8.2 trt-10.3\n",
    )
    diff.add_argument("before", metavar="T1", help="a target")
    diff.add_argument("after", metavar="T2", help="another")
    diff.set_defaults(run=_diff)
    targets = group.add_parser("targets", help="all targets", description="All boards, JetPacks and TensorRTs.")
    targets.set_defaults(run=_targets)
    for command in (show, diff, targets):
        command.add_argument(
            "--format", choices=("text", "json", "markdown", "html"), default="text",
            help="text, complete JSON, Markdown, or a page of HTML that needs nothing else (default: text)",
        )  # fmt: skip
        command.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")
    probe = group.add_parser(
        "probe",
        help="measure the TensorRT that is installed, here or on a board",
        description="Ask the installed parser about some thirty thousand small models and write what it takes as a\n"
        "matrix file; --target takes such a file. A parser that crashes on a model goes on with the next.",
        epilog="examples:\n"
        "  onnxfix matrix probe --output mine.json\n"
        "  onnxfix matrix probe --bundle probe/       a folder to carry to a board; python3 probe_tensorrt.py there\n"
        "  onnxfix matrix probe --read result.json --output board.json\n"
        "  onnxfix inspect model.onnx --target board.json\n",
    )
    probe.add_argument("-o", "--output", metavar="FILE", help="the matrix file (default: RELEASE.json)")
    where = probe.add_mutually_exclusive_group()
    where.add_argument("--bundle", metavar="DIR", help="only write the models and a script that runs on a board")
    where.add_argument("--read", metavar="RESULT", help="what that script brought back")
    where.add_argument("--flavour", choices=("tensorrt", "tensorrt_rtx"), help="which TensorRT, where both are here")
    add_format(probe)
    probe.set_defaults(run=_probe)


def _show(args: argparse.Namespace) -> int:
    from onnxfix import matrix, tables
    from onnxfix.render import matrix as shown

    found = tables.table(matrix.target(args.target), args.op)
    emit_page(args, found, lambda: shown.table(found), f"What {found.target} takes")
    return FINE


def _diff(args: argparse.Namespace) -> int:
    from onnxfix import matrix, tables
    from onnxfix.render import matrix as shown

    found = tables.diff(matrix.target(args.before), matrix.target(args.after))
    emit_page(args, found, lambda: shown.diff(found), f"From {found.before} to {found.after}")
    return FINE


def _targets(args: argparse.Namespace) -> int:
    from onnxfix import tables
    from onnxfix.render import matrix as shown

    emit_page(args, tables.targets(), shown.targets, "Targets of onnxfix")
    return FINE


def _probe(args: argparse.Namespace) -> int:
    from onnxfix.model import write_atomic
    from onnxfix.probe import run
    from onnxfix.render import matrix as shown
    from onnxfix.render import progress

    with progress.shown() as bar:
        if args.bundle:
            count = run.bundle(Path(args.bundle), bar)
            script = str(Path(args.bundle) / "probe_tensorrt.py")
            value = {"bundle": args.bundle, "models": count, "script": script}
            emit(args, value, lambda: shown.bundled(args.bundle, count, script))
            return FINE
        result = run.read(Path(args.read)) if args.read else run.measure(args.flavour, bar)
        found = run.evaluate(result, bar)
    output = Path(args.output or f"{result.release}.json")
    write_atomic(output, found.text)
    emit(args, found, lambda: shown.probe(found, str(output)))
    return FINE
