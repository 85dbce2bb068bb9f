"""`onnxfix apply`, and `replay` and `undo` of what it did."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from onnxfix.commands.common import (
    EXIT_STATUS,
    FINE,
    add_format,
    add_freezing,
    add_loudness,
    add_plugins,
    add_plugins_use,
    add_target,
    emit,
    end,
    names,
    why,
)


def add(commands: Any) -> None:
    _add_apply(commands)
    _add_replay(commands)
    _add_undo(commands)


def _add_apply(commands: Any) -> None:
    command = commands.add_parser(
        "apply",
        help="rewrite a model by rules, prove the result and write it",
        description="Rewrite what the target refuses, by the rules of a rule file. The result is proved: its\n"
        "structure, by TensorRT's own parser, and by comparing its numbers with the original's.\n"
        "It appears whole or not at all; the input is never touched.",
        epilog="examples:\n"
        "  onnxfix apply model.onnx                     by jetson.yml, to model.fixed.onnx\n"
        "  onnxfix apply model.onnx --dry-run --diff    what would change, node by node\n"
        "  onnxfix apply model.onnx --rules jetson.yml --target jetson-orin-nano -o fixed.onnx\n"
        "  onnxfix apply model.onnx --rules rtx.yml --require parse,parity,build --build model.plan\n"
        "  onnxfix apply model.onnx --freeze k=100 --set-shape images:1x3x640x640\n"
        "  onnxfix apply model.onnx --inputs data.npz --report report.json\n\n" + EXIT_STATUS,
    )
    command.add_argument("model", metavar="MODEL", help="an .onnx file")
    command.add_argument(
        "-r", "--rules", metavar="R", default="jetson.yml",
        help="a shipped rule file (`onnxfix rules list` names them) or a path (default: jetson.yml)",
    )  # fmt: skip
    command.add_argument("-o", "--output", metavar="OUT", help="where to write (default: MODEL.fixed.onnx)")
    add_target(command, "the target, instead of the rule file's own")
    command.add_argument(
        "--allow", choices=("exact", "close", "lossy"),
        help="the worst a rule may do to the numbers: nothing, rounding, or more (default: the rule file's)",
    )  # fmt: skip
    command.add_argument(
        "--require", metavar="PROOFS", type=names, action="extend", default=[],
        help="proofs that must pass before anything is written, separated by commas: "
        "structure, changes, parse, parity, build, readback",
    )  # fmt: skip
    add_freezing(command)
    command.add_argument(
        "--on-mismatch", choices=("undo", "stop", "keep"), default="undo",
        help="a change whose numbers are wrong when it is proved by itself: leave it out and go on, write nothing, "
        "or keep it and say so (default: undo)",
    )  # fmt: skip
    command.add_argument("--inputs", metavar="DATA", help="inputs for the parity: .npz, or Polygraphy's .json")
    add_plugins(command)
    add_plugins_use(command)
    command.add_argument("--build", metavar="PLAN", help="also build an engine and write it there")
    command.add_argument("--report", metavar="FILE", help="also write the whole report there, as JSON")
    command.add_argument("--dry-run", action="store_true", help="show what would change; prove and write nothing")
    command.add_argument("--diff", action="store_true", help="also show the changes node by node")
    add_format(command)
    add_loudness(command, "list every node of long groups", quiet="only the summary; no progress")
    command.set_defaults(run=_apply)


def _apply(args: argparse.Namespace) -> int:
    from onnxfix import api
    from onnxfix.render import diff, progress, text

    with progress.shown(not args.quiet) as bar:
        done = api.apply(
            args.model,
            rules=args.rules,
            output=args.output,
            target=args.target,
            allow=args.allow,
            dry_run=args.dry_run,
            require=args.require,
            inputs=args.inputs,
            freeze=dict(args.freeze),
            set_shape=dict(args.set_shape),
            plugins=args.plugins,
            plugins_use=args.plugins_use,
            on_mismatch=args.on_mismatch,
            build_to=args.build,
            report_to=args.report,
            progress=bar,
        )
    emit(args, done, lambda: text.summary(done) if args.quiet else text.report(done, args.verbose))
    if args.diff and args.format == "text":
        print()
        diff.write(done.changes, sys.stdout)
    status = api.exit_status(done)
    return end(status, why(done)) if status else FINE


def _add_replay(commands: Any) -> None:
    command = commands.add_parser(
        "replay",
        help="make a fixed model again, byte for byte, from its input and its report",
        description="Make the output of a run again from the input, the rules and what the report (or the output\n"
        "itself) says of the run. Writes the very same bytes, or nothing and why.",
        epilog="examples:\n"
        "  onnxfix replay report.json\n"
        "  onnxfix replay report.json --model elsewhere/model.onnx -o again.onnx\n\n"
        "exit status: 0 when the bytes are the same; 2 when the input, the rules or onnxfix are other ones\n",
    )
    _add_told(command)
    add_format(command)
    command.set_defaults(run=_replay)


def _replay(args: argparse.Namespace) -> int:
    from onnxfix import replay

    done = replay.replay(args.told, model=args.model, rules=args.rules, output=args.output)
    if args.format == "json":
        emit(args, done, lambda: ())
    else:
        print(f"{done.output}: made again, {done.changes} changes, sha256 {done.sha256}")
    return FINE


def _add_undo(commands: Any) -> None:
    command = commands.add_parser(
        "undo",
        help="make a fixed model again without some of its changes",
        description="Make the output of a run again without the changes named, and without those that needed them,\n"
        "and prove it as `apply` does. The numbers of the changes are those of the report.",
        epilog="examples:\n"
        "  onnxfix undo report.json --change 3 -o fixed.onnx\n"
        "  onnxfix undo model.fixed.onnx --change 3,7 -o other.onnx\n\n" + EXIT_STATUS,
    )
    _add_told(command)
    command.add_argument(
        "-c", "--change", metavar="ID", type=_numbers, action="extend", required=True,
        help="numbers of changes to leave out, separated by commas; may be repeated",
    )  # fmt: skip
    command.add_argument("--report", metavar="FILE", help="also write the report of the new run there, as JSON")
    add_format(command)
    add_loudness(command, "list every node of long groups", quiet="only the summary; no progress")
    command.set_defaults(run=_undo)


def _undo(args: argparse.Namespace) -> int:
    from onnxfix import api, replay
    from onnxfix.render import progress, text

    with progress.shown(not args.quiet) as bar:
        done = replay.undo(
            args.told,
            args.change,
            model=args.model,
            rules=args.rules,
            output=args.output,
            report_to=args.report,
            progress=bar,
        )
    report = done.report
    emit(args, done, lambda: text.summary(report) if args.quiet else text.report(report, args.verbose))
    if args.format == "text":
        for word, changes in (("undone", done.asked), ("went with it", done.followed), ("came instead", done.came)):
            for change in changes:
                print(f"{word}: {change.id} {change.rule} at {change.where}")
    status = api.exit_status(report)
    return end(status, why(report)) if status else FINE


def _add_told(command: argparse.ArgumentParser) -> None:
    command.add_argument("told", metavar="REPORT", help="what `apply --report` wrote, or the fixed model itself")
    command.add_argument("--model", metavar="MODEL", help="where the input is now")
    command.add_argument("-r", "--rules", metavar="R", help="where the rule file is now")
    command.add_argument("-o", "--output", metavar="OUT", help="where to write (default: where the run wrote)")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': give numbers of changes, separated by commas") from None
