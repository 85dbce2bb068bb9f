"""`onnxfix gate`: judge many models, for CI."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfix.commands.common import FINE, add_freezing, add_loudness, add_target, end, names, shipped
from onnxfix.errors import RequestError

if TYPE_CHECKING:
    from onnxfix.gating import GateReport

FORMATS = ("text", "json", "sarif", "junit", "github")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "gate",
        help="judge many models, for CI: exit status 1 when the target refuses one",
        description="Judge models for a target, by the matrix and by TensorRT's parser where one is installed.\n"
        "With --rules a model passes when `apply` by that rule file would make it acceptable.\n"
        "Nothing is written but what --output and --write-baseline name.",
        epilog="examples:\n"
        "  onnxfix gate model.onnx --target jetson-nano\n"
        "  onnxfix gate models/ 'exports/**/*.onnx' --target jetpack-6.1 --rules jetson.yml\n"
        "  onnxfix gate models/ --target rtx-1.7 --require parse --format sarif --output gate.sarif\n"
        "  onnxfix gate detect.onnx --target jetson-nano --freeze k=100 --set-shape images:1x3x640x640\n"
        "  onnxfix gate models/ --target jetson-nano --write-baseline known.json\n"
        "  onnxfix gate models/ --target jetson-nano --baseline known.json\n\n"
        "exit status: 0 when no model is refused, also when the matrix could not decide on some; 1 when one is\n"
        "refused or is no model that can be read (what a baseline knows doesn't count); 2 when the request is\n"
        "wrong (no such path, no model in it, bad rules, target or baseline); 3 when a required parse could not run\n",
    )
    command.add_argument("paths", metavar="PATH", nargs="+", help="an .onnx file, a folder of them, or a pattern")
    add_target(command, "the target; the rule file's own when left out")
    command.add_argument("-r", "--rules", metavar="R", help="judge what is refused as `apply` by these rules leaves it")
    add_freezing(command)
    expected = command.add_mutually_exclusive_group()
    expected.add_argument("--baseline", metavar="FILE", help="findings that are known, and don't fail")
    expected.add_argument("--write-baseline", metavar="FILE", help="write the findings there, as known from now on")
    command.add_argument(
        "--require", metavar="PROOFS", type=names, action="extend", default=[],
        help="parse: every model must have been parsed, and taken, by the TensorRT installed here",
    )  # fmt: skip
    command.add_argument(
        "--format", choices=FORMATS, default="text",
        help="text; json: complete; sarif: SARIF 2.1.0; junit: JUnit XML; github: annotations (default: text)",
    )  # fmt: skip
    command.add_argument("-o", "--output", metavar="FILE", help="write there, and the text to standard output")
    command.add_argument(
        "--also", metavar="FORMAT=FILE", type=_format_and_file, action="append", default=[],
        help="write another form of the report there, e.g. sarif=gate.sarif; may be given several times",
    )  # fmt: skip
    command.add_argument("-j", "--jobs", metavar="N", type=int, help="models judged at a time (default: by processors)")
    add_loudness(command, "list every node, and what doesn't fail")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from onnxfix import gating
    from onnxfix.model import write_atomic
    from onnxfix.render import gate, layout, progress

    also: list[tuple[str, str]] = args.also + ([(args.format, args.output)] if args.output else [])
    for place in filter(None, (args.write_baseline, *(file for _, file in also))):
        if not Path(place).absolute().parent.is_dir():
            raise RequestError(f"{place}: cannot be written: its folder does not exist")
    with progress.shown(not args.quiet) as bar:
        report = gating.gate(
            args.paths,
            target=args.target,
            rules=args.rules,
            baseline=args.baseline,
            require=args.require,
            freeze=dict(args.freeze),
            set_shape=dict(args.set_shape),
            jobs=args.jobs,
            progress=bar,
        )
    if args.write_baseline:
        gating.write_baseline(report, Path(args.write_baseline))
        report = gating.compare(report, gating.read_baseline(Path(args.write_baseline)), args.write_baseline)
    for form, file in also:
        write_atomic(Path(file), _gate_text(report, form, args.verbose).encode("utf-8", "backslashreplace"))
    if args.format == "text" or args.output:
        layout.write(gate.blocks(report, args.verbose), sys.stdout)
    else:
        sys.stdout.write(_gate_text(report, args.format, args.verbose))
    return end(report.exit_status, gate.why(report)) if report.exit_status else FINE


def _gate_text(report: GateReport, form: str, verbose: bool) -> str:
    from onnxfix.render import gate, github, json, junit, layout, sarif
    from onnxfix.report import to_dict

    if form == "text":
        return layout.plain(gate.blocks(report, verbose))
    if form == "sarif":
        return sarif.dumps(report, shipped())
    if form == "json":
        return f"{json.dumps({'verdict': report.verdict, 'exit_status': report.exit_status, **to_dict(report)})}\n"
    return junit.dumps(report) if form == "junit" else github.dumps(report)


def _format_and_file(text: str) -> tuple[str, str]:
    form, _, file = text.partition("=")
    if form not in FORMATS or not file:
        raise argparse.ArgumentTypeError(f"'{text}': give one of {', '.join(FORMATS)}, '=' and a file")
    return form, file
