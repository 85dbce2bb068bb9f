"""The predicates of the support matrix: what can be asked of a node, as data, and the answers.

A predicate is a JSON object. Its first key says what is looked at (`attr`, `input`, `output`, …), the rest
what must be true of it; `data/matrix.schema.json` lists all of them. There is no expression language. Each is
made into a `Check` once, when a release is loaded. A check answers (True, "") when the target takes what it
sees, (False, what it saw) when it does not, and (None, "") when that cannot be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from onnx import TensorProto

from onnxfix.errors import ModelError, Skip
from onnxfix.graph import Graph, Node, Shape
from onnxfix.model import is_external

_READABLE = 4096  # elements up to which the values of a constant are looked at

Answer = tuple[bool | None, str]
Check = Callable[[Node, "Facts"], Answer]
_TAKEN: Answer = (True, "")
_OPEN: Answer = (None, "")

DTYPE = {number: name for name, number in TensorProto.DataType.items()}


def dtypes(names: list[str]) -> frozenset[int]:
    return frozenset(TensorProto.DataType.Value(n) for n in names if n in TensorProto.DataType.keys())  # noqa: SIM118


_CASTS = ("Identity", "Cast", "CastLike")
_STARTS = ("Constant", "Shape", "Size")  # where a constant may come from without one that goes in


class Facts:
    """What is found out about values on the way, kept for the nodes to come."""

    def __init__(self) -> None:
        self._constant: dict[tuple[Graph, str, str], bool] = {}
        self._foldable: dict[Graph, set[str]] = {}

    def folds(self, node: Node) -> bool:
        """Whether all that the node reads is constant. Cost: one look at its scope for all nodes there."""
        names = [n for n in (*node.proto.input, *node.captured) if n]
        return bool(names) and self._folded(node.graph).issuperset(names)

    def _folded(self, scope: Graph) -> set[str]:
        """The values read or made in a scope that `constant` calls "foldable", found from the stored ones onwards."""
        if scope in self._foldable:
            return self._foldable[scope]
        ready = [*scope.initializers]
        if scope.owner is not None:
            ready += self._folded(scope.owner.graph).intersection(scope.owner.captured)
        for node in scope.nodes():
            if node.op in _STARTS and self._leaf(scope, node.output(0), "foldable")[0]:
                ready.append(node.output(0))
        found = self._foldable[scope] = set(ready)
        missing: dict[Node, int] = {}
        while ready:
            for user, _ in scope.uses(ready.pop()):
                left = missing[user] = missing.get(user, sum(map(bool, user.proto.input))) - 1
                if not left and not user.bodies:
                    made = [o for o in user.proto.output if o and o not in found]
                    found.update(made)
                    ready.extend(made)
        return found

    def constant(self, graph: Graph, name: str, kind: str) -> bool:
        """Whether a value is known when an engine is built.

        `kind` is "initializer" (it is stored), "cast" (stored, perhaps behind Identity or Cast), "foldable"
        (computed from what is stored and from fixed shapes), "dims" (from any shapes) or "shape" (from integer inputs
        too).
        Cost: the nodes above it that were not asked about before.
        """
        memo = self._constant
        asked: list[tuple[Graph, str, str]] = []  # values that each hang on the next one
        ways = [iter([(graph, name)])]  # what is left to ask about for all of them, and at first for the answer
        while ways:
            need = next(ways[-1], None)
            if need is None:
                ways.pop()
                if asked:
                    memo[asked.pop()] = True
                continue
            key = (*need, kind)
            if key not in memo:
                memo[key], needs = self._leaf(*key)
                if needs:
                    asked.append(key)
                    ways.append(iter(needs))
                    continue
            if not memo[key]:
                return False  # like all that were asked on the way, as their entries say already
        return True

    @staticmethod
    def _leaf(scope: Graph, name: str, kind: str) -> tuple[bool, list[tuple[Graph, str]]]:
        """The answer; where it hangs on other values, these, and the answer when one of them is not constant."""
        home = scope.scope_of(name)
        if home is None:
            return False, []
        if name in home.initializers:
            return True, []
        node = home.producers.get(name)
        if node is None:
            return kind == "shape" and home.dtype(name) in (TensorProto.INT32, TensorProto.INT64), []
        op = node.op if node.domain == "" else ""
        if op == "Constant" or kind == "initializer":
            return home.is_const(name), []
        if kind == "cast":
            return False, [(home, node.input(0))] if op in _CASTS else []
        if op in ("Shape", "Size") and (kind != "foldable" or home.static_shape(node.input(0)) is not None):
            return True, []
        return False, [] if node.bodies else [(home, n) for n in node.proto.input if n]


def check_of(data: dict[str, Any]) -> Check:
    """The check of one predicate. Its first key says what is looked at, the rest what must be true of it."""
    subject, *tests = data
    if subject == "attr":
        return _attribute(data)
    if subject in ("input", "output"):
        return _value(subject, data[subject], tests[0], data[tests[0]])
    if subject in ("opset_min", "opset_max"):
        low, high = data.get("opset_min", 0), data.get("opset_max", 1 << 30)
        return lambda node, facts: _said(low <= node.opset <= high, f"opset {node.opset}")
    if subject == "outputs_max":
        limit = data[subject]
        return lambda node, facts: _said(not any(node.proto.output[limit:]), "")
    if subject == "inputs_max":  # those that are named but left out count too
        most = data[subject]
        return lambda node, facts: _said(len(node.proto.input) <= most, "")
    if subject == "never":
        return lambda node, facts: (False, "")
    return _SPECIAL[subject](data)


def _said(taken: bool | None, found: str) -> Answer:
    return (taken, found) if taken is False else (taken, "")


# -- attributes --


def _attribute(data: dict[str, Any]) -> Check:
    names = data["attr"] if isinstance(data["attr"], list) else [data["attr"]]
    if "absent" in data:
        return lambda node, facts: _said(not any(node.has_attr(n) for n in names), "")
    if "present" in data:
        return lambda node, facts: _said(any(node.has_attr(n) for n in names), "")
    kind = next(k for k in data if k not in ("attr", "index"))
    test = _ATTRIBUTE_TESTS[kind](data[kind])
    index: int | None = data.get("index")

    def check(node: Node, facts: Facts) -> Answer:
        for name in names:
            try:
                value = node.attr(name)
            except Skip:  # a parameter of the function around it
                return _OPEN
            if value is None:
                continue
            if index is not None:
                value = value[index] if index < len(value) else 0
            if not test(value):
                return False, f"{name} {_shown(kind, value)}"
        return _TAKEN

    return check


def _shown(kind: str, value: Any) -> str:
    return DTYPE.get(value, str(value)) if kind == "dtype_in" else str(value)


def _pads(kind: str) -> Callable[[list[int]], bool]:
    fits: Callable[[int, int], bool] = {
        "symmetric": lambda begin, end: begin == end,
        "nonnegative-begin": lambda begin, end: begin >= 0,
        "end-at-most-one-more": lambda begin, end: end - begin <= 1,
    }[kind]
    return lambda pads: all(fits(b, e) for b, e in zip(pads, pads[len(pads) // 2 :], strict=False))


def _einsum_without(features: list[str]) -> Callable[[str], bool]:
    def test(equation: str) -> bool:
        terms = equation.replace(" ", "").split("->")[0].split(",")
        repeated = any(t.count(c) > 1 for t in terms for c in set(t) - {"."})
        return not (("ellipsis" in features and "..." in equation) or ("repeated" in features and repeated))

    return test


def _dtype_in(names: list[str]) -> Callable[[int], bool]:
    allowed = dtypes(names)
    return lambda value: value == TensorProto.UNDEFINED or value in allowed  # undefined: nothing is asked for


_ATTRIBUTE_TESTS: dict[str, Callable[[Any], Callable[[Any], bool]]] = {
    "in": lambda allowed: lambda value: value in allowed,
    "not_in": lambda refused: lambda value: value not in refused,
    "each_in": lambda allowed: lambda value: all(v in allowed for v in value),
    "below": lambda bound: lambda value: value < bound,
    "between": lambda ends: lambda value: all(
        ends[0] <= v <= ends[1] for v in (value if isinstance(value, list) else [value])
    ),
    "dtype_in": _dtype_in,
    "chars": lambda allowed: lambda value: set(value) <= set(allowed),
    "einsum_without": _einsum_without,
    "pads": _pads,
    "halves_equal": lambda _: lambda value: value[: len(value) // 2] == value[len(value) // 2 :],
}


# -- inputs and outputs --


def _chosen(subject: str, which: int | list[int] | str) -> Callable[[Node], list[str]]:
    """What gives the names of a node's inputs or outputs that are asked for, without those left out."""
    if which == "any":
        return lambda node: [n for n in getattr(node.proto, subject) if n]
    indices = [i for i in (which if isinstance(which, list) else [which]) if isinstance(i, int)]

    def names(node: Node) -> list[str]:
        everything = getattr(node.proto, subject)
        there = len(everything)
        return [everything[i] for i in indices if i < there and everything[i]]

    return names


def _value(subject: str, which: int | list[int] | str, kind: str, wanted: Any) -> Check:
    names = _chosen(subject, which)
    if kind == "present":
        return lambda node, facts: _said(bool(names(node)), "")
    if kind == "absent":
        return lambda node, facts: _said(not names(node), "")
    if kind in _COMPARED:
        return lambda node, facts: _same(node, names(node), _COMPARED[kind])
    test = _VALUE_TESTS[kind](wanted)

    def check(node: Node, facts: Facts) -> Answer:
        undecided = False
        for name in names(node):
            taken, found = test(node, name, facts)
            if taken is False:
                return False, f"'{name}' {found}".strip()
            undecided = undecided or taken is None
        return _OPEN if undecided else _TAKEN

    return check


def _same(node: Node, names: list[str], fact: Callable[[Graph, str], Any]) -> Answer:
    """Whether some fact is the same of all these values."""
    facts = [fact(node.graph, n) for n in names]
    if not all(facts):
        return _OPEN
    return _said(len(set(facts)) <= 1, " and ".join(str(f) for f in facts))


def _narrow_name(dtype: int) -> str | None:
    """The dtype as it is taken: DOUBLE counts as FLOAT."""
    return DTYPE.get((TensorProto.FLOAT if dtype == TensorProto.DOUBLE else dtype) or -1)


_COMPARED: dict[str, Callable[[Graph, str], Any]] = {
    "same_dtype": lambda graph, name: _narrow_name(graph.dtype(name)),
    "same_shape": lambda graph, name: graph.static_shape(name),
}
_ValueTest = Callable[[Node, str, Facts], Answer]


def _dtype_test(names: list[str], *, allowed: bool) -> _ValueTest:
    listed = dtypes(names)

    def test(node: Node, name: str, facts: Facts) -> Answer:
        dtype = node.graph.dtype(name)
        return ((dtype in listed) == allowed, f"is {DTYPE[dtype]}") if dtype else _OPEN

    return test


def _rank_test(fits: Callable[[int], bool]) -> _ValueTest:
    def test(node: Node, name: str, facts: Facts) -> Answer:
        rank = node.graph.rank(name)
        return _OPEN if rank is None else (fits(rank), f"has rank {rank}")

    return test


def _constant_test(kind: str) -> _ValueTest:
    def test(node: Node, name: str, facts: Facts) -> Answer:
        graph = node.graph
        if kind == "never":
            return not graph.is_const(name), "is one"
        if kind == "runtime":  # what is computed from constants and shapes may be known when an engine is built, or not
            return (None if facts.constant(graph, name, "dims") else True) if not graph.is_const(name) else False, ""
        found = "is computed" if graph.producer(name) else "is an input of the graph"
        return facts.constant(graph, name, kind), found

    return test


def _values_test(fits: Callable[[float], bool]) -> _ValueTest:
    def test(node: Node, name: str, facts: Facts) -> Answer:
        held = values(node.graph, name)
        if held is None:
            return _OPEN
        wrong = next((v for v in held if not fits(v)), None)
        return wrong is None, f"holds {wrong}"

    return test


def values(graph: Graph, name: str) -> list[Any] | None:
    """The elements of a small constant, None for what is no constant, large, or in another file."""
    tensor = graph.const_tensor(name)
    if tensor is not None and (math.prod(tensor.dims) > _READABLE or is_external(tensor)):
        return None
    try:
        array = graph.const(name)
    except ModelError:  # broken data: another check's business
        return None
    return None if array is None or array.size > _READABLE else list(array.reshape(-1).tolist())


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), rel_tol=1e-5)  # scales are FLOAT


def _static_test(_: Any) -> _ValueTest:
    def test(node: Node, name: str, facts: Facts) -> Answer:
        shape = node.graph.shape(name)
        if shape is None:
            return _OPEN
        symbol = next((d for d in shape if isinstance(d, str)), None)
        if symbol is not None:
            return False, f"has the dimension {symbol}"
        return _OPEN if None in shape else _TAKEN

    return test


def _made_by_test(ops: list[str]) -> _ValueTest:
    def test(node: Node, name: str, facts: Facts) -> Answer:
        producer = node.graph.producer(name)
        if producer is None:
            return False, "is stored" if node.graph.is_const(name) else "is an input of the graph"
        return producer.domain == "" and producer.op in ops, f"is made by {producer.op}"

    return test


def _static_axis_test(attribute: str) -> _ValueTest:
    def test(node: Node, name: str, facts: Facts) -> Answer:
        size = _size(node, name, attribute)
        return (None if size is None else isinstance(size, int)), f"has {size}"

    return test


def _size(node: Node, name: str, attribute: str) -> int | str | None:
    """The size of the axis an attribute names."""
    shape = node.graph.shape(name)
    axis: int | None = node.attr(attribute)
    if shape is None or axis is None or not -len(shape) <= axis < len(shape):
        return None
    return shape[axis]


def _elements_test(_: Any) -> _ValueTest:
    def test(node: Node, name: str, facts: Facts) -> Answer:
        shape = node.graph.static_shape(name)
        return _OPEN if shape is None else (math.prod(shape) % 2 == 0, f"has {math.prod(shape)}")

    return test


def _dims_test(most: list[int]) -> _ValueTest:
    """The first dimension at most most[0], the others at most most[1]."""

    def test(node: Node, name: str, facts: Facts) -> Answer:
        shape = node.graph.static_shape(name)
        if shape is None:
            return _OPEN
        fits = all(d <= most[min(i, 1)] for i, d in enumerate(shape))
        return fits, f"has the shape {list(shape)}"

    return test


_VALUE_TESTS: dict[str, Callable[[Any], _ValueTest]] = {
    "dtype_in": lambda names: _dtype_test(names, allowed=True),
    "dtype_not_in": lambda names: _dtype_test(names, allowed=False),
    "rank_in": lambda allowed: _rank_test(lambda rank: rank in allowed),
    "rank_min": lambda bound: _rank_test(lambda rank: rank >= bound),
    "rank_max": lambda bound: _rank_test(lambda rank: rank <= bound),
    "constant": _constant_test,
    "values_in": lambda allowed: _values_test(lambda value: value in allowed),
    "values_above": lambda bound: _values_test(lambda value: value > bound),
    "values_below": lambda bound: _values_test(lambda value: value < bound),
    "whole_steps": lambda _: _values_test(lambda scale: scale >= 1 or (scale > 0 and _is_whole(1 / scale))),
    "elements": _elements_test,
    "made_by": _made_by_test,
    "static": _static_test,
    "dims_max": _dims_test,
    "static_axis": _static_axis_test,
}


# -- what only one operator needs --


def _split(data: dict[str, Any]) -> Check:
    """Split into num_outputs parts: all "even", or, rounding up, none with a negative size ("nonempty")."""
    even = data["split"] == "even"

    def check(node: Node, facts: Facts) -> Answer:
        size, parts = _size(node, node.input(0), "axis"), node.attr("num_outputs")
        if not isinstance(size, int) or not parts:
            return _OPEN
        fits = size % parts == 0 if even else size >= -(-size // parts) * (parts - 1)
        return _said(fits, f"{size} into {parts}")

    return check


def _scaled_dims(data: dict[str, Any]) -> Check:
    """Resize: only the last `scaled_dims` dimensions may change their size."""
    last: int = data["scaled_dims"]

    def check(node: Node, facts: Facts) -> Answer:
        scales = _scales(node)
        if scales is None:
            return _OPEN
        moved = [s for s in scales[: max(len(scales) - last, 0)] if s != 1]
        if not moved:
            return _TAKEN
        return _OPEN if None in moved else (False, f"scales {scales}")

    return check


def _scales(node: Node) -> list[float | None] | None:
    """By how much each dimension grows, None for a dimension or as a whole where that is not known."""
    graph, shape = node.graph, node.graph.shape(node.input(0))
    scales: list[float | None] | None = values(graph, node.input(1 if node.opset < 11 else 2)) or None
    sizes = graph.known(node.input(3)) if node.input(3) else None
    axes = node.attr("axes")
    if scales is None and sizes is not None and shape is not None:
        before = [shape[a] for a in axes] if axes else list(shape)
        scales = [
            s / b if isinstance(b, int) and b and s is not None else None for s, b in zip(sizes, before, strict=False)
        ]
    if scales is None or not axes:
        return scales
    if shape is None:
        return None
    full: list[float | None] = [1.0] * len(shape)
    for axis, scale in zip(axes, scales, strict=False):
        full[axis] = scale
    return full


def _padded_dims(data: dict[str, Any]) -> Check:
    """Pad: at most `padded_dims` dimensions may be padded; with `last`, only the last ones."""
    most: int = data["padded_dims"]
    only_last: bool = data.get("last", False)

    def check(node: Node, facts: Facts) -> Answer:
        pads = node.attr("pads") or values(node.graph, node.input(1))
        if not pads or node.input(3):
            return _OPEN
        rank = len(pads) // 2
        padded = [i for i in range(rank) if pads[i] or pads[i + rank]]
        taken = all(i >= rank - most for i in padded) if only_last else len(padded) <= most
        return _said(taken, f"pads {list(pads)}")

    return check


def _broadcast(data: dict[str, Any]) -> Check:
    """The last axis of one input must be 1 or as long as some axis of another: [input, other input, its axis]."""
    which, other, axis = data["last_axis_like"]

    def check(node: Node, facts: Facts) -> Answer:
        if not node.input(which):
            return _TAKEN
        shape, like = node.graph.shape(node.input(which)), node.graph.shape(node.input(other))
        if not shape or like is None or not -len(like) <= axis < len(like):
            return _OPEN
        have, want = shape[-1], like[axis]
        if have in (1, want) and have is not None:
            return _TAKEN
        return (False, f"{have} and {want}") if isinstance(have, int) and isinstance(want, int) else _OPEN

    return check


def _scan_outputs(data: dict[str, Any]) -> Check:
    """Loop: whether it has scan outputs, beside the values it carries along."""
    wanted: bool = data["scan_outputs"]
    return lambda node, facts: _said((len(node.proto.output) > len(node.proto.input) - 2) == wanted, "")


def _body_reads(data: dict[str, Any]) -> Check:
    """Loop: whether the body reads its input at this index (0 the number of the iteration, 1 the condition)."""
    index: int = data["body_reads"]

    def check(node: Node, facts: Facts) -> Answer:
        body = node.bodies.get("body")
        names = list(body.input_names) if body is not None else []
        return _said(body is not None and index < len(names) and not body.unused(names[index]), "")

    return check


def _branches(data: dict[str, Any]) -> Check:
    """If: whether the outputs of both branches have the same rank ("same_rank") or shape ("same_shape")."""
    alike = _same_rank if data["branches"] == "same_rank" else _same_dims

    def check(node: Node, facts: Facts) -> Answer:
        then, other = node.bodies.get("then_branch"), node.bodies.get("else_branch")
        if then is None or other is None:
            return _TAKEN
        answer = _TAKEN
        for name, like in zip(then.output_names, other.output_names, strict=False):
            one, two = then.shape(name), other.shape(like)
            same = None if one is None or two is None else alike(one, two)
            if same is False:
                return False, f"[{_listed(one)}] and [{_listed(two)}]"
            answer = answer if same else _OPEN
        return answer

    return check


def _listed(shape: Shape | None) -> str:
    return ",".join("?" if d is None else str(d) for d in shape or ())


def _same_rank(one: Shape, two: Shape) -> bool:
    return len(one) == len(two)


def _same_dims(one: Shape, two: Shape) -> bool | None:
    pairs = list(zip(one, two, strict=False))
    if len(one) != len(two) or any(a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int)):
        return False
    return True if all(a == b and a is not None for a, b in pairs) else None


_SPECIAL: dict[str, Callable[[dict[str, Any]], Check]] = {
    "split": _split,
    "scaled_dims": _scaled_dims,
    "padded_dims": _padded_dims,
    "last_axis_like": _broadcast,
    "scan_outputs": _scan_outputs,
    "body_reads": _body_reads,
    "branches": _branches,
}
