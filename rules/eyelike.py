import numpy as np
from onnx import TensorProto, helper

from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class EyeLike(Rule):
    ops = ("EyeLike",)

    def match(self, node: Node, ctx: Context) -> np.ndarray | None:
        graph, source = node.graph, node.input(0)
        dtype = node.attr("dtype") or graph.dtype(source)
        if not dtype or dtype in (TensorProto.BFLOAT16, TensorProto.STRING):
            raise Skip("the dtype of its result is not known, or not to be had as a constant")
        rows, columns = elementwise.static(graph, source)
        return np.eye(rows, columns, node.attr("k"), helper.tensor_dtype_to_np_dtype(dtype))

    def rewrite(self, node: Node, found: np.ndarray, edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, edit.const(found, "eye"))
