"""What the commands share: exit statuses, arguments that several take, and how results are written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxfix.backends.images import Preprocessing
    from onnxfix.render.layout import Block
    from onnxfix.report import Report
    from onnxfix.rule import Rule

FINE, REFUSED, WRONG, UNPROVED = 0, 1, 2, 3

_WORDS = {REFUSED: "refused", WRONG: "error", UNPROVED: "unproved"}

EXIT_STATUS = """\
exit status:
  0  fine
  1  refused: the target does not take the model, or a proof failed
  2  error: the request is wrong (arguments, model, rules, target, disk)
  3  unproved: a proof that was required could not run on this machine
"""


def say(word: str, text: str) -> None:
    """One line on standard error."""
    from onnxfix.render.layout import clean

    print(f"onnxfix: {word}: {clean(' '.join(text.split()))}", file=sys.stderr)


def end(status: int, text: str) -> int:
    """Say why it ended so, and return the exit status."""
    say(_WORDS[status], text)
    return status


def add_target(command: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    command.add_argument(
        "-t", "--target", metavar="T", required=required,
        help=f"{text}: a board (jetson-nano), a JetPack (jetpack-4.6.1), a TensorRT (trt-8.2) or rtx-1.7; "
        "a wrong name is answered with the known ones",
    )  # fmt: skip


def add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format", choices=("text", "json"), default="text",
        help="text: tables in a terminal, plain when piped; json: complete (default: text)",
    )  # fmt: skip


def add_freezing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--freeze", metavar="NAME=VALUE", type=_name_and_value, action="append", default=[],
        help="make an input a constant: a number, true, false, or numbers with commas; may be given several times",
    )  # fmt: skip
    command.add_argument(
        "--set-shape", metavar="NAME:SIZES", type=_name_and_sizes, action="append", default=[],
        help="fix dynamic axes of an input, e.g. images:1x3x640x640, with ? for one that stays; several times too",
    )  # fmt: skip


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


def add_plugins(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--plugins", metavar="LIB", action="append", default=[],
        help="a library of plugins that TensorRT loads first; may be given several times",
    )  # fmt: skip


def add_plugins_use(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--plugins-use", metavar="NAME,NAME", type=names, action="extend", default=[],
        help="TensorRT plugins that rules may write into the model, such as EfficientNMS_ONNX_TRT",
    )  # fmt: skip


def add_loudness(command: argparse.ArgumentParser, verbose: str, quiet: str = "no progress") -> None:
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help=quiet)
    loudness.add_argument("-v", "--verbose", action="store_true", help=verbose)


def add_feeding(command: argparse.ArgumentParser) -> None:
    command.add_argument("--inputs", metavar="DATA", help=".npz, Polygraphy's .json, or a folder of images")
    add_preprocess(command)
    command.add_argument("--seeds", metavar="A,B", type=_seeds, default=(0, 1, 2), help="of drawn inputs (0,1,2)")
    command.add_argument(
        "--dims", metavar="AXIS=MIN:OPT:MAX", type=axis_sizes, action="append", default=[],
        help="sizes of a dynamic axis to run at, or one size; may be given several times",
    )  # fmt: skip


def add_preprocess(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--preprocess", metavar="KEY=VALUE,...", default="",
        help="how an image becomes an input: size=HEIGHTxWIDTH, layout=nchw|nhwc, color=rgb|bgr|gray, scale=255, "
        "mean=A/B/C, std=A/B/C, fit=stretch|letterbox|crop, input=NAME, limit=16",
    )  # fmt: skip


def preprocessing(args: argparse.Namespace) -> Preprocessing | None:
    """How an image becomes an input, None when --preprocess was not given."""
    from onnxfix.backends import images

    return images.parse(args.preprocess) if args.preprocess else None


def axis_sizes(text: str) -> tuple[str, tuple[int, int, int]]:
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


def tolerance(text: str) -> tuple[str, float]:
    """Output and number of "[OUTPUT=]T", for argparse."""
    output, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}': give a number, or an output, '=' and a number")
    return output, number


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def emit(
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


def emit_page(args: argparse.Namespace, value: Any, blocks: Callable[[], Iterable[Block]], title: str) -> None:
    """Like `emit`, with Markdown and HTML too."""
    from onnxfix.model import write_atomic
    from onnxfix.render import matrix

    if args.format in ("text", "json"):
        emit(args, value, blocks, args.output)
        return
    text = matrix.html(title, blocks()) if args.format == "html" else f"# {title}\n\n{matrix.markdown(blocks())}"
    if args.output:
        write_atomic(Path(args.output), text.encode("utf-8", "backslashreplace"))
    else:
        sys.stdout.write(text)


def shipped() -> Mapping[str, Rule]:
    from onnxfix import catalog

    return catalog.load_folder(catalog.shipped())


def why(done: Report) -> str:
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
