"""The model in the opset and IR version that an older TensorRT was made for.

A node means the same in an older opset when that one's definition has all of it: the attributes it sets (those set to
their default may be left out), the inputs and outputs it uses, their element types, and the same defaults for what it
leaves out. When that holds for every node, the import is changed and nothing else: no node is rewritten, nothing lost.
(`onnx.version_converter` goes down only where it has an adapter, and has none for Relu from 14 to 13.) The definitions
don't tell whether the same words mean another thing, so whoever calls this compares the numbers after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from onnxfix import shapes
from onnxfix.graph import Node, attribute_value, schema
from onnxfix.model import Model

# Element types that came with a later IR version.
_LATER_DTYPES = {
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 9),
    **dict.fromkeys(("UINT4", "INT4"), 10),
    **dict.fromkeys(("FLOAT4E2M1", "FLOAT8E8M0"), 11),
}


@dataclass(frozen=True)
class Lowered:
    """What became of a model's versions; `held` says which node keeps it at a newer opset, "" when none does."""

    opset: int
    ir_version: int
    changed: bool
    held: str = ""


def lower(model: Model, opset: int) -> Lowered:
    """Bring `model` down to `opset` of ONNX's own operators and to the IR version that goes with it, where it can.

    Changes `model` in place; one that is older already stays as it is. Cost: two walks over the nodes, beside the
    inference of types.
    """
    proto = model.proto
    before = model.opset(), proto.ir_version
    held = next(_holding(model, opset), "") if model.opset() > opset else ""
    if model.opset() > opset and not held:
        _leave_out_defaults(model, opset)
        for entry in proto.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = opset
        model.opsets[""] = opset
    proto.ir_version = min(proto.ir_version, _needed_ir(model))
    after = model.opset(), proto.ir_version
    return Lowered(*after, changed=before != after, held=held)


def _holding(model: Model, opset: int) -> Iterator[str]:
    """Why the model can't be of this opset, node by node."""
    for scope in shapes.index(model).scopes():
        if scope.kind == "function":
            yield f"function {scope.path} imports opsets of its own"
        for node in scope.nodes():
            if node.domain == "" and (why := _newer(node, opset)):
                yield f"{node.op} '{node.name or node.output(0)}' {why}"


def _leave_out_defaults(model: Model, opset: int) -> None:
    """Attributes that the older opset has not, each at its default: they say nothing."""
    for scope in shapes.index(model).scopes():
        for node in scope.nodes():
            then = schema(node.op, "", opset) if node.domain == "" else None
            if then is None:
                continue
            attributes = node.proto.attribute
            for i in range(len(attributes) - 1, -1, -1):
                if attributes[i].name not in then.attributes:
                    del attributes[i]


def _newer(node: Node, opset: int) -> str:
    """What of a node the older opset has not, "" when it has all of it."""
    now, then = schema(node.op, "", node.opset), schema(node.op, "", opset)
    if now is None or then is None:
        return f"is of opset {now.since_version if now else '?'}"
    if now.since_version == then.since_version:
        return ""
    given = {a.name: a for a in node.proto.attribute}
    for name, value in given.items():
        kept = then.attributes.get(name)
        known = kept is not None and name in now.attributes and kept.type == now.attributes[name].type
        if not known and attribute_value(value) != _value(now, name):
            return f"has {name}, which opset {opset} has not"
    for name, attribute in then.attributes.items():
        if name in given:
            continue
        if attribute.required or (name in now.attributes and _default(attribute) != _default(now.attributes[name])):
            return f"leaves out {name}, whose default opset {opset} has otherwise"
    for used, was, had in (
        (node.inputs, now.inputs, then.inputs),
        (node.outputs, now.outputs, then.outputs),
    ):
        if why := _other_parameters(used, list(was), list(had), opset):
            return why
    return _other_dtype(node, then, opset)


def _value(known: onnx.defs.OpSchema, attribute: str) -> object:
    default = known.attributes[attribute].default_value if attribute in known.attributes else None
    return attribute_value(default) if default is not None and default.type else None


def _default(attribute: onnx.defs.OpSchema.Attribute) -> bytes:
    return attribute.default_value.SerializeToString()


def _other_parameters(
    used: list[str], was: list[onnx.defs.OpSchema.FormalParameter], had: list[onnx.defs.OpSchema.FormalParameter],
    opset: int,
) -> str:  # fmt: skip
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    for position, name in enumerate(used):
        one, other = was[min(position, len(was) - 1)], had[min(position, len(had) - 1)] if had else None
        beyond = other is None or (position >= len(had) and other.option != variadic)
        if name and (beyond or other is None or one.name.lower() != other.name.lower()):
            return f"uses {one.name} as {'an input' if one in was else 'a value'}, which opset {opset} has not"
    required = [p for p in had if p.option == onnx.defs.OpSchema.FormalParameterOption.Single]
    if len([u for u in used if u]) < len(required):
        return f"leaves out {required[-1].name}, which opset {opset} needs"
    return ""


def _other_dtype(node: Node, then: onnx.defs.OpSchema, opset: int) -> str:
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in then.type_constraints}
    for names, formal in ((node.inputs, then.inputs), (node.outputs, then.outputs)):
        for position, name in enumerate(names):
            dtype = node.graph.dtype(name) if name else 0
            if not dtype or not formal:
                continue
            kind = formal[min(position, len(formal) - 1)].type_str
            word = f"tensor({TensorProto.DataType.Name(dtype).lower()})"
            if word not in allowed.get(kind, {kind}):
                return f"takes {word[7:-1]}, which opset {opset} does not"
    return ""


def _needed_ir(model: Model) -> int:
    """The lowest IR version that holds what the model uses."""
    needed = [helper.find_min_ir_version_for(list(model.proto.opset_import), ignore_unknown=True), 4]
    if model.proto.functions:
        needed.append(10 if any(f.overload for f in model.proto.functions) else 8)
    for tensor in model.tensors():
        needed.append(_LATER_DTYPES.get(TensorProto.DataType.Name(tensor.data_type), 4))
    return max(needed)
