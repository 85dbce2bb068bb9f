"""The reductions, whose axes moved from an attribute to an input."""

from __future__ import annotations

from onnxfix.errors import Skip
from onnxfix.graph import Node
from onnxfix.lowering import elementwise

OPERATORS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
)


def axes(node: Node) -> list[int]:
    """The axes a reduction names, counted from the front and sorted; none when it names none.

    Raises Skip when they, or the rank they are counted in, are not known.
    """
    if node.input(1):
        held = node.graph.const(node.input(1))
        if held is None:
            raise Skip("its axes are computed; make them constant")
        named = [int(a) for a in held.reshape(-1)]
    else:
        named = list(node.attr("axes") or ())
    if not named:
        return []
    rank = elementwise.rank_of(node.graph, node.input(0))
    return sorted({elementwise.axis_of(a, rank) for a in named})
