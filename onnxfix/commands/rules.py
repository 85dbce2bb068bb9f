"""`onnxfix rules`: list, show, test and begin rules."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfix.commands.common import FINE, REFUSED, add_format, emit, end, names, shipped
from onnxfix.errors import RequestError, RuleError

if TYPE_CHECKING:
    from onnxfix.rule import Rule
    from onnxfix.ruletest import CaseResult


def add(commands: Any) -> None:
    group = commands.add_parser(
        "rules",
        help="list, show and test rules",
        description="Rules are pairs of files: the rule, and its page, which is documentation and test in one.",
        epilog="examples:\n"
        "  onnxfix rules list\n"
        "  onnxfix rules show resize-cubic\n"
        "  onnxfix rules test resize-cubic my_rules/\n",
    ).add_subparsers(title="commands", metavar="COMMAND", dest="rules_command", required=True)
    listing = group.add_parser(
        "list",
        help="all shipped rules, one line each",
        description="All shipped rules and rule files: what each finds, on which operators, how safe it is.",
        epilog="examples:\n  onnxfix rules list\n  onnxfix rules list --format json\n",
    )
    add_format(listing)
    listing.set_defaults(run=_list)
    show = group.add_parser(
        "show",
        help="the page of a rule",
        description="The page of a rule: what it finds, why a target refuses that, what changes, with cases.",
        epilog="examples:\n  onnxfix rules show resize-cubic\n  onnxfix rules show resize-cubic > page.md\n",
    )
    show.add_argument("id", metavar="ID", help="a rule's name; `onnxfix rules list` shows them")
    add_format(show)
    show.set_defaults(run=_show)
    test = group.add_parser(
        "test",
        help="run the cases on the pages of rules",
        description="Run the cases on the pages of rules: what comes out, the numbers, TensorRT's parser.\n"
        "Without arguments all shipped rules.",
        epilog="examples:\n"
        "  onnxfix rules test\n"
        "  onnxfix rules test resize-cubic pad-fold\n"
        "  onnxfix rules test my_rules/\n\n"
        "exit status: 0 when all cases pass, 1 when one fails, 2 when the request is wrong\n",
    )
    test.add_argument("what", metavar="ID|DIR", nargs="*", help="a shipped rule, or a folder of rules")
    add_format(test)
    test.set_defaults(run=_test)
    new = group.add_parser(
        "new",
        help="begin a rule from nodes of a real model",
        description="Write a YAML rule whose `before` is what the given nodes do, and its page with the nodes, cut\n"
        "out of the model, as the first case. What shall stand instead is yours to write.",
        epilog="example:\n  onnxfix rules new my-rule --from model.onnx --nodes /act/Div,/act/Erf --to my_rules/\n",
    )
    new.add_argument("id", metavar="ID", help="the rule's name, in kebab-case: what is bad, e.g. resize-cubic")
    new.add_argument("--from", dest="model", metavar="MODEL", type=Path, required=True, help="the model")
    new.add_argument("--nodes", metavar="A,B", type=names, required=True, help="names of nodes, or of values they make")
    new.add_argument(
        "--to", dest="folder", metavar="DIR", type=Path, default=Path(), help="where to write (default: here)"
    )
    new.set_defaults(run=_new)


def _list(args: argparse.Namespace) -> int:
    from onnxfix import catalog
    from onnxfix.render import text

    rules = list(shipped().values())
    sets = catalog.shipped_sets()
    value = {"rules": [text.rule_facts(r) for r in rules], "sets": sets}
    emit(args, value, lambda: text.rules(rules, sets))
    return FINE


def _show(args: argparse.Namespace) -> int:
    from onnxfix import page
    from onnxfix.render import layout, text

    rule = _rule(args.id, shipped())
    assert rule.page is not None  # the catalog loads no rule without its page
    found = page.read(rule.page)
    if args.format == "json":
        emit(args, {**text.rule_facts(rule), "text": found.text}, lambda: ())
    else:
        layout.write_markdown(found.text, sys.stdout)
    return FINE


def _test(args: argparse.Namespace) -> int:
    from onnxfix import catalog, ruletest
    from onnxfix.render import progress, text

    known = dict(shipped())
    chosen: dict[str, Rule] = {}
    for what in args.what:
        if os.path.isdir(what):
            folder = catalog.load_folder(Path(what))
            if not folder:
                raise RequestError(f"{what}: holds no rules")
            known.update(folder)
            chosen.update(folder)
        else:
            chosen[what] = _rule(what, known)
    rules = list((chosen if args.what else known).values())
    results: list[CaseResult] = []
    with progress.shown() as bar:
        for number, rule in enumerate(rules):
            if bar:
                bar("testing rules", number, len(rules))
            results += ruletest.run_page(rule, known)
    emit(args, results, lambda: text.cases(results))
    failed = [r for r in results if r.problems]
    if failed:
        cases = text.plural(len(failed), "case")
        return end(REFUSED, f"{cases} failed, first {failed[0].rule}:{failed[0].line}: {failed[0].problems[0]}")
    return FINE


def _new(args: argparse.Namespace) -> int:
    from onnxfix.scaffold import new_rule

    for path in new_rule(args.model, args.nodes, args.id, args.folder):
        print(path)
    return FINE


def _rule(identity: str, known: Mapping[str, Rule]) -> Rule:
    if identity in known:
        return known[identity]
    import difflib

    close = difflib.get_close_matches(identity, known, 1)
    hint = f"did you mean '{close[0]}'?" if close else "`onnxfix rules list` shows them"
    raise RuleError(f"no rule '{identity}'; {hint}")
