from typing import Any

from onnxfix.lowering import contrib
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "TransposeMatMul": "MatMul"}
_OWN = {
    "Conv": ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"),
    "Gemm": ("alpha", "beta", "transA", "transB"),
    "MatMul": (),
}


class FusedOperator(Rule):
    ops = tuple(f"com.microsoft::{op}" for op in _FUSED)
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> str:
        contrib.known_activation(node.attr("activation", ""))
        if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
            raise Skip("it swaps batch axes; save the model without ONNX Runtime's optimisation")
        if _FUSED[node.op] == "MatMul":
            for name, flag in zip(node.inputs, ("transA", "transB"), strict=False):
                if node.attr(flag, 0) and node.graph.rank(name) is None:
                    raise Skip(f"the rank of '{name}' is not known")
        return _FUSED[node.op]

    def rewrite(self, node: Node, found: str, edit: Edit, ctx: Context) -> None:
        attributes: dict[str, Any] = {name: node.attr(name) for name in _OWN[found] if node.has_attr(name)}
        inputs = [node.input(0), node.input(1), node.input(2)]
        if found == "MatMul":
            inputs = [
                contrib.swap_last(edit, name) if node.attr(flag, 0) else name
                for name, flag in zip(inputs[:2], ("transA", "transB"), strict=True)
            ]
        y = str(edit.add(found, inputs if inputs[-1] else inputs[:-1], **attributes))
        if found == "MatMul" and node.attr("alpha", 1.0) != 1.0:
            y = str(edit.add("Mul", [y, contrib.number(node.attr("alpha"), contrib.dtype_of(node))]))
        if node.op == "FusedConv" and node.input(3):
            y = str(edit.add("Add", [y, node.input(3)]))
        named = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
        parameters = node.attr("activation_params", []) or [node.attr(n) for n in named if node.has_attr(n)]
        edit.replace_node(node, contrib.activate(edit, y, node.attr("activation", ""), parameters))
