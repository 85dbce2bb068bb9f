import math

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise, sampling
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class RoiAlign(Rule):
    ops = ("RoiAlign",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> tuple[int, ...]:
        shape = elementwise.static(node.graph, node.input(0))
        if node.attr("mode") != "avg":
            raise Skip("runtimes disagree on the mode max; use avg")
        if not node.attr("sampling_ratio"):
            raise Skip("how many points it looks at hangs on the regions; export with a sampling_ratio above 0")
        if node.graph.dtype(node.input(0)) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            raise Skip("only FLOAT and FLOAT16 are written out")
        if 0 in shape or shape[0] * math.prod(shape[2:]) >= sampling.LARGEST:
            raise Skip("the image is empty or has too many pixels")
        return shape

    def rewrite(self, node: Node, found: tuple[int, ...], edit: Edit, ctx: Context) -> None:
        batch, channels, *size = found
        ratio, height, width = (node.attr(a) for a in ("sampling_ratio", "output_height", "output_width"))
        rows, columns = self._places(node, edit)
        wide, high = [emit.ints([1, 1, width * ratio]), emit.ints([1, height * ratio, 1])]
        grid = [self._line(edit, rows, 2, wide), self._line(edit, columns, 1, high)]
        clamped = [self._clamped(edit, place, length) for place, length in zip(grid, size, strict=True)]
        image, start = emit.reshape(edit, node.input(0), [1, channels, -1]), ""
        if batch > 1:
            planes = emit.transpose(edit, node.input(0), [1, 0, 2, 3])
            image = emit.reshape(edit, planes, [1, channels, batch * math.prod(size)])
            first = edit.add("Mul", [emit.cast(edit, node.input(2), TensorProto.FLOAT), np.float32(math.prod(size))])
            points = emit.ints([1, height * ratio, width * ratio])
            start = emit.reshape(edit, edit.add("Expand", [emit.unsqueeze(edit, first, [1, 2]), points]), [1, 1, -1])
        taken = sampling.bilinear(edit, image, (clamped[0][0], clamped[1][0]), (size[0], size[1]), start)
        inside = edit.add("And", [within for _, within in clamped])
        inside = emit.cast(edit, inside, node.graph.dtype(node.input(0)))
        bins = emit.reshape(edit, edit.add("Mul", [taken, inside]), [channels, -1, height, ratio, width, ratio])
        mean = emit.reduce(edit, "ReduceMean", bins, [3, 5], keepdims=0)
        edit.replace_node(node, emit.transpose(edit, mean, [1, 0, 2, 3]))

    @staticmethod
    def _places(node: Node, edit: Edit) -> tuple[str, str]:
        """Rows and columns of the points of each region: FLOAT [regions, rows] and [regions, columns]."""
        regions = emit.cast(edit, node.input(1), TensorProto.FLOAT)
        pixels = edit.add("Mul", [regions, np.float32(node.attr("spatial_scale"))])
        half = node.opset >= 16 and node.attr("coordinate_transformation_mode") != "output_half_pixel"
        if half:
            pixels = edit.add("Sub", [pixels, np.float32(0.5)])
        left, top, right, bottom = emit.split(edit, pixels, [1] * 4, 1)
        ratio, places = node.attr("sampling_ratio"), []
        for begin, end, count in ((top, bottom, node.attr("output_height")), (left, right, node.attr("output_width"))):
            extent = edit.add("Sub", [end, begin])
            if not half:
                extent = edit.add("Max", [extent, np.float32(1)])
            steps = ((np.arange(count * ratio) + 0.5) / ratio).astype(np.float32)[None]
            bins = edit.add("Div", [extent, np.float32(count)])
            places.append(edit.add("Add", [begin, edit.add("Mul", [bins, steps])]))
        return places[0], places[1]

    @staticmethod
    def _line(edit: Edit, places: str, axis: int, shape: np.ndarray) -> str:
        """The places of one axis for all points of each region: FLOAT [1, 1, regions * rows * columns]."""
        return emit.reshape(edit, edit.add("Expand", [emit.unsqueeze(edit, places, [axis]), shape]), [1, 1, -1])

    @staticmethod
    def _clamped(edit: Edit, place: str, size: int) -> tuple[str, str]:
        """The place brought into the image, and whether it was within a pixel of it."""
        low = edit.add("Less", [place, np.float32(-1)])
        high = edit.add("Greater", [place, np.float32(size)])
        inside = edit.add("Not", [edit.add("Or", [low, high])])
        return str(edit.add("Min", [edit.add("Max", [place, np.float32(0)]), np.float32(size - 1)])), str(inside)
