"""The worklist: rules are tried at nodes until none applies.

Every node is looked at once in topological order, and again when a change touched it or a neighbour. When the list runs
dry after a change, the graph is committed, types are inferred anew (folding makes shapes known), and nodes whose types
became clearer get another look. Changes are bounded, so rules that chase each other end in an error naming them.
"""

from __future__ import annotations

import collections
import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from onnxfix.errors import RuleError, Skip
from onnxfix.graph import Edit, Graph, Node
from onnxfix.model import one_line
from onnxfix.report import Change, Safety, Site, Skipped, Where
from onnxfix.rule import REWRITABLE, Context, Rule, Target, Verdict

Progress = Callable[[int, int], None]  # (nodes looked at, nodes known so far)


class Observer(Protocol):
    """Who wants to see each change as it is made, e.g. to prove it."""

    def before(self, graph: Graph, node: Node | None) -> None: ...
    def after(self, change: Change, edit: Edit) -> None: ...


@dataclass
class Outcome:
    """What a run of the rules did."""

    changes: list[Change] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)  # of the changes, in the same order
    skipped: list[Skipped] = field(default_factory=list)
    interface: list[str] = field(default_factory=list)  # changes of inputs and outputs, in words


class _Table:
    """Rules by dispatch key."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.graph_rules = [r for r in rules if "<graph>" in r.ops]
        self._by_op: dict[str, list[Rule]] = collections.defaultdict(list)
        self._any = [r for r in rules if "*" in r.ops]
        for rule in rules:
            for op in rule.ops:
                if op not in ("*", "<graph>"):
                    self._by_op[op].append(rule)
        for op, found in self._by_op.items():
            self._by_op[op] = [r for r in rules if r in found or r in self._any]

    def rules(self, node: Node) -> list[Rule]:
        key = f"{node.domain}::{node.op}" if node.domain else node.op
        return self._by_op.get(key, self._any)


class _Run:
    def __init__(
        self,
        graph: Graph,
        rules: Sequence[Rule],
        context: Context,
        allow: Safety,
        left_out: Mapping[Site, str],
        observer: Observer | None,
    ) -> None:
        self.graph = graph
        self.table = _Table(rules)
        self.context = context
        self.allow = allow
        self.left_out = left_out
        self.observer = observer
        self.times: collections.Counter[tuple[str, Where]] = collections.Counter()
        self.outcome = Outcome()
        self.skips: dict[tuple[str, Node | Graph], Skipped] = {}
        self.verdicts: dict[Node, Verdict | None] = {}
        self.queue: collections.deque[Node] = collections.deque()
        self.queued: set[Node] = set()
        self.looked = 0
        nodes = sum(1 for scope in graph.scopes() for _ in scope.nodes())
        self.limit = 4 * nodes + 1000
        self._judge = context.judge
        context.judge = self.verdict

    def verdict(self, node: Node) -> Verdict | None:
        if node not in self.verdicts:
            self.verdicts[node] = self._judge(node)
        return self.verdicts[node]

    def push(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.live and node not in self.queued:
                self.queued.add(node)
                self.queue.append(node)

    def drain(self, progress: Progress | None) -> bool:
        changed = False
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            self.looked += 1
            if progress and self.looked % 256 == 0:
                progress(self.looked, self.looked + len(self.queue))
            if node.live:
                self.verdicts.pop(node, None)
                changed |= self.visit(node)
        return changed

    def visit(self, node: Node) -> bool:
        for rule in self.table.rules(node):
            if self.attempt(rule, node.graph, node):
                self.push([node])
                return True
        return False

    def visit_graphs(self) -> bool:
        changed = False
        for rule in self.table.graph_rules:
            for scope in list(self.graph.scopes()):
                while self.attempt(rule, scope, None):
                    changed = True
        return changed

    def attempt(self, rule: Rule, graph: Graph, node: Node | None) -> bool:
        """Try one rule at one place. True when it made a change. Most tries end at `match`, so that way is short."""
        subject: Node | Graph = graph if node is None else node
        if node is not None and rule.when == "refused":
            verdict = self.verdict(node)
            if verdict is None or verdict.effect not in REWRITABLE:
                return False
        try:
            found = rule.match(subject, self.context)
        except Skip as skip:
            return self.decline(rule, subject, str(skip))
        except Exception as error:
            raise _failure(rule, subject, error) from error
        self.skips.pop((rule.id, subject), None)  # whatever an earlier look said
        if found is None:
            return False
        if rule.safety.rank > self.allow.rank:
            grade, allowed = rule.safety.value, self.allow.value
            return self.decline(rule, subject, f"it is {grade}, and only {allowed} is allowed (--allow {grade})")
        return self.act(rule, graph, node, found)

    def decline(self, rule: Rule, subject: Node | Graph, reason: str) -> bool:
        self.skips[rule.id, subject] = Skipped(rule.id, _where(subject), reason)
        return False

    def act(self, rule: Rule, graph: Graph, node: Node | None, found: Any) -> bool:
        """Let a rule that matched make its change. False when it declines after all, or is left out here."""
        subject: Node | Graph = graph if node is None else node
        where = _where(subject)
        site = Site(rule.id, where.graph, where.node, where.op, where.outputs, self.times[rule.id, where])
        if site in self.left_out:
            return self.decline(rule, subject, self.left_out[site])
        edit = Edit(graph, node, rule.id)
        if self.observer is not None:
            edit.keeps = True
            self.observer.before(graph, node)
        try:
            rule.rewrite(subject, found, edit, self.context)
        except Skip as skip:
            edit.rollback()
            return self.decline(rule, subject, str(skip))
        except Exception as error:
            edit.rollback()
            raise _failure(rule, subject, error) from error
        if node is not None and node.live:
            edit.mark(node)
        edit.finish()
        self.times[rule.id, where] += 1
        self.outcome.sites.append(site)
        self.record(rule, where, edit)
        if self.observer is not None:
            self.observer.after(self.outcome.changes[-1], edit)
        self.push(edit.touched)
        return True

    def record(self, rule: Rule, where: Where, edit: Edit) -> None:
        changes = self.outcome.changes
        if len(changes) >= self.limit:
            busy = collections.Counter(c.rule for c in changes[-200:])
            names = ", ".join(f"'{r}'" for r, _ in busy.most_common(3))
            raise RuleError(
                f"{len(changes)} changes and no end: rules {names} undo each other near {where}; leave one out"
            )
        self.outcome.interface += edit.interface
        changes.append(
            Change(
                id=len(changes) + 1,
                rule=rule.id,
                safety=rule.safety,
                where=where,
                message=edit.note or rule.summary,
                removed=tuple(map(edit.describe, edit.removed)),
                added=tuple(map(edit.describe, edit.added)),
                interface=bool(edit.interface),
            )
        )


def _where(subject: Node | Graph) -> Where:
    return subject.where() if isinstance(subject, Node) else Where("", "graph", graph=subject.path)


def _failure(rule: Rule, subject: Node | Graph, error: Exception) -> RuleError:
    what = f"{type(error).__name__}: {one_line(error)}"
    return RuleError(f"rule '{rule.id}' failed at {_where(subject)}: {what}; leave it out with '!{rule.id}'")


def run(
    graph: Graph,
    rules: Sequence[Rule],
    target: Target,
    judge: Callable[[Node], Verdict | None],
    *,
    allow: Safety = Safety.CLOSE,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    left_out: Mapping[Site, str] | None = None,
    observer: Observer | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Apply `rules` to the model that `graph` (its main graph) indexes, in place, and commit.

    Changes at the sites `left_out` are not made; its values say why. `observer` sees each change as it is made.

    Raises RuleError when a rule fails or rules chase each other. Cost: linear in nodes plus changes, times the few
    rounds that newly known shapes call for.
    """
    context = Context(target, judge, options or {})
    state = _Run(graph, rules, context, allow, left_out or {}, observer)
    with _collector_paused():
        _rounds(state, graph, progress)
    state.outcome.skipped = [
        s for (_, subject), s in state.skips.items() if isinstance(subject, Graph) or subject.live
    ]
    return state.outcome


def _rounds(state: _Run, graph: Graph, progress: Progress | None) -> None:
    types: dict[str, bytes] = {}
    for first in (True, *[False] * 30):
        if first:
            state.push(n for scope in graph.scopes() for n in scope.nodes())
        changed = state.visit_graphs()
        changed |= state.drain(progress)
        if not changed and first:
            break
        graph.commit()
        before, types = types, _refresh(graph)
        state.verdicts.clear()
        # Look again at what reads a value whose type is known better than before; at all of it the first time.
        clearer = {name for name, kind in types.items() if before.get(name) != kind} if before else None
        state.push(
            n
            for scope in graph.scopes()
            for n in scope.nodes()
            if clearer is None or any(v in clearer for v in (*n.proto.input, *n.proto.output))
        )
        if not state.queue and not changed:
            break


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """An index is millions of live objects and no garbage: the collector would walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _refresh(graph: Graph) -> dict[str, bytes]:
    """Infer all types anew; returns them by name, serialised for comparing."""
    typer: Any = graph.root.typer
    if typer is None:
        return {}
    typer.refresh()
    types: dict[str, bytes] = {}
    for scope in graph.scopes():
        for node in scope.nodes():
            for name in node.proto.output:
                kind = typer.type_of(scope, name) if name else None
                if kind is not None:
                    types[name] = kind.SerializeToString(deterministic=True)
    return types
