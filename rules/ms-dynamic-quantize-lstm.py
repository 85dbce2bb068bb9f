from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxfix import emit
from onnxfix.graph import Graph
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

# One time step. Its gates lie in the order input, output, forget, cell; `g` is the input's share of them.
_STEP = """<ir_version: 8, opset_import: ["" : 13]>
step (float[n, h] h0, float[n, h] c0, float[n, m] g) => (float[n, h] h1, float[n, h] c1, float[n, h] y) {
  q, s, z = DynamicQuantizeLinear (h0)
  sums = MatMulInteger (q, R, z, R_zero)
  f = Cast <to = 1> (sums)
  scale = Mul (s, R_scale)
  own = Mul (f, scale)
  both = Add (g, own)
  gates = Add (both, bias)
  i1, o1, f1, k1 = Split <axis = 1> (gates)
  i2 = Sigmoid (i1)
  o2 = Sigmoid (o1)
  f2 = Sigmoid (f1)
  k2 = Tanh (k1)
  kept = Mul (c0, f2)
  new = Mul (i2, k2)
  c1 = Add (kept, new)
  shown = Tanh (c1)
  h1 = Mul (o2, shown)
  y = Identity (h1)
}"""


@dataclass(frozen=True)
class _Weights:
    """One of the two weight tensors, for all directions."""

    values: np.ndarray  # INT8 or UINT8, [directions, inputs, 4 * hidden]
    scale: np.ndarray  # [directions] or [directions, 4 * hidden]
    zero: np.ndarray  # [directions], of the values' dtype


_Found = tuple[_Weights, _Weights, np.ndarray | None]  # of the input, of the state, and the bias


class DynamicQuantizeLSTM(Rule):
    ops = ("com.microsoft::DynamicQuantizeLSTM",)
    safety = Safety.CLOSE

    def match(self, node: Node, ctx: Context) -> _Found:
        if node.graph.opset() < 11:
            raise Skip("what it consists of does not exist before opset 11; convert the model to opset 13 first")
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

    def rewrite(self, node: Node, found: _Found, edit: Edit, ctx: Context) -> None:
        of_input, of_state, bias = found
        hidden = of_state.values.shape[1]
        numbers, scale, zero = edit.add("DynamicQuantizeLinear", [node.input(0)], outputs=3)
        directions = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[node.attr("direction", "forward")]
        parts: list[tuple[str, str, str]] = []
        for i, backwards in enumerate(directions):
            sums = edit.add("MatMulInteger", [numbers, of_input.values[i], zero, of_input.zero[i]])
            factor = edit.add("Mul", [scale, of_input.scale[i]])
            gates = edit.add("Mul", [str(edit.add("Cast", [sums], to=TensorProto.FLOAT)), factor])
            states = [self._initial(node, edit, index, i, hidden) for index in (5, 6)]
            h, c, y = edit.add(
                "Scan",
                [*states, gates],
                outputs=3,
                num_scan_inputs=1,
                body=_step(of_state, i, bias, edit),
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
            return edit.const(np.zeros((batch[1], hidden), np.float32), "zeros")
        shape = edit.add("Shape", [node.input(0)])
        size = edit.add("Concat", [emit.slice_(edit, shape, [1], [2], [0]), emit.ints([hidden])], axis=0)
        return str(edit.add("ConstantOfShape", [size], value=helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])))


def _weights(graph: Graph, node: Node, index: int, scale_index: int) -> _Weights:
    values, scale, zero = (graph.const(node.input(i)) for i in (index, scale_index, scale_index + 1))
    if values is None or scale is None or zero is None:
        raise Skip("its weights, scales or zero points are computed; make them constant")
    # Zero points for each column are all the same: the operator refuses others.
    return _Weights(values, scale, zero.reshape(values.shape[0], -1)[:, 0])


def _step(weights: _Weights, direction: int, bias: np.ndarray | None, edit: Edit) -> onnx.GraphProto:
    """The Scan body of one direction; Split gets its sizes where the opset wants them."""
    body = onnx.parser.parse_model(_STEP).graph
    hidden = weights.values.shape[1]
    both = np.zeros(4 * hidden, np.float32)
    if bias is not None:
        both = bias[direction][: 4 * hidden] + bias[direction][4 * hidden :]
    constants = {
        "R": weights.values[direction],
        "R_zero": weights.zero[direction],
        "R_scale": weights.scale[direction],
        "bias": both,
    }
    body.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in constants.items())
    split = next(n for n in body.node if n.op_type == "Split")
    if edit.graph.opset() >= 18:
        split.attribute.append(helper.make_attribute("num_outputs", 4))
    names = {n: edit.graph.fresh(f"{edit.graph.proto.name}/{n}") for n in _values(body)}
    for value in (*body.input, *body.output):
        value.name = names[value.name]
    for tensor in body.initializer:
        tensor.name = names[tensor.name]
    for node in body.node:
        node.input[:] = [names[n] for n in node.input]
        node.output[:] = [names[n] for n in node.output]
    return body


def _values(body: onnx.GraphProto) -> set[str]:
    made = {name for node in body.node for name in node.output}
    return made | {v.name for v in body.input} | {t.name for t in body.initializer}
