"""Blocks of text, and two ways to write them: plain and aligned, or through rich in a terminal.

Plain text is for pipes: a row is a line, columns are aligned with blanks, nothing is drawn, coloured or cut.
What comes from a model may hold anything, so control characters are shown as escapes in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

# Colours of cells that consist of one of these words, in a terminal.
STYLES = {
    "refused": "bold red", "silently wrong": "bold red", "build fails": "bold red", "failed": "bold red",
    "missing": "bold red", "lossy": "red",
    "needs a plugin": "yellow", "undecided": "yellow", "unknown": "yellow", "unverified": "yellow",
    "not run": "yellow", "not available": "yellow", "close": "yellow", "skipped": "yellow",
    "passed": "green", "accepted": "green", "proved": "green", "available": "green", "exact": "green",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """Names and values, one pair a line."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under a title and column heads. Columns in `right` are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: frozenset[int] = frozenset()

    def filled(self) -> Table:
        """Without the columns that are empty in every row."""
        kept = [i for i in range(len(self.columns)) if any(row[i] for row in self.rows)]
        rows = [tuple(row[i] for i in kept) for row in self.rows]
        right = frozenset(new for new, old in enumerate(kept) if old in self.right)
        return Table(self.title, tuple(self.columns[i] for i in kept), rows, right)


@dataclass(frozen=True)
class Entries:
    """Longer items under a title: a word, a sentence, and named details below it."""

    title: str
    items: Sequence[Entry]


@dataclass(frozen=True)
class Entry:
    word: str
    text: str
    details: Sequence[tuple[str, str]] = field(default=())


Block = Facts | Table | Entries


def clean(text: str) -> str:
    """`text` on one line: control and unprintable characters become escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def write(blocks: Iterable[Block], stream: TextIO) -> None:
    """Write `blocks` to `stream`: through rich when it is a terminal, else plain."""
    if stream.isatty():
        _write_rich(blocks, stream)
    else:
        stream.write(plain(blocks))


def write_markdown(text: str, stream: TextIO) -> None:
    """Write a page to `stream`: as it is, or rendered when that is a terminal."""
    if not stream.isatty():
        stream.write(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console(file=stream).print(Markdown(text))


def plain(blocks: Iterable[Block]) -> str:
    """The blocks as plain text, separated by empty lines."""
    return "\n".join("".join(f"{line.rstrip()}\n" for line in _lines(block)) for block in blocks)


def _lines(block: Block) -> Iterable[str]:
    if isinstance(block, Facts):
        yield from _aligned([(k, clean(v)) for k, v in block.pairs], frozenset(), "")
    elif isinstance(block, Table):
        table = block.filled()
        yield table.title
        if table.rows:
            rows = [table.columns, *(tuple(map(clean, row)) for row in table.rows)]
            yield from _aligned(rows, table.right, "  ")
    else:
        yield block.title
        width = max((len(e.word) for e in block.items), default=0)
        for entry in block.items:
            yield f"  {entry.word:{width}}  {clean(entry.text)}"
            yield from _aligned([(k, clean(v)) for k, v in entry.details], frozenset(), " " * (width + 4))


def _aligned(rows: Sequence[tuple[str, ...]], right: frozenset[int], indent: str) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield indent + "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(cells))


def _write_rich(blocks: Iterable[Block], stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console(file=stream, highlight=False)

    def cell(text: str, style: str = "") -> Text:
        return Text(clean(text), style or STYLES.get(text, ""))

    def pairs(rows: Sequence[tuple[str, str]]) -> Grid:
        grid = Grid.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for key, value in rows:
            grid.add_row(cell(key, "dim"), cell(value))
        return grid

    for number, block in enumerate(blocks):
        if number:
            console.print()
        if isinstance(block, Facts):
            console.print(pairs(block.pairs))
            continue
        console.print(Text(block.title, "bold"))
        if isinstance(block, Table):
            table = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
            filled = block.filled()
            for i, column in enumerate(filled.columns):
                table.add_column(column, justify="right" if i in filled.right else "left", overflow="fold")
            for row in filled.rows:
                table.add_row(*map(cell, row))
            console.print(Padding(table, (0, 0, 0, 2), expand=False))
        else:
            for entry in block.items:
                head = Text.assemble(cell(entry.word), "  ", cell(entry.text))
                console.print(Padding(head, (0, 0, 0, 2), expand=False))
                if entry.details:
                    console.print(Padding(pairs(entry.details), (0, 0, 0, 6), expand=False))
