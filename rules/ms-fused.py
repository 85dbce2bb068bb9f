from typing import Any

from onnxfix import emit
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
        if _FUSED[node.op] == "MatMul":
            for name, side in zip(node.inputs, "AB", strict=False):
                turned = node.attr(f"trans{side}", 0) or node.attr(f"transBatch{side}", 0)
                if turned and node.graph.rank(name) is None:
                    raise Skip(f"the rank of '{name}' is not known")
        return _FUSED[node.op]

    def rewrite(self, node: Node, found: str, edit: Edit, ctx: Context) -> None:
        attributes: dict[str, Any] = {name: node.attr(name) for name in _OWN[found] if node.has_attr(name)}
        inputs = [node.input(0), node.input(1), node.input(2)]
        if found == "MatMul":
            inputs = [
                _turned(name, bool(node.attr(f"trans{side}", 0)), bool(node.attr(f"transBatch{side}", 0)), edit)
                for name, side in zip(inputs[:2], "AB", strict=True)
            ]
        y = str(edit.add(found, inputs if inputs[-1] else inputs[:-1], **attributes))
        if found == "MatMul" and node.attr("alpha", 1.0) != 1.0:
            y = str(edit.add("Mul", [y, contrib.number(node.attr("alpha"), contrib.dtype_of(node))]))
        if node.op == "FusedConv" and node.input(3):
            y = str(edit.add("Add", [y, node.input(3)]))
        named = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
        parameters = node.attr("activation_params", []) or [node.attr(n) for n in named if node.has_attr(n)]
        edit.replace_node(node, contrib.activate(edit, y, node.attr("activation", ""), parameters))


def _turned(x: str, last: bool, batch: bool, edit: Edit) -> str:
    """`x` with its first axis moved in front of the last (`batch`), and then its last two axes swapped (`last`)."""
    rank = edit.graph.rank(x) or 0
    axes = list(range(rank))
    if batch and rank > 2:
        axes = [*axes[1:-1], 0, axes[-1]]
    if last and rank > 1:
        axes[-2:] = axes[:-3:-1]
    return emit.transpose(edit, x, axes)
