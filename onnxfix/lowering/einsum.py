"""Einsum in terms of Transpose, ReduceSum, MatMul and Mul.

Operands are contracted from left to right. Of two operands, each label is one of four: in both and needed later
(batch), in both and summed over (contracted), or in one of them only (left, right). With the axes ordered batch, left,
contracted and batch, contracted, right, the sum is a MatMul; with nothing contracted it is a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Graph

_SPARE = [chr(0x3B1 + i) for i in range(24)]  # stand for the axes of an ellipsis; no equation has Greek letters


@dataclass
class Term:
    """An operand on its way: a value, and the label of each of its axes."""

    value: str
    labels: list[str]


@dataclass(frozen=True)
class Equation:
    inputs: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]


def parse(equation: str, graph: Graph, names: Sequence[str]) -> Equation:
    """The labels of all axes, with ellipses written out. Raises Skip for no valid equation, or an unknown rank."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(names):
        raise Skip(f"the equation '{equation}' is not for {len(names)} operands")
    spread = 0
    inputs: list[tuple[str, ...]] = []
    for term, name in zip(terms, names, strict=True):
        letters = term.replace("...", "")
        extra = 0
        if "..." in term:
            rank = graph.rank(name)
            if rank is None or rank < len(letters):
                raise Skip(f"the rank of '{name}' is not known, and the equation has an ellipsis")
            extra = rank - len(letters)
        if extra > len(_SPARE):
            raise Skip("an ellipsis stands for too many axes")
        spread = max(spread, extra)
        inputs.append(_labels(term, extra))
    if not arrow:
        letters = "".join(terms).replace(".", "")
        right = "..." * ("..." in left) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    output = _labels(right, spread)
    known = {label for term in inputs for label in term}
    if len(set(output)) < len(output) or not set(output) <= known:
        raise Skip(f"'{equation}' is no equation of the form that ONNX defines")
    return Equation(tuple(inputs), output)


def _labels(term: str, spread: int) -> tuple[str, ...]:
    before, dots, after = term.partition("...")
    # Ellipses are aligned at their last axis, as in broadcasting.
    return (*before, *(_SPARE[:spread][::-1] if dots else ()), *after)


class Contraction:
    """Writes the nodes for one Einsum."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.graph = edit.graph
        self.sizes: dict[str, int | str] = {}  # label -> its size, or the 1-D tensor that holds it

    def run(self, names: Sequence[str], equation: Equation) -> str:
        """Returns the name of the result."""
        terms = [Term(n, list(labels)) for n, labels in zip(names, equation.inputs, strict=True)]
        self._measure(terms)
        done = self._alone(terms[0], {label for t in terms[1:] for label in t.labels} | set(equation.output))
        for i, term in enumerate(terms[1:], 1):
            later = {label for t in terms[i + 1 :] for label in t.labels} | set(equation.output)
            done = self._pair(done, self._alone(term, later | set(done.labels)), later)
        order = [done.labels.index(label) for label in equation.output]
        return emit.transpose(self.edit, done.value, order)

    def _measure(self, terms: Sequence[Term]) -> None:
        for term in terms:
            shape = self.graph.shape(term.value) or (None,) * len(term.labels)
            if len(shape) != len(term.labels):
                raise Skip(f"'{term.value}' has rank {len(shape)}, the equation says {len(term.labels)}")
            for axis, (label, size) in enumerate(zip(term.labels, shape, strict=True)):
                here = size if isinstance(size, int) else f"{term.value}\0{axis}"
                known = self.sizes.get(label, 1)
                # An axis of size 1 broadcasts to whatever the others are; a number says more than a tensor.
                if known == 1 or (isinstance(known, str) and isinstance(here, int) and here != 1):
                    self.sizes[label] = here

    def _size(self, label: str) -> int | str:
        """The size of a label's axis; one that is dynamic as the name of a 1-D tensor that holds it."""
        size = self.sizes[label]
        if isinstance(size, str) and "\0" in size:
            value, _, axis = size.partition("\0")
            shape = self.edit.add("Shape", [value])
            size = self.sizes[label] = emit.slice_(self.edit, shape, [int(axis)], [int(axis) + 1], [0])
        return size

    def _alone(self, term: Term, needed: set[str]) -> Term:
        """Take diagonals, drop broadcast axes and sum over what no other term needs."""
        term = self._diagonals(term)
        shape = self.graph.shape(term.value) or ()
        flat = [i for i, s in enumerate(shape) if s == 1 and self.sizes[term.labels[i]] != 1]
        if flat:  # size 1 here and more elsewhere: the same for all, so the axis says nothing
            kept = [label for i, label in enumerate(term.labels) if i not in flat]
            term = Term(emit.squeeze(self.edit, term.value, flat), kept)
        return self._sum(term, [label for label in term.labels if label not in needed])

    def _sum(self, term: Term, labels: Sequence[str]) -> Term:
        if not labels:
            return term
        axes = [term.labels.index(label) for label in labels]
        summed = emit.reduce(self.edit, "ReduceSum", term.value, axes, keepdims=0)
        return Term(summed, [x for x in term.labels if x not in labels])

    def _diagonals(self, term: Term) -> Term:
        while repeated := next((x for x in term.labels if term.labels.count(x) > 1), None):
            first = term.labels.index(repeated)
            second = term.labels.index(repeated, first + 1)
            size = self.sizes[repeated]
            if not isinstance(size, int):
                raise Skip("the diagonal of an axis of dynamic size; freeze the dynamic axes")
            rest = [i for i in range(len(term.labels)) if i not in (first, second)]
            moved = emit.transpose(self.edit, term.value, [*rest, first, second])
            flat = emit.reshape(self.edit, moved, [*[0] * len(rest), size * size])
            # Every (size + 1)th element of the square is on its diagonal.
            taken = emit.slice_(self.edit, flat, [0], [size * size], [len(rest)], [size + 1])
            term = Term(taken, [*(term.labels[i] for i in rest), repeated])
        return term

    def _pair(self, a: Term, b: Term, later: set[str]) -> Term:
        contracted = [x for x in a.labels if x in b.labels and x not in later]
        batch = [x for x in a.labels if x in b.labels and x in later]
        left = [x for x in a.labels if x not in b.labels]
        right = [x for x in b.labels if x not in a.labels]
        result = [*batch, *left, *right]
        if not contracted:
            x = self._widen(a, [*batch, *left], len(right), len(batch) + len(left))
            y = self._widen(b, [*batch, *right], len(left), len(batch))
            return Term(str(self.edit.add("Mul", [x, y])), result)
        if not batch and len(contracted) == len(right) == 1:  # MatMul takes all further axes on its left as they are
            x = emit.transpose(self.edit, a.value, [a.labels.index(label) for label in (*left, *contracted)])
            y = emit.transpose(self.edit, b.value, [b.labels.index(label) for label in (*contracted, *right)])
            return Term(str(self.edit.add("MatMul", [x, y])), result)
        x = self._merge(a, batch, left, contracted)
        y = self._merge(b, batch, contracted, right)
        product = str(self.edit.add("MatMul", [x, y]))
        if len(left) != 1 or len(right) != 1:
            product = self._reshape(product, [[label] for label in result])
        return Term(product, result)

    def _widen(self, term: Term, order: Sequence[str], count: int, place: int) -> str:
        """Axes in this order, with `count` axes of size 1 put in at `place`."""
        value = emit.transpose(self.edit, term.value, [term.labels.index(x) for x in order])
        return emit.unsqueeze(self.edit, value, list(range(place, place + count))) if count else value

    def _merge(self, term: Term, batch: Sequence[str], rows: Sequence[str], columns: Sequence[str]) -> str:
        value = emit.transpose(self.edit, term.value, [term.labels.index(x) for x in (*batch, *rows, *columns)])
        if len(rows) == len(columns) == 1:
            return value
        return self._reshape(value, [*[[label] for label in batch], list(rows), list(columns)])

    def _reshape(self, value: str, groups: Sequence[Sequence[str]]) -> str:
        """One axis for each group of labels."""
        fixed = [all(isinstance(self.sizes[label], int) for label in group) for group in groups]
        empty = any(self.sizes[label] == 0 for group in groups for label in group)
        if fixed.count(False) <= 1 and not empty:
            sizes = [self._product(group) if known else -1 for group, known in zip(groups, fixed, strict=True)]
            return emit.reshape(self.edit, value, [s for s in sizes if isinstance(s, int)])
        measured = [self._product(group) for group in groups]
        parts = [s if isinstance(s, str) else np.asarray([s], np.int64) for s in measured]
        return str(self.edit.add("Reshape", [value, emit.concat(self.edit, parts, 0)]))

    def _product(self, labels: Sequence[str]) -> int | str:
        fixed, result = 1, ""
        for size in map(self._size, labels):
            if isinstance(size, int):
                fixed *= size
            else:
                result = str(self.edit.add("Mul", [result, size])) if result else size
        if not result:
            return fixed
        return result if fixed == 1 else str(self.edit.add("Mul", [result, np.asarray([fixed], np.int64)]))
