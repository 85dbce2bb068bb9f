import numpy as np
from onnx import TensorProto

from onnxfix.rule import Context, Edit, Node, Rule, Skip

_LOW, _HIGH = np.iinfo(np.int32).min, np.iinfo(np.int32).max
_READ = 1 << 20  # elements up to which a constant is looked at


class Int64Constant(Rule):
    ops = ("*",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> list[tuple[int, np.ndarray]] | None:
        """The out-of-range bounds of a Slice, by input, limited to INT32."""
        if not ctx.target.narrows(TensorProto.INT64):
            return None
        graph, found = node.graph, []
        for index, name in enumerate(node.inputs):
            tensor = graph.const_tensor(name) if name and graph.is_const(name) else None
            if tensor is None or tensor.data_type != TensorProto.INT64 or int(np.prod(tensor.dims)) > _READ:
                continue
            array = graph.const(name)
            if array is None or array.size == 0 or (array.min() >= _LOW and array.max() <= _HIGH):
                continue
            if node.op != "Slice" or node.domain or index not in (1, 2):
                raise Skip(f"'{name}' holds numbers beyond INT32, which this release clamps: results may change")
            found.append((index, np.clip(array, _LOW, _HIGH)))
        return found or None

    def rewrite(self, node: Node, found: list[tuple[int, np.ndarray]], edit: Edit, ctx: Context) -> None:
        for index, array in found:
            edit.set_input(node, index, array)
        edit.note = "Slice bounds beyond INT32 became its last numbers; no axis is that long"
