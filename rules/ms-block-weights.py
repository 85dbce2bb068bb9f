from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class BlockWeights(Rule):
    ops = ("com.microsoft::MatMulNBits", "com.microsoft::GatherBlockQuantized")
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> np.ndarray:
        """The plain weights: K x N for a product, those of the data for Gather."""
        if node.op == "MatMulNBits":
            if node.input(4):
                raise Skip("its columns come in another order (g_idx); export the model without that")
            return _product_weights(node)
        return _gather_weights(node)

    def rewrite(self, node: Node, found: np.ndarray, edit: Edit, ctx: Context) -> None:
        if node.op == "GatherBlockQuantized":
            y = edit.add("Gather", [found, node.input(1)], axis=node.attr("gather_axis", 0))
        else:
            y = edit.add("MatMul", [node.input(0), found])
            if node.input(5):
                y = edit.add("Add", [y, node.input(5)])
        edit.replace_node(node, y)


def _constant(node: Node, index: int) -> np.ndarray:
    found = node.graph.const(node.input(index))
    if found is None:
        raise Skip(f"'{node.input(index)}' is no constant")
    return found


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of `bits` bits along the last axis, the first of a byte in its lowest bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(numbers.reshape(*packed.shape[:-1], -1), np.int32)


def _product_weights(node: Node) -> np.ndarray:
    bits, block = node.attr("bits", 4), node.attr("block_size")
    rows, columns = node.attr("N"), node.attr("K")
    if bits not in (2, 4, 8):
        raise Skip(f"weights of {bits} bits are not known here; export the model with 4")
    scales = _constant(node, 2)
    blocks = -(-columns // block)
    numbers = _unpacked(_constant(node, 1).reshape(rows, blocks, -1), bits)
    zeros: Any = 1 << (bits - 1)
    if node.input(3):
        given = _constant(node, 3)
        if given.dtype == np.uint8:
            given = _unpacked(given.reshape(rows, -1), bits)[:, :blocks]
        zeros = given.reshape(rows, blocks, 1)
    plain = (numbers - zeros).astype(scales.dtype) * scales.reshape(rows, blocks, 1)
    return np.ascontiguousarray(plain.reshape(rows, -1)[:, :columns].T)


def _gather_weights(node: Node) -> np.ndarray:
    data, scales = _constant(node, 0), _constant(node, 2)
    bits, block = node.attr("bits", 4), node.attr("block_size", 128)
    dtype = node.graph.dtype(node.input(0))
    packed = dtype == TensorProto.UINT8
    unpack = (lambda a: _unpacked(a, bits)) if packed else (lambda a: np.asarray(a, np.int32))
    numbers = unpack(data)
    axis = node.attr("quantize_axis", 1) % numbers.ndim

    def spread(values: np.ndarray) -> np.ndarray:
        cut = [slice(None)] * numbers.ndim
        cut[axis] = slice(numbers.shape[axis])
        return np.repeat(values, block, axis)[tuple(cut)]

    zeros: Any = 1 << (bits - 1) if packed else 0
    if node.input(3):
        counts = [slice(s) for s in scales.shape]
        zeros = spread(unpack(_constant(node, 3))[tuple(counts)])
    return np.asarray((numbers - zeros).astype(scales.dtype) * spread(scales), scales.dtype)
