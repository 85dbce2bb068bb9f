import math
from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise, scatter
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_STEPS = 16  # this many updates of one place are written out one after the other, in the standard's order
_NUMBERS = 1 << 24  # more are not put side by side


@dataclass
class _Places:
    """The places that are updated, with the axis of places first: [places, ...] each."""

    data: tuple[int, ...]
    updates: tuple[int, ...]
    axis: int | None  # of ScatterElements; None for ScatterND, whose places are flattened
    contributors: np.ndarray | None  # constant indices: for each element of data, which updates it gets


class ScatterReduction(Rule):
    ops = ("ScatterND", "ScatterElements")
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Places | None:
        if node.attr("reduction") in (None, "none"):
            return None
        graph = node.graph
        data, indices, updates = (elementwise.static(graph, node.input(i)) for i in range(3))
        if elementwise.dtype_of(graph, node.input(0)).kind not in "fiu":
            raise Skip("only numbers are combined")
        if 0 in (*data, *indices):
            raise Skip("it updates nothing")
        axis = elementwise.axis_of(node.attr("axis"), len(data)) if node.op == "ScatterElements" else None
        constant = graph.const(node.input(1))
        if constant is not None:
            count = math.prod(data[: indices[-1]] if axis is None else data)
            table = scatter.contributors(scatter.flat_places(constant, data, axis), count)
            return _Places(data, updates, axis, table)
        steps = math.prod(indices[:-1]) if axis is None else indices[axis]
        if steps > _STEPS and steps * math.prod(data) > _NUMBERS:
            raise Skip(f"{steps} updates for {math.prod(data)} numbers are too many to compare; make indices constant")
        return _Places(data, updates, axis, None)

    def rewrite(self, node: Node, found: _Places, edit: Edit, ctx: Context) -> None:
        write_out = self._compared if found.contributors is None else self._gathered
        edit.replace_node(node, write_out(node, found, edit))

    def _gathered(self, node: Node, found: _Places, edit: Edit) -> str:
        """Constant indices: each place gathers what it is combined from."""
        assert found.contributors is not None
        count, places = found.contributors.shape
        width = math.prod(found.data) // places
        neutral = np.full((1, width), self._neutral(node), elementwise.dtype_of(node.graph, node.input(0)))
        data, updates = (emit.reshape(edit, node.input(i), [-1, width]) for i in (0, 2))
        source = emit.concat(edit, [updates, neutral], 0)
        if count <= _STEPS:
            result = data
            for row in found.contributors:
                result = self._combined(node, edit, result, edit.add("Gather", [source, row], axis=0))
        else:
            if count * math.prod(found.data) > _NUMBERS:
                raise Skip(f"{count} updates of one place are too many")
            parts = edit.add("Gather", [source, found.contributors], axis=0)
            result = self._combined(node, edit, data, self._reduced(node, edit, parts))
        return emit.reshape(edit, result, found.data)

    def _compared(self, node: Node, found: _Places, edit: Edit) -> str:
        """Computed indices: each place looks at all updates, and takes those whose index is its own."""
        data, places, updates = self._columns(node, found, edit)
        shape = elementwise.static(edit.graph, data)
        own = np.arange(shape[0], dtype=elementwise.dtype_of(edit.graph, places)).reshape(-1, *[1] * (len(shape) - 1))
        steps = elementwise.static(edit.graph, places)[0]
        if steps <= _STEPS:
            parts = [emit.split(edit, name, [1] * steps, 0) for name in (places, updates)]
            for place, update in zip(*parts, strict=True):
                hit = edit.add("Equal", [place, own])
                data = edit.add("Where", [hit, self._combined(node, edit, data, update), data])
        else:
            hits = edit.add("Equal", [emit.unsqueeze(edit, places, [1]), own])
            neutral = emit.scalar(edit, self._neutral(node), node.input(0))
            chosen = edit.add("Where", [hits, emit.unsqueeze(edit, updates, [1]), neutral])
            data = self._combined(node, edit, data, self._reduced(node, edit, chosen))
        if found.axis is not None:
            return emit.transpose(edit, data, np.argsort(self._perm(found)).tolist())
        return emit.reshape(edit, data, found.data)

    def _columns(self, node: Node, found: _Places, edit: Edit) -> tuple[str, str, str]:
        """Data as [places, ...], the place of each update and the updates as [updates, ...]."""
        data, indices, updates = node.inputs
        if found.axis is None:
            return self._rows(found, edit, data, indices, updates)
        size, count = found.data[found.axis], len(found.data)
        short = [d - u for d, u in zip(found.data, found.updates, strict=True)]
        short[found.axis] = 0
        places = scatter.from_front(edit, indices, size)
        if any(short):  # what has no update there gets one for no place
            places = emit.pad(edit, places, [0] * count, short, emit.scalar(edit, size, indices))
            updates = emit.pad(edit, updates, [0] * count, short)
        perm = self._perm(found)
        return emit.transpose(edit, data, perm), emit.transpose(edit, places, perm), emit.transpose(edit, updates, perm)

    @staticmethod
    def _rows(found: _Places, edit: Edit, data: str, indices: str, updates: str) -> tuple[str, str, str]:
        depth = elementwise.static(edit.graph, indices)[-1]
        rows, width = math.prod(found.data[:depth]), math.prod(found.data[depth:])
        place = ""
        for axis, column in enumerate(emit.split(edit, emit.reshape(edit, indices, [-1, depth]), [1] * depth, 1)):
            step = scatter.from_front(edit, column, found.data[axis])
            stride = math.prod(found.data[axis + 1 : depth])
            if stride != 1:
                step = edit.add("Mul", [step, emit.scalar(edit, stride, indices)])
            place = edit.add("Add", [place, step]) if place else step
        return emit.reshape(edit, data, [rows, width]), place, emit.reshape(edit, updates, [-1, width])

    @staticmethod
    def _perm(found: _Places) -> list[int]:
        assert found.axis is not None
        return [found.axis, *(i for i in range(len(found.data)) if i != found.axis)]

    @staticmethod
    def _neutral(node: Node) -> float:
        """What changes nothing: adding 0 would turn -0 into 0."""
        dtype, kind = elementwise.dtype_of(node.graph, node.input(0)), node.attr("reduction")
        if kind in ("add", "mul"):
            return -0.0 if kind == "add" else 1.0
        if dtype.kind == "f":
            return -math.inf if kind == "max" else math.inf
        return int(np.iinfo(dtype).min if kind == "max" else np.iinfo(dtype).max)

    @staticmethod
    def _combined(node: Node, edit: Edit, left: str, right: str) -> str:
        op = {"add": "Add", "mul": "Mul", "max": "Max", "min": "Min"}[node.attr("reduction")]
        return str(edit.add(op, [left, right]))

    @staticmethod
    def _reduced(node: Node, edit: Edit, parts: str) -> str:
        op = {"add": "ReduceSum", "mul": "ReduceProd", "max": "ReduceMax", "min": "ReduceMin"}[node.attr("reduction")]
        return emit.reduce(edit, op, parts, [0], keepdims=0)
