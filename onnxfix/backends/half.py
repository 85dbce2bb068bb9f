"""A model in FP16 or BF16, by the converter that comes with ONNX Runtime.

`onnxruntime.transformers.float16` is the one that is looked after: onnxconverter-common, which it grew out of, is
no longer released, and onnxruntime is needed for the proof anyway. Importing it needs neither torch nor transformers.
What it leaves to do is done here: values between FP32 nodes stay FP32, bodies get the types they were written for,
nodes come in order, and BF16.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter

from onnxfix import shapes
from onnxfix.backends import BackendError, need
from onnxfix.graph import Edit, Graph, Node
from onnxfix.model import PROTOBUF_LIMIT, Model, load, nbytes, one_line

LARGEST = 65504.0  # of FP16
SMALLEST = 2.0**-24  # that is not zero

KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
OPSET = 13  # the first whose Cast knows BF16
# TensorRT-RTX 1.7 refuses the one ("SUB must have …" of mixed types) and fails to build the other in BF16.
NEVER_BF16 = ("GRU", "ConvTranspose")


def convert(
    path: Path,
    to: Path,
    kind: str = "fp16",
    *,
    keep: Collection[str] = (),
    bodies: bool = True,
    rounded: bool = False,
) -> int:
    """Write the model at `path` with FP16 or BF16 inside; inputs and outputs keep their types. Returns its weights.

    Operators the converter or ONNX knows to have no such form stay in FP32, between casts, as do the nodes whose
    outputs `keep` names, and without `bodies`, or where these hold such operators, all that If, Loop and Scan hold.
    The numbers are typed strictly: TensorRT-RTX takes the file.

    With `rounded` the file is for ONNX Runtime on the CPU, to tell the accuracy: it computes much of FP16 in FP32,
    would leave out the rounding between two such operators (a single FP16 node among them it takes into FP32 too), and
    knows little BF16. So each operator rounds its result once, as a GPU that sums in FP32 does: FP16 values pass two
    Identities, BF16 is FP32 that passes two Casts.

    Raises BackendError when it fails, UnavailableError without ONNX Runtime.
    """
    need("onnxruntime")
    name = kind.upper()
    if sum(map(nbytes, load(path).tensors())) > PROTOBUF_LIMIT // 2:
        raise BackendError(f"over 1 GiB of weights can't be converted to {name} in one piece")
    try:
        original = _prepared(onnx.load(path), kind)
        converted = _converted(original, kind, keep, bodies)
        if rounded:
            _round_everywhere(converted, kind)
        if kind == "bf16":
            _retype(converted, original, TensorProto.FLOAT if rounded else TensorProto.BFLOAT16)
        to.write_bytes(converted.SerializeToString(deterministic=True))
    except BackendError:
        raise
    except Exception as error:  # it asserts and raises what it likes
        raise BackendError(f"ONNX Runtime's converter can't make {name} of the model: {one_line(error)}") from None
    return sum(t.data_type == KINDS[kind] for t in Model(converted).tensors())


# ---- before the converter ----


def _prepared(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """The model as the converter wants it, all types stated."""
    if kind == "bf16" and any(t.data_type == TensorProto.FLOAT16 for t in Model(model).tensors()):
        raise BackendError("the model is in FP16 already, which holds less than BF16; convert the FP32 model")
    model = plain(model, OPSET if kind == "bf16" else 0)
    graph = shapes.index(Model(model))
    stated = {v.name for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    for name in graph.producers:
        if name not in stated and graph.dtype(name) == TensorProto.FLOAT:
            model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return model


def plain(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model as ONNX Runtime's converters want it, at `opset` or later.

    No functions of its own, constants as initializers and these no inputs, and every node with a name of its own.
    """
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    del model.opset_import[:]  # a domain may stand there twice
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    if opsets.get("", opset) < opset:
        model = version_converter.convert_version(model, opset)
    if model.functions:
        model = inliner.inline_local_functions(model)
    model.ir_version = max(model.ir_version, 4)  # before, every initializer is an input too
    stored = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    graph = Graph.of(Model(model))
    edit = Edit(graph, None, "constant")
    for node in [n for n in graph.nodes() if n.op == "Constant" and not n.domain]:
        edit.initialize(node)
    edit.finish()
    graph.commit()
    taken: set[str] = set()
    for scope in graph.walk():
        for node in scope.nodes():
            node.proto.name = _unique(node.name or node.op, taken)
    return model


def _unique(name: str, taken: set[str]) -> str:
    number, wanted = 0, name
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def _without(model: onnx.ModelProto, kind: str) -> set[str]:
    """Operators of the model that take FP32 and not FP16 in its opset, e.g. DynamicQuantizeLinear, or may not.

    BF16 came late to ONNX (to Conv with opset 22), and TensorRT takes it at any opset: there the newest one counts.
    """
    found, wanted = set(), "tensor(float16)" if kind == "fp16" else "tensor(bfloat16)"
    for scope in Graph.of(Model(model)).scopes():
        for node in scope.nodes():
            known = _schema(node, newest=kind == "bf16")
            if node.domain not in ("", "ai.onnx.ml") or known is None:
                found.add(node.op)  # nobody says what it takes
                continue
            types = [set(t.allowed_type_strs) for t in known.type_constraints]
            types += [{p.type_str} for p in (*known.inputs, *known.outputs)]  # of one type, or a constraint's name
            if any("tensor(float)" in t and wanted not in t for t in types):
                found.add(node.op)
    return found


def _schema(node: Node, newest: bool) -> onnx.defs.OpSchema | None:
    version = onnx.defs.onnx_opset_version() if newest and not node.domain else node.opset
    try:
        return onnx.defs.get_schema(node.op, version, node.domain)
    except onnx.defs.SchemaError:
        return None


# ---- the converter, and after it ----


def _converted(original: onnx.ModelProto, kind: str, keep: Collection[str], bodies: bool) -> onnx.ModelProto:
    """In FP16, also for BF16, whose types are written afterwards."""
    from onnxruntime.transformers import float16

    logging.getLogger(float16.__name__).setLevel(logging.ERROR)
    copy = onnx.ModelProto()
    copy.CopyFrom(original)
    operators = {*float16.DEFAULT_OP_BLOCK_LIST, *_without(original, kind), *(NEVER_BF16 if kind == "bf16" else ())}
    wanted = set(keep)
    nodes = {n.name for n in original.graph.node if not wanted.isdisjoint(n.output)}
    nodes |= _rigid(original, {*operators, *float16.ALWAYS_FLOAT_INPUTS} if bodies else None)
    model: onnx.ModelProto = float16.convert_float_to_float16(
        copy,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=sorted(operators),
        node_block_list=sorted(nodes),
    )
    _drop_repeated(model)
    _restore_captured(Graph.of(Model(model)), kind, nodes)
    graph = Graph.of(Model(model))
    edit = Edit(graph, None, kind)
    names = {n.name for n in original.graph.node}
    _widen(graph, edit, names)
    for node in graph.nodes():
        if node.name not in names:
            edit.set_inputs(node, node.inputs)  # the converter appends its casts: a change has them sorted in
    edit.finish()
    graph.commit()
    return model


def _rigid(model: onnx.ModelProto, operators: Collection[str] | None) -> set[str]:
    """The nodes of the main graph whose bodies can't be converted, of all that have some without `operators`.

    The converter puts its casts into the main graph only, and knows an initializer by nothing but its name.
    """
    graph = Graph.of(Model(model))
    held = Counter(t.name for scope in graph.walk() for t in scope.proto.initializer)
    found = set()
    for node in graph.nodes():
        for scope in (inner for body in node.bodies.values() for inner in body.walk()):
            casts = operators is None or any(n.op in operators for n in scope.nodes())
            if casts or any(held[t.name] > 1 for t in scope.proto.initializer):
                found.add(node.name)
    return found


def _drop_repeated(model: onnx.ModelProto) -> None:
    """The converter casts a value once more for each FP32 node that reads it, always to the same name."""
    nodes = {tuple(node.output): node for node in model.graph.node}
    if len(nodes) < len(model.graph.node):
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes.values()]
        del model.graph.node[:]
        model.graph.node.extend(copies)


def _restore_captured(graph: Graph, kind: str, kept: Collection[str]) -> None:
    """Cast outer values back for bodies that stayed FP32 and know nothing of what became FP16 around them."""
    narrow = {v.name for v in graph.proto.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    narrow |= {t.name for t in graph.proto.initializer if t.data_type == TensorProto.FLOAT16}
    for node in [n for n in graph.nodes() if n.name in kept]:
        edit = Edit(graph, node, kind)
        for name in sorted(narrow.intersection(node.captured)):
            wide = edit.add("Cast", [name], to=TensorProto.FLOAT)
            for body in node.bodies.values():
                rename_read(body.proto, {name: wide})
        edit.finish()
    graph.commit()


def rename_read(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Have nodes read values under other names, in bodies too, and the graph return them so."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                rename_read(body, names)
    for output in graph.output:
        output.name = names.get(output.name, output.name)


def _widen(graph: Graph, edit: Edit, names: Collection[str]) -> None:
    """Let FP32 nodes hand on FP32: the converter casts to FP16 and back between them, and loses what overflows."""
    for node in list(graph.nodes()):
        before = graph.producers.get(node.input(0)) if node.op == "Cast" and node.name not in names else None
        if before is None or before.op != "Cast" or node.attr("to") != TensorProto.FLOAT:
            continue
        if before.name not in names:  # the converter's: what it casts is FP32
            edit.replace(node.output(0), before.input(0))
            edit.remove(node)
        elif before.attr("to") == TensorProto.FLOAT16:
            edit.set_input(node, 0, before.input(0))


def _round_everywhere(model: onnx.ModelProto, kind: str) -> None:
    there: dict[str, Any] = {"to": TensorProto.BFLOAT16} if kind == "bf16" else {}
    back: dict[str, Any] = {"to": TensorProto.FLOAT16} if kind == "bf16" else {}
    op = "Cast" if kind == "bf16" else "Identity"
    for scope in reversed(list(shapes.index(Model(model)).walk())):  # bodies before what holds them
        nodes = []
        for node in scope.nodes():
            nodes.append(node.proto)
            for i, name in enumerate(node.outputs):
                if name and node.op != "Constant" and scope.dtype(name) == TensorProto.FLOAT16:
                    node.proto.output[i] = f"{name}/exact"
                    nodes.append(helper.make_node(op, [f"{name}/exact"], [f"{name}/rounded"], **there))
                    nodes.append(helper.make_node(op, [f"{name}/rounded"], [name], **back))
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del scope.proto.node[:]
        scope.proto.node.extend(copies)


def _retype(model: onnx.ModelProto, original: onnx.ModelProto, dtype: int) -> None:
    """Turn every FP16 type into `dtype`, and the weights into what BF16 makes of the original ones."""
    weights = {t.name: t for scope in Graph.of(Model(original)).walk() for t in scope.proto.initializer}
    for scope in Graph.of(Model(model)).walk():
        for tensor in scope.proto.initializer:
            _narrow(tensor, weights[tensor.name], dtype)
        for node in scope.nodes():
            for attribute in node.proto.attribute:
                _narrow(attribute.t, attribute.t, dtype)
                if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                    attribute.i = dtype
        for value in (*scope.proto.input, *scope.proto.output, *scope.proto.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = dtype


def _narrow(tensor: TensorProto, source: TensorProto, dtype: int) -> None:
    """Where `tensor` is FP16: what BF16 makes of `source`, in `dtype`."""
    import ml_dtypes  # comes with onnx

    if tensor.data_type != TensorProto.FLOAT16:
        return
    array = numpy_helper.to_array(source).astype(ml_dtypes.bfloat16)
    exact = array if dtype == TensorProto.BFLOAT16 else array.astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))


def unfit_weights(model: Model) -> dict[str, tuple[float, float, str]]:
    """FP32 weights that FP16 can't hold: name -> (smallest and largest magnitude but zero, what becomes of them)."""
    found = {}
    for tensor in model.proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        sizes = np.abs(model.array(tensor))
        sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
        if not sizes.size:
            continue
        low, high = float(sizes.min()), float(sizes.max())
        lost = int((sizes < SMALLEST / 2).sum())
        if high > LARGEST:
            found[tensor.name] = (low, high, f"values over {LARGEST:g} are cut to it")
        elif lost * 100 > sizes.size:
            found[tensor.name] = (low, high, f"{lost} of {sizes.size} values are below the smallest FP16 number")
    return found
