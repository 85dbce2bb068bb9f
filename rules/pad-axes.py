import numpy as np

from onnxfix import emit
from onnxfix.lowering import pad
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class PadAxes(Rule):
    ops = ("Pad",)

    def match(self, node: Node, ctx: Context) -> tuple[list[int], int] | None:
        if not node.input(3):
            return None
        graph = node.graph
        rank, axes = graph.rank(node.input(0)), graph.known(node.input(3))
        if rank is None:
            raise Skip(f"the rank of '{node.input(0)}' is not known")
        known = [a for a in axes or () if a is not None]
        if axes is None or len(known) < len(axes):
            raise Skip("the axes to pad are computed; make them constant")
        return [a % rank for a in known], rank

    def rewrite(self, node: Node, found: tuple[list[int], int], edit: Edit, ctx: Context) -> None:
        axes, rank = found
        pads = node.graph.known(node.input(1))
        fixed = [p for p in pads or () if p is not None]
        if len(fixed) == 2 * len(axes):
            half = len(axes)
            wide = [*pad.widen(fixed[:half], axes, rank), *pad.widen(fixed[half:], axes, rank)]
            amounts = edit.const(emit.ints(wide), "pads")
        else:
            # Amounts known at run time only: pick each from them, or the zero put behind them.
            count = 2 * len(axes)
            index = np.full(2 * rank, count)
            for i, axis in enumerate(axes):
                index[axis], index[rank + axis] = i, len(axes) + i
            amounts = edit.add("Gather", [emit.concat(edit, [node.input(1), emit.ints([0])], 0), index], axis=0)
        edit.set_inputs(node, [node.input(0), amounts, node.input(2)])
