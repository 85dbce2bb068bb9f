"""The gate for people: the run, the models that fail with what is wrong, the others in a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from onnxfix.gating import Gated, GateReport, Hit
from onnxfix.render.layout import Block, Entries, Entry, Facts, Table
from onnxfix.render.text import findings, plural

PLACES = 20  # vanished findings listed before "and N more"


def blocks(report: GateReport, verbose: bool = False) -> Iterator[Block]:
    """All of a run of the gate. `verbose` lists every node of long groups, and what no model fails for."""
    yield Facts(list(_run(report)))
    failing = [m for m in report.models if m.fails]
    others = [m for m in report.models if not m.fails]
    for model in failing:
        yield from _failing(model, verbose)
    if others:
        rows = [(_word(m), m.model, m.judged, _holds(m), "; ".join(m.notes)) for m in others]
        yield Table(f"models that pass: {len(others)}", ("verdict", "model", "judged", "findings", "note"), rows)
    for model in others if verbose else ():
        if model.hits:
            yield from findings(f"{model.model}: {_holds(model)}", [h.finding for h in model.hits], verbose)
    if report.vanished:
        yield _vanished(report)


def _run(report: GateReport) -> Iterator[tuple[str, str]]:
    yield "target", report.target
    if report.rules:
        yield "rules", report.rules
    if report.baseline:
        yield "baseline", report.baseline
    yield "models", summary(report)
    for note in report.notes:
        yield "note", note


def summary(report: GateReport) -> str:
    """ "3 models: 1 refused, 2 accepted (4 findings known)", the worst first."""
    counts = report.count()
    order = ("refused", "known", "unverified", "accepted", "proved")
    words = {"known": "refused as the baseline says"}
    parts = [f"{counts[w]} {words.get(w, w)}" for w in order if counts[w]]
    return f"{plural(len(report.models), 'model')}: {', '.join(parts)}"


def why(report: GateReport) -> str:
    """The one line that says why the gate is closed; "" when it is open."""
    failing = [m for m in report.models if m.fails]
    if failing:
        first, more = failing[0], f", and {len(failing) - 1} more" if len(failing) > 1 else ""
        reason = first.error or next((f"{h.finding.where}: {h.finding.reason}" for h in _against(first)), first.judged)
        return f"{first.model}{more}: {reason}"
    return next((f"{m.model}: {m.unproved}" for m in report.models if m.unproved), "")


def _against(model: Gated) -> list[Hit]:
    return [h for h in model.hits if h.level == "error" and not h.known]


def _failing(model: Gated, verbose: bool) -> Iterator[Block]:
    if model.error:
        yield Entries(model.model, [Entry("unreadable", model.error)])
        return
    new = [h.finding for h in model.hits if not h.known]
    yield from findings(f"{model.model}: {model.verdict}, {_holds(model)}: {model.judged}", new, verbose)
    if model.notes:
        yield Facts([("note", n) for n in model.notes])


def _holds(model: Gated) -> str:
    """What is held against a model, in numbers."""
    known = sum(1 for h in model.hits if h.known)
    parts = [plural(len(model.hits), "finding")] if model.hits else []
    if known:
        parts.append(f"{known} in the baseline")
    return ", ".join(parts)


def _word(model: Gated) -> str:
    return "known" if model.verdict == "refused" else model.verdict


def _vanished(report: GateReport) -> Block:
    entries: Sequence[Entry] = [Entry("gone", f"{v.model}: {v.limit} at {v.where}") for v in report.vanished[:PLACES]]
    title = f"in the baseline, but no longer found: {len(report.vanished)}; --write-baseline writes it anew"
    return Entries(title, entries)


def unproved(models: Iterable[Gated]) -> list[str]:
    """Why required parses did not run, each reason once."""
    return list(dict.fromkeys(m.unproved for m in models if m.unproved))
