from dataclasses import dataclass

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from onnxfix import emit
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_LONG = 64  # steps up to which the products are written out one by one, in order


@dataclass(frozen=True)
class _Products:
    axis: int
    size: int
    kind: np.dtype
    shape: tuple[int, ...]  # of a slice: 1 along every axis


class CumProd(Rule):
    ops = ("CumProd",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Products | None:
        graph, axis = node.graph, node.graph.const(node.input(1))
        shape, dtype = graph.shape(node.input(0)), graph.dtype(node.input(0))
        if axis is None:
            raise Skip("its axis is computed; export it as a constant")
        if shape is None or not dtype:
            raise Skip("the shape of its input is not known; freeze the dynamic axes")
        at = int(axis.ravel()[0]) % len(shape)
        size = shape[at]
        if not isinstance(size, int):
            raise Skip("the length of its axis is dynamic; freeze it")
        return _Products(at, size, np.dtype(tensor_dtype_to_np_dtype(dtype)), (1,) * len(shape))

    def rewrite(self, node: Node, found: _Products, edit: Edit, ctx: Context) -> None:
        x, exclusive, reverse = node.input(0), bool(node.attr("exclusive")), bool(node.attr("reverse"))
        if found.size == 0:
            edit.replace_node(node, str(edit.add("Identity", [x])))
            return
        make = _one_by_one if found.size <= _LONG else _doubling
        edit.replace_node(node, make(edit, x, found, exclusive, reverse))


def _part(edit: Edit, x: str, found: _Products, start: int, end: int) -> str:
    return x if (start, end) == (0, found.size) else emit.slice_(edit, x, [start], [end], [found.axis])


def _one_by_one(edit: Edit, x: str, found: _Products, exclusive: bool, reverse: bool) -> str:
    order = list(range(found.size))[:: -1 if reverse else 1]
    first = _part(edit, x, found, order[0], order[0] + 1)
    products = [first]
    for at in order[1 : len(order) - 1 if exclusive else None]:
        products.append(str(edit.add("Mul", [products[-1], _part(edit, x, found, at, at + 1)])))
    if exclusive:
        ones = _ones(edit, first, found)
        products = [ones, *products][: found.size]
    return emit.concat(edit, products[::-1] if reverse else products, found.axis)


def _doubling(edit: Edit, x: str, found: _Products, exclusive: bool, reverse: bool) -> str:
    """Each step multiplies by the products that end where its own begin, which doubles their length."""
    step = 1
    while step < found.size:
        x = str(edit.add("Mul", [x, _moved(edit, x, found, step, reverse)]))
        step *= 2
    return _moved(edit, x, found, 1, reverse) if exclusive else x


def _moved(edit: Edit, x: str, found: _Products, by: int, reverse: bool) -> str:
    """`x` moved along the axis, ones coming in."""
    kept = (by, found.size) if reverse else (0, found.size - by)
    rest = _part(edit, x, found, *kept)
    ones = _ones(edit, _part(edit, x, found, 0, by), found)
    return emit.concat(edit, [rest, ones] if reverse else [ones, rest], found.axis)


def _ones(edit: Edit, like: str, found: _Products) -> str:
    """Ones of the shape of a value, whatever its numbers are."""
    one = np.ones(found.shape, found.kind)
    return str(edit.add("Expand", [one, edit.add("Shape", [like])]))
