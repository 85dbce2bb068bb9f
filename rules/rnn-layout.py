from onnxfix import emit
from onnxfix.rule import Context, Edit, Node, Rule

_SWAP = (1, 0, 2)  # [batch, time or directions, size] to and from [time or directions, batch, size]
_STATES = (5, 6)  # initial_h, and initial_c of LSTM


class RnnLayout(Rule):
    ops = ("RNN", "LSTM", "GRU")

    def match(self, node: Node, ctx: Context) -> bool | None:
        return True if node.attr("layout") == 1 else None

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        inputs = node.inputs
        for i in (0, *_STATES):
            if node.input(i):
                inputs[i] = emit.transpose(edit, inputs[i], _SWAP)
        kept = {a.name: node.attr(a.name) for a in node.proto.attribute if a.name != "layout"}
        wanted = [o and f"{o}/batch_second" for o in node.outputs]
        made = edit.add(node.op, inputs, outputs=wanted, **kept)
        first, *states = [made] if isinstance(made, str) else made
        # Y is [time, directions, batch, size].
        y = first and emit.transpose(edit, first, (2, 0, 1, 3))
        edit.replace_node(node, y, *(s and emit.transpose(edit, s, _SWAP) for s in states))
