"""Many small graphs in one model: what was there before and after each of several Changes, to be run side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxfix.backends import BackendError, feeds
from onnxfix.recorder import Recorded, Side


class MissingError(BackendError):
    """A value of an earlier change, which did not run."""

    def __init__(self, value: str) -> None:
        super().__init__(f"'{value}' comes from an earlier change, which did not run")


class Part:
    """One side of one change ("b" what was before, "a" after), as part of a model that holds many.

    `makers` tells which earlier changes make what the original has not.
    """

    def __init__(self, record: Recorded, position: int, side: str, makers: Mapping[str, int]) -> None:
        self.record = record
        self.label = f"{side}{position}"
        self.side = record.before if side == "b" else record.after
        self.makers = makers
        self.claimed = [claim[side == "a"] for claim in record.claims]

    def captured(self) -> Iterator[str]:
        """What it needs of the original."""
        for name in (*self.side.reads, *self.claimed):
            if name not in self.side.made and name not in self.makers and name not in self.record.stored:
                yield name


@dataclass
class Combined:
    """Parts that run together. `given` are its inputs: name -> (value, the change that made it or None, its type)."""

    proto: onnx.ModelProto
    given: dict[str, tuple[str, int | None, onnx.TypeProto | None]] = field(default_factory=dict)
    stored: dict[str, TensorProto] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def data(self, fed: Mapping[str, Any]) -> bytes:
        """The model with its inputs declared as what it is fed."""
        del self.proto.graph.input[:]
        for name, value in fed.items():
            info = self.proto.graph.input.add(name=name)
            kind = self.given[name][2]
            if isinstance(value, np.ndarray):
                dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
                info.type.CopyFrom(helper.make_tensor_type_proto(dtype, value.shape))
            elif kind is not None and kind.HasField("sequence_type"):
                element = helper.make_tensor_type_proto(kind.sequence_type.elem_type.tensor_type.elem_type, None)
                info.type.CopyFrom(helper.make_sequence_type_proto(element))
            else:
                raise BackendError(f"'{self.given[name][0]}' is no tensor")
        return bytes(self.proto.SerializeToString())

    def feeds(
        self, values: Mapping[str, Any], made: Mapping[str, Any], kept: Mapping[tuple[int, str, int], Any], sample: int
    ) -> dict[str, Any]:
        """What it reads: of the original, made by this batch, or kept from an earlier one."""
        result = {}
        for name, (value, maker, kind) in self.given.items():
            if maker is None:
                array = values[value]
            elif (key := f"a{maker}/{value}") in made:
                array = made[key]
            elif (maker, value, sample) in kept:
                array = kept[maker, value, sample]
            else:
                raise MissingError(value)
            dtype = kind.tensor_type.elem_type if kind is not None else 0
            if dtype and isinstance(array, np.ndarray) and array.dtype != object:
                # An earlier change may have widened it.
                array = feeds.cast(array, helper.tensor_dtype_to_np_dtype(dtype))
            result[name] = array
        return result


def combined(ir_version: int, parts: Sequence[Part], later: set[tuple[int, str]]) -> list[Combined]:
    """One model for all parts that can share one; parts of another opset, or of other functions, get their own.

    A new model begins where the environment changes, so that what a part reads of an earlier change is made before it.
    What `later` names (change, value) is handed out too.
    """
    models: list[Combined] = []
    homes: dict[str, int] = {}
    current: tuple[Any, ...] = ()
    for part in parts:
        if not models or part.side.environment() != current:
            current = part.side.environment()
            models.append(Combined(_empty(ir_version, part.side)))
        homes[part.label] = len(models) - 1
        _put(models, homes, part)
    exported = {f"{p.label}/{n}" for p in parts for n in p.claimed if n in p.side.made}
    exported |= {f"a{maker}/{name}" for maker, name in later}
    exported |= {f"a{maker}/{value}" for m in models for value, maker, _ in m.given.values() if maker is not None}
    # A claim may name a value of an earlier change that this one does not make itself.
    exported |= {f"a{p.makers[n]}/{n}" for p in parts for n in p.claimed if n in p.makers and n not in p.side.made}
    for model in models:
        model.outputs = [o for n in model.proto.graph.node for o in n.output if o in exported]
        model.proto.graph.output.extend(ValueInfoProto(name=n) for n in model.outputs)
    return [m for m in models if m.outputs]


def _empty(ir_version: int, side: Side) -> onnx.ModelProto:
    opsets = [helper.make_opsetid(d, v) for d, v in sorted(side.opsets.items())]
    proto = helper.make_model(GraphProto(name="changes"), opset_imports=opsets, functions=list(side.functions))
    proto.ir_version = max(8, ir_version)
    return proto


def _put(models: Sequence[Combined], homes: Mapping[str, int], part: Part) -> None:
    model = models[-1]
    graph = model.proto.graph
    names = {n: f"{part.label}/{n}" for n in part.side.made}
    imported = {o.domain for o in model.proto.opset_import}
    model.proto.opset_import.extend(
        helper.make_opsetid(d, v) for d, v in part.side.opsets.items() if d not in imported
    )
    for name, tensor in part.side.constants.items():
        key = f"stored/{name}"
        if model.stored.get(key, tensor) is not tensor:  # another one of that name
            key = f"{part.label}/{name}"
        names[name] = key
        if key not in model.stored:  # a weight that both sides read is there once
            model.stored[key] = tensor
            graph.initializer.append(tensor)
            graph.initializer[-1].name = key
    for name in part.side.reads:
        maker = part.makers.get(name)
        kind = part.side.types.get(name)
        if maker is not None and homes.get(f"a{maker}") == len(models) - 1:
            names[name] = f"a{maker}/{name}"
            continue
        origin = "" if maker is None else f"a{maker}/"
        names[name] = f"given/{origin}{name}:{kind.tensor_type.elem_type if kind is not None else 0}"
        model.given[names[name]] = (name, maker, kind)
    for node in part.side.nodes:
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{part.label}/{node.name}" if node.name else ""
        _rename(copy, names, part.label)


def _rename(node: NodeProto, names: Mapping[str, str], label: str) -> None:
    """Rename values in a node and in its bodies; what a body defines itself is put under the label."""
    for values in (node.input, node.output):
        for i, name in enumerate(values):
            if name in names:
                values[i] = names[name]
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graph: Any = attribute.g
            own = {v.name for v in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output if o}
            inner = {**names, **{name: f"{label}/{name}" for name in own}}
            for body_node in graph.node:
                _rename(body_node, inner, label)
            for value in (*graph.input, *graph.initializer, *graph.output):
                value.name = inner.get(value.name, value.name)
