import numpy as np
from onnx import TensorProto

from onnxfix.lowering import quant
from onnxfix.rule import Context, Edit, Node, Rule


class QuantUint8(Rule):
    ops = ("QuantizeLinear",)

    def match(self, node: Node, ctx: Context) -> list[Node] | None:
        """The DequantizeLinear nodes that read the result, when they are all there is."""
        graph, result = node.graph, node.output(0)
        if quant.quantized_dtype(node) != TensorProto.UINT8 or not quant.is_value(graph, node.input(2), 128):
            return None
        if graph.is_output(result):
            return None
        readers = [n for n, index in graph.uses(result) if index == 0]
        taken = all(r.op == "DequantizeLinear" and quant.is_value(graph, r.input(2), 128) for r in readers)
        return readers if readers and taken and len(readers) == len(graph.uses(result)) else None

    def rewrite(self, node: Node, found: list[Node], edit: Edit, ctx: Context) -> None:
        zero = node.graph.const(node.input(2))
        assert zero is not None
        zeros = edit.const(np.zeros(zero.shape, np.int8), "zero_point")
        for each in (node, *found):
            edit.set_input(each, 2, zeros)
        if node.has_attr("output_dtype"):
            edit.set_attr(node, "output_dtype", int(TensorProto.INT8))
        edit.forget_type(node.output(0))
