"""The verdict on a model: one word and one sentence, made in this place alone from findings and proofs.

    failed      a proof of our own rewriting failed
    refused     the target does not take the model
    unverified  something could not be decided
    accepted    the matrix takes it
    proved      the target's own parser, or its builder, takes it

The matrix predicts and a parser judges, but only its own release: the parser at hand overrules the matrix where it is
the target's own, and is no more than a remark elsewhere. And it overrules only what a parser can know: one that takes a
node may still ignore what the node asks for (`Effect.WRONG`), and only a build shows that a build works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxfix.matrix import Target
from onnxfix.report import Check, Effect, Finding, Status
from onnxfix.rule import REWRITABLE

# A failed one of these means the rewriting itself went wrong.
OURS = ("structure", "parity")


@dataclass(frozen=True)
class Judgement:
    word: str  # as above
    why: str  # who judged, for which target, and for "unverified" what is missing


def judge(target: Target, findings: Iterable[Finding], checks: Sequence[Check] = ()) -> Judgement:
    """The verdict on a model of which the matrix says `findings` and the proofs `checks`."""
    found = list(findings)
    broken = next((c for c in checks if is_broken(c)), None)
    if broken is not None:
        return Judgement("failed", f"{broken.name} failed by {broken.by}: {broken.detail}")
    parser = own_parser(target, checks)
    build = next((c for c in checks if c.name == "build" and c.status is not Status.NOT_RUN), None)
    if parser is not None:
        if parser.status is Status.FAILED:
            return Judgement("refused", f"refused by {_who(parser)}, the parser of {target.label} itself")
        if build is not None and build.status is Status.FAILED:
            return Judgement("refused", f"parsed, but not built by {_who(build)}, the builder of {target.label} itself")
        found = [f for f in found if not overruled(f, checks)]
        if any(f.effect in REWRITABLE for f in found):
            said = f"parsed by {_who(parser)}, the parser of {target.label} itself, but by matrix {_counted(found)}"
            return Judgement("refused", said)
        done = "parsed and built" if build is not None else "parsed"
        return Judgement("proved", f"{done} by {_who(parser)}, the parser of {target.label} itself")
    said = f"target {target.label} by matrix only"
    if found:
        said = f"{said}: {_counted(found)}"
    return Judgement(by_matrix(found), "; ".join(filter(None, [_elsewhere(checks), said])))


def by_matrix(findings: Iterable[Finding]) -> str:
    """One word: refused, unverified (limits that could not be decided, or plugins), accepted."""
    effects = {f.effect for f in findings}
    return "refused" if effects & REWRITABLE else "unverified" if effects else "accepted"


def own_parser(target: Target, checks: Iterable[Check]) -> Check | None:
    """The parse check, when it ran and the parser is the target's own release: then it outranks the matrix."""
    check = next((c for c in checks if c.name == "parse" and c.status is not Status.NOT_RUN), None)
    if check is None:
        return None
    flavour, _, rest = check.by.partition(" ")
    release = target.release.removeprefix("rtx-")
    same = flavour == ("tensorrt_rtx" if target.release.startswith("rtx") else "tensorrt")
    return check if same and rest.startswith(f"{release}.") else None


def overruled(finding: Finding, checks: Sequence[Check]) -> bool:
    """Whether the target's own parser, having taken the whole model, has shown a finding of the matrix to be wrong."""
    if finding.effect is Effect.BUILD_FAILS:
        return any(c.name == "build" and c.status is Status.PASSED for c in checks)
    return finding.effect is not Effect.WRONG


def disagreement(target: Target, findings: Iterable[Finding], checks: Sequence[Check]) -> str:
    """Where the matrix and the target's own parser differ, which is a finding about the matrix; "" where they don't."""
    parser = own_parser(target, checks)
    if parser is None:
        return ""
    found = list(findings)
    refused = [f for f in found if f.effect is Effect.REFUSED]
    if parser.status is Status.PASSED and refused:
        return f"the matrix refuses {refused[0].where}, but {parser.by} takes the model: the matrix is too strict there"
    if parser.status is Status.FAILED and not any(f.effect in REWRITABLE for f in found):
        return f"the matrix takes the model, but {parser.by} does not: the matrix lacks a limit"
    return ""


def is_broken(check: Check) -> bool:
    """Whether a proof of our own work failed, and not for a fault that the original model has too."""
    return check.name in OURS and check.status is Status.FAILED and not check.figures.get("in_original")


def _elsewhere(checks: Iterable[Check]) -> str:
    """What a parser of another release said."""
    check = next((c for c in checks if c.name == "parse" and c.status is not Status.NOT_RUN), None)
    if check is None:
        return ""
    return f"{'parsed' if check.status is Status.PASSED else 'refused'} by {_who(check)}"


def _who(check: Check) -> str:
    return check.by.partition(" through ")[0]


def _counted(findings: Iterable[Finding]) -> str:
    """What is open or wrong, by kind: "2 undecided, 1 needs a plugin"."""
    counts = Counter(f.effect for f in findings)
    return ", ".join(f"{counts[effect]} {effect.value}" for effect in Effect if counts[effect])
