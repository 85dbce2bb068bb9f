from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxfix import emit
from onnxfix.lowering import resize
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


class ResizeUnsupportedInterpolation(Rule):
    ops = ("Resize", "Upsample")
    safety = Safety.CLOSE
    options = {"max_mib": 64}  # noqa: RUF012  (of the matrices of one node)

    def match(self, node: Node, ctx: Context) -> tuple[resize.Spec, resize.Form | None] | None:
        if node.attr("mode") == "nearest":
            return None
        spec = resize.read(node)
        form = resize.equal_form(node, spec, ctx, exact=False)
        if form:
            return spec, form
        dtype = node.graph.dtype(node.input(0))
        if dtype not in _FLOATS:
            name = TensorProto.DataType.Name(dtype) if dtype else "unknown dtype"
            raise Skip(f"how mode '{spec.mode}' rounds {name} is not defined alike everywhere; cast its input to FLOAT")
        resize.need_static(spec, spec.moved)
        size, most = resize.matrix_bytes(spec, 8 if dtype == TensorProto.DOUBLE else 4), self.option(ctx, "max_mib")
        if size > most << 20:
            raise Skip(f"its matrices would take {size >> 20} MiB, and max_mib is {most}; raise that option")
        return spec, None

    def rewrite(
        self, node: Node, found: tuple[resize.Spec, resize.Form | None], edit: Edit, ctx: Context
    ) -> None:
        spec, form = found
        if form:
            edit.note = f"written as a Resize the target takes, equal up to rounding: {form}"
            edit.replace_node(node, resize.write(form, node, spec, edit))
            return
        dtype = node.graph.dtype(node.input(0))
        # Runtimes interpolate 16-bit floats in FLOAT and round once, at the end.
        inner = TensorProto.FLOAT if dtype in _HALVES else dtype
        x = emit.cast(edit, node.input(0), inner)
        y = resize.multiplied(edit, x, spec, tensor_dtype_to_np_dtype(inner), len(spec.axes))
        edit.replace_node(node, emit.cast(edit, y, dtype))
