
from onnx import TensorProto

from onnxfix import emit
from onnxfix.graph import Graph
from onnxfix.lowering import resize
from onnxfix.rule import Context, Edit, Node, Rule

_SMALL = (TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16)
_LARGE = (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64)
_EXACT = 1 << 24  # FLOAT holds all integers up to here


class ResizeInteger(Rule):
    ops = ("Resize", "Upsample")

    def match(self, node: Node, ctx: Context) -> int | None:
        dtype = node.graph.dtype(node.input(0))
        if node.attr("mode") != "nearest" or dtype not in (*_SMALL, *_LARGE):
            return None
        if dtype in _LARGE and not _below(node.graph, node.input(0), _EXACT):
            return None  # left to the rule that gathers, which takes any value
        probe = Edit(node.graph, node, "")
        resized = node.graph.producer(_as_float(node, probe))
        taken = resized is not None and not ctx.refused(resized)
        probe.rollback()
        return dtype if taken else None

    def rewrite(self, node: Node, found: int, edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, emit.cast(edit, _as_float(node, edit), found))


def _as_float(node: Node, edit: Edit) -> str:
    inputs = [emit.cast(edit, node.input(0), TensorProto.FLOAT), *node.inputs[1:]]
    return resize.copied(node, inputs, edit)


def _below(graph: Graph, name: str, bound: int) -> bool:
    """Whether the values of an integer tensor are known to be small."""
    array = graph.const(name)
    if array is not None:
        return bool(array.size) and int(abs(array.astype(object)).max()) < bound
    source = graph.producer(name)
    if source is None or source.domain:
        return False
    if source.op in ("ArgMax", "ArgMin"):
        shape, axis = source.graph.shape(source.input(0)), source.attr("axis")
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        return isinstance(size, int) and size <= bound
    if source.op == "Cast":
        dtype = source.graph.dtype(source.input(0))
        return dtype in _SMALL or (dtype in _LARGE and _below(source.graph, source.input(0), bound))
    keeps = ("Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Gather")
    return source.op in keeps and _below(source.graph, source.input(0), bound)
