from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import quant
from onnxfix.lowering.dtypes import dtype_range
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class QuantizeLinear(Rule):
    ops = ("QuantizeLinear", "com.microsoft::QuantizeLinear")
    safety = Safety.CLOSE
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool | None:
        if not ctx.refused(node) and not node.domain:
            return None
        dtype = quant.quantized_dtype(node)
        bounds = dtype_range(dtype)
        if bounds is None or bounds[1] > 65535:
            raise Skip(f"quantising to {TensorProto.DataType.Name(dtype)} is not rounding to small whole numbers")
        quant.scheme(node)
        return True

    def rewrite(self, node: Node, found: Any, edit: Edit, ctx: Context) -> None:
        dtype = quant.quantized_dtype(node)
        how = quant.scheme(node, edit)
        x = emit.cast(edit, node.input(0), TensorProto.FLOAT)
        if isinstance(how.scale, np.ndarray):
            scale: str | np.ndarray = how.scale.astype(np.float32)
        else:
            scale = emit.cast(edit, how.scale, TensorProto.FLOAT)
        numbers = quant.quantize(edit, x, scale, how.zero, dtype, ctx)
        edit.replace_node(node, str(edit.add("Cast", [numbers], to=dtype)))
