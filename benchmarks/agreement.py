"""How often the static verdict is the real parser's: on ONNX's node tests, and on models found in the wild.

    python -m benchmarks.agreement                     every node test, as it is and with stored parameters
    python -m benchmarks.agreement model.onnx …        these models too
    python -m benchmarks.agreement --packages          and those inside the packages of `fixtures.fetch_models`

Prints the confusion table, the models on which they differ, and whether the bars are met: agreement at least 99 %,
called taken but refused at most 0.3 %, undecided at most 2 %. Exit status 1 when one is not.

Undecided counts as no agreement. A model in which the matrix only expects a failing build, or leaves that open, is
taken here: the parser takes it, and only a build can tell.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from onnxfix import matrix, shapes
from onnxfix.backends.trt import DiedError, TensorRT
from onnxfix.model import load
from onnxfix.probe import standard
from onnxfix.probe.ask import Outcome, ask_all, outcome
from onnxfix.probe.assemble import REFUSING, Agreement, agreement, judge_as_one

AGREE, FALSE_TAKEN, UNDECIDED = 0.99, 0.003, 0.02


def node_tests(parser: TensorRT, target: matrix.Target) -> dict[str, Agreement]:
    """Form ("as-is", "stored") -> agreement over all node tests."""
    asked = [(form, f"{name}/{form}", model) for name, form, model in standard.node_tests()]
    outcomes = ask_all(parser, [(name, model) for _, name, model in asked])
    return {
        form: agreement([(n, m) for f, n, m in asked if f == form], outcomes, target)
        for form in (standard.AS_IS, standard.STORED)
    }


def in_the_wild(parser: TensorRT, target: matrix.Target, paths: list[Path]) -> Agreement:
    """Agreement over model files, which are parsed where they lie."""
    result = Agreement()
    for path in paths:
        try:
            refusals = parser.parse(path).refusals
            said = outcome(refusals[0]) if refusals else Outcome(True)
        except DiedError as error:
            said = Outcome(False, code="CRASH", words=str(error))
        verdict, limit = judge_as_one(load(path), target)
        result.counts[verdict, said.taken] += 1
        if verdict == "undecided" or (verdict == "refused") == said.taken:
            result.differ.append((str(path), verdict, said, limit or _first(path, target)))
    return result


def _first(path: Path, target: matrix.Target) -> str:
    found = [v for _, v in matrix.judge_model(shapes.index(load(path)), target) if v.effect not in REFUSING]
    return f"{found[0].limit} ({found[0].effect.value})" if found else ""


def show(title: str, found: Agreement) -> bool:
    """Print the confusion table and the differences; whether the bars are met."""
    print(f"\n{title}: {found.total} models")
    print(f"  {'matrix':12}{'parser takes':>14}{'parser refuses':>16}")
    for verdict in ("taken", "refused", "undecided"):
        print(f"  {verdict:12}{found.counts[verdict, True]:14}{found.counts[verdict, False]:16}")
    met = True
    for name, value, bar, fine in (
        ("agree", found.agree, AGREE, found.agree >= AGREE),
        ("called taken, but refused", found.false_taken, FALSE_TAKEN, found.false_taken <= FALSE_TAKEN),
        ("undecided", found.undecided, UNDECIDED, found.undecided <= UNDECIDED),
    ):
        met = met and fine
        print(f"  {name}: {value:.2%} ({'met' if fine else 'MISSED'}: {bar:.1%})")
    for name, verdict, said, limit in found.differ:
        print(f"  {name}: {verdict} by the matrix {limit}; parser: {'takes it' if said.taken else said.words[:160]}")
    return met


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("models", nargs="*", type=Path)
    arguments.add_argument("--packages", action="store_true", help="also the models of fixtures.fetch_models")
    args = arguments.parse_args()
    paths = list(args.models)
    if args.packages:
        from tests.models import fixture_models, package_models

        paths += [*fixture_models().values(), *package_models().values()]
    target = matrix.target("rtx")
    with TensorRT("tensorrt_rtx") as parser:
        print(f"{parser.about()} against {target.by}")
        start = time.perf_counter()
        met = [show(f"node tests, {form}", found) for form, found in node_tests(parser, target).items()]
        if paths:
            met.append(show("models", in_the_wild(parser, target, paths)))
        print(f"\n{time.perf_counter() - start:.0f} s")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
