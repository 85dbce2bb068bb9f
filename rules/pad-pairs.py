from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.graph import Graph
from onnxfix.rule import Context, Edit, Node, Rule

_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
_STEPS = 16  # how far the chain is followed; exporters write six nodes


class PadPairs(Rule):
    ops = ("Pad",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> tuple[str, np.ndarray] | None:
        if node.opset < 11:
            return None
        graph, name = node.graph, node.input(1)
        chain: list[Node] = []
        while len(chain) < _STEPS:
            step = graph.producers.get(name)
            if step is None or step.domain or step.op not in _MOVES:
                break
            chain.append(step)
            name = step.input(0)
        shape, values = graph.shape(name), graph.known(name)
        length = shape[0] if shape is not None and len(shape) == 1 else None
        if not isinstance(length, int):
            length = len(values) if values is not None else None
        if length is None or graph.is_const(name) or not any(n.op == "Reshape" for n in chain):
            return None  # from a constant the whole chain folds
        index: np.ndarray | None = np.arange(length)
        for step in reversed(chain):
            index = _MOVES[step.op](graph, step, index) if index is not None else None
        return (name, index) if index is not None and index.ndim == 1 else None

    def rewrite(self, node: Node, found: tuple[str, np.ndarray], edit: Edit, ctx: Context) -> None:
        source, index = found
        if index.tolist() != list(range(len(index))) or edit.graph.shape(source) != (len(index),):
            source = edit.add("Gather", [source, index.astype(np.int64)], axis=0)
        edit.set_input(node, 1, emit.cast(edit, source, TensorProto.INT64))


def _reshape(graph: Graph, node: Node, x: np.ndarray) -> np.ndarray | None:
    shape = graph.known(node.input(1))
    wanted = [d for d in shape or () if d is not None]
    if shape is None or len(wanted) < len(shape) or 0 in wanted:
        return None
    return x.reshape(wanted)


def _transpose(graph: Graph, node: Node, x: np.ndarray) -> np.ndarray:
    perm: list[int] | None = node.attr("perm")
    turned: np.ndarray = x.transpose(perm)
    return turned


def _slice(graph: Graph, node: Node, x: np.ndarray) -> np.ndarray | None:
    if node.opset < 10:
        return None
    parameters: list[list[int]] = []
    for name in node.inputs[1:]:
        known = (graph.known(name) or [None]) if name else []
        parameters.append([v for v in known if v is not None])
        if len(parameters[-1]) < len(known):
            return None
    starts, ends, axes, steps = [*parameters, [], []][:4]
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    at = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # ONNX writes "past the front" as an end far below zero, Python as None.
        at[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    cut: np.ndarray = x[tuple(at)]
    return cut


def _cast(graph: Graph, node: Node, x: np.ndarray) -> np.ndarray | None:
    return x if node.attr("to") in _INTEGERS and graph.dtype(node.input(0)) in _INTEGERS else None


_MOVES: dict[str, Callable[[Graph, Node, np.ndarray], np.ndarray | None]] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Slice": _slice,
    "Cast": _cast,
    "Identity": lambda graph, node, x: x,
}
