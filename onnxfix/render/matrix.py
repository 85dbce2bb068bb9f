"""The support matrix for people: tables, differences, targets, a probe's outcome, the split over the DLA.

All are made of blocks (`onnxfix.render.layout`), and blocks can also be written as Markdown and as a self-contained
HTML page. What comes from elsewhere is escaped in both.
"""

from __future__ import annotations

import html as escaping
import re
from collections.abc import Iterable, Iterator, Sequence

from onnxfix import tables
from onnxfix.boards import Split
from onnxfix.probe.assemble import Agreement
from onnxfix.probe.run import Found
from onnxfix.render.layout import Block, Entries, Entry, Facts, Table, clean
from onnxfix.tables import LIMITED, MISSING, PLUGIN, TAKEN, Diff, LimitRow, OpChange, OpRow
from onnxfix.tables import Table as Rows

DIFFER = 30  # outcomes listed before "and N more"


def table(found: Rows) -> Iterator[Block]:
    """One release, or one operator of it."""
    yield Facts([("target", found.target), ("judged by", found.release), ("source", found.source), *found.facts])
    if len(found.rows) == 1:
        yield _one(found.rows[0])
        return
    counts = {word: sum(r.support == word for r in found.rows) for word in (TAKEN, LIMITED, PLUGIN, MISSING)}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    rows = [(r.op, r.support, "; ".join(_limit(x) for x in r.limits) or r.note) for r in found.rows]
    yield Table(f"operators: {len(found.rows)}: {said}", ("operator", "support", "limits"), rows)


def _limit(limit: LimitRow) -> str:
    opsets = f" (opset {limit.opsets})" if limit.opsets else ""
    effect = "" if limit.effect == "refused" else f"{limit.effect}: "
    return f"{effect}{limit.text}{opsets}"


def _one(row: OpRow) -> Block:
    entries = []
    for limit in row.limits:
        details = [("limit", limit.id), ("known by", limit.basis)]
        if limit.opsets:
            details.append(("opsets", limit.opsets))
        if not limit.decided:
            details.append(("decided", "no: nothing in a model tells"))
        entries.append(Entry(limit.effect, limit.text, details))
    note = f": {row.note}" if row.note else ""
    return Entries(f"{row.op}: {row.support}{note}", entries)


def diff(found: Diff) -> Iterator[Block]:
    """What a move from one target to another changes."""
    yield Facts([("from", found.before), ("to", found.after)])
    if found.facts:
        yield Table("the release", ("fact", "before", "after"), found.facts)
    for title, changes in (("freed", found.freed), ("harder", found.bound), ("both", found.mixed)):
        if changes:
            yield Entries(f"{title}: {len(changes)}", [_change(c) for c in changes])
    if not found.changed:
        yield Entries("operators: no difference", [])


def _change(change: OpChange) -> Entry:
    moved = f"{change.before} -> {change.after}" if change.before != change.after else change.after
    details = [("no longer", text) for text in change.freed] + [("now", text) for text in change.bound]
    return Entry(change.op, moved, details)


def targets() -> Iterator[Block]:
    """All targets by kind."""
    found = tables.targets()
    boards = [r for r in found if r.kind == "board"]
    yield Table(
        f"boards: {len(boards)}",
        ("target", "judged by", "JetPack", "compute capability", "memory GB", "precisions", "unverified"),
        [
            (r.name, r.release, r.jetpack, r.compute_capability, " or ".join(map(str, r.memory_gb)),
             " ".join(r.precisions), ", ".join(r.unverified))
            for r in boards
        ],
    )  # fmt: skip
    for kind in ("JetPack", "TensorRT"):
        rows = [(r.name, r.release, r.opsets, ", ".join(r.unverified)) for r in found if r.kind == kind]
        yield Table(f"{kind}: {len(rows)}", ("target", "judged by", "opsets", "unverified"), rows)


def bundled(folder: str, models: int, script: str) -> Iterator[Block]:
    """What to do with a bundle."""
    yield Facts(
        [
            ("bundle", f"{folder}: {models} models"),
            ("on the board", f"python3 {script} --output result.json"),
            ("back here", "onnxfix matrix probe --read result.json"),
        ]
    )


def probe(found: Found, written: str) -> Iterator[Block]:
    """What a probe found out."""
    source = found.data["source"]
    rows = found.data["ops"]
    limits = sum(len(row.get("limits", ())) for row in rows.values())
    yield Facts(
        [
            ("parser", f"{source['package']} {source['version']}"),
            ("matrix", written),
            ("rows", f"{len(rows)} operators with {limits} limits, {len(found.data['unsupported'])} unsupported"),
            ("crashes", str(source["measured"]["crashes"])),
            ("own models", _share(found.own)),
            ("node tests", _share(found.tests)),
            *([("contradicted", ", ".join(found.dropped))] if found.dropped else []),
        ]
    )
    yield from differ("not explained", [*found.tests.differ, *found.own.differ])


def _share(found: Agreement) -> str:
    return f"{found.right} of {found.total} explained ({found.agree:.2%})"


def differ(title: str, models: Sequence[tuple[str, str, object, str]]) -> Iterator[Block]:
    """Models on which matrix and parser differ."""
    if not models:
        return
    entries = []
    for name, verdict, outcome, limit in models[:DIFFER]:
        words = getattr(outcome, "words", "")
        details = [("limit", limit)] if limit else []
        entries.append(Entry(name, f"{verdict} by the matrix", [*details, *([("parser", words)] if words else [])]))
    more = f", the first {DIFFER}" if len(models) > DIFFER else ""
    yield Entries(f"{title}: {len(models)}{more}", entries)


def split(found: Split) -> Iterator[Block]:
    """A model on the DLA and the GPU of a board, node by node."""
    counts = ", ".join(f"{found.count(word)} {word}" for word in ("DLA", "GPU", "undecided") if found.count(word))
    facts = [("DLA cores", found.cores or "none"), ("nodes", counts), ("changes of device", str(found.changes))]
    yield Facts([*facts, *(("note", note) for note in found.notes)])
    rows = [(str(p.where), p.runs, p.reason, "" if p.verified else "(unverified)") for p in found.placed]
    yield Table("DLA split", ("node", "runs on", "why", ""), rows)


# ---- blocks as Markdown and HTML ----


def markdown(blocks: Iterable[Block]) -> str:
    """The blocks as Markdown; characters that mean something there are escaped."""
    return "\n".join(_markdown(block) for block in blocks)


def _markdown(block: Block) -> str:
    if isinstance(block, Facts):
        return "".join(f"- **{_md(k)}**: {_md(v)}\n" for k, v in block.pairs)
    if isinstance(block, Table):
        filled = block.filled() if block.rows else block
        head = f"## {_md(filled.title)}\n\n"
        rule = ["---:" if i in filled.right else "---" for i in range(len(filled.columns))]
        rows = [[_md(cell) for cell in row] for row in (filled.columns, *filled.rows)]
        return head + "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], rule, *rows[1:]))
    parts = [f"## {_md(block.title)}\n\n"]
    for entry in block.items:
        parts.append(f"- **{_md(entry.word)}**: {_md(entry.text)}\n")
        parts.extend(f"  - {_md(k)}: {_md(v)}\n" for k, v in entry.details)
    return "".join(parts)


def _md(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", clean(text))


_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0}th,td{text-align:left;vertical-align:top;padding:.25rem .75rem;"
    "border-bottom:1px solid #ddd}th{background:#f6f6f6}dt{font-weight:600}dd{margin:0 0 .25rem 1.5rem}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}th{background:#262626}td,th{border-color:#444}}"
)


def html(title: str, blocks: Iterable[Block]) -> str:
    """A page that needs nothing else: no script, no font, no picture."""
    body = "\n".join(_html(block) for block in blocks)
    name = escaping.escape(clean(title))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Facts):
        return f"<dl>{_pairs(block.pairs)}</dl>"
    if isinstance(block, Table):
        filled = block.filled() if block.rows else block
        head = "".join(f"<th>{_ht(c)}</th>" for c in filled.columns)
        rows = "\n".join("<tr>" + "".join(f"<td>{_ht(c)}</td>" for c in row) + "</tr>" for row in filled.rows)
        return f"<h2>{_ht(filled.title)}</h2>\n<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"
    items = "\n".join(
        f"<dt>{_ht(e.word)}</dt><dd>{_ht(e.text)}<dl>{_pairs(e.details)}</dl></dd>" for e in block.items
    )
    return f"<h2>{_ht(block.title)}</h2>\n<dl>{items}</dl>"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<dt>{_ht(k)}</dt><dd>{_ht(v)}</dd>" for k, v in pairs)


def _ht(text: str) -> str:
    return escaping.escape(clean(text))
