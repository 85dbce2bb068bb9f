from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from onnx import NodeProto

from onnxfix import emit
from onnxfix.graph import schema
from onnxfix.lowering import contrib, nchwc
from onnxfix.rule import Context, Edit, Graph, Node, Rule, Safety, Skip

_OWN = {
    "Conv": ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"),
    "MaxPool": ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides"),
    "AveragePool": ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"),
    "GlobalMaxPool": (),
    "GlobalAveragePool": (),
}
_KNOWN = {*_OWN, "Upsample", "ReorderInput", "ReorderOutput"}
# What works on each channel alone: a channel cut off behind it can be cut off before it.
_CHANNELWISE = {"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish", "Elu", "Softplus"}
# The nodes, their filters in order, the channels to fill up, the size of a block.
_Found = tuple[list[Node], dict[Node, np.ndarray], dict[Node, int], int]


class BlockedLayout(Rule):
    ops = ("<graph>",)
    safety = Safety.CLOSE
    when = "always"
    options: ClassVar[Mapping[str, Any]] = {"block": 0}

    def match(self, graph: Graph, ctx: Context) -> _Found | None:
        nodes = nchwc.blocked_nodes(graph)
        if not nodes:
            return None
        unknown = next((n.op for n in nodes if n.op not in _KNOWN), None)
        if unknown:
            raise Skip(f"{nchwc.DOMAIN}::{unknown} is not known; save the model without ONNX Runtime's optimisation")
        if any(n.op == "Upsample" for n in nodes) and graph.opset() < 10:
            raise Skip("Resize does not exist before opset 10; convert the model to opset 13 first")
        convs = [n for n in nodes if n.op == "Conv"]
        for node in convs:
            contrib.known_activation(node.attr("activation", ""))
        block = self.option(ctx, "block") or nchwc.block_size(convs)
        if block not in nchwc.BLOCKS:
            raise Skip(f"the option 'block' is {block}; it is 8 or 16")
        filters = {n: nchwc.plain_weights(n, block) for n in convs}
        for node in nodes:
            _attributes(node)
        missing = {n: nchwc.missing_channels(n, filters, block) for n in nodes if n.op == "ReorderInput"}
        return nodes, filters, missing, block

    def rewrite(self, graph: Graph, found: _Found, edit: Edit, ctx: Context) -> None:
        nodes, filters, missing, block = found
        edit.note = f"{len(nodes)} operators in blocks of {block} channels became ONNX's own"
        wanted = {*nodes, *nchwc.nodes_between(graph)}
        for node in [n for n in graph.nodes() if n in wanted]:
            edit.anchor = node
            if node.domain != nchwc.DOMAIN:
                self._again(node, edit)
            elif node.op == "Conv":
                self._conv(node, filters[node], edit)
            elif node.op == "Upsample":
                self._upsample(node, edit)
            elif node.op == "ReorderInput":
                self._input(node, missing[node], edit)
            elif node.op == "ReorderOutput":
                self._output(node, edit)
            else:
                edit.replace_node(node, edit.add(node.op, [node.input(0)], **_attributes(node)))

    @staticmethod
    def _again(node: Node, edit: Edit) -> None:
        """Write a node between the others anew: what it makes lies in another order now, so it counts as changed."""
        copy = NodeProto()
        copy.CopyFrom(node.proto)
        copy.name = ""
        del copy.output[:]
        copy.output.extend(o and edit.graph.fresh(f"{o}/plain") for o in node.outputs)
        edit.insert(copy)
        edit.replace_node(node, *copy.output)

    @staticmethod
    def _conv(node: Node, filters: np.ndarray, edit: Edit) -> None:
        inputs: list[Any] = [node.input(0), edit.const(filters, "weights")]
        y = str(edit.add("Conv", [*inputs, node.input(2)] if node.input(2) else inputs, **_attributes(node)))
        if node.input(3):
            y = str(edit.add("Add", [y, node.input(3)]))
        y = contrib.activate(edit, y, node.attr("activation", ""), node.attr("activation_params", []))
        edit.replace_node(node, y)

    @staticmethod
    def _upsample(node: Node, edit: Edit) -> None:
        scales = np.asarray(node.attr("scales", [1, 1, 1, 1]), np.float32)
        mode, place = node.attr("mode", "nearest"), node.attr("coordinate_transformation_mode", "asymmetric")
        if edit.graph.opset() < 11:
            if place != "asymmetric":
                raise Skip(f"Resize has no {place} coordinates before opset 11; convert the model to opset 13 first")
            edit.replace_node(node, edit.add("Resize", [node.input(0), scales], mode=mode))
            return
        nearest = "floor" if mode == "nearest" else None
        roi: str | np.ndarray = "" if edit.graph.opset() >= 13 else np.zeros(0, np.float32)
        how = {"mode": mode, "coordinate_transformation_mode": place, "nearest_mode": nearest}
        edit.replace_node(node, edit.add("Resize", [node.input(0), roi, scales], **how))

    @staticmethod
    def _input(node: Node, missing: int, edit: Edit) -> None:
        x = node.input(0)
        if node.attr("channels_last", 0):
            x = emit.transpose(edit, x, [0, 3, 1, 2])
        if missing:
            x = emit.pad(edit, x, [0, 0, 0, 0], [0, missing, 0, 0])
        edit.replace_node(node, x)

    @staticmethod
    def _output(node: Node, edit: Edit) -> None:
        x, channels = node.input(0), int(node.attr("channels"))
        if not _shorten(x, channels, edit):
            x = emit.slice_(edit, x, [0], [channels], [1])
        if node.attr("channels_last", 0):
            x = emit.transpose(edit, x, [0, 2, 3, 1])
        edit.replace_node(node, x)


def _attributes(node: Node) -> dict[str, Any]:
    """Those the operator has at the model's opset. Raises Skip where one it doesn't have yet means something."""
    found = {name: node.attr(name) for name in _OWN.get(node.op, ()) if node.has_attr(name)}
    known = schema(node.op, "", node.graph.opset())
    for name in [n for n in found if known is not None and n not in known.attributes]:
        if np.any(np.asarray(found[name]) != (1 if name == "dilations" else 0)):
            raise Skip(f"{node.op} has no '{name}' at opset {node.graph.opset()}; convert the model to opset 13 first")
        del found[name]
    return found


def _shorten(x: str, channels: int, edit: Edit) -> bool:
    """Take the channels that only fill up a block away where a convolution makes them. True when that is done."""
    graph, above = edit.graph, []
    node = graph.producer(x)
    while node is not None and node.op in _CHANNELWISE and node.domain == "" and len(graph.uses(node.output(0))) == 1:
        above.append(node)
        node = graph.producer(node.input(0))
    if node is None or node.op != "Conv" or node.domain or len(graph.uses(node.output(0))) != 1:
        return False
    filters = graph.const(node.input(1))
    bias = graph.const(node.input(2)) if node.input(2) else np.zeros(0, np.float32)
    if filters is None or bias is None:
        return False
    if filters.shape[0] == channels:
        return True
    if node.attr("group", 1) != 1:
        return False
    edit.set_input(node, 1, np.ascontiguousarray(filters[:channels]))
    if node.input(2):
        edit.set_input(node, 2, np.ascontiguousarray(bias[:channels]))
    for changed in (node, *above):
        edit.forget_type(changed.output(0))
    return True
