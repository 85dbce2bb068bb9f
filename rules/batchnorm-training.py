import numpy as np

from onnxfix import emit
from onnxfix.lowering import norm
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class BatchNormTraining(Rule):
    ops = ("BatchNormalization",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> int | None:
        graph = node.graph
        if node.opset < 14 and any(node.outputs[1:]):
            raise Skip("it asks for training statistics: call model.eval() and export again")
        if not node.attr("training_mode"):
            return None
        rank = graph.rank(node.input(0))
        if rank is None:
            raise Skip(f"the rank of '{node.input(0)}' is not known")
        if len({graph.dtype(i) for i in node.inputs}) > 1 or not graph.dtype(node.input(0)):
            raise Skip("input and parameters are of several dtypes")
        norm.working_dtype(graph, node.input(0))
        return rank

    def rewrite(self, node: Node, rank: int, edit: Edit, ctx: Context) -> None:
        x, scale, bias, *running = node.inputs
        dtype, axes = node.graph.dtype(x), [0, *range(2, rank)]
        work = norm.working_dtype(node.graph, x)
        edit.note = "normalises by the batch at hand, as training does; if that is a mistake, export after model.eval()"
        source = emit.cast(edit, x, work)
        parts = norm.standardize(edit, source, axes, node.attr("epsilon"), work, ctx)
        y = edit.add("Mul", [emit.cast(edit, parts.result, dtype), norm.per_channel(edit, scale, rank)])
        y = edit.add("Add", [y, norm.per_channel(edit, bias, rank)])
        keep = np.asarray(node.attr("momentum"), norm.constant(0, dtype).dtype)
        statistics = []
        for old, new, output in zip(running, (parts.mean, parts.variance), node.outputs[1:], strict=False):
            if not node.graph.unused(output):
                now = emit.cast(edit, emit.reshape(edit, new, [-1]), dtype)
                blend = [edit.add("Mul", [old, keep]), edit.add("Mul", [now, (1 - keep).astype(keep.dtype)])]
                statistics.append(edit.add("Add", blend))
            else:
                statistics.append("")
        edit.replace_node(node, y, *statistics)
