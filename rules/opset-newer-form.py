from collections.abc import Callable
from dataclasses import dataclass

from onnx import TensorProto

from onnxfix.graph import Graph, schema
from onnxfix.lowering import elementwise, functions
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    "ReduceSumSquare",
)
_NAMES = {"linear": "bilinear", "cubic": "bicubic"}


def _reduce(node: Node, edit: Edit) -> None:
    held = node.graph.const(node.input(1)) if node.input(1) else None
    axes = [] if held is None else [int(v) for v in held.reshape(-1)]
    edit.set_inputs(node, [node.input(0)])
    edit.set_attr(node, "noop_with_empty_axes", None)
    edit.set_attr(node, "axes", axes or None)


def _reduce_fits(node: Node) -> str:
    if node.input(1) and not node.graph.is_const(node.input(1)):
        return "its axes are computed"
    tensor = node.graph.const_tensor(node.input(1)) if node.input(1) else None
    empty = not node.input(1) or (tensor is not None and 0 in tensor.dims)
    return "with no axes, it reduces nothing" if empty and node.attr("noop_with_empty_axes") else ""


def _grid(node: Node, edit: Edit) -> None:
    edit.set_attr(node, "mode", _NAMES.get(node.attr("mode"), node.attr("mode")))


def _grid_fits(node: Node) -> str:
    return "" if node.graph.rank(node.input(0)) == 4 else "its input is not known to have rank 4"


def _split(node: Node, edit: Edit) -> None:
    edit.set_attr(node, "num_outputs", None)


def _split_fits(node: Node) -> str:
    if node.input(1):
        return ""
    shape = node.graph.shape(node.input(0))
    size = shape[elementwise.axis_of(node.attr("axis"), len(shape))] if shape else None
    even = isinstance(size, int) and size % (node.attr("num_outputs") or 1) == 0
    return "" if even else "its parts may differ in size"


@dataclass(frozen=True)
class _Form:
    since: int  # the opset that has the new form
    fits: Callable[[Node], str]  # why this node has no older form; "" when it has
    write: Callable[[Node, Edit], None]


_FORMS = {
    **dict.fromkeys(_REDUCTIONS, _Form(18, _reduce_fits, _reduce)),
    "GridSample": _Form(20, _grid_fits, _grid),
    "Split": _Form(18, _split_fits, _split),
}


def _untyped(node: Node, version: int) -> str:
    """Which dtype of its inputs an operator did not take at another opset yet, in words; "" for none."""
    found = schema(node.op, node.domain, version)
    if found is None:
        return f"opset {version} does not have it"
    kinds = {c.type_param_str: c.allowed_type_strs for c in found.type_constraints}
    for i, name in enumerate(node.inputs):
        parameter = found.inputs[min(i, len(found.inputs) - 1)]  # the last one may stand for many
        dtype = node.graph.dtype(name) if name else 0
        kind = TensorProto.DataType.Name(dtype)
        if dtype and f"tensor({kind.lower()})" not in kinds.get(parameter.type_str, [f"tensor({kind.lower()})"]):
            return f"opset {version} has it for no {kind}"
    return ""


@dataclass
class _Plan:
    version: int
    rewrite: list[Node]


class OpsetNewerForm(Rule):
    ops = ("<graph>",)
    when = "always"

    def match(self, node: Graph, ctx: Context) -> _Plan | None:
        if node.kind != "graph" or node.opset() < min(f.since for f in _FORMS.values()):
            return None
        nodes = [n for scope in node.walk() for n in scope.nodes() if not n.domain]
        present = node.opset()
        refused = [n for n in nodes if n.op in _FORMS and _FORMS[n.op].since <= present and ctx.refused(n)]
        refused = [n for n in refused if not (_FORMS[n.op].fits(n) or _untyped(n, _FORMS[n.op].since - 1))]
        if not refused:
            return None
        version = min(_FORMS[n.op].since for n in refused) - 1
        rewritten: list[Node] = []
        for other in nodes:
            form = _FORMS.get(other.op)
            if form is not None and form.since <= present and form.since > version:
                rewritten.append(other)
                reason = form.fits(other) or _untyped(other, version)
            else:
                same = functions.same_meaning(other.proto, present, version)
                reason = _untyped(other, version) if same else f"it has no form at opset {version}"
            if reason:
                raise Skip(
                    f"{refused[0].op} has a form that this target reads at opset {version}, but {other.where()} keeps "
                    f"the model at opset {present}: {reason}"
                )
        return _Plan(version, rewritten)

    def rewrite(self, node: Graph, found: _Plan, edit: Edit, ctx: Context) -> None:
        present = node.opset()
        for other in found.rewrite:
            _FORMS[other.op].write(other, edit)
            edit.mark(other)
        for other in (n for scope in node.walk() for n in scope.nodes() if not n.domain):
            for name in functions.surplus(other.proto, present, found.version):
                edit.set_attr(other, name, None)
        edit.set_opset(found.version)
        ops = ", ".join(sorted({n.op for n in found.rewrite}))
        edit.note = f"the model is written for opset {found.version} instead of {present}, for the older form of {ops}"
