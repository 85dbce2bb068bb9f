from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import quant
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class MatMulInteger(Rule):
    ops = ("MatMulInteger",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> bool:
        graph = node.graph
        for name, role in ((node.input(2), "left"), (node.input(3), "right")):
            if name and graph.shape(name) is None:
                raise Skip(f"the shape of the {role} zero point is not known")
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        graph = node.graph
        zero = node.input(2)
        if zero and graph.rank(zero) == 1 and graph.shape(zero) != (1,):
            zero = emit.unsqueeze(edit, zero, [1])  # one for each row
        left, right = quant.centred(edit, node.input(0), zero), quant.centred(edit, node.input(1), node.input(3))
        edit.note = quant.sums_note(graph.const(right), "MatMul")
        sums = str(edit.add("MatMul", [left, right]))
        edit.replace_node(node, str(edit.add("Cast", [sums], to=TensorProto.INT32)))
