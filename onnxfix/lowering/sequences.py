"""What is known of sequences before the model runs."""

from __future__ import annotations

from onnxfix.graph import Graph


def elements(graph: Graph, name: str) -> list[str] | None:
    """The values a sequence consists of, in order; None when that hangs on the input. Cost: the nodes that make it."""
    edits: list[tuple[str, str, int | None]] = []
    while True:
        node = graph.producer(name)
        if node is None or node.domain:
            return None
        graph = node.graph
        if node.op == "SequenceConstruct":
            found = node.inputs
            break
        if node.op == "SequenceEmpty":
            found = []
            break
        if node.op not in ("SequenceInsert", "SequenceErase", "Identity"):
            return None
        name = node.input(0)
        if node.op == "Identity":
            continue
        position = node.input(2 if node.op == "SequenceInsert" else 1)
        at = graph.const(position) if position else None
        if position and at is None:
            return None
        edits.append((node.op, node.input(1), None if at is None else int(at.reshape(-1)[0])))
    for op, value, at_index in reversed(edits):
        size = len(found)
        place = at_index if at_index is not None else (size if op == "SequenceInsert" else size - 1)
        place += size if place < 0 else 0
        if op == "SequenceInsert" and 0 <= place <= size:
            found.insert(place, value)
        elif op == "SequenceErase" and 0 <= place < size:
            del found[place]
        else:
            return None
    return found
