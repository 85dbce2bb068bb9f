"""`apply --diff`: for each change the nodes that went and came, in the manner of a unified diff."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TextIO

from onnxfix.render.layout import clean
from onnxfix.report import Change

_STYLES = {"@": "cyan", "-": "red", "+": "green"}


def lines(changes: Iterable[Change]) -> Iterator[str]:
    """One head for each change, then a line for each node: "-" gone, "+" new."""
    for change in changes:
        rule = f"{change.rule} ({change.safety.value})"
        yield clean(f"@@ {change.id} {rule} {change.where} @@ {change.message}")
        yield from (clean(f"- {node}") for node in change.removed)
        yield from (clean(f"+ {node}") for node in change.added)


def write(changes: Iterable[Change], stream: TextIO) -> None:
    """Write the diff to `stream`, coloured when it is a terminal."""
    if not stream.isatty():
        stream.writelines(f"{line}\n" for line in lines(changes))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False, soft_wrap=True)
    for line in lines(changes):
        console.print(Text(line, _STYLES[line[0]]))
