from onnx import TensorProto

from onnxfix.lowering import einsum
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class Einsum(Rule):
    ops = ("Einsum",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> einsum.Equation | None:
        if node.graph.dtype(node.input(0)) not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            raise Skip("only FLOAT, FLOAT16 and DOUBLE are multiplied and summed by TensorRT's MatMul")
        return einsum.parse(node.attr("equation"), node.graph, node.inputs)

    def rewrite(self, node: Node, found: einsum.Equation, edit: Edit, ctx: Context) -> None:
        result = einsum.Contraction(edit).run(node.inputs, found)
        edit.note = f"'{node.attr('equation')}' is computed by {len(edit.added)} plain nodes"
        edit.replace_node(node, result)
