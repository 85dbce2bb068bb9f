"""What `verify`, `reduce` and `diff` have to say: blocks of text, and an issue in Markdown to send to someone."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterator

from onnxfix import __version__
from onnxfix.difference import Difference
from onnxfix.reduce import Reduced
from onnxfix.render.layout import Block, Entries, Entry, Facts, Table
from onnxfix.render.text import plural, size
from onnxfix.report import Status
from onnxfix.verify import Step, Unfit, Verification

ROWS = 20
TEXT_LIMIT = 8000  # characters of a model's text in an issue


# ---- verify ----


def verification(found: Verification, verbose: bool = False) -> Iterator[Block]:
    """All of a verification."""
    check = found.check
    pairs = [("before", found.before), ("after", found.after)]
    if found.precision:
        pairs.append(("precision", f"{found.precision} of {found.after}, against {found.before} as it is"))
    pairs += [("note", note) for note in found.notes]
    yield Facts(pairs)
    yield Entries("outputs", [Entry(check.status.value, check.detail, [("by", check.by)])])
    if found.first is not None:
        yield Entries("the first node that differs", [Entry("failed", found.first.node, list(_first(found)))])
    if found.path:
        yield _table(_path_title(found), ("value", "node", "error", "relative", "cosine", "range", "rule", "note"),
                     [_row(s) for s in found.path], {2, 3, 4}, verbose)  # fmt: skip
    if found.unfit:
        yield _table(f"what {found.precision} does not hold, where it starts first",
                     ("value", "node", "what", "range seen", "text", ""),
                     [_unfit(u) for u in found.unfit], set(), verbose)  # fmt: skip


def why(found: Verification) -> str:
    """The one line that says why it did not end well."""
    if found.first is not None:
        rules = f" (by rule {', '.join(found.first.rules)})" if found.first.rules else ""
        return f"{found.check.detail}; it begins at {found.first.node}{rules}"
    overflow = [u for u in found.unfit if u.why == "overflow"]
    more = f"; {overflow[0].name} overflows" if overflow else ""
    return f"{found.check.detail}{more}"


def _first(found: Verification) -> Iterator[tuple[str, str]]:
    first = found.first
    assert first is not None
    name = first.before if first.before == first.after else f"{first.before}, {first.after} in the second model"
    yield "value", f"{name} (matched by {first.matched})"
    yield "error", first.note or f"{first.max_abs:.3g}, {first.relative:.2g} of its largest magnitude"
    if first.rules:
        yield "by rule", ", ".join(first.rules)
    for node in found.between:
        yield "from", node


def _path_title(found: Verification) -> str:
    return f"error along the path, worst first ({len(found.path)} of {plural(found.compared, 'inner value')} differ)"


def _row(step: Step) -> tuple[str, ...]:
    cosine = "" if step.cosine is None else f"{step.cosine:.6f}"
    error = ("", "") if step.note and step.verdict != "beyond" else (f"{step.max_abs:.3g}", f"{step.relative:.2g}")
    span = f"{step.low:.3g} to {step.high:.3g}"
    return (step.before, step.node, *error, cosine, span, ", ".join(step.rules), step.note)


def _unfit(unfit: Unfit) -> tuple[str, ...]:
    begins = "" if unfit.origin else "follows"
    return (unfit.name, unfit.node or "a weight", unfit.why, f"{unfit.low:.3g} to {unfit.high:.3g}", unfit.text, begins)


def _table(
    title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], right: set[int], verbose: bool
) -> Table:
    more = f"; {len(rows) - ROWS} more with -v" if len(rows) > ROWS and not verbose else ""
    return Table(f"{title}{more}", columns, rows if verbose else rows[:ROWS], frozenset(right))


def unproved(found: Verification) -> bool:
    return found.check.status is Status.NOT_RUN


# ---- diff ----

_TITLES = {
    "node": "nodes", "attribute": "attributes", "edge": "connections", "initializer": "weights", "input": "inputs",
    "output": "outputs", "opset": "opsets", "metadata": "metadata", "function": "functions",
}  # fmt: skip


def difference(found: Difference, verbose: bool = False) -> Iterator[Block]:
    """All of a difference, by kind."""
    verdict = "the same" if found.same else plural(len(found.entries), "difference")
    yield Facts([("before", found.before), ("after", found.after), ("verdict", verdict)])
    groups = defaultdict(list)
    for entry in found.entries:
        groups[entry.kind].append(entry)
    for kind in (k for k in _TITLES if k in groups):
        entries = groups[kind] if verbose else groups[kind][:ROWS]
        more = f"; {len(groups[kind]) - ROWS} more with -v" if len(entries) < len(groups[kind]) else ""
        title = f"{_TITLES[kind]} ({len(groups[kind])}{more})"
        yield Entries(title, [Entry(e.change, e.text) for e in entries])
    if found.notes:
        yield Entries("no difference", [Entry("", note) for note in found.notes])


# ---- reduce ----


def reduced(found: Reduced) -> Iterator[Block]:
    """What became of the model."""
    yield Facts(
        [
            ("model", f"{found.model}: {plural(found.nodes_before, 'node')}, {size(found.bytes_before)}"),
            ("output", f"{found.output}: {plural(found.nodes, 'node')}, {size(found.bytes)}"),
            *([("issue", found.issue)] if found.issue else []),
            ("trials", f"{found.trials} in {found.seconds:.1f} s"),
            ("see it fail", found.command),
            *(("note", note) for note in found.notes),
        ]
    )
    details = [("by", found.by), *([("code", found.failure.code)] if found.failure.code else [])]
    yield Entries("fails", [Entry("failed", f"{found.fails}: {found.failure}", details)])


_WHO = {
    "refused": "The ONNX parser refuses", "build": "The builder fails on", "load": "Loading fails on",
    "run": "Running fails on", "differs": "The numbers differ for", "crash": "The process crashes on",
    "hang": "The process hangs on", "memory": "The process takes too much memory on",
}  # fmt: skip


def issue(found: Reduced) -> str:
    """A Markdown text for an issue tracker: what fails, of what version, how to see it, and the model."""
    failure = found.failure
    name = found.output.replace("\\", "/").rpartition("/")[2]
    what = f"{failure.op}" if failure.op else f"a model of {plural(found.nodes, 'node')}"
    text = found.text if len(found.text) <= TEXT_LIMIT else f"{found.text[:TEXT_LIMIT]}\n... (cut; see the file)\n"
    notes = "".join(f"- {note}\n" for note in found.notes)
    code = f"\nCode: `{failure.code}`\n" if failure.code else ""
    return f"""# {_WHO[failure.kind]} {what}: {_line(failure.reason)}

The attached `{name}` ({plural(found.nodes, "node")}, {size(found.bytes)}) fails like this:

```
{failure.reason}
```
{code}
## To see it

```sh
{found.command}
```

## Versions

- {found.by}
- Python {platform.python_version()}, {platform.system()} {platform.machine()}

## The model

```
{text.rstrip()}
```

{notes}- Reduced from a model of {plural(found.nodes_before, "node")} by onnxfix {__version__}
  in {plural(found.trials, "trial")}; both fail in the same words.
"""


def _line(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:87]}..."
