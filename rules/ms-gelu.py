from onnxfix.lowering import contrib
from onnxfix.rule import Context, Edit, Node, Rule, Safety


class Gelu(Rule):
    ops = tuple(f"com.microsoft::{op}" for op in ("Gelu", "QuickGelu", "FastGelu", "BiasGelu"))
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> int:
        return contrib.dtype_of(node)

    def rewrite(self, node: Node, dtype: int, edit: Edit, ctx: Context) -> None:
        x, bias = node.input(0), node.input(1)
        if bias:
            x = str(edit.add("Add", [x, bias]))
        if node.op == "QuickGelu":
            alpha = node.attr("alpha", 1.702)
            inner = x if alpha == 1 else str(edit.add("Mul", [x, contrib.number(alpha, dtype)]))
            y = str(edit.add("Mul", [x, str(edit.add("Sigmoid", [inner]))]))
        elif node.op == "FastGelu":
            y = contrib.fast_gelu(edit, x, dtype)
        elif edit.graph.opset() >= 20 and ctx.supports("Gelu"):
            y = str(edit.add("Gelu", [x]))
        else:
            y = contrib.gelu(edit, x, dtype)
        edit.replace_node(node, y)
