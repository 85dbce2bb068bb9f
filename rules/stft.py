from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.lowering import elementwise, fourier
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


@dataclass
class _Frames:
    step: int
    kernels: np.ndarray  # [frequencies * 2, parts, length]


class Stft(Rule):
    ops = ("STFT",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Frames:
        graph = node.graph
        shape = graph.shape(node.input(0))
        dtype = elementwise.dtype_of(graph, node.input(0))
        if shape is None or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 2)):
            raise Skip(f"the shape of '{node.input(0)}' is not known")
        if dtype not in (np.float32, np.float16):
            raise Skip("only FLOAT and FLOAT16 are transformed")
        parts = int(shape[2] or 1) if len(shape) == 3 else 1
        step, window = graph.const(node.input(1)), graph.const(node.input(2)) if node.input(2) else None
        if step is None or (node.input(2) and window is None):
            raise Skip("the step of its frames or their window is computed")
        given = graph.const(node.input(3)) if node.input(3) else None
        if node.input(3) and given is None:
            raise Skip("the length of its frames is computed")
        if given is None and window is None:
            raise Skip("the length of its frames is not given")
        length = int(given) if given is not None else len(window if window is not None else ())
        window = np.ones(length) if window is None else window.astype(np.float64)
        onesided = bool(node.attr("onesided")) and parts == 1
        if len(window) != length or parts * length * length * 2 > fourier.LARGEST:
            raise Skip("its window is of another length than its frames, or too large for a matrix")
        matrix = fourier.matrix(length, length, parts, onesided=onesided) * window[:, None, None, None]
        return _Frames(int(step), matrix.transpose(2, 3, 1, 0).reshape(-1, parts, length).astype(dtype))

    def rewrite(self, node: Node, found: _Frames, edit: Edit, ctx: Context) -> None:
        x, (results, parts, length) = node.input(0), found.kernels.shape
        x = emit.reshape(edit, x, [0, 1, -1]) if parts == 1 else emit.transpose(edit, x, [0, 2, 1])
        frames = edit.add("Conv", [x, found.kernels], kernel_shape=[length], strides=[found.step])
        split = emit.reshape(edit, frames, [0, results // 2, 2, -1])
        edit.replace_node(node, emit.transpose(edit, split, [0, 3, 1, 2]))
