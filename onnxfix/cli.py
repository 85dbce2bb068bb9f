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
from collections.abc import Sequence
from typing import Any, NoReturn

from onnxfix.commands import (
    apply,
    bench,
    build,
    bundle,
    convert,
    diff,
    doctor,
    gate,
    inspect,
    matrix,
    plan,
    reduce,
    rules,
    verify,
)
from onnxfix.commands.common import EXIT_STATUS, FINE, WRONG, end, say
from onnxfix.errors import OnnxfixError, RequestError

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # 128 + the signal's number, as shells have it

# As in `onnxfix --help`.
COMMANDS = (inspect, apply, convert, build, gate, verify, reduce, diff, bench, plan, bundle, rules, matrix, doctor)


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
        say("interrupted", "stopped; nothing was written")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _discard_output()
        return BROKEN_PIPE
    except OnnxfixError as error:
        return end(error.exit_status, str(error))
    except Exception as error:
        if os.environ.get("ONNXFIX_DEBUG"):
            raise
        if isinstance(error, OSError):
            _discard_output()
            return end(WRONG, str(error))
        if isinstance(error, MemoryError):
            return end(WRONG, "out of memory")
        what = f"{type(error).__name__}: {error}"
        return end(WRONG, f"this is a bug in onnxfix, please report it with what ONNXFIX_DEBUG=1 shows: {what}")


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
        "  onnxfix build model.onnx -o model.plan             an engine, read back and described\n"
        "  onnxfix plan check model.plan                      why a plan won't load, before TensorRT says it\n"
        "  onnxfix bundle model.onnx -t jetson-nano -o nano   what a board needs that can't install onnxfix\n"
        "  onnxfix gate models/ --target jetson-nano          does the board take all of them: for CI\n"
        "  onnxfix verify model.onnx model.fixed.onnx         the same numbers, or the first node that differs\n"
        "  onnxfix reduce model.onnx --fails parse            the smallest model that is still refused\n"
        "  onnxfix rules show resize-cubic                    what a rule does, with examples\n"
        "  onnxfix doctor                                     which proofs can run on this machine\n\n" + EXIT_STATUS,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add(commands)
    return parser


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
