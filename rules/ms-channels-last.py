from onnxfix import emit
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_POOLS = ("QLinearAveragePool", "QLinearGlobalAveragePool")


class ChannelsLast(Rule):
    ops = tuple(f"com.microsoft::{op}" for op in ("QLinearConv", "NhwcMaxPool", *_POOLS))
    safety = Safety.EXACT
    when = "always"

    def match(self, node: Node, ctx: Context) -> int | None:
        """The rank; 0 for a convolution that only has to come into ONNX's own domain."""
        if node.op != "NhwcMaxPool" and not node.attr("channels_last", 0):
            return 0 if node.op == "QLinearConv" else None
        if node.op == "NhwcMaxPool" and node.graph.opset() < 12:
            raise Skip("MaxPool takes no integers before opset 12; convert the model to opset 13 first")
        # All of them are made for images only.
        return node.graph.rank(node.input(0)) or 4

    def rewrite(self, node: Node, rank: int, edit: Edit, ctx: Context) -> None:
        attributes = {a.name: node.attr(a.name) for a in node.proto.attribute if a.name != "channels_last"}
        op = "MaxPool" if node.op == "NhwcMaxPool" else node.op
        domain = "com.microsoft" if op in _POOLS else ""
        x = node.input(0)
        if rank:
            x = emit.transpose(edit, x, [0, rank - 1, *range(1, rank - 1)])
        y = str(edit.add(op, [x, *node.inputs[1:]], domain=domain, **attributes))
        edit.replace_node(node, emit.transpose(edit, y, [0, *range(2, rank), 1]) if rank else y)
