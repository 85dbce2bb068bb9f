from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxfix import emit
from onnxfix.graph import Graph
from onnxfix.lowering import quant
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

F32 = np.float32


@dataclass(frozen=True)
class _Weights:
    values: np.ndarray  # [directions, inputs, 4 * hidden], whole numbers
    scale: np.ndarray  # [directions] or [directions, 4 * hidden]


class DynamicQuantizeLSTM(Rule):
    ops = ("com.microsoft::DynamicQuantizeLSTM",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> tuple[_Weights, _Weights, np.ndarray | None]:
        quant.need_round(node, ctx)
        if not ctx.supports("Scan"):
            raise Skip("the target has no Scan; use the float model instead")
        for index, what in ((4, "sequence_lens"), (7, "peephole weights")):
            if node.input(index):
                raise Skip(f"it has {what}; use the float model instead")
        if node.attr("input_forget", 0) or (node.attr("clip", 0.0) or 0.0) > 0:
            raise Skip("input_forget and clip are not rewritten; use the float model instead")
        named = [a.lower() for a in node.attr("activations", []) or []]
        if named and named != ["sigmoid", "tanh", "tanh"] * (len(named) // 3):
            raise Skip(f"its activations are {', '.join(named)}; only Sigmoid, Tanh, Tanh are rewritten")
        bias = node.graph.const(node.input(3)) if node.input(3) else None
        if node.input(3) and bias is None:
            raise Skip("the bias is computed; make it constant")
        return _weights(node.graph, node, 1, 8), _weights(node.graph, node, 2, 10), bias

    def rewrite(self, node: Node, found: tuple[_Weights, _Weights, np.ndarray | None], edit: Edit, ctx: Context) -> None:
        of_input, of_state, bias = found
        hidden = of_state.values.shape[1]
        numbers, scale, zero = quant.quantize_dynamic(edit, node.input(0))
        x = str(edit.add("Sub", [numbers, zero]))
        directions = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[node.attr("direction", "forward")]
        parts: list[tuple[str, str, str]] = []
        for i, backwards in enumerate(directions):
            gates = str(edit.add("MatMul", [x, of_input.values[i]]))
            gates = str(edit.add("Mul", [gates, str(edit.add("Mul", [scale, of_input.scale[i]]))]))
            states = [self._initial(node, edit, index, i, hidden) for index in (5, 6)]
            body = _step(of_state.values[i], of_state.scale[i], None if bias is None else bias[i])
            h, c, y = edit.add(
                "Scan",
                [*states, gates],
                outputs=3,
                num_scan_inputs=1,
                body=body,
                scan_input_directions=[backwards],
                scan_output_directions=[backwards],
            )
            parts.append((emit.unsqueeze(edit, y, [1]), emit.unsqueeze(edit, h, [0]), emit.unsqueeze(edit, c, [0])))
        outputs = [emit.concat(edit, [p[k] for p in parts], 1 if k == 0 else 0) for k in range(3)]
        edit.replace_node(node, *outputs)

    @staticmethod
    def _initial(node: Node, edit: Edit, index: int, direction: int, hidden: int) -> str:
        """A state before the first step, [batch, hidden]."""
        given = node.input(index)
        if given:
            return emit.squeeze(edit, emit.slice_(edit, given, [direction], [direction + 1], [0]), [0])
        batch = node.graph.shape(node.input(0))
        if batch is not None and isinstance(batch[1], int):
            return edit.const(np.zeros((batch[1], hidden), F32), "zeros")
        shape = edit.add("Shape", [node.input(0)])
        size = edit.add("Concat", [emit.slice_(edit, shape, [1], [2], [0]), emit.ints([hidden])], axis=0)
        return str(edit.add("ConstantOfShape", [size], value=helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])))


def _weights(graph: Graph, node: Node, index: int, scale_index: int) -> _Weights:
    values, scale, zero = (graph.const(node.input(i)) for i in (index, scale_index, scale_index + 1))
    if values is None or scale is None or zero is None:
        raise Skip("its weights, scales or zero points are computed; make them constant")
    # The kernel takes one zero point a direction: for per-column ones all are the same by its own check.
    shift = zero.reshape(values.shape[0], -1)[:, :1, None].astype(F32)
    return _Weights(values.astype(F32) - shift, scale.astype(F32))


def _step(weights: np.ndarray, scale: np.ndarray, bias: np.ndarray | None) -> Any:
    """One time step as a Scan body: (h, c, gates of the input) to (h, c, h). Gates lie in the order i, o, f, c."""
    raise NotImplementedError
