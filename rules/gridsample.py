import itertools
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_MODES = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic", "cubic": "cubic"}
_KEYS = -0.75  # the cubic kernel's parameter, as the standard has it


@dataclass
class _Sampling:
    channels: int
    sizes: list[int | None]  # of the spatial axes, outermost first; None for a dynamic one
    mode: str


@dataclass
class _Size:
    """How many pixels an axis has, and how many steps there are between them: constants, or values at run time."""

    pixels: str | np.ndarray
    steps: str | np.ndarray
    fixed: int | None


class GridSample(Rule):
    ops = ("GridSample",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Sampling | None:
        graph, x, grid = node.graph, node.input(0), node.input(1)
        shape = graph.shape(x)
        if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
            raise Skip(f"the number of channels of '{x}' is not known")
        if graph.rank(grid) != len(shape):
            raise Skip(f"the rank of '{grid}' is not known")
        mode, padding = _MODES[node.attr("mode")], node.attr("padding_mode")
        if mode == "cubic" and (padding != "zeros" or len(shape) != 4):
            raise Skip(f"cubic with the padding mode {padding} and {len(shape) - 2} spatial axes is not written out")
        if graph.dtype(x) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            raise Skip("only FLOAT and FLOAT16 are written out")
        if 0 in shape:
            raise Skip(f"'{x}' is empty")
        sizes = [d if isinstance(d, int) else None for d in shape[2:]]
        if None in sizes and padding == "reflection":
            raise Skip("reflection in an image of dynamic size is not written out; freeze the dynamic axes")
        return _Sampling(shape[1], sizes, mode)

    def rewrite(self, node: Node, found: _Sampling, edit: Edit, ctx: Context) -> None:
        graph, x, axes = node.graph, node.input(0), len(found.sizes)
        grid = emit.cast(edit, node.input(1), TensorProto.FLOAT)
        taps: list[list[tuple[str, str | None]]] = []  # for each axis: (place, weight) of each of its taps
        sizes = self._sizes(edit, x, found)
        for axis, size in enumerate(sizes):
            # The grid's last axis holds x, y, z: the innermost axis comes first.
            place = emit.slice_(edit, grid, [axes - 1 - axis], [axes - axis], [axes + 1])
            place = emit.reshape(edit, place, [0, 1, -1])
            taps.append(self._taps(edit, found.mode, self._pixel(edit, node, place, size)))
        places: list[str] = []
        weights: list[str] = []
        for corner in itertools.product(*taps):
            index, weight = "", ""
            for (place, factor), size in zip(corner, sizes, strict=True):
                inside = edit.add("Min", [edit.add("Max", [place, _float(0)]), size.steps])
                index = edit.add("Add", [edit.add("Mul", [index, size.pixels]), inside]) if index else inside
                if node.attr("padding_mode") == "zeros":
                    hit = edit.add("Cast", [edit.add("Equal", [inside, place])], to=TensorProto.FLOAT)
                    factor = edit.add("Mul", [factor, hit]) if factor else hit
                if factor:
                    weight = edit.add("Mul", [weight, factor]) if weight else factor
            places.append(index)
            weights.append(weight)
        taken = self._gather(edit, x, emit.concat(edit, places, 2), found)
        if weights[0]:
            taken = edit.add("Mul", [taken, emit.cast(edit, emit.concat(edit, weights, 2), graph.dtype(x))])
        if len(places) > 1:
            taken = emit.reduce(edit, "ReduceSum", emit.reshape(edit, taken, [0, 0, len(places), -1]), [2], keepdims=0)
        count = f"{len(places)} pixels" if len(places) > 1 else "one pixel"
        edit.note = f"{node.attr('mode')} sampling is written out: {count} gathered for each point of the grid"
        edit.replace_node(node, self._shaped(edit, node, taken, found))

    @staticmethod
    def _sizes(edit: Edit, x: str, found: _Sampling) -> list[_Size]:
        sizes: list[_Size] = []
        for axis, size in enumerate(found.sizes):
            if size is not None:
                sizes.append(_Size(_float(size), _float(size - 1), size))
                continue
            count = edit.add("Gather", [edit.add("Shape", [x]), np.int64(axis + 2)], axis=0)
            pixels = edit.add("Cast", [count], to=TensorProto.FLOAT)
            sizes.append(_Size(pixels, edit.add("Sub", [pixels, _float(1)]), None))
        return sizes

    @staticmethod
    def _pixel(edit: Edit, node: Node, place: str, size: _Size) -> str:
        """From [-1, 1] to pixels, brought inside as the padding mode asks."""
        align = bool(node.attr("align_corners"))
        away_from_edge = edit.add("Add", [place, _float(1)])  # in the order of the standard's formula: ties stay ties
        whole = size.steps if align else size.pixels
        half = whole * np.float32(0.5) if isinstance(whole, np.ndarray) else edit.add("Mul", [whole, _float(0.5)])
        pixel = edit.add("Mul", [away_from_edge, half])
        if not align:
            pixel = edit.add("Sub", [pixel, _float(0.5)])
        padding = node.attr("padding_mode")
        if padding == "reflection":
            assert size.fixed is not None
            low, span = (0.0, float(size.fixed - 1)) if align else (-0.5, float(size.fixed))
            if span == 0:
                return str(edit.add("Mul", [pixel, _float(0)]))
            away = edit.add("Abs", [edit.add("Sub", [pixel, _float(low)])])
            turns = edit.add("Floor", [edit.add("Div", [away, _float(span)])])
            rest = edit.add("Sub", [away, edit.add("Mul", [turns, _float(span)])])
            half = edit.add("Floor", [edit.add("Mul", [turns, _float(0.5)])])
            odd = edit.add("Sub", [turns, edit.add("Add", [half, half])])  # every other turn runs backwards
            back = edit.add("Sub", [_float(span), edit.add("Add", [rest, rest])])
            inside = edit.add("Add", [rest, edit.add("Mul", [odd, back])])
            pixel = edit.add("Add", [inside, _float(low)])
        # What lies further out than any tap reaches is the same everywhere.
        reach = 3.0 if padding == "zeros" else 0.0
        most = size.steps
        if reach:
            most = most + _float(reach) if isinstance(most, np.ndarray) else edit.add("Add", [most, _float(reach)])
        # By comparing, so that a position that is NaN is brought inside too: no runtime may look there.
        within = edit.add("Where", [edit.add("Greater", [pixel, _float(-reach)]), pixel, _float(-reach)])
        return str(edit.add("Min", [within, most]))

    @staticmethod
    def _taps(edit: Edit, mode: str, pixel: str) -> list[tuple[str, str | None]]:
        if mode == "nearest":
            return [(str(edit.add("Round", [pixel])), None)]
        first = str(edit.add("Floor", [pixel]))
        t = str(edit.add("Sub", [pixel, first]))
        if mode == "linear":
            return [(first, str(edit.add("Sub", [_float(1), t]))), (str(edit.add("Add", [first, _float(1)])), t)]
        return [(str(edit.add("Add", [first, _float(i - 1)])), _cubic(edit, t, i)) for i in range(4)]

    @staticmethod
    def _gather(edit: Edit, x: str, places: str, found: _Sampling) -> str:
        """Pixels of `x` as [batch, channels, places]."""
        flat = emit.reshape(edit, x, [0, found.channels, -1])
        index = edit.add("Cast", [places], to=TensorProto.INT64)
        if (edit.graph.shape(x) or (None,))[0] == 1:
            return str(edit.add("Gather", [flat, emit.reshape(edit, index, [-1])], axis=2))
        wide = edit.add("Expand", [index, emit.ints([1, found.channels, 1])])
        return str(edit.add("GatherElements", [flat, wide], axis=2))

    @staticmethod
    def _shaped(edit: Edit, node: Node, taken: str, found: _Sampling) -> str:
        """[batch, channels, places] with the grid's spatial axes."""
        grid, count = node.input(1), len(found.sizes)
        shape = (edit.graph.shape(grid) or ())[1:-1]
        dynamic = sum(not isinstance(d, int) for d in shape)
        if dynamic <= 1 and 0 not in shape:
            return emit.reshape(edit, taken, [0, found.channels, *(d if isinstance(d, int) else -1 for d in shape)])
        spatial = emit.slice_(edit, edit.add("Shape", [grid]), [1], [1 + count], [0])
        return str(edit.add("Reshape", [taken, edit.add("Concat", [emit.ints([0, found.channels]), spatial], axis=0)]))


def _float(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


def _cubic(edit: Edit, t: str, tap: int) -> str:
    """The weight of one of four taps at distance t from the second, by Keys' kernel, as a polynomial in t."""
    a = _KEYS
    cubic, square, linear, constant = (
        (a, -2 * a, a, 0.0),
        (a + 2, -(a + 3), 0.0, 1.0),
        (-(a + 2), 2 * a + 3, -a, 0.0),
        (-a, a, 0.0, 0.0),
    )[tap]
    result = edit.add("Add", [edit.add("Mul", [t, _float(cubic)]), _float(square)])
    for factor in (linear, constant):
        result = edit.add("Mul", [result, t])
        if factor:
            result = edit.add("Add", [result, _float(factor)])
    return str(result)
