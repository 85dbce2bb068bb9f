from collections.abc import Callable

import numpy as np

from onnxfix import folding
from onnxfix.rule import Context, Edit, Node, Rule

_TO_THE_END = (1 << 31) - 1  # what exporters write for "all the rest"


def _ints(node: Node, attribute: str, index: int) -> list[int] | None:
    """A parameter that was an attribute once and is an input now."""
    if node.has_attr(attribute):
        return list(node.attr(attribute))
    array = node.graph.const(node.input(index)) if node.input(index) else None
    return None if array is None else [int(v) for v in array.reshape(-1)]


def _reshape(node: Node) -> bool:
    """Whether the shape stays: fixed, or with one dynamic dimension that the number of elements fixes."""
    before, after = node.graph.shape(node.input(0)), node.graph.shape(node.output(0))
    if before is None or after is None or len(before) != len(after):
        return False
    fixed = [b if isinstance(b, int) else None for b in before]
    if fixed != [a if isinstance(a, int) else None for a in after]:
        return False
    return None not in fixed or (fixed.count(None) == 1 and 0 not in fixed)


def _slice(node: Node) -> bool:
    starts, ends = _ints(node, "starts", 1), _ints(node, "ends", 2)
    steps = _ints(node, "steps", 4) if node.input(4) else [1] * len(starts or ())
    shape = node.graph.shape(node.input(0))
    axes = _ints(node, "axes", 3) if node.input(3) or node.has_attr("axes") else list(range(len(starts or ())))
    if starts is None or ends is None or steps is None or axes is None or any(s != 1 for s in steps):
        return False
    for start, end, axis in zip(starts, ends, axes, strict=False):
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        if start != 0 or not (end >= _TO_THE_END or (isinstance(size, int) and end >= size)):
            return False
    return True


def _expand(node: Node) -> bool:
    target, shape = node.graph.known(node.input(1)), node.graph.shape(node.input(0))
    if target is None or shape is None or len(target) > len(shape):
        return False
    return all(t == 1 or (t is not None and t == s) for t, s in zip(target[::-1], shape[::-1], strict=False))


def _resize(node: Node) -> bool:
    if node.op == "Resize" and node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    scales = node.graph.const(node.input(1 if node.op == "Upsample" or node.opset < 11 else 2))
    if scales is not None and scales.size:
        return bool((scales == 1).all())
    sizes = node.input(3) and not node.has_attr("axes") and node.attr("keep_aspect_ratio_policy") in (None, "stretch")
    return bool(sizes) and node.graph.static_shape(node.input(0)) == tuple(node.graph.known(node.input(3)) or ())


def _neutral(neutral: Callable[[np.ndarray], bool], places: tuple[int, ...] = (1,)) -> Callable[[Node], int | None]:
    """The input that comes out unchanged, as the other is a neutral constant that does not broadcast it."""

    def test(node: Node) -> int | None:
        graph = node.graph
        for place in places:
            tensor, rank = graph.const_tensor(node.input(place)), graph.rank(node.input(1 - place))
            if tensor is None or rank is None or len(tensor.dims) > rank or any(d != 1 for d in tensor.dims):
                continue
            array = graph.const(node.input(place))
            if array is not None and neutral(array):
                return 1 - place
        return None

    return test


def _minus_nothing(array: np.ndarray) -> bool:
    return not array.any() and not np.signbit(array).any()  # x - 0 is x, x - (-0) turns -0 into 0


def _plus_nothing(array: np.ndarray) -> bool:
    # x + 0 turns -0 into 0, unless there is no -0 or what is added is -0
    return not array.any() and (array.dtype.kind in "iu" or bool(np.signbit(array).all()))


def _is_one(array: np.ndarray) -> bool:
    return bool((array == 1).all())


def _cast(node: Node) -> bool:
    return bool(node.attr("to")) and node.graph.dtype(node.input(0)) == node.attr("to")


def _transpose(node: Node) -> bool:
    perm: list[int] | None = node.attr("perm")
    return perm == sorted(perm) if perm else node.graph.rank(node.input(0)) in (0, 1)


def _squeeze(node: Node) -> bool:
    if node.has_attr("axes") or node.input(1):
        return _ints(node, "axes", 1) == []
    shape = node.graph.static_shape(node.input(0))
    return shape is not None and 1 not in shape


def _alone(node: Node) -> bool:
    return len(node.proto.input) == 1


def _all_are(attribute: str, index: int, value: int) -> Callable[[Node], bool]:
    def test(node: Node) -> bool:
        values = _ints(node, attribute, index)
        return values is not None and all(v == value for v in values)

    return test


# Which input comes out unchanged; True is the first, False and None are none.
_UNCHANGED: dict[str, Callable[[Node], bool | int | None]] = {
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": lambda node: node.graph.rank(node.input(0)) == 2 and node.attr("axis") in (1, -1),
    "Squeeze": _squeeze,
    "Unsqueeze": lambda node: _ints(node, "axes", 1) == [],
    "Slice": _slice,
    "Pad": _all_are("pads", 1, 0),
    "Tile": _all_are("repeats", 1, 1),
    "Expand": _expand,
    "Resize": _resize,
    "Upsample": _resize,
    "Concat": _alone,
    "Sum": _alone,
    "Mean": _alone,
    "Max": _alone,
    "Min": _alone,
    "Split": lambda node: len(node.proto.output) == 1,
    "Add": _neutral(_plus_nothing, (0, 1)),
    "Sub": _neutral(_minus_nothing),
    "Mul": _neutral(_is_one, (0, 1)),
    "Div": _neutral(_is_one),
}


class NoopNode(Rule):
    ops = tuple(_UNCHANGED)
    when = "always"

    def match(self, node: Node, ctx: Context) -> str | None:
        if any(a.ref_attr_name for a in node.proto.attribute):
            return None
        unchanged = _UNCHANGED[node.op](node)
        if unchanged is None or unchanged is False:
            return None
        source = node.input(0 if unchanged is True else unchanged)
        return source if folding.passes(node, source) else None

    def rewrite(self, node: Node, found: str, edit: Edit, ctx: Context) -> None:
        edit.note = f"{node.op} changes nothing here: its readers read its input"
        edit.replace_node(node, found)
