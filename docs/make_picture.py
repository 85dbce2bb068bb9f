"""Draw docs/demo.svg, the README's picture, from a real run: `python docs/make_picture.py` (after `make demo`).

Runs `onnxfix apply` in a pseudo-terminal, as a person would, and draws what it prints.
"""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
WIDTH = 118


def terminal(command: list[str], width: int) -> str:
    """What the command prints to a terminal of that width, colours and all."""
    output = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 1 << 16)
        output.extend(data)
        return data

    os.environ.update(COLUMNS=str(width), LINES="60", TERM="xterm-256color", COLORTERM="truecolor")
    stdout = os.dup(1)
    with open(os.devnull, "w") as silent:  # spawn copies everything to our own output too
        os.dup2(silent.fileno(), 1)
        pty.spawn(command, read)
        os.dup2(stdout, 1)
    return output.decode().replace("\r\n", "\n")


def main() -> int:
    model = next((ROOT / ".cache/models/ddddocr").rglob("common_old.onnx"), None)
    if model is None:
        print("make_picture: fetch the model first: make demo", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.symlink(model, "captcha.onnx")
        command = ["apply", "captcha.onnx", "--rules", "jetson.yml", "-o", "fixed.onnx", "--build", "engine.plan"]
        # Without the progress bars, which draw and erase themselves on standard error.
        quiet = ["sh", "-c", '"$@" 2>/dev/null', "sh", sys.executable, "-m", "onnxfix"]
        printed = terminal([*quiet, *command], WIDTH)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), "onnxfix " + " ".join(command)), highlight=False)
    console.print(Text.from_ansi(printed), highlight=False)
    # rich's template asks a server for its font; the fallback in its list, monospace, does as well.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="onnxfix"), flags=re.S)
    (ROOT / "docs" / "demo.svg").write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
