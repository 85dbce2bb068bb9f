"""Bodies in place of what stands for them: branches, iterations, model-local functions, and the functions by which the
ONNX standard itself defines operators."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto

from onnxfix import folding
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Graph, Node, schema
from onnxfix.rule import Context

# Operators whose nodes can look alike and mean something else: the opset from which the new meaning holds.
_NEW_MEANING = {
    ("AveragePool", 19), ("BatchNormalization", 9), ("BatchNormalization", 14), ("GridSample", 20), ("Resize", 11),
    ("GroupNormalization", 21), ("Hardmax", 13), ("LogSoftmax", 13), ("Pad", 11), ("RoiAlign", 16), ("Softmax", 13),
    ("Split", 18), ("Upsample", 9),
}  # fmt: skip
_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional


def same_meaning(proto: NodeProto, before: int, after: int) -> bool:
    """Whether a node written for one opset version of its domain is valid and means the same at another.

    What a newer version adds must be optional, and an older version must have all that the node uses.
    """
    old, new = schema(proto.op_type, proto.domain, before), schema(proto.op_type, proto.domain, after)
    if old is None or new is None:
        return False
    if old.since_version == new.since_version:
        return True
    low, high = sorted((old.since_version, new.since_version))
    if any(op == proto.op_type and low < version <= high for op, version in _NEW_MEANING):
        return False
    lost = {a.name for a in proto.attribute} - set(new.attributes) - set(surplus(proto, before, after))
    if lost or len(proto.input) > _most(new.inputs):
        return False
    if len(proto.output) > _most(new.outputs):
        return False
    older, newer = (old, new) if before < after else (new, old)
    for name, attribute in older.attributes.items():
        kept = newer.attributes.get(name)
        if kept is None and after > before:
            return False
        if kept is not None and _default(kept) != _default(attribute):
            return False
    added = newer.inputs[len(older.inputs) :]
    return all(i.option == _OPTIONAL for i in added) and not any(
        a.required for n, a in newer.attributes.items() if n not in older.attributes
    )


def surplus(proto: NodeProto, before: int, after: int) -> list[str]:
    """Attributes of a node that another opset version lacks and that say no more than their default."""
    old, new = schema(proto.op_type, proto.domain, before), schema(proto.op_type, proto.domain, after)
    if old is None or new is None:
        return []
    extra = [a for a in proto.attribute if a.name not in new.attributes and a.name in old.attributes]
    return [a.name for a in extra if _default(old.attributes[a.name]) == a.SerializeToString()]


def _most(parameters: Sequence[onnx.defs.OpSchema.FormalParameter]) -> int:
    variadic = any(p.option == onnx.defs.OpSchema.FormalParameterOption.Variadic for p in parameters)
    return 1 << 30 if variadic else len(parameters)


def _default(attribute: onnx.defs.OpSchema.Attribute) -> bytes:
    return attribute.default_value.SerializeToString()


def replace_outputs(edit: Edit, node: Node, results: Sequence[str]) -> None:
    """Replace a node's outputs by `results`, which may repeat one another."""
    distinct: list[str] = []
    for output, result in zip(node.outputs, results, strict=False):
        again = result in distinct and output and not node.graph.unused(output)
        distinct.append(str(edit.add("Identity", [result])) if again else result)
    edit.replace_node(node, *distinct)


def renameable(node: Node) -> bool:
    """Whether no body hands an output of the node on as its own, so that other values can take their place."""
    return not any(folding.returned(node.graph, o) for o in node.proto.output if o)


def results_of(body: Graph, names: Mapping[str, str]) -> list[str]:
    """What a body returns, in the names of the scope it was inlined into."""
    return [names.get(v.name, v.name) for v in body.proto.output]


# ---- functions ----


def bind(node: Node, scope: FunctionProto) -> tuple[dict[str, str], dict[str, AttributeProto]]:
    """The inputs and the attributes of a call, by the names they have in the function."""
    attributes = {a.name: a for a in scope.attribute_proto}
    for attribute in node.proto.attribute:
        if attribute.ref_attr_name:
            raise Skip(f"attribute '{attribute.name}' is a parameter of the function around it")
        attributes[attribute.name] = attribute
    return {name: node.input(i) for i, name in enumerate(scope.input)}, attributes


def same_opsets(scope: FunctionProto, graph: Graph) -> None:
    """Raises Skip where a function was written for opsets in which its nodes mean something else than in the model."""
    versions = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in scope.opset_import}
    for proto in walk(scope.node):
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        here, there = graph.opset(domain), versions.get(domain, 0)
        if here == there or here == 0 or (domain, proto.op_type) in graph.root.functions:
            continue
        if not same_meaning(proto, there, here) or surplus(proto, there, here):
            found = f"{proto.op_type} is another at opset {here}, which the model has"
            raise Skip(f"its body is written for opset {there}, and {found}")


def walk(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Nodes and those in their bodies."""
    found: list[NodeProto] = []
    for proto in nodes:
        found.append(proto)
        for attribute in proto.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found += walk(attribute.g.node)
    return found


# ---- operators that the standard defines by others ----


@functools.cache
def defined_by_function() -> tuple[str, ...]:
    """Operators of ai.onnx that have a function body at some opset."""
    found: list[Any] = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""]
    return tuple(sorted({s.name for s in found if s.has_function or s.has_context_dependent_function}))


def standard_body(node: Node) -> FunctionProto:
    """The function body of a node's operator, as the standard has it for the model's opset and the node's types.

    Raises Skip when there is none for this opset, or when it hangs on types that are not known.
    """
    found: Any = schema(node.op, node.domain, node.opset)  # onnx's stubs lack what is asked of it here
    if found is None or not has_body(node.op, node.domain, node.opset):
        raise Skip(f"the standard defines {node.op} of opset {node.opset} by no other operators")
    if found.has_function:
        version = _version(found.function_opset_versions, node)
        body = FunctionProto.FromString(found.get_function_with_opset_version(version))
        defaults = {n: a.default_value for n, a in found.attributes.items() if a.default_value.type}
        del body.attribute_proto[:]
        body.attribute_proto.extend(defaults.values())
        return body
    types = [_type(node, name) for name in node.proto.input]
    version = _version(found.context_dependent_function_opset_versions, node)
    built = found.get_context_dependent_function_with_opset_version(version, node.proto.SerializeToString(), types)
    body = FunctionProto.FromString(built)
    if not body.node:
        raise Skip(f"the standard has no body for this form of {node.op}")
    return body


def _version(versions: Sequence[int], node: Node) -> int:
    older = [v for v in versions if v <= node.opset]
    return max(older) if older else min(versions)  # `same_opsets` says whether a newer one will do


def _type(node: Node, name: str) -> bytes:
    if not name:
        return TypeProto().SerializeToString()
    found = node.graph.type_of(name)
    if found is None:
        raise Skip(f"its body hangs on the type of '{name}', which is not known")
    return found.SerializeToString()


# Other rules take care of these where they stand in a body.
_RESCUED = frozenset(
    {"Constant", "IsInf", "IsNaN", "Mod", "OneHot", "Trilu", "ConcatFromSequence", "SequenceAt", "SequenceConstruct"}
    | {"SequenceEmpty", "SequenceInsert", "SequenceLength"}
)


def lacking(body: FunctionProto, ctx: Context, opset: int) -> list[str]:
    """Operators of a body that the target has not, and that no body of their own replaces."""
    missing: dict[str, None] = {}
    for proto in walk(body.node):
        if proto.op_type in _RESCUED or ctx.supports(proto.op_type, proto.domain):
            continue
        if not has_body(proto.op_type, proto.domain, opset):
            missing[proto.op_type] = None
    return list(missing)


def has_body(op: str, domain: str, opset: int) -> bool:
    """Whether the standard defines the operator by others."""
    found: Any = schema(op, domain, opset)
    return found is not None and bool(found.has_function or found.has_context_dependent_function)


def body_for(node: Node, ctx: Context) -> FunctionProto | None:
    """The standard's body of a node, for a target that takes what is in it; None where its place can't be taken.

    Raises Skip that says why there is none.
    """
    if not renameable(node):
        return None
    body = standard_body(node)
    same_opsets(body, node.graph)
    missing = lacking(body, ctx, node.opset)
    if missing:
        raise Skip(f"its definition needs {', '.join(missing)}, which the target has not either")
    return body


def write_out(node: Node, body: FunctionProto, edit: Edit, ctx: Context) -> None:
    """Put a node's body in its place. Raises Skip when the target would not take it either."""
    values, attributes = bind(node, body)
    names = edit.inline(body.node, values, attributes)
    if ctx.supports(node.op):
        # The target has the operator and refuses this form of it: there, every node of the body must be taken.
        for added in edit.added:
            verdict = ctx.judge(added)
            if verdict is not None and ctx.refused(added) and not has_body(added.op, added.domain, added.opset):
                raise Skip(f"its definition needs {added.op}, and {verdict.reason}")
    count = f"{len(edit.added)} nodes" if len(edit.added) > 1 else "1 node"
    edit.note = f"{node.op} is written out as the ONNX standard defines it: {count}"
    replace_outputs(edit, node, [names.get(o, o) for o in body.output])
