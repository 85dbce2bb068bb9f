import math

from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise, reduce
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_OLDER = "export at opset 17 or older, where its axes are an attribute"
_OF_SUMS = ("ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")


class ReduceAxes(Rule):
    ops = reduce.OPERATORS
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> list[int] | None:
        graph, x = node.graph, node.input(0)
        if not node.input(1):
            return None
        axes = reduce.axes(node)
        if not axes or len(axes) == graph.rank(x):
            return None  # rule reduce-noop
        sums = node.op in _OF_SUMS and node.opset >= 18
        if not sums and node.op not in ("ReduceMax", "ReduceMin") and (node.op != "ReduceSum" or node.opset >= 18):
            raise Skip(f"{node.op} has no other form here; {_OLDER}")
        if graph.dtype(x) not in _FLOATS:
            raise Skip(f"integers are not reduced otherwise; {_OLDER}")
        if node.op in ("ReduceMean", "ReduceSum"):
            self.count(node, axes)
        return axes

    @staticmethod
    def count(node: Node, axes: list[int]) -> int:
        shape = node.graph.shape(node.input(0)) or ()
        sizes = [d for a in axes if isinstance(d := shape[a], int) and d]
        if len(sizes) < len(axes):
            raise Skip("how many elements it reduces is not known; freeze the dynamic axes")
        return math.prod(sizes)

    def rewrite(self, node: Node, axes: list[int], edit: Edit, ctx: Context) -> None:
        x, keep = node.input(0), node.attr("keepdims")
        if node.op in ("ReduceMax", "ReduceMin"):
            y = self.extreme(node, axes, edit)
        elif node.op == "ReduceSum":
            mean = edit.add("ReduceMean", [x], axes=axes, keepdims=keep)
            y = edit.add("Mul", [mean, elementwise.full(edit, x, float(self.count(node, axes)))])
        else:
            if node.op == "ReduceL1":
                x = edit.add("Abs", [x])
            elif node.op in ("ReduceL2", "ReduceSumSquare"):
                x = edit.add("Mul", [x, x])
            y = emit.reduce(edit, "ReduceSum", x, axes, keep)
            if node.op == "ReduceMean":
                y = edit.add("Mul", [y, elementwise.full(edit, node.input(0), 1 / self.count(node, axes))])
            elif node.op in ("ReduceL2", "ReduceLogSum"):
                y = edit.add("Sqrt" if node.op == "ReduceL2" else "Log", [y])
        edit.replace_node(node, y)

    @staticmethod
    def extreme(node: Node, axes: list[int], edit: Edit) -> str:
        own = node.graph.dtype(node.input(0))
        x = emit.cast(edit, node.input(0), TensorProto.FLOAT) if own == TensorProto.BFLOAT16 else node.input(0)
        x = x if node.op == "ReduceMax" else edit.add("Neg", [x])
        for axis in axes:
            x, _ = edit.add("TopK", [x, emit.ints([1])], outputs=2, axis=axis)  # which ONNX lacks for BFLOAT16
        x = emit.cast(edit, x if node.op == "ReduceMax" else edit.add("Neg", [x]), own)
        return x if node.attr("keepdims") else emit.squeeze(edit, x, axes)
