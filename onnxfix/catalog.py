"""Which rules there are, and which of them a rule file chooses.

Rules live in a folder, one pair of files each: `<id>.py` or `<id>.yml`, and its page `<id>.md`. A rule that fails to
load is an error, never a warning.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib.util
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onnxfix import yamlrule
from onnxfix.errors import RuleError
from onnxfix.model import one_line
from onnxfix.report import Safety
from onnxfix.rule import Rule

_ID = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")
_NO_PAGE = ("README", "index")


@dataclass(frozen=True)
class RuleSet:
    """A rule file, read: the rules in order, and the settings of the run."""

    name: str
    rules: tuple[Rule, ...]
    target: str = ""
    allow: Safety = Safety.CLOSE
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    require: tuple[str, ...] = ()
    build: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None


def without_plugins(rules: Iterable[Rule]) -> list[Rule]:
    """The rules that act without being asked for: those that write a TensorRT plugin wait for its name."""
    return [rule for rule in rules if not rule.plugin]


def shipped() -> Path:
    """The folder of the shipped rules: in the installed package, or beside it in a source tree."""
    inside = Path(__file__).parent / "rules"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "rules"


@functools.cache
def load_folder(folder: Path) -> Mapping[str, Rule]:
    """All rules of a folder, by id, in the order of their ids. Raises RuleError for one that does not load."""
    if not folder.is_dir():
        raise RuleError(f"{folder}: no such folder")
    rules: dict[str, Rule] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and not path.name.startswith("_"):
            rule = _load_python(path)
        elif path.suffix in (".yml", ".yaml") and _is_rule(path):
            rule = yamlrule.YamlRule(path.stem, yamlrule.read(path), str(path))
        else:
            continue
        if not _ID.match(path.stem):
            raise RuleError(f"{path}: a rule's file is named in kebab-case after the bad thing, e.g. resize-cubic.py")
        if path.stem in rules:
            raise RuleError(f"{path}: a second rule of the id '{path.stem}'")
        page = path.with_suffix(".md")
        if not page.is_file():
            raise RuleError(f"{path}: a rule needs its page {page.name} beside it")
        rule.id, rule.page = path.stem, page
        rules[path.stem] = rule
    return rules


def _holds_rules(folder: Path) -> bool:
    """Whether a rule with its page lies there; a rule file may lie anywhere, among other files."""
    return any(
        path.suffix == ".py" or (path.suffix in (".yml", ".yaml") and _is_rule(path))
        for path in folder.iterdir()
        if path.with_suffix(".md").is_file()
    )


def _is_rule(path: Path) -> bool:
    """Whether a YAML file holds a rule (it has `before`), not a set of rules."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        yamlrule.read(path)  # raises, with the place
        raise
    return isinstance(root, yaml.MappingNode) and any(k.value in ("before", "after") for k, _ in root.value)


def _load_python(path: Path) -> Rule:
    spec = importlib.util.spec_from_file_location(f"onnxfix_rule_{path.stem.replace('-', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, path)
        raise RuleError(f"{path}:{line}: {type(error).__name__}: {one_line(error)}") from None
    found = [
        c for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Rule) and c.__module__ == module.__name__ and c.__name__[0] != "_"
    ]  # fmt: skip
    if len(found) != 1:
        raise RuleError(f"{path}: holds {len(found)} rules; one Rule class a file")
    rule = found[0]()
    if not rule.ops:
        raise RuleError(f"{path}: {found[0].__name__} names no `ops`")
    return rule


def _line_in(error: Exception, path: Path) -> int:
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def rule_file(name: str | Path) -> Path:
    """Where a rule file is: a path as given, else the shipped file of that name (with or without .yml).

    Raises RuleError, naming the shipped ones, when there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (shipped() / path.name, shipped() / f"{path.name}.yml"):
        if len(path.parts) == 1 and candidate.is_file():
            return candidate
    sets = ", ".join(shipped_sets())
    raise RuleError(f"{name}: no such rule file; give a path or a shipped one ({sets})")


def shipped_sets() -> list[str]:
    return [p.name for p in sorted(shipped().glob("*.yml")) if not _is_rule(p)]


def load_set(name: str | Path, plugins: Iterable[str] = ()) -> RuleSet:
    """Read a rule file and the rules it chooses. Raises RuleError at the place of the first mistake.

    Rules that write TensorRT plugins are among them only for the plugins that the file's `plugins` or `plugins` name.
    """
    path = rule_file(name)
    document = yamlrule.read(path)
    if "rules" not in document:
        raise RuleError(f"{path}: is a single rule; a rule file has 'rules:'")
    known = dict(load_folder(shipped()))
    if path.parent != shipped() and _holds_rules(path.parent):
        known.update(load_folder(path.parent))  # a team's own rules, beside its rule file
    chosen: dict[str, Rule] = {}
    options: dict[str, Mapping[str, Any]] = {}
    for number, item in enumerate(document["rules"], 1):
        where = f"{path}: rules, item {number}"
        if isinstance(item, str):
            _select(item, known, chosen, where)
        elif "options" in item:
            rule = _one(item["id"], known, where)
            unknown = set(item["options"]) - set(rule.options)
            if unknown:
                raise RuleError(
                    f"{where}: rule '{rule.id}' has no option '{sorted(unknown)[0]}'; "
                    f"it has: {', '.join(rule.options) or 'none'}"
                )
            chosen[rule.id] = rule
            options[rule.id] = item["options"]
        else:
            chosen[item["id"]] = yamlrule.YamlRule(item["id"], item, f"{where} ({item['id']})")
    wanted = _plugins((*document.get("plugins", ()), *plugins), known, str(path))
    return RuleSet(
        name=path.name,
        rules=tuple(r for r in chosen.values() if not r.plugin or r.plugin in wanted),
        target=document.get("target", ""),
        allow=Safety(document.get("allow", "close")),
        options=options,
        tolerances=document.get("tolerances", {}),
        require=tuple(document.get("require", ())),
        build=document.get("build", {}),
        path=path,
    )


def _plugins(names: Iterable[str], known: Mapping[str, Rule], where: str) -> set[str]:
    there = {rule.plugin for rule in known.values() if rule.plugin}
    wanted = set(names)
    if wanted - there:
        raise RuleError(
            f"{where}: no rule writes the plugin '{min(wanted - there)}'; there are {', '.join(sorted(there))}"
        )
    return wanted


def _select(text: str, known: Mapping[str, Rule], chosen: dict[str, Rule], where: str) -> None:
    pattern = text.removeprefix("!")
    ids = [i for i in known if fnmatch.fnmatchcase(i, pattern)]
    if not ids:
        _one(pattern, known, where)
    for rule_id in ids:
        if text.startswith("!"):
            chosen.pop(rule_id, None)
        else:
            chosen[rule_id] = known[rule_id]


def _one(rule_id: str, known: Mapping[str, Rule], where: str) -> Rule:
    if rule_id in known:
        return known[rule_id]
    close = difflib.get_close_matches(rule_id, known, 1)
    hint = f"did you mean '{close[0]}'?" if close else "`onnxfix rules list` shows them"
    raise RuleError(f"{where}: no rule '{rule_id}'; {hint}")
