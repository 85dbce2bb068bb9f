"""Names and texts of a model must be UTF-8. Protobuf hands out the others as bytes, which then fail anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import AttributeProto

from onnxfix.errors import ModelError


def check(proto: onnx.ModelProto, name: object = "model") -> None:
    """Raises ModelError at the first text that is not UTF-8. Cost: one walk over nodes, values and tensors."""
    for text in _model(proto):
        if type(text) is bytes:
            raise ModelError(f"{name}: damaged: it holds a name that is not text ({text[:40]!r}); export it again")


def _model(proto: onnx.ModelProto) -> Iterator[object]:
    yield from (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
    yield from _entries(proto.metadata_props)
    for opset in proto.opset_import:
        yield opset.domain
    yield from _graph(proto.graph)
    for function in proto.functions:
        yield from (function.name, function.domain, function.doc_string)
        yield from (*function.input, *function.output, *function.attribute)
        yield from (opset.domain for opset in function.opset_import)
        yield from _nodes(function.node)


def _graph(graph: onnx.GraphProto) -> Iterator[object]:
    yield from (graph.name, graph.doc_string)
    yield from _entries(getattr(graph, "metadata_props", ()))
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            yield value.name
            yield value.doc_string
            yield from _type(value.type)
    for tensor in graph.initializer:
        yield tensor.name
        if tensor.external_data:
            yield from _entries(tensor.external_data)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    yield from _nodes(graph.node)


def _type(kind: onnx.TypeProto) -> Iterator[object]:
    for tensor in (kind.tensor_type, kind.sparse_tensor_type):
        for dim in tensor.shape.dim:
            yield dim.dim_param
    if kind.HasField("sequence_type"):
        yield from _type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        yield from _type(kind.optional_type.elem_type)
    elif kind.HasField("map_type"):
        yield from _type(kind.map_type.value_type)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[object]:
    for node in nodes:
        yield node.name
        yield node.op_type
        yield node.domain
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            yield attribute.name
            if attribute.ref_attr_name:
                yield attribute.ref_attr_name
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t.name
                yield from _entries(attribute.t.external_data)
            elif attribute.type == AttributeProto.GRAPH:
                yield from _graph(attribute.g)
            elif attribute.type == AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    yield from _graph(graph)
        yield node.doc_string
        yield from _entries(getattr(node, "metadata_props", ()))


def _entries(entries: Any) -> Iterator[object]:
    for entry in entries:
        yield entry.key
        yield entry.value
