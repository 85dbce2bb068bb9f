"""Planted faults: does the proof of single changes name the wrong one, and no other? `python -m benchmarks.planted`

Each model is put together from the cases of four rules' pages, and one of the four rules is made to do its rewrite
wrong at one place: a constant off, operands swapped, an axis or another attribute off by one, a node left out, another
operator. A fault counts once whole-model parity on inputs of its own shows it; one that changes no number (such as
swapped operands of an addition) is no fault, and another one is planted.

Prints the figures, and exits 1 when a guilty change is not named or an innocent one is accused.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto

from onnxfix import catalog, changeproof, engine, matrix, page, prove, shapes
from onnxfix.graph import Edit, Node
from onnxfix.model import Model
from onnxfix.report import Safety, Status
from onnxfix.rule import Context, Rule

FAULTS = 200
GUESTS = 3  # correct rewrites beside the wrong one
PROVED = ("equal", "within")
OTHER_OP = {"Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul", "Max": "Min", "Min": "Max", "Floor": "Ceil",
            "Ceil": "Floor", "ReduceMean": "ReduceSum", "ReduceMax": "ReduceMin", "Greater": "Less",
            "Less": "Greater", "Sigmoid": "Tanh", "Exp": "Abs", "Sqrt": "Abs", "And": "Or"}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A case of a rule's page whose rewrite is proved when done right."""

    rule: str
    rules: tuple[str, ...]
    target: str
    opset: int
    proto: ModelProto


# ---- faults: each changes what a rewrite made, and says whether it found something to change ----

Fault = Callable[[Edit, list[Node], random.Random], bool]


def wrong_constant(edit: Edit, added: list[Node], rng: random.Random) -> bool:
    for node in added:
        for index, name in enumerate(node.inputs):
            array = edit.graph.const(name) if name else None
            if array is not None and array.size and array.dtype.kind in "iuf":
                edit.set_input(node, index, array + np.asarray(1 if array.dtype.kind in "iu" else 0.05, array.dtype))
                return True
    return False


def swapped_operands(edit: Edit, added: list[Node], rng: random.Random) -> bool:
    for node in added:
        first, second = node.input(0), node.input(1)
        if first and second and first != second:
            edit.set_inputs(node, [second, first, *node.inputs[2:]])
            return True
    return False


def axis_off_by_one(edit: Edit, added: list[Node], rng: random.Random) -> bool:
    for node in added:
        for attribute in node.proto.attribute:
            if attribute.name == "axis":
                edit.set_attr(node, "axis", attribute.i + 1 if attribute.i < 1 else attribute.i - 1)
                return True
            if attribute.name in ("axes", "perm", "pads", "strides", "kernel_shape") and len(attribute.ints) > 1:
                edit.set_attr(node, attribute.name, [*attribute.ints[1:], attribute.ints[0]])
                return True
    return False


def wrong_attribute(edit: Edit, added: list[Node], rng: random.Random) -> bool:
    for node in added:
        for attribute in node.proto.attribute:
            if attribute.type == AttributeProto.FLOAT:
                edit.set_attr(node, attribute.name, attribute.f * 1.1 + 0.1)
                return True
            if attribute.type == AttributeProto.INT and attribute.name not in ("to", "axis", "dtype"):
                edit.set_attr(node, attribute.name, 1 - attribute.i if attribute.i in (0, 1) else attribute.i - 1)
                return True
    return False


def dropped_node(edit: Edit, added: list[Node], rng: random.Random) -> bool:
    for node in added:
        for name in node.inputs:
            graph = edit.graph
            types = [(graph.dtype(n), graph.shape(n)) for n in (name, node.output(0))]
            if name and types[0] == types[1] and node.op != "Identity" and not node.domain:
                for attribute in [a.name for a in node.proto.attribute]:
                    edit.set_attr(node, attribute, None)
                edit.set_op(node, "Identity")
                edit.set_inputs(node, [name])
                return True
    return False


def another_operator(edit: Edit, added: list[Node], rng: random.Random) -> bool:
    for node in added:
        if node.op in OTHER_OP and not node.domain:
            edit.set_op(node, OTHER_OP[node.op])
            return True
    return False


FAULT_KINDS: tuple[Fault, ...] = (
    wrong_constant, swapped_operands, axis_off_by_one, wrong_attribute, dropped_node, another_operator,
)  # fmt: skip


class Guilty(Rule):
    """A rule that does its rewrite right, and then, once and where `prefix` says, spoils it."""

    def __init__(self, rule: Rule, prefix: str, fault: Fault, rng: random.Random) -> None:
        self.rule, self.prefix, self.fault, self.rng = rule, prefix, fault, rng
        self.ops, self.safety, self.when, self.options = rule.ops, rule.safety, rule.when, rule.options  # type: ignore[misc]
        self.id, self.page = rule.id, rule.page
        self.planted = ""  # the node where the fault was planted

    def match(self, node: Any, ctx: Context) -> Any:
        return self.rule.match(node, ctx)

    def rewrite(self, node: Any, found: Any, edit: Edit, ctx: Context) -> None:
        place = f"{node.name} {' '.join(node.outputs)}" if isinstance(node, Node) else ""
        self.rule.rewrite(node, found, edit, ctx)
        if self.planted or not isinstance(node, Node) or self.prefix not in place:
            return
        added = [n for n in edit.added if n.live and not n.bodies]
        self.rng.shuffle(added)
        if added and self.fault(edit, added, self.rng):
            self.planted = str(edit.describe(node))


# ---- models ----


def pieces(known: Mapping[str, Rule]) -> Iterator[Piece]:
    """The cases that can be put together, and whose rewrites are proved when they are right."""
    for rule in known.values():
        if "<graph>" in rule.ops:
            continue
        assert rule.page is not None
        for case in page.read(rule.page).cases:
            if case.block.kind != "before":
                continue
            proto = onnx.parser.parse_model(case.block.text)
            plain = not proto.functions and all(o.domain in ("", "ai.onnx") for o in proto.opset_import)
            ids, target = (*case.others, rule.id), case.target or "trt-8.2"
            # Renamed, since ONNX does not rename what the body of an If reads from outside.
            if plain and all(p.verdict in PROVED for p in proved(named(proto, 0), [known[r] for r in ids], target)[0]):
                yield Piece(rule.id, ids, target, proto.opset_import[0].version, proto)


def proved(proto: ModelProto, rules: list[Rule], target: str) -> tuple[list[changeproof.Proof], Model]:
    """The proofs of all changes that the rules make, and what they made."""
    data = proto.SerializeToString()
    model, recorder, goal = Model(ModelProto.FromString(data)), changeproof.Recorder(), matrix.target(target)
    engine.run(shapes.index(model), rules, goal, lambda n: matrix.judge(n, goal), allow=Safety.CLOSE, observer=recorder)
    return changeproof.prove(lambda: Model(ModelProto.FromString(data)), recorder), model


def named(proto: ModelProto, number: int) -> ModelProto:
    """The model with names told apart from those of others by p0_, p1_, …"""
    return onnx.compose.add_prefix(proto, f"p{number}_")


def together(chosen: list[Piece]) -> ModelProto:
    """The pieces side by side in one model."""
    whole = named(chosen[0].proto, 0)
    for number, piece in enumerate(chosen[1:], 1):
        other = named(piece.proto, number)
        for role in ("node", "input", "output", "initializer", "value_info", "sparse_initializer"):
            getattr(whole.graph, role).extend(getattr(other.graph, role))
    whole.ir_version = max(p.proto.ir_version for p in chosen)
    return whole


def is_wrong(before: ModelProto, after: Model) -> bool:
    """Whether whole-model parity, on inputs that the proof of single changes does not see, fails."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        paths[0].write_bytes(before.SerializeToString())
        paths[1].write_bytes(after.proto.SerializeToString())
        return prove.parity(*paths, safety=Safety.CLOSE, seeds=(0, 2, 3, 5)).status is Status.FAILED


# ---- the run ----


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=FAULTS, help=f"how many (default: {FAULTS})")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    known = dict(catalog.load_folder(catalog.shipped()))
    pool = list(pieces(known))
    print(f"{len(pool)} cases of {len({p.rule for p in pool})} rules can take part", flush=True)
    rng = random.Random(args.seed)
    kinds: collections.Counter[str] = collections.Counter()
    rules_hit: set[str] = set()
    named = innocent = accused = harmless = disturbed = 0
    start, rounds = time.perf_counter(), 0
    while sum(kinds.values()) < args.faults and rounds < 20 * args.faults:
        piece, fault = pool[rounds % len(pool)], FAULT_KINDS[(rounds + rounds // len(pool)) % len(FAULT_KINDS)]
        rounds += 1
        alike = [p for p in pool if (p.opset, p.target) == (piece.opset, piece.target) and p is not piece]
        chosen = [piece, *rng.sample(alike, min(GUESTS, len(alike)))]
        proto = together(chosen)
        guilty = Guilty(known[piece.rule], "p0_", fault, rng)
        ids = list(dict.fromkeys(r for p in chosen for r in p.rules))
        try:
            proofs, model = proved(proto, [guilty if r == piece.rule else known[r] for r in ids], piece.target)
        except Exception as error:  # a rewrite spoiled so badly that rules or the commit fail at once
            print(f"  {piece.rule}, {fault.__name__}: {type(error).__name__}, seen without a proof", flush=True)
            continue
        if not guilty.planted or not is_wrong(proto, model):
            harmless += bool(guilty.planted)
            continue
        wrong = [p.change for p in proofs if p.verdict == "differs"]
        at_fault = [c for c in wrong if c.rule == piece.rule and str(c.where) == guilty.planted]
        others = [c for c in wrong if c not in at_fault]
        if not at_fault and is_wrong(proto, proved(proto, [known[r] for r in ids], piece.target)[1]):
            print(f"  {', '.join(p.rule for p in chosen)}: parity fails without a fault too", flush=True)
            disturbed += 1
            continue
        kinds[fault.__name__] += 1
        rules_hit.add(piece.rule)
        named += len(at_fault) == 1
        innocent += len(proofs) - 1
        accused += len(others)
        if sum(kinds.values()) % 25 == 0:
            print(f"  {sum(kinds.values())} faults, {named} named, {accused} accused", flush=True)
        if len(at_fault) != 1 or others:
            print(f"  {piece.rule}, {fault.__name__} at {guilty.planted}: named {wrong or 'nothing'}", flush=True)
    total = sum(kinds.values())
    print(f"faults planted       {total} in {len(rules_hit)} rules: {', '.join(f'{n} {k}' for k, n in kinds.items())}")
    print(f"guilty change named  {named} of {total}")
    print(f"innocent accused     {accused} of {innocent} other changes")
    print(f"no fault to find     {harmless} where parity agrees, {disturbed} where it fails without one too")
    print(f"seconds              {time.perf_counter() - start:.0f}")
    return 0 if named == total >= args.faults and not accused else 1


if __name__ == "__main__":
    sys.exit(main())
