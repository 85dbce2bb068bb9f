"""A rule's page: Markdown that is both its documentation and its test.

The first paragraph after the title is the rule's summary. Each heading of level 3 that is followed by fenced ONNX text
is a case; the fence's words say what it is:

    ```onnx before target=trt-8.2 parser=refused     the model before
    ```onnx after parser=accepted                    what must come out (constants without a value match any)
    ```onnx unchanged target=trt-8.2                 a model the rule must leave alone
    ```onnx skipped target=trt-8.2                   a model the rule declines; a `> reason` line follows

`parser=` is what the real parser must say of that model (refused, accepted; left out: an `after` must be accepted, of
others nothing is asked; `any`: nothing is asked). `with=id,id` on the first fence names other rules that take part,
`set=id.option` options that are on.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from onnxfix.errors import RuleError

_FENCE = re.compile(r"^```onnx[ \t]+(before|after|unchanged|skipped)([^\n]*)\n(.*?)^```[ \t]*$", re.M | re.S)
SPECIAL = "Infinities, NaN, negative zero"  # a heading
_KEYS = {"target", "parser", "with", "tolerance", "set"}


@dataclass(frozen=True)
class Block:
    kind: str  # before, after, unchanged or skipped
    text: str  # a model in ONNX's textual syntax
    line: int  # of the fence, from 1
    options: dict[str, str]


@dataclass(frozen=True)
class Case:
    title: str
    block: Block  # the model the rule is run on
    after: Block | None = None  # what must come out, for `before`
    reason: str = ""  # part of the reason, for `skipped`

    @property
    def target(self) -> str:
        return self.block.options.get("target", "")

    @property
    def others(self) -> tuple[str, ...]:
        return tuple(o for o in self.block.options.get("with", "").split(",") if o)


    @property
    def options(self) -> dict[str, dict[str, bool]]:
        """By rule, the options that are set."""
        found: dict[str, dict[str, bool]] = {}
        for word in filter(None, self.block.options.get("set", "").split(",")):
            rule, _, option = word.partition(".")
            found.setdefault(rule, {})[option] = True
        return found


@dataclass(frozen=True)
class Page:
    path: Path
    title: str
    summary: str
    text: str
    cases: tuple[Case, ...]

    @property
    def tells_of_special(self) -> bool:
        """Whether it says what becomes of infinities, NaN and the sign of zero, under the heading kept for that."""
        return f"\n## {SPECIAL}\n" in self.text


@functools.cache
def summary(path: Path) -> str:
    """The first paragraph after the title, on one line."""
    body = path.read_text(encoding="utf-8").split("\n", 1)[-1].strip()
    return re.sub(r"\s+", " ", body.split("\n\n", 1)[0]).strip()


def read(path: Path) -> Page:
    """Parse a page. Raises RuleError at `file:line` for one without title, summary or cases, or with odd fences."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RuleError(f"{path}: a rule needs its page, and it cannot be read: {error.strerror}") from None
    first = text.split("\n", 1)[0]
    if not first.startswith("# "):
        raise RuleError(f"{path}:1: a page begins with '# <rule id>'")
    cases: list[Case] = []
    for title, section, offset in _sections(text):
        blocks = [_block(path, m, text.count("\n", 0, offset + m.start()) + 1) for m in _FENCE.finditer(section)]
        if not blocks:
            continue
        cases.append(_case(path, title, section, blocks))
    if not cases:
        raise RuleError(f"{path}: a page needs at least one case (a '### title' with fenced ONNX text)")
    return Page(path, first[2:].strip(), summary(path), text, tuple(cases))


def _sections(text: str) -> list[tuple[str, str, int]]:
    heads = [*re.finditer(r"^### (.*)$", text, re.M)]
    ends = [*(h.start() for h in heads[1:]), len(text)]
    return [(h[1].strip(), text[h.end() : e], h.end()) for h, e in zip(heads, ends, strict=False)]


def _block(path: Path, match: re.Match[str], line: int) -> Block:
    options: dict[str, str] = {}
    for word in match[2].split():
        key, _, value = word.partition("=")
        if key not in _KEYS or not value:
            raise RuleError(f"{path}:{line}: '{word}' on a fence; known: {', '.join(sorted(_KEYS))} with =value")
        options[key] = value
    return Block(match[1], match[3], line, options)


def _case(path: Path, title: str, section: str, blocks: list[Block]) -> Case:
    first = blocks[0]
    kinds = [b.kind for b in blocks]
    if kinds == ["before", "after"]:
        return Case(title, first, blocks[1])
    if kinds == ["unchanged"]:
        return Case(title, first)
    if kinds == ["skipped"]:
        quote = re.search(r"^> (.*)$", section, re.M)
        if not quote:
            raise RuleError(f"{path}:{first.line}: a skipped case needs its reason in a line '> …'")
        return Case(title, first, None, quote[1].strip())
    raise RuleError(f"{path}:{first.line}: a case is before + after, unchanged, or skipped; here: {', '.join(kinds)}")
