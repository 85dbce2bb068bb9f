import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class MlLinear(Rule):
    ops = ("ai.onnx.ml::LinearClassifier", "ai.onnx.ml::LinearRegressor", "ai.onnx.ml::Normalizer")
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> bool:
        if elementwise.rank_of(node.graph, node.input(0)) != 2:
            raise Skip("its input is no matrix")
        if node.graph.dtype(node.input(0)) == TensorProto.DOUBLE:
            raise Skip("it takes DOUBLE numbers; feed it FLOAT")
        if node.op == "Normalizer":
            return True
        if self._transform(node) not in ("NONE", "SOFTMAX", "LOGISTIC"):
            raise Skip(f"its scores are transformed by {self._transform(node)}, which is not written out here")
        if node.op == "LinearClassifier":
            labels = node.attr("classlabels_ints")
            if not labels and not node.graph.unused(node.output(0)):
                raise Skip("its labels are words; use the scores alone, and look the word up after the network")
            if len(node.attr("intercepts") or ()) != len(labels or node.attr("classlabels_strings") or ()):
                raise Skip("it has not one score for each class")
        return True

    @staticmethod
    def _transform(node: Node) -> str:
        name = node.attr("post_transform") or "NONE"
        return name.decode() if isinstance(name, bytes) else str(name)

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        x = emit.cast(edit, node.input(0), TensorProto.FLOAT)
        if node.op == "Normalizer":
            edit.replace_node(node, self._normalized(node, edit, x))
            return
        intercepts = node.attr("intercepts") or [0.0] * int(node.attr("targets") or 1)
        weights = np.asarray(node.attr("coefficients"), np.float32).reshape(len(intercepts), -1).T
        scores = edit.add("Gemm", [x, weights, np.asarray(intercepts, np.float32)])
        result = scores
        if self._transform(node) != "NONE":
            softmax = self._transform(node) == "SOFTMAX"
            result = edit.add("Softmax", [scores], axis=1) if softmax else edit.add("Sigmoid", [scores])
        if node.op == "LinearRegressor":
            edit.replace_node(node, result)
            return
        label = ""
        if node.attr("classlabels_ints"):
            number = edit.add("ArgMax", [scores], axis=1, keepdims=0)
            label = edit.add("Gather", [np.asarray(node.attr("classlabels_ints"), np.int64), number], axis=0)
        edit.replace_node(node, label, result)

    @staticmethod
    def _normalized(node: Node, edit: Edit, x: str) -> str:
        kind = node.attr("norm")
        name = kind.decode() if isinstance(kind, bytes) else kind
        op = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}[name]
        norm = emit.reduce(edit, op, x, [1])
        nothing = edit.add("Equal", [norm, np.float32(0)])  # a row of zeros stays what it is
        return str(edit.add("Div", [x, edit.add("Where", [nothing, np.float32(1), norm])]))
