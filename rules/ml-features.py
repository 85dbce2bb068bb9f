import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise, ml
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class MlFeatures(Rule):
    ops = ("ai.onnx.ml::ArrayFeatureExtractor", "ai.onnx.ml::Binarizer", "ai.onnx.ml::Scaler")

    def match(self, node: Node, ctx: Context) -> bool:
        rank = elementwise.rank_of(node.graph, node.input(0))
        elementwise.dtype_of(node.graph, node.input(0))
        if node.op == "Scaler":
            if rank > 2:
                raise Skip("how it scales more than two dimensions is not defined")
            if node.graph.dtype(node.input(0)) == TensorProto.DOUBLE:
                raise Skip("what it rounds between DOUBLE and FLOAT is not defined; feed it FLOAT")
        if node.op == "ArrayFeatureExtractor" and rank == 0:
            raise Skip("it has no features to choose from")
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        ml.import_standard(edit)
        edit.replace_node(node, getattr(self, f"_{node.op.lower()}")(node, edit))

    @staticmethod
    def _arrayfeatureextractor(node: Node, edit: Edit) -> str:
        x = node.input(0)
        if edit.graph.rank(x) == 1:
            x = emit.reshape(edit, x, [1, -1])
        return str(edit.add("Gather", [x, emit.reshape(edit, node.input(1), [-1])], axis=(edit.graph.rank(x) or 2) - 1))

    @staticmethod
    def _binarizer(node: Node, edit: Edit) -> str:
        above = edit.add("Greater", [node.input(0), emit.scalar(edit, node.attr("threshold"), node.input(0))])
        return emit.cast(edit, above, node.graph.dtype(node.input(0)))

    @staticmethod
    def _scaler(node: Node, edit: Edit) -> str:
        x = emit.cast(edit, node.input(0), TensorProto.FLOAT)
        offset, scale = (np.asarray(node.attr(a) or [v], np.float32) for a, v in (("offset", 0.0), ("scale", 1.0)))
        return str(edit.add("Mul", [edit.add("Sub", [x, offset]), scale]))
