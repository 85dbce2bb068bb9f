"""The command line: arguments, exit status, and one line on standard error when all is not well.

Nothing heavy is imported before a command needs it, so `onnxfix --help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onnxfix.errors import OnnxfixError, RequestError, RuleError

if TYPE_CHECKING:
    from onnxfix.gating import GateReport
    from onnxfix.render.layout import Block
    from onnxfix.report import Report
    from onnxfix.rule import Rule
    from onnxfix.ruletest import CaseResult

FINE, REFUSED, WRONG, UNPROVED = 0, 1, 2, 3
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # 128 + the signal's number, as shells have it

_WORDS = {REFUSED: "refused", WRONG: "error", UNPROVED: "unproved"}

_EXIT = """\
exit status:
  0  fine
  1  refused: the target does not take the model, or a proof failed
  2  error: the request is wrong (arguments, model, rules, target, disk)
  3  unproved: a proof that was required could not run on this machine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Never raises, unless ONNXFIX_DEBUG is set."""
    _prepare()
    try:
        try:
            status = _run(sys.argv[1:] if argv is None else argv)
        except SystemExit as done:  # argparse after --help, or SIGTERM
            status = done.code if isinstance(done.code, int) else FINE
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _say("interrupted", "stopped; nothing was written")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _discard_output()
        return BROKEN_PIPE
    except OnnxfixError as error:
        return _end(error.exit_status, str(error))
    except Exception as error:
        if os.environ.get("ONNXFIX_DEBUG"):
            raise
        if isinstance(error, OSError):
            _discard_output()
            return _end(WRONG, str(error))
        if isinstance(error, MemoryError):
            return _end(WRONG, "out of memory")
        what = f"{type(error).__name__}: {error}"
        return _end(WRONG, f"this is a bug in onnxfix, please report it with what ONNXFIX_DEBUG=1 shows: {what}")


def _prepare() -> None:
    """Make the streams take any text, and SIGTERM unwind like an exception, so that nothing is left behind."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, io.StringIO())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))


def _discard_output() -> None:
    """Send what is still buffered nowhere: flushing it at exit would fail again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


def _say(word: str, text: str) -> None:
    from onnxfix.render.layout import clean

    print(f"onnxfix: {word}: {clean(' '.join(text.split()))}", file=sys.stderr)


def _end(status: int, text: str) -> int:
    _say(_WORDS[status], text)
    return status


# ---- arguments ----


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and never guesses abbreviated options."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="onnxfix",
        description="Inspect ONNX models, rewrite what TensorRT does not take, and prove the result.",
        epilog="examples:\n"
        "  onnxfix inspect model.onnx --target jetson-nano    what would be refused, and what would help\n"
        "  onnxfix apply model.onnx --rules jetson.yml        rewrite, prove, write model.fixed.onnx\n"
        "  onnxfix gate models/ --target jetson-nano          does the board take all of them: for CI\n"
        "  onnxfix verify model.onnx model.fixed.onnx         the same numbers, or the first node that differs\n"
        "  onnxfix reduce model.onnx --fails parse            the smallest model that is still refused\n"
        "  onnxfix rules show resize-cubic                    what a rule does, with examples\n"
        "  onnxfix doctor                                     which proofs can run on this machine\n\n" + _EXIT,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    _add_inspect(commands)
    _add_apply(commands)
    _add_replay(commands)
    _add_undo(commands)
    _add_gate(commands)
    _add_verify(commands)
    _add_reduce(commands)
    _add_diff(commands)
    _add_rules(commands)
    _add_matrix(commands)
    _add_doctor(commands)
    return parser


def _add_inspect(commands: Any) -> None:
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
    _add_target(command, "judge the nodes for this target")
    command.add_argument("--precision", metavar="P", default="", help="the one wanted: fp16, bf16, int8, fp8, fp4")
    _add_freezing(command)
    command.add_argument("--dla", action="store_true", help="show which nodes the DLA of the target's board would take")
    _add_format(command)
    command.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")
    command.add_argument("-v", "--verbose", action="store_true", help="list every node of long groups")
    command.set_defaults(run=_inspect)


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
        "  onnxfix apply model.onnx --inputs data.npz --report report.json\n\n" + _EXIT,
    )
    command.add_argument("model", metavar="MODEL", help="an .onnx file")
    command.add_argument(
        "-r", "--rules", metavar="R", default="jetson.yml",
        help="a shipped rule file (`onnxfix rules list` names them) or a path (default: jetson.yml)",
    )  # fmt: skip
    command.add_argument("-o", "--output", metavar="OUT", help="where to write (default: MODEL.fixed.onnx)")
    _add_target(command, "the target, instead of the rule file's own")
    command.add_argument(
        "--allow", choices=("exact", "close", "lossy"),
        help="the worst a rule may do to the numbers: nothing, rounding, or more (default: the rule file's)",
    )  # fmt: skip
    command.add_argument(
        "--require", metavar="PROOFS", type=_names, action="extend", default=[],
        help="proofs that must pass before anything is written, separated by commas: "
        "structure, changes, parse, parity, build, readback",
    )  # fmt: skip
    _add_freezing(command)
    command.add_argument(
        "--on-mismatch", choices=("undo", "stop", "keep"), default="undo",
        help="a change whose numbers are wrong when it is proved by itself: leave it out and go on, write nothing, "
        "or keep it and say so (default: undo)",
    )  # fmt: skip
    command.add_argument("--inputs", metavar="DATA", help="inputs for the parity: .npz, or Polygraphy's .json")
    command.add_argument(
        "--plugins", metavar="LIB", action="append", default=[],
        help="a library of plugins that TensorRT loads before it parses and builds; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--plugins-use", metavar="NAME,NAME", type=_names, action="extend", default=[],
        help="TensorRT plugins that rules may write into the model, such as EfficientNMS_ONNX_TRT",
    )  # fmt: skip
    command.add_argument("--build", metavar="PLAN", help="also build an engine and write it there")
    command.add_argument("--report", metavar="FILE", help="also write the whole report there, as JSON")
    command.add_argument("--dry-run", action="store_true", help="show what would change; prove and write nothing")
    command.add_argument("--diff", action="store_true", help="also show the changes node by node")
    _add_format(command)
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="only the summary; no progress")
    loudness.add_argument("-v", "--verbose", action="store_true", help="list every node of long groups")
    command.set_defaults(run=_apply)


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
    _add_format(command)
    command.set_defaults(run=_replay)


def _add_undo(commands: Any) -> None:
    command = commands.add_parser(
        "undo",
        help="make a fixed model again without some of its changes",
        description="Make the output of a run again without the changes named, and without those that needed them,\n"
        "and prove it as `apply` does. The numbers of the changes are those of the report.",
        epilog="examples:\n"
        "  onnxfix undo report.json --change 3 -o fixed.onnx\n"
        "  onnxfix undo model.fixed.onnx --change 3,7 -o other.onnx\n\n" + _EXIT,
    )
    _add_told(command)
    command.add_argument(
        "-c", "--change", metavar="ID", type=_numbers, action="extend", required=True,
        help="numbers of changes to leave out, separated by commas; may be repeated",
    )  # fmt: skip
    command.add_argument("--report", metavar="FILE", help="also write the report of the new run there, as JSON")
    _add_format(command)
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="only the summary; no progress")
    loudness.add_argument("-v", "--verbose", action="store_true", help="list every node of long groups")
    command.set_defaults(run=_undo)


def _add_told(command: argparse.ArgumentParser) -> None:
    command.add_argument("told", metavar="REPORT", help="what `apply --report` wrote, or the fixed model itself")
    command.add_argument("--model", metavar="MODEL", help="where the input is now")
    command.add_argument("-r", "--rules", metavar="R", help="where the rule file is now")
    command.add_argument("-o", "--output", metavar="OUT", help="where to write (default: where the run wrote)")


def _add_gate(commands: Any) -> None:
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
        "  onnxfix gate models/ --target jetson-nano --write-baseline known.json\n"
        "  onnxfix gate models/ --target jetson-nano --baseline known.json\n\n"
        "exit status: 0 when no model is refused, also when the matrix could not decide on some; 1 when one is\n"
        "refused or is no model that can be read (what a baseline knows doesn't count); 2 when the request is\n"
        "wrong (no such path, no model in it, bad rules, target or baseline); 3 when a required parse could not run\n",
    )
    command.add_argument("paths", metavar="PATH", nargs="+", help="an .onnx file, a folder of them, or a pattern")
    _add_target(command, "the target; the rule file's own when left out")
    command.add_argument("-r", "--rules", metavar="R", help="judge what is refused as `apply` by these rules leaves it")
    expected = command.add_mutually_exclusive_group()
    expected.add_argument("--baseline", metavar="FILE", help="findings that are known, and don't fail")
    expected.add_argument("--write-baseline", metavar="FILE", help="write the findings there, as known from now on")
    command.add_argument(
        "--require", metavar="PROOFS", type=_names, action="extend", default=[],
        help="parse: every model must have been parsed, and taken, by the TensorRT installed here",
    )  # fmt: skip
    command.add_argument(
        "--format", choices=_GATE_FORMATS, default="text",
        help="text; json: complete; sarif: SARIF 2.1.0; junit: JUnit XML; github: annotations (default: text)",
    )  # fmt: skip
    command.add_argument("-o", "--output", metavar="FILE", help="write there, and the text to standard output")
    command.add_argument(
        "--also", metavar="FORMAT=FILE", type=_format_and_file, action="append", default=[],
        help="write another form of the report there, e.g. sarif=gate.sarif; may be given several times",
    )  # fmt: skip
    command.add_argument("-j", "--jobs", metavar="N", type=int, help="models judged at a time (default: by processors)")
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="no progress")
    loudness.add_argument("-v", "--verbose", action="store_true", help="list every node, and what doesn't fail")
    command.set_defaults(run=_gate)


def _add_verify(commands: Any) -> None:
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
        "  onnxfix verify model.onnx --precision fp16 --metric masks=iou:0.95\n\n" + _EXIT,
    )
    command.add_argument("before", metavar="MODEL", help="an .onnx file")
    command.add_argument("after", metavar="OTHER", nargs="?", help="the one that should give the same numbers")
    command.add_argument("--precision", metavar="P", default="", help="fp16: run the FP16 form; say what it can't hold")
    _add_feeding(command)
    command.add_argument(
        "--tolerance", metavar="[OUTPUT=]T", type=_tolerance, action="append", default=[],
        help="the error allowed, relative to the output's largest magnitude (default: 1e-5; fp16: 1e-2)",
    )  # fmt: skip
    command.add_argument(
        "--metric", metavar="[OUTPUT=]M[:LIMIT]", action="append", default=[],
        help="judge by absolute, relative, cosine, top (top5 for five best classes) or iou (of masks) instead",
    )  # fmt: skip
    command.add_argument("--require", action="store_true", help="not run counts as not passed: exit status 3")
    _add_format(command)
    command.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="no progress")
    loudness.add_argument("-v", "--verbose", action="store_true", help="list every value that differs")
    command.set_defaults(run=_verify)


def _add_feeding(command: argparse.ArgumentParser) -> None:
    command.add_argument("--inputs", metavar="DATA", help=".npz, Polygraphy's .json, or a folder of images")
    command.add_argument(
        "--preprocess", metavar="KEY=VALUE,...", default="",
        help="how an image becomes an input: size=HEIGHTxWIDTH, layout=nchw|nhwc, color=rgb|bgr|gray, scale=255, "
        "mean=A/B/C, std=A/B/C, fit=stretch|letterbox|crop, input=NAME, limit=16",
    )  # fmt: skip
    command.add_argument("--seeds", metavar="A,B", type=_seeds, default=(0, 1, 2), help="of drawn inputs (0,1,2)")
    command.add_argument(
        "--dims", metavar="AXIS=MIN:OPT:MAX", type=_axis_sizes, action="append", default=[],
        help="sizes of a dynamic axis to run at, or one size; may be given several times",
    )  # fmt: skip


def _axis_sizes(text: str) -> tuple[str, tuple[int, int, int]]:
    name, _, sizes = text.rpartition("=")
    given = [int(s) for s in sizes.split(":") if s.isdecimal() and s.isascii()]
    given = given * 3 if len(given) == 1 else given
    if not name or len(given) != 3 or sizes.count(":") not in (0, 2) or given != sorted(given):
        raise argparse.ArgumentTypeError(f"'{text}': give an axis, '=' and MIN:OPT:MAX, as in batch=1:4:8")
    return name, (given[0], given[1], given[2])


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(s) for s in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': give whole numbers with commas") from None


def _tolerance(text: str) -> tuple[str, float]:
    output, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}': give a number, or an output, '=' and a number")
    return output, number


def _add_reduce(commands: Any) -> None:
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
    _add_target(command, "with --rules, the target instead of the rule file's own")
    command.add_argument("--node", metavar="NAME", default="", help="of several failures, that of this node or op")
    command.add_argument("--seconds", metavar="S", type=float, default=60.0, help="limit of one trial (default: 60)")
    command.add_argument("--memory", metavar="MIB", type=int, help="memory limit of one trial, in MiB")
    command.add_argument("--trials", metavar="N", type=int, default=400, help="at most so many (default: 400)")
    _add_format(command)
    command.add_argument("-q", "--quiet", action="store_true", help="no progress")
    command.set_defaults(run=_reduce)


def _add_diff(commands: Any) -> None:
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
    _add_format(command)
    command.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")
    command.add_argument("-v", "--verbose", action="store_true", help="list everything")
    command.set_defaults(run=_diff)


def _add_rules(commands: Any) -> None:
    group = commands.add_parser(
        "rules",
        help="list, show and test rules",
        description="Rules are pairs of files: the rule, and its page, which is documentation and test in one.",
        epilog="examples:\n"
        "  onnxfix rules list\n"
        "  onnxfix rules show resize-cubic\n"
        "  onnxfix rules test resize-cubic my_rules/\n",
    ).add_subparsers(title="commands", metavar="COMMAND", dest="rules_command", required=True)
    listing = group.add_parser(
        "list",
        help="all shipped rules, one line each",
        description="All shipped rules and rule files: what each finds, on which operators, how safe it is.",
        epilog="examples:\n  onnxfix rules list\n  onnxfix rules list --format json\n",
    )
    _add_format(listing)
    listing.set_defaults(run=_rules_list)
    show = group.add_parser(
        "show",
        help="the page of a rule",
        description="The page of a rule: what it finds, why a target refuses that, what changes, with cases.",
        epilog="examples:\n  onnxfix rules show resize-cubic\n  onnxfix rules show resize-cubic > page.md\n",
    )
    show.add_argument("id", metavar="ID", help="a rule's name; `onnxfix rules list` shows them")
    _add_format(show)
    show.set_defaults(run=_rules_show)
    test = group.add_parser(
        "test",
        help="run the cases on the pages of rules",
        description="Run the cases on the pages of rules: what comes out, the numbers, TensorRT's parser.\n"
        "Without arguments all shipped rules.",
        epilog="examples:\n"
        "  onnxfix rules test\n"
        "  onnxfix rules test resize-cubic pad-fold\n"
        "  onnxfix rules test my_rules/\n\n"
        "exit status: 0 when all cases pass, 1 when one fails, 2 when the request is wrong\n",
    )
    test.add_argument("what", metavar="ID|DIR", nargs="*", help="a shipped rule, or a folder of rules")
    _add_format(test)
    test.set_defaults(run=_rules_test)
    new = group.add_parser(
        "new",
        help="begin a rule from nodes of a real model",
        description="Write a YAML rule whose `before` is what the given nodes do, and its page with the nodes, cut\n"
        "out of the model, as the first case. What shall stand instead is yours to write.",
        epilog="example:\n  onnxfix rules new my-rule --from model.onnx --nodes /act/Div,/act/Erf --to my_rules/\n",
    )
    new.add_argument("id", metavar="ID", help="the rule's name, in kebab-case: what is bad, e.g. resize-cubic")
    new.add_argument("--from", dest="model", metavar="MODEL", type=Path, required=True, help="the model")
    new.add_argument(
        "--nodes", metavar="A,B", type=_names, required=True, help="names of nodes, or of values they make"
    )
    new.add_argument(
        "--to", dest="folder", metavar="DIR", type=Path, default=Path(), help="where to write (default: here)"
    )
    new.set_defaults(run=_rules_new)


def _add_matrix(commands: Any) -> None:
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
    _add_target(show, "the target, or a matrix file", required=True)
    show.set_defaults(run=_matrix_show)
    diff = group.add_parser(
        "diff",
        help="what a move from one target to another changes",
        description="What a move from one target to another frees, and what gets harder, operator by operator.",
        epilog="examples:\n  onnxfix matrix diff jetpack-4.6 jetpack-6.1\n  onnxfix matrix diff trt-8.2 trt-10.3\n",
    )
    diff.add_argument("before", metavar="T1", help="a target")
    diff.add_argument("after", metavar="T2", help="another")
    diff.set_defaults(run=_matrix_diff)
    targets = group.add_parser("targets", help="all targets", description="All boards, JetPacks and TensorRTs.")
    targets.set_defaults(run=_matrix_targets)
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
    _add_format(probe)
    probe.set_defaults(run=_matrix_probe)


def _add_doctor(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="which backends are here, which are not, and how to get them",
        description="Which backends the proofs can use on this machine, which are missing, why, and how to get\n"
        "them. An installed TensorRT is started and asked itself.",
        epilog="examples:\n  onnxfix doctor\n  onnxfix doctor --format json\n",
    )
    _add_format(command)
    command.set_defaults(run=_doctor)


def _add_target(command: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    command.add_argument(
        "-t", "--target", metavar="T", required=required,
        help=f"{text}: a board (jetson-nano), a JetPack (jetpack-4.6.1), a TensorRT (trt-8.2) or rtx-1.7; "
        "a wrong name is answered with the known ones",
    )  # fmt: skip


def _add_freezing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--freeze", metavar="NAME=VALUE", type=_name_and_value, action="append", default=[],
        help="make an input a constant: a number, true, false, or numbers with commas; may be given several times",
    )  # fmt: skip
    command.add_argument(
        "--set-shape", metavar="NAME:SIZES", type=_name_and_sizes, action="append", default=[],
        help="fix dynamic axes of an input, e.g. images:1x3x640x640, with ? for one that stays; several times too",
    )  # fmt: skip


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format", choices=("text", "json"), default="text",
        help="text: tables in a terminal, plain when piped; json: complete (default: text)",
    )  # fmt: skip


_GATE_FORMATS = ("text", "json", "sarif", "junit", "github")


def _format_and_file(text: str) -> tuple[str, str]:
    form, _, file = text.partition("=")
    if form not in _GATE_FORMATS or not file:
        raise argparse.ArgumentTypeError(f"'{text}': give one of {', '.join(_GATE_FORMATS)}, '=' and a file")
    return form, file


def _name_and_value(text: str) -> tuple[str, Any]:
    name, _, value = text.rpartition("=")
    try:
        numbers = [_number(v.strip().lower()) for v in value.split(",")]
    except ValueError:
        numbers = []
    if not name or not numbers:
        raise argparse.ArgumentTypeError(f"'{text}': give an input's name, '=' and a number, or several with commas")
    return name, numbers if "," in value else numbers[0]


def _number(text: str) -> bool | int | float:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return float(text)


def _name_and_sizes(text: str) -> tuple[str, list[int | None]]:
    name, _, sizes = text.rpartition(":")
    given = [] if not sizes else sizes.lower().split("x")
    if not name or not all(s == "?" or (s.isdecimal() and s.isascii()) for s in given):
        raise argparse.ArgumentTypeError(f"'{text}': give an input's name, ':' and its sizes, as in images:1x3x640x640")
    return name, [None if s == "?" else int(s) for s in given]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': give numbers of changes, separated by commas") from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


# ---- commands ----


def _run(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    if args.version:
        from onnxfix import __version__

        print(f"onnxfix {__version__}")
        return FINE
    if args.command is None:
        raise RequestError("no command; see onnxfix --help")
    status: int = args.run(args)
    return status


def _inspect(args: argparse.Namespace) -> int:
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
    _emit(args, found, lambda: chain(text.inspection(found, args.verbose), split), args.output)
    if found.verdict == "refused":
        nodes = f"{found.refused} of {text.plural(found.nodes, 'node')}"
        return _end(REFUSED, f"{found.target} does not take {args.model} as it is: {nodes}")
    return FINE


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
    _emit(args, done, lambda: text.summary(done) if args.quiet else text.report(done, args.verbose))
    if args.diff and args.format == "text":
        print()
        diff.write(done.changes, sys.stdout)
    status = api.exit_status(done)
    return _end(status, _why(done)) if status else FINE


def _replay(args: argparse.Namespace) -> int:
    from onnxfix import replay

    done = replay.replay(args.told, model=args.model, rules=args.rules, output=args.output)
    if args.format == "json":
        _emit(args, done, lambda: ())
    else:
        print(f"{done.output}: made again, {done.changes} changes, sha256 {done.sha256}")
    return FINE


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
    _emit(args, done, lambda: text.summary(report) if args.quiet else text.report(report, args.verbose))
    if args.format == "text":
        for word, changes in (("undone", done.asked), ("went with it", done.followed), ("came instead", done.came)):
            for change in changes:
                print(f"{word}: {change.id} {change.rule} at {change.where}")
    status = api.exit_status(report)
    return _end(status, _why(report)) if status else FINE


def _gate(args: argparse.Namespace) -> int:
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
    return _end(report.exit_status, gate.why(report)) if report.exit_status else FINE


def _gate_text(report: GateReport, form: str, verbose: bool) -> str:
    from onnxfix.render import gate, github, json, junit, layout, sarif
    from onnxfix.report import to_dict

    if form == "text":
        return layout.plain(gate.blocks(report, verbose))
    if form == "sarif":
        return sarif.dumps(report, _shipped())
    if form == "json":
        return f"{json.dumps({'verdict': report.verdict, 'exit_status': report.exit_status, **to_dict(report)})}\n"
    return junit.dumps(report) if form == "junit" else github.dumps(report)


def _why(done: Report) -> str:
    """The one line that says why a run did not end well."""
    stopped = [n for n in done.notes if n.startswith("nothing was written")]
    failed = [c for c in done.checks if c.status.value == "failed"]
    if stopped:
        return stopped[0]
    if done.remaining and not (done.verdict == "failed" and failed):
        first = done.remaining[0]
        more = f" and {len(done.remaining) - 1} more" if len(done.remaining) > 1 else ""
        return f"{done.target} does not take {first.where}: {first.reason}{more}"
    return f"{failed[0].name} failed: {failed[0].detail}" if failed else done.verdict


def _verify(args: argparse.Namespace) -> int:
    from onnxfix import verify
    from onnxfix.backends import images, metrics
    from onnxfix.render import progress, proof

    with progress.shown(not args.quiet) as bar:
        found = verify.verify(
            args.before,
            args.after,
            precision=args.precision,
            inputs=args.inputs,
            preprocessing=images.parse(args.preprocess) if args.preprocess else None,
            seeds=args.seeds,
            dims=dict(args.dims),
            tolerances=dict(args.tolerance),
            metrics=metrics.parse(args.metric),
            progress=bar,
        )
    _emit(args, found, lambda: proof.verification(found, args.verbose), args.output)
    if found.check.status.value == "failed":
        return _end(REFUSED, proof.why(found))
    if args.require and proof.unproved(found):
        return _end(UNPROVED, f"the parity did not run: {found.check.detail}")
    return FINE


def _reduce(args: argparse.Namespace) -> int:
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
            progress=bar,
        )
    page = Path(found.output).with_suffix(".md")
    found = replace(found, issue=str(page))
    write_atomic(page, proof.issue(found))
    _emit(args, found, lambda: proof.reduced(found))
    return FINE


def _diff(args: argparse.Namespace) -> int:
    from onnxfix import difference
    from onnxfix.render import proof

    found = difference.diff(args.before, args.after, names=args.names)
    _emit(args, found, lambda: proof.difference(found, args.verbose), args.output)
    return FINE if found.same else REFUSED


def _rules_list(args: argparse.Namespace) -> int:
    from onnxfix import catalog
    from onnxfix.render import text

    rules = list(_shipped().values())
    sets = catalog.shipped_sets()
    value = {"rules": [text.rule_facts(r) for r in rules], "sets": sets}
    _emit(args, value, lambda: text.rules(rules, sets))
    return FINE


def _rules_show(args: argparse.Namespace) -> int:
    from onnxfix import page
    from onnxfix.render import layout, text

    rule = _rule(args.id, _shipped())
    assert rule.page is not None  # the catalog loads no rule without its page
    found = page.read(rule.page)
    if args.format == "json":
        _emit(args, {**text.rule_facts(rule), "text": found.text}, lambda: ())
    else:
        layout.write_markdown(found.text, sys.stdout)
    return FINE


def _rules_new(args: argparse.Namespace) -> int:
    from onnxfix.scaffold import new_rule

    for path in new_rule(args.model, args.nodes, args.id, args.folder):
        print(path)
    return FINE


def _rules_test(args: argparse.Namespace) -> int:
    from onnxfix import catalog, ruletest
    from onnxfix.render import progress, text

    known = dict(_shipped())
    chosen: dict[str, Rule] = {}
    for what in args.what:
        if os.path.isdir(what):
            folder = catalog.load_folder(Path(what))
            if not folder:
                raise RequestError(f"{what}: holds no rules")
            known.update(folder)
            chosen.update(folder)
        else:
            chosen[what] = _rule(what, known)
    rules = list((chosen if args.what else known).values())
    results: list[CaseResult] = []
    with progress.shown() as bar:
        for number, rule in enumerate(rules):
            if bar:
                bar("testing rules", number, len(rules))
            results += ruletest.run_page(rule, known)
    _emit(args, results, lambda: text.cases(results))
    failed = [r for r in results if r.problems]
    if failed:
        cases = text.plural(len(failed), "case")
        return _end(REFUSED, f"{cases} failed, first {failed[0].rule}:{failed[0].line}: {failed[0].problems[0]}")
    return FINE


def _shipped() -> Mapping[str, Rule]:
    from onnxfix import catalog

    return catalog.load_folder(catalog.shipped())


def _rule(identity: str, known: Mapping[str, Rule]) -> Rule:
    if identity in known:
        return known[identity]
    import difflib

    close = difflib.get_close_matches(identity, known, 1)
    hint = f"did you mean '{close[0]}'?" if close else "`onnxfix rules list` shows them"
    raise RuleError(f"no rule '{identity}'; {hint}")


def _matrix_show(args: argparse.Namespace) -> int:
    from onnxfix import matrix, tables
    from onnxfix.render import matrix as shown

    found = tables.table(matrix.target(args.target), args.op)
    _emit_page(args, found, lambda: shown.table(found), f"What {found.target} takes")
    return FINE


def _matrix_diff(args: argparse.Namespace) -> int:
    from onnxfix import matrix, tables
    from onnxfix.render import matrix as shown

    found = tables.diff(matrix.target(args.before), matrix.target(args.after))
    _emit_page(args, found, lambda: shown.diff(found), f"From {found.before} to {found.after}")
    return FINE


def _matrix_targets(args: argparse.Namespace) -> int:
    from onnxfix import tables
    from onnxfix.render import matrix as shown

    _emit_page(args, tables.targets(), shown.targets, "Targets of onnxfix")
    return FINE


def _matrix_probe(args: argparse.Namespace) -> int:
    from onnxfix.model import write_atomic
    from onnxfix.probe import run
    from onnxfix.render import matrix as shown
    from onnxfix.render import progress

    with progress.shown() as bar:
        if args.bundle:
            count = run.bundle(Path(args.bundle), bar)
            script = str(Path(args.bundle) / "probe_tensorrt.py")
            value = {"bundle": args.bundle, "models": count, "script": script}
            _emit(args, value, lambda: shown.bundled(args.bundle, count, script))
            return FINE
        result = run.read(Path(args.read)) if args.read else run.measure(args.flavour, bar)
        found = run.evaluate(result, bar)
    output = Path(args.output or f"{result.release}.json")
    write_atomic(output, found.text)
    _emit(args, found, lambda: shown.probe(found, str(output)))
    return FINE


def _doctor(args: argparse.Namespace) -> int:
    from onnxfix import api
    from onnxfix.render import text

    found = api.doctor()
    _emit(args, found, lambda: text.doctor(found))
    return FINE


def _emit(
    args: argparse.Namespace, value: Any, blocks: Callable[[], Iterable[Block]], output: str | None = None
) -> None:
    """Write `value` as JSON or its `blocks` as text, to standard output or whole to a file."""
    from onnxfix.model import write_atomic
    from onnxfix.render import json, layout

    if args.format == "json":
        text = f"{json.dumps(value)}\n"
    elif output:
        text = layout.plain(blocks())
    else:
        layout.write(blocks(), sys.stdout)
        return
    if output:
        write_atomic(Path(output), text.encode("utf-8", "backslashreplace"))
    else:
        sys.stdout.write(text)


def _emit_page(args: argparse.Namespace, value: Any, blocks: Callable[[], Iterable[Block]], title: str) -> None:
    """Like `_emit`, with Markdown and HTML too."""
    from onnxfix.model import write_atomic
    from onnxfix.render import matrix

    if args.format in ("text", "json"):
        _emit(args, value, blocks, args.output)
        return
    text = matrix.html(title, blocks()) if args.format == "html" else f"# {title}\n\n{matrix.markdown(blocks())}"
    if args.output:
        write_atomic(Path(args.output), text.encode("utf-8", "backslashreplace"))
    else:
        sys.stdout.write(text)
