"""Nodes on either side of a limit, made from the limit's own predicates.

    node = synthesise("Resize", limit, fits=False)

The node need not be valid ONNX: it has what the predicates look at, and nothing more. `Undecided` is raised for a side
that no node can be on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxfix import shapes
from onnxfix.graph import Node
from onnxfix.model import Model

FLOAT = TensorProto.FLOAT
SYMBOL = "N"


class Undecided(Exception):
    """No node is on that side."""


@dataclass
class Value:
    dtype: int = FLOAT
    dims: list[int | str] = field(default_factory=lambda: [2, 2, 4, 4])
    held: list[float] | None = None  # stored, with these elements
    stored: bool = False
    made_by: str = ""


@dataclass
class Draft:
    op: str
    domain: str
    opset: int
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: dict[int, Value] = field(default_factory=dict)
    outputs: int = 1
    output_dtype: int = 0
    listed: int = 0  # inputs named at least, some of them left out

    def input(self, which: Any) -> list[Value]:
        numbers = [0] if which == "any" else which if isinstance(which, list) else [which]
        return [self.inputs.setdefault(n, Value()) for n in numbers]


def synthesise(op: str, limit: dict[str, Any], *, fits: bool) -> Node:
    """A node for which the limit holds, that keeps it (`fits`) or breaks it."""
    domain, _, name = op.rpartition("::")
    low, high = limit.get("opset_min", 0), limit.get("opset_max", 1 << 30)
    draft = Draft(name, domain, min(max(low, 20), high))
    need = limit["need"]
    draft.input(0)
    for condition in limit.get("when", ()):
        _apply(draft, condition, True)
    _apply(draft, need, fits)
    for condition in limit.get("when", ()):  # again, for what `need` set beside
        if _subject(condition) != _subject(need):
            _apply(draft, condition, True)
    if "opset_min" in need or "opset_max" in need:
        draft.opset = _number(need, fits)
    return _node(draft)


def _subject(predicate: dict[str, Any]) -> tuple[Any, ...]:
    key = next(iter(predicate))
    return key, str(predicate[key])


def _number(need: dict[str, Any], fits: bool) -> int:
    if "opset_min" in need:
        return need["opset_min"] if fits else need["opset_min"] - 1
    return need["opset_max"] if fits else need["opset_max"] + 1


_DTYPES = (
    FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.INT8,
    TensorProto.INT16, TensorProto.UINT64,
)  # fmt: skip


def _other_dtype(names: list[str]) -> int:
    taken = {TensorProto.DataType.Value(n) for n in names}
    return next(d for d in _DTYPES if d not in taken)


def _apply(draft: Draft, predicate: dict[str, Any], fits: bool) -> None:
    subject, *rest = predicate
    if subject == "attr":
        _attribute(draft, predicate, fits)
    elif subject == "input":
        _input(draft, predicate[subject], rest[0], predicate[rest[0]], fits)
    elif subject == "output":
        names = predicate[rest[0]]
        inside = fits == (rest[0] == "dtype_in")
        draft.output_dtype = TensorProto.DataType.Value(names[0]) if inside else _other_dtype(names)
        if draft.op == "ConstantOfShape":
            draft.attributes["value"] = helper.make_tensor("", draft.output_dtype, [1], [0])
        elif draft.op == "QuantizeLinear":
            draft.inputs[1] = Value(dims=[])
            draft.inputs[2] = Value(draft.output_dtype, [])
    elif subject == "outputs_max":
        draft.outputs = predicate[subject] + (0 if fits else 1)
    elif subject == "inputs_max":
        draft.listed = predicate[subject] + (0 if fits else 1)
    elif subject == "never":
        if fits:
            raise Undecided
    elif subject == "split":
        draft.attributes.update(axis=0, num_outputs=3 if fits else 4)
        draft.inputs[0].dims = [9 if fits else 5, 2]
    elif subject == "scaled_dims":
        rank = predicate[subject] + 2
        draft.inputs[0].dims = [2] * rank
        scales = [1.0] * rank
        scales[-1 if fits else 0] = 2.0
        draft.inputs[2 if draft.opset > 10 else 1] = Value(dims=[rank], held=scales, stored=True)
    elif subject == "padded_dims":
        rank = predicate[subject] + 2
        pads = [1 if i >= 2 else 0 for i in range(rank)] if fits else [1] * rank
        if draft.opset > 10:
            draft.inputs[1] = Value(TensorProto.INT64, [2 * rank], [*pads, *pads], True)
        else:
            draft.attributes["pads"] = [*pads, *pads]
    elif subject == "last_axis_like":
        which, other, axis = predicate[subject]
        draft.inputs[other] = Value(dims=[2, 3, 6, 8])
        draft.inputs[which] = Value(dims=[4, [2, 3, 6, 8][axis] if fits else 5])
    elif subject == "body_reads":
        names = ("number", "condition", "value")
        dtypes = (TensorProto.INT64, TensorProto.BOOL, FLOAT)
        read = [helper.make_node("Identity", [names[predicate[subject]]], ["read"])]
        values = [helper.make_tensor_value_info(n, d, None) for n, d in zip(names, dtypes, strict=True)]
        draft.attributes["body"] = helper.make_graph(read, "body", values, [])
        for index, dtype in enumerate(dtypes):
            if index != predicate[subject]:  # whether that one is fed is what the limit is about
                draft.inputs.setdefault(index, Value(dtype, []))
    elif subject == "branches":
        shapes = {"same_rank": [[2, 2], [3, 2], [2]], "same_shape": [[2, 2], [2, 2], [3, 2]]}[predicate[subject]]
        draft.inputs[0] = Value(TensorProto.BOOL, [])
        draft.attributes.update(then_branch=_branch(shapes[0]), else_branch=_branch(shapes[1 if fits else 2]))
    elif subject == "scan_outputs":
        for index in (1, 2):
            draft.input(index)
        draft.outputs = 2
    elif subject not in ("opset_min", "opset_max"):
        raise AssertionError(f"no synthesis for {predicate}")


def _attribute(draft: Draft, predicate: dict[str, Any], fits: bool) -> None:
    kind = next(k for k in predicate if k not in ("attr", "index"))
    wanted = predicate[kind]
    name = predicate["attr"][0] if isinstance(predicate["attr"], list) else predicate["attr"]
    if kind in ("present", "absent"):
        if fits == (kind == "present"):
            draft.attributes.setdefault(name, [1] if name == "axes" else 1)
        else:
            draft.attributes.pop(name, None)
        return
    if kind == "in" and "index" not in predicate:
        value = wanted[0] if fits else "elsewhere" if isinstance(wanted[0], str) else max(wanted) + 1
    elif kind == "in":
        value = [wanted[0] if fits else max(wanted) + 1] * 3
    elif kind == "not_in":
        value = (max(wanted) + 1 if fits else wanted[0]) if not isinstance(wanted[0], str) else wanted[0] + "x" * fits
    elif kind == "each_in":
        value = [wanted[0], wanted[0] if fits else max(wanted) + 1]
    elif kind == "below":
        value = wanted - 1 if fits else wanted
    elif kind == "dtype_in":
        value = TensorProto.DataType.Value(wanted[0]) if fits else _other_dtype(wanted)
    elif kind == "chars":
        value = "ab->ba" if fits else "Ab->bA"
    elif kind == "einsum_without":
        value = "ab->ba" if fits else "...i->..." if "ellipsis" in wanted else "ii->i"
    elif kind == "pads":
        broken = {"symmetric": [1, 1, 0, 0], "nonnegative-begin": [-1, 0, 0, 0], "end-at-most-one-more": [0, 0, 2, 0]}
        value = [1, 1, 1, 1] if fits else broken[wanted]
    elif kind == "halves_equal":
        value = ["Relu", "Tanh", "Relu", "Tanh"] if fits else ["Relu", "Tanh", "Tanh", "Relu"]
    else:
        raise AssertionError(f"no synthesis for {predicate}")
    draft.attributes[name] = value


def _input(draft: Draft, which: Any, kind: str, wanted: Any, fits: bool) -> None:
    if kind in ("present", "absent"):
        numbers = which if isinstance(which, list) else [which]
        for number in numbers:
            if fits == (kind == "present"):
                draft.input(number)
            else:
                draft.inputs.pop(number, None)
        return
    values = draft.input(which)
    if kind in ("same_dtype", "same_shape") and len(values) < 2:
        raise AssertionError(f"{which} is one input")
    for value in values:
        if kind in ("dtype_in", "dtype_not_in"):
            inside = fits == (kind == "dtype_in")
            value.dtype = TensorProto.DataType.Value(wanted[0]) if inside else _other_dtype(wanted)
        elif kind == "rank_in":
            rank = wanted[0] if fits else max(wanted) + 1 if max(wanted) < 8 else min(wanted) - 1
            value.dims = [2] * rank
        elif kind == "rank_min":
            value.dims = [2] * (wanted if fits else wanted - 1)
        elif kind == "rank_max":
            value.dims = [2] * (wanted if fits else wanted + 1)
        elif kind == "constant":
            value.stored = fits != (wanted in ("never", "runtime"))
        elif kind == "values_in":
            value.stored, value.dims, value.held = True, [1], [wanted[0] if fits else max(wanted) + 1]
        elif kind == "values_above":
            value.stored, value.dims, value.held = True, [1], [wanted + 1 if fits else wanted]
        elif kind == "values_below":
            value.stored, value.dims, value.held = True, [1], [wanted - 1 if fits else wanted]
        elif kind == "whole_steps":
            value.stored, value.dims, value.held = True, [4], [1, 1, 2, 0.5 if fits else 0.6]
        elif kind == "elements":
            value.dims = [2 if fits else 3]
        elif kind == "static":
            value.dims = [2 if fits else SYMBOL, 2]
        elif kind == "static_axis":
            draft.attributes[wanted] = 0
            value.dims = [2 if fits else SYMBOL, 2]
        elif kind == "made_by":
            value.made_by = wanted[0] if fits else ""
        elif kind not in ("same_dtype", "same_shape"):
            raise AssertionError(f"no synthesis for {kind}")
    if kind == "same_dtype" and not fits:
        values[0].dtype = TensorProto.FLOAT16
    if kind == "same_shape" and not fits:
        values[0].dims = [3, 3]


def _branch(shape: list[int]) -> onnx.GraphProto:
    held = numpy_helper.from_array(np.zeros(shape, np.float32))
    node = helper.make_node("Constant", [], ["given"], value=held)
    return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("given", FLOAT, None)])


def _node(draft: Draft) -> Node:
    nodes, infos, tensors, names = [], [], [], []
    for index in range(max([*(i + 1 for i in draft.inputs), draft.listed])):
        value = draft.inputs.get(index)
        if value is None:
            names.append("")
            continue
        name = f"x{index}"
        names.append(name)
        if value.stored:
            tensors.append(_tensor(value, name))
        elif value.made_by:
            infos.append(helper.make_tensor_value_info(f"{name}_from", FLOAT, value.dims))
            zero = helper.make_tensor(f"{name}_zero", value.dtype, [], [0])
            scale = helper.make_tensor(f"{name}_scale", FLOAT, [], [1])
            tensors.extend([zero, scale])
            nodes.append(helper.make_node(value.made_by, [f"{name}_from", scale.name, zero.name], [name]))
        else:
            infos.append(helper.make_tensor_value_info(name, value.dtype, value.dims))
    outputs = [f"y{i}" for i in range(draft.outputs)]
    node = helper.make_node(draft.op, names, outputs, domain=draft.domain)
    for key, held in draft.attributes.items():
        node.attribute.append(helper.make_attribute(key, held))
    nodes.append(node)
    results = [helper.make_tensor_value_info(o, draft.output_dtype, None) for o in outputs if draft.output_dtype]
    graph = helper.make_graph(nodes, "g", infos, results, tensors)
    opsets = [helper.make_opsetid("", draft.opset)]
    if draft.domain:
        opsets.append(helper.make_opsetid(draft.domain, draft.opset))
    return list(shapes.index(Model(helper.make_model(graph, opset_imports=opsets))).nodes())[-1]


def _tensor(value: Value, name: str) -> TensorProto:
    dims = [int(d) if not isinstance(d, str) else 2 for d in value.dims]
    held = value.held if value.held is not None else [0.0] * int(np.prod(dims, dtype=int))
    array = np.array(held, dtype=helper.tensor_dtype_to_np_dtype(value.dtype)).reshape(dims)
    return numpy_helper.from_array(array, name)
