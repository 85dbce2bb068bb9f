from typing import Any

import numpy as np

from onnxfix.lowering import pad, window
from onnxfix.rule import Context, Edit, Node, Rule, Skip

Attributes = dict[str, Any]


class PadBeforeWindow(Rule):
    ops = ("Pad",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> list[tuple[Node, Attributes]] | None:
        graph, padded = node.graph, node.output(0)
        readers = graph.uses(padded)
        if not readers or graph.is_output(padded):
            return None
        try:
            padding = pad.read(node)
            found = [(reader, self.absorb(reader, index, node, padding)) for reader, index in readers]
        except Skip:  # not known well enough to fold; a Pad that is refused is another rule's business
            return None
        taken = [(reader, attributes) for reader, attributes in found if attributes is not None]
        if len(taken) < len(readers):
            return None
        # A pool may take fewer pads than Pad does; one that is refused already is no worse off.
        if any(not window.accepted(r, a, ctx) and not ctx.refused(r) for r, a in taken):
            return None
        return taken

    def absorb(self, reader: Node, index: int, node: Node, padding: pad.Padding) -> Attributes | None:
        """The attributes that make `reader` pad by itself, None when none do."""
        if index != 0 or reader.domain or padding.mode != "constant" or min(*padding.begins, *padding.ends) < 0:
            return None
        if reader.op not in window.OPERATORS or any(a < 2 for a in padding.moved):
            return None
        geometry = window.read(reader)
        begins, ends = padding.begins[2:], padding.ends[2:]
        if len(geometry.kernel) != len(begins):
            return None
        if reader.op == "ConvTranspose":
            return self.transposed(reader, geometry, begins, ends) if padding.value == 0 else None
        new = (
            *(a + b for a, b in zip(geometry.begins, begins, strict=True)),
            *(a + b for a, b in zip(geometry.ends, ends, strict=True)),
        )
        attributes: Attributes = {"auto_pad": None, "pads": list(new)}
        if reader.op == "Conv":
            return attributes if padding.value == 0 else None
        # A pool's window must always meet data, and the folded pool must have as many windows.
        meets = all(p < k for p, k in zip(new, geometry.kernel * 2, strict=True))
        if not meets or not window.rounds_down(reader, geometry):
            return None
        if reader.op == "MaxPool":
            return attributes if self.below(node, padding.value, geometry) and not reader.output(1) else None
        if padding.value != 0 or reader.op == "LpPool":
            return attributes if padding.value == 0 else None
        # An average must count these zeros, so it counts its own pads as well.
        counted = not geometry.padded or reader.attr("count_include_pad")
        return attributes | {"count_include_pad": 1} if counted else None

    def transposed(
        self, reader: Node, geometry: window.Window, begins: tuple[int, ...], ends: tuple[int, ...]
    ) -> Attributes | None:
        """Zeros around the input of a transposed convolution make `stride` rows each that its pads crop again."""
        if reader.attr("output_shape"):
            return None
        pads = [
            p - amount * s
            for p, amount, s in zip(geometry.pads, (*begins, *ends), geometry.strides * 2, strict=True)
        ]
        return {"auto_pad": None, "pads": pads} if min(pads) >= 0 else None

    def below(self, node: Node, value: np.ndarray, geometry: window.Window) -> bool:
        """Whether the padded value never exceeds the data, so that no maximum sees it."""
        if any(d != 1 for d in geometry.dilations):
            return False  # a window with gaps may miss the data between its pads
        return float(value) <= max(pad.lowest(value.dtype), pad.floor_of(node.graph, node.input(0)))

    def rewrite(self, node: Node, found: list[tuple[Node, Attributes]], edit: Edit, ctx: Context) -> None:
        for reader, attributes in found:
            edit.set_input(reader, 0, node.input(0))
            for name, value in attributes.items():
                edit.set_attr(reader, name, value)
            edit.mark(reader)
        edit.note = f"folded into {', '.join(r.op for r, _ in found)}"
        edit.remove(node)
