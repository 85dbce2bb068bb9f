from onnx import TensorProto

from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class QuantMatMul(Rule):
    ops = ("com.microsoft::DynamicQuantizeMatMul", "com.microsoft::MatMulIntegerToFloat")
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool:
        if node.graph.opset() < 11:
            raise Skip("what it consists of does not exist before opset 11; convert the model to opset 13 first")
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        if node.op == "DynamicQuantizeMatMul":
            _, b, b_scale, b_zero, bias = (node.input(i) for i in range(5))
            a, a_scale, a_zero = edit.add("DynamicQuantizeLinear", [node.input(0)], outputs=3)
        else:
            a, b, a_scale, b_scale, a_zero, b_zero, bias = (node.input(i) for i in range(7))
        inputs = [a, b, a_zero, b_zero]
        while not inputs[-1]:
            inputs.pop()
        sums = str(edit.add("MatMulInteger", inputs))
        scale = str(edit.add("Mul", [a_scale, b_scale]))
        y = str(edit.add("Mul", [str(edit.add("Cast", [sums], to=TensorProto.FLOAT)), scale]))
        edit.replace_node(node, str(edit.add("Add", [y, bias])) if bias else y)
