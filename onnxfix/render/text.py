"""What is said to people, as blocks: the inspection, the report of a run, rules, their tests, the backends.

Findings, changes and skips that are alike are one entry with their places listed: "such as" stands before words that
differ among them, and a long list of places ends in "and N more". `verbose` spells both out; JSON has all of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from onnxfix.backends import BackendInfo
from onnxfix.inspection import Amount, Function, Inspection, Value
from onnxfix.render.layout import Block, Entries, Entry, Facts, Table
from onnxfix.report import Change, Check, Effect, Finding, Report, Safety, Skipped, Where
from onnxfix.rule import REWRITABLE, Rule
from onnxfix.ruletest import CaseResult

Item = TypeVar("Item")

_WORST_FIRST = list(Effect)
PLACES = 6  # listed before "and N more"
VALUE = 100  # characters of a metadata value
ROWS = 20  # of tables that may have thousands


def size(count: int) -> str:
    """Bytes for people: "164 kB", "1.1 GB" (powers of 1000)."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if amount >= 99.5 or unit == "B" else f"{amount:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# ---- inspect ----


def inspection(found: Inspection, verbose: bool = False) -> Iterator[Block]:
    """All of an inspection."""
    yield Facts(list(_identity(found)))
    metadata = _metadata(found)
    if metadata:
        rows = [(key, value if verbose else _short(value)) for key, value in metadata.items()]
        yield _long("metadata", ("key", "value"), rows, set(), verbose)
    yield _values("inputs", found.inputs)
    yield _values("outputs", found.outputs)
    if found.functions:
        columns = ("function", "inputs", "outputs", "nodes", "calls", "opsets")
        yield _long("functions", columns, [_function(f) for f in found.functions], {3, 4}, verbose)
    yield from _weights(found)
    yield from _ops(found, verbose)
    if found.target:
        yield from _target(found, verbose)


def _identity(found: Inspection) -> Iterator[tuple[str, str]]:
    yield "model", f"{found.model} ({size(found.bytes)})"
    yield "sha256", found.sha256
    yield "ir version", str(found.ir_version)
    yield "opsets", _opsets(found.opsets)
    yield "producer", f"{found.producer} {found.producer_version}".strip() or "not said"
    if found.domain:
        yield "domain", found.domain
    if found.model_version:
        yield "model version", str(found.model_version)
    if found.doc:
        yield "doc", found.doc
    yield "graph", f"{found.graph}: {found.graph_doc}" if found.graph_doc else found.graph or "unnamed"
    if found.training:
        yield "training", f"{plural(found.training, 'training graph')}: not looked into"


def _metadata(found: Inspection) -> dict[str, str]:
    return {**found.metadata, **{f"graph.{k}": v for k, v in found.graph_metadata.items()}}


def _short(text: str) -> str:
    """The beginning of a long text, and how much there is of it."""
    return text if len(text) <= VALUE else f"{text[:VALUE]}… ({len(text):,} characters)"


def _opsets(opsets: Mapping[str, int]) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets.items())


def _values(title: str, values: Sequence[Value]) -> Table:
    rows = []
    for value in values:
        shape = "unknown rank" if value.shape is None else f"[{', '.join(_dim(d) for d in value.shape)}]"
        notes = ["has a default"] if value.initialized else []
        if value.dynamic:
            notes.append(f"dynamic axes {', '.join(map(str, value.dynamic))}")
        if value.doc:
            notes.append(value.doc)
        rows.append((value.name, value.dtype, shape, "; ".join(notes)))
    return Table(f"{title}: {len(values)}", ("name", "dtype", "shape", "notes"), rows)


def _function(found: Function) -> tuple[str, ...]:
    name, values = f"{found.domain}::{found.name}", (", ".join(found.inputs), ", ".join(found.outputs))
    return (name, *values, str(found.nodes), str(found.calls), _opsets(found.opsets))


def _dim(dim: int | str | None) -> str:
    return "?" if dim is None else str(dim)


def _weights(found: Inspection) -> Iterator[Block]:
    amounts = [("initializers", a) for a in found.initializers] + [("in nodes", a) for a in found.in_nodes]
    yield Table(
        f"stored tensors: {_total(found.initializers)} as initializers, {_total(found.in_nodes)} in nodes",
        ("where", "dtype", "count", "bytes"),
        [(where, a.dtype, str(a.count), size(a.bytes)) for where, a in amounts],
        frozenset({2, 3}),
    )
    if found.external:
        rows = [(f.location, str(f.tensors), size(f.bytes), f.problem or "there") for f in found.external]
        yield Table("external data", ("file", "tensors", "bytes", "state"), rows, frozenset({1, 2}))
    if found.largest:
        yield Table(
            "largest tensors",
            ("name", "dtype", "shape", "bytes", "scope", "file"),
            [(t.name, t.dtype, str(list(t.shape)), size(t.bytes), t.scope, t.file) for t in found.largest],
            frozenset({3}),
        )


def _total(amounts: Sequence[Amount]) -> str:
    return f"{sum(a.count for a in amounts)} ({size(sum(a.bytes for a in amounts))})"


def _long(
    title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: set[int], verbose: bool
) -> Table:
    """A table that is cut when it is long, and then says so."""
    if len(rows) <= ROWS or verbose:
        return Table(f"{title}: {len(rows)}", columns, rows, frozenset(right))
    head = f"{title}: the first {ROWS} of {len(rows)} (--verbose lists them)"
    return Table(head, columns, rows[:ROWS], frozenset(right))


def _ops(found: Inspection, verbose: bool) -> Iterator[Block]:
    deepest = max((len(c.depths) for c in found.ops), default=1)
    depths = [f"depth {d}" for d in range(deepest)] if deepest > 1 else []
    rows = []
    for count in found.ops:
        by_depth = [str(n) for n in (*count.depths, *[0] * (deepest - len(count.depths)))] if depths else []
        rows.append((count.op, count.domain or "ai.onnx", str(count.count), *by_depth))
    title = f"nodes: {found.nodes}, of {plural(len(found.ops), 'operator')}"
    yield Table(title, ("op", "domain", "count", *depths), rows, frozenset(range(2, 3 + len(depths))))
    inner = [s for s in found.scopes if s.depth]
    if inner:
        rows = [(s.path, s.kind, str(s.depth), str(s.nodes), str(s.initializers)) for s in inner]
        columns = ("scope", "kind", "depth", "nodes", "initializers")
        yield _long("subgraphs and functions", columns, rows, {2, 3, 4}, verbose)


def _target(found: Inspection, verbose: bool) -> Iterator[Block]:
    facts = [("target", found.target), ("verdict", found.verdict)]
    facts += [("note", note) for note in found.notes]
    if found.graph_rules:
        facts.append(("would help", f"{_rules(found.graph_rules, found.rules)}, on the graph as a whole"))
    yield Facts(facts)
    title = f"findings: {len(found.findings) or 'none'}, of {plural(found.nodes, 'node')}"
    yield from findings(title, found.findings, verbose, found.rules)
    yield from _skipped(found.skipped, verbose)


# ---- findings, changes, skips, checks ----


def findings(
    title: str, found: Sequence[Finding], verbose: bool, safety: Mapping[str, Safety] | None = None
) -> Iterator[Block]:
    """What a target or parser does not take, the worst first."""

    def alike(finding: Finding) -> object:
        where, reason = finding.where, _core(finding.reason, verbose)
        return finding.effect, where.domain, where.op, reason, finding.evidence, finding.rules

    entries = []
    for group in sorted(_grouped(found, alike), key=lambda g: _WORST_FIRST.index(g[0].effect)):
        first = group[0]
        op = f"{first.where.domain}::{first.where.op}" if first.where.domain else first.where.op
        details = [("at", _places([f.where for f in group], verbose))]
        if first.rules or first.effect in REWRITABLE:
            details.append(("would help", _rules(first.rules, safety or {}) or "no rule here"))
        if first.evidence:
            details.append(("evidence", first.evidence))
        entries.append(Entry(first.effect.value, _said(op, [f.reason for f in group]), details))
    yield Entries(title, entries)


def _grouped(items: Iterable[Item], alike: Callable[[Item], object]) -> Iterable[list[Item]]:
    groups: dict[object, list[Item]] = defaultdict(list)
    for item in items:
        groups[alike(item)].append(item)
    return groups.values()


def _core(reason: str, verbose: bool) -> str:
    """What makes reasons alike: all but names of values and lists of numbers, or with `verbose` every letter."""
    return reason if verbose else re.sub(r"'[^']*'|\[[^]]*\]", "…", reason)


def _said(who: str, reasons: Sequence[str]) -> str:
    count = f" ({len(reasons)})" if len(reasons) > 1 else ""
    alike = ", such as" if len(set(reasons)) > 1 else ""
    return f"{who}{count}{alike}: {reasons[0]}"


def _rules(ids: Iterable[str], safety: Mapping[str, Safety]) -> str:
    return ", ".join(f"{i} ({safety[i].value})" if i in safety else i for i in ids)


def _places(places: Sequence[Where], verbose: bool) -> str:
    names = [_place(where) for where in places]
    if verbose or len(names) <= PLACES + 1:
        return ", ".join(names)
    return f"{', '.join(names[:PLACES])} and {len(names) - PLACES} more (--verbose lists them)"


def _place(where: Where) -> str:
    if where.index < 0 and where.op == "graph":  # a rule that looks at whole graphs
        return where.graph or "the graph"
    name = where.node or next((f"-> {o}" for o in where.outputs if o), "") or f"#{where.index}"
    return f"{name} in {where.graph}" if where.graph else name


def _changes(changes: Sequence[Change], verbose: bool) -> Iterator[Block]:
    entries = []
    for group in _grouped(changes, lambda c: (c.rule, _core(c.message, verbose), c.interface)):
        first = group[0]
        removed, added = sum(len(c.removed) for c in group), sum(len(c.added) for c in group)
        details = [("at", _places([c.where for c in group], verbose))]
        details.append(("nodes", f"{removed} removed, {added} added"))
        if first.interface:
            details.append(("interface", "an input or output of the model changed"))
        entries.append(Entry(first.safety.value, _said(first.rule, [c.message for c in group]), details))
    yield Entries(f"changes: {len(changes) or 'none'}", entries)


def _skipped(skipped: Sequence[Skipped], verbose: bool) -> Iterator[Block]:
    if not skipped:
        return
    entries = []
    for group in _grouped(skipped, lambda s: (s.rule, _core(s.reason, verbose))):
        text = _said(group[0].rule, [s.reason for s in group])
        entries.append(Entry("skipped", text, [("at", _places([s.where for s in group], verbose))]))
    yield Entries(f"skipped: {len(skipped)}", entries)


def checks(done: Sequence[Check], verbose: bool) -> Iterator[Block]:
    """The proofs and how they ended, each with what it found."""
    yield Entries("checks", [Entry(c.status.value, f"{c.name}: {c.detail}", [("by", c.by)]) for c in done])
    for check in done:
        if check.findings:
            yield from findings(f"{check.name}: findings of {check.by}", check.findings, verbose)


# ---- apply ----


def report(done: Report, verbose: bool = False) -> Iterator[Block]:
    """All of a run of `apply` or `build`."""
    yield Facts([*_run(done), *(("note", note) for note in done.notes)])
    yield from findings(f"findings in the input: {len(done.findings) or 'none'}", done.findings, verbose)
    if done.rules:
        yield from _changes(done.changes, verbose)
        yield from _skipped(done.skipped, verbose)
    if done.rules and (done.changes or done.remaining):
        yield from findings(f"findings that remain: {len(done.remaining) or 'none'}", done.remaining, verbose)
    if done.checks:
        yield from checks(done.checks, verbose)


def summary(done: Report) -> Iterator[Block]:
    """The run in a few lines, for `--quiet`."""
    yield Facts([*_run(done), *((c.name, f"{c.status.value}: {c.detail}") for c in done.checks)])


def _run(done: Report) -> Iterator[tuple[str, str]]:
    yield "model", done.model
    yield "output", done.output or "nothing written"
    yield "target", done.target
    if done.rules:
        yield "rules", done.rules
    yield "verdict", done.verdict
    if done.judged:
        yield "judged", done.judged
    if not done.rules:
        return
    changes = plural(len(done.changes), "change")
    yield "findings", f"{len(done.findings)} before, {len(done.remaining)} after {changes}"


# ---- rules ----


def rules(found: Sequence[Rule], sets: Sequence[str]) -> Iterator[Block]:
    """All shipped rules, and the names of the shipped rule files."""
    rows = [(r.id, r.safety.value, r.when, ", ".join(r.ops), r.summary) for r in found]
    yield Table(f"rules: {len(found)}", ("rule", "safety", "when", "operators", "summary"), rows)
    if sets:
        yield Facts([("rule files", ", ".join(sets))])


def rule_facts(rule: Rule) -> dict[str, object]:
    """A rule for `rules list` and `rules show` in JSON."""
    return {
        "id": rule.id,
        "safety": rule.safety,
        "when": rule.when,
        "ops": list(rule.ops),
        "options": dict(rule.options),
        "summary": rule.summary,
        "page": str(rule.page or ""),
    }


def cases(results: Sequence[CaseResult]) -> Iterator[Block]:
    """The outcome of rule pages: a line for each case, then what is wrong with those that failed."""
    entries = []
    for result in results:
        details = [("problem", p) for p in result.problems] + [("not run", p) for p in result.not_run]
        word = "failed" if result.problems else "passed"
        entries.append(Entry(word, f"{result.rule}:{result.line} {result.case}", details))
    failed = sum(1 for r in results if r.problems)
    open_ = sum(1 for r in results if r.not_run)
    title = f"{plural(len(results), 'case')}: {len(results) - failed} passed, {failed} failed"
    yield Entries(title + (f"; of {open_} some proofs could not run" if open_ else ""), entries)


# ---- doctor ----


def doctor(backends: Iterable[BackendInfo]) -> Iterator[Block]:
    entries = []
    for backend in backends:
        details = [("why", backend.why_not), ("get it", backend.how_to_get)] if not backend.available else []
        details += [("note", note) for note in backend.notes]
        word = "available" if backend.available else "not available"
        entries.append(Entry(word, f"{backend.name} {backend.version}".strip(), details))
    yield Entries("backends", entries)
