from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise, trees
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


@dataclass
class _Ensemble:
    forest: trees.Forest
    base: np.ndarray  # FLOAT, what is added to the scores; empty for nothing
    aggregate: str
    transform: str
    binary: bool  # a classifier of two classes that has scores for one


class MlTrees(Rule):
    ops = (
        "ai.onnx.ml::TreeEnsemble",
        "ai.onnx.ml::TreeEnsembleClassifier",
        "ai.onnx.ml::TreeEnsembleRegressor",
    )
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Ensemble:
        graph, classifier = node.graph, node.op == "TreeEnsembleClassifier"
        if elementwise.rank_of(graph, node.input(0)) != 2:
            raise Skip("its input is no matrix")
        if elementwise.dtype_of(graph, node.input(0)) == np.float64:
            raise Skip("it compares DOUBLE numbers; feed it FLOAT")
        labels = node.attr("classlabels_int64s") if classifier else None
        if classifier and not labels and not graph.unused(node.output(0)):
            raise Skip("its labels are words; use the scores alone, and look the word up after the network")
        targets = len(labels or node.attr("classlabels_strings") or ()) if classifier else node.attr("n_targets") or 1
        forest = trees.read(node, "class" if classifier else "target", targets)
        base = np.zeros(0, np.float32) if node.op == "TreeEnsemble" else trees.base_values(node)
        aggregate = self._named(node, "aggregate_function", _AGGREGATES)
        transform = self._named(node, "post_transform", _TRANSFORMS)
        binary = classifier and targets == 2 and int(forest.weighs.any(0).sum()) == 1
        if transform not in ("NONE", "SOFTMAX", "LOGISTIC") or (binary and (transform != "NONE" or len(base))):
            raise Skip(f"its scores are transformed by {transform}, which is not written out here")
        if classifier and targets < 3 and not (binary and forest.weighs[:, 0].any()):
            raise Skip("runtimes disagree on the label of two classes unless the scores are those of the first")
        if aggregate in ("MIN", "MAX") and not forest.weighs[forest.leaves].all():
            raise Skip(f"the {aggregate} of scores of which some trees have none is not written out")
        return _Ensemble(forest, base, aggregate, transform, binary)

    @staticmethod
    def _named(node: Node, attribute: str, names: tuple[str, ...]) -> str:
        value = node.attr(attribute)
        if value is None:
            return "SUM" if attribute == "aggregate_function" else "NONE"
        return names[value] if isinstance(value, int) else value.decode() if isinstance(value, bytes) else str(value)

    def rewrite(self, node: Node, found: _Ensemble, edit: Edit, ctx: Context) -> None:
        forest = found.forest
        x = emit.cast(edit, node.input(0), TensorProto.FLOAT)
        leaves = trees.walk(edit, forest, x)
        votes = edit.add("Gather", [forest.weights, leaves], axis=0)  # [rows, trees, targets]
        op = {"AVERAGE": "ReduceSum", "SUM": "ReduceSum", "MIN": "ReduceMin", "MAX": "ReduceMax"}[found.aggregate]
        scores = emit.reduce(edit, op, votes, [1], keepdims=0)
        if found.aggregate == "AVERAGE":
            scores = edit.add("Div", [scores, np.float32(len(forest.roots))])
        if len(found.base):
            scores = edit.add("Add", [scores, found.base])
        if node.op != "TreeEnsembleClassifier":
            result = self._transformed(edit, scores, found.transform)
            edit.replace_node(node, emit.cast(edit, result, node.graph.dtype(node.output(0)) or TensorProto.FLOAT))
        elif found.binary:
            self._classify_two(node, found, edit, scores)
        else:
            chosen = scores
            if not len(found.base) and not forest.weighs[forest.leaves].all():  # what nobody voted for is not chosen
                voted = edit.add("Gather", [forest.weighs.astype(np.float32), leaves], axis=0)
                voted = edit.add("Greater", [emit.reduce(edit, "ReduceMax", voted, [1], keepdims=0), np.float32(0)])
                chosen = edit.add("Where", [voted, scores, np.float32(-np.inf)])
            label = edit.add("ArgMax", [chosen], axis=1, keepdims=0)
            edit.replace_node(node, self._label(node, edit, label), self._transformed(edit, scores, found.transform))

    @staticmethod
    def _transformed(edit: Edit, scores: str, transform: str) -> str:
        if transform == "NONE":
            return scores
        return str(edit.add("Softmax", [scores], axis=1) if transform == "SOFTMAX" else edit.add("Sigmoid", [scores]))

    @staticmethod
    def _label(node: Node, edit: Edit, number: str) -> str:
        labels = node.attr("classlabels_int64s")
        return str(edit.add("Gather", [np.asarray(labels, np.int64), number], axis=0)) if labels else ""

    def _classify_two(self, node: Node, found: _Ensemble, edit: Edit, scores: str) -> None:
        """The score of one class says which of two it is; the other's is what is missing to 1, or its negative."""
        positive = bool((found.forest.weights >= 0).all())
        score = emit.slice_(edit, scores, [0], [1], [1])
        above = edit.add("Greater", [score, np.float32(0.5 if positive else 0)])
        other = edit.add("Sub", [np.float32(1), score]) if positive else edit.add("Neg", [score])
        number = emit.reshape(edit, emit.cast(edit, above, TensorProto.INT64), [-1])
        edit.replace_node(node, self._label(node, edit, number), emit.concat(edit, [other, score], 1))
