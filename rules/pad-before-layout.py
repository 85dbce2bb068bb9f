from dataclasses import dataclass

from onnxfix import emit
from onnxfix.graph import Shape
from onnxfix.lowering import pad, window
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_LAYOUT = ("Reshape", "Squeeze", "Transpose", "Unsqueeze")
_STEPS = 4  # how many layout nodes may lie between the Pad and the window


@dataclass(frozen=True)
class Found:
    reader: Node
    padding: pad.Padding
    sources: list[int | None]  # for each axis behind the reader the one before it, None for one of size 1 put in


class PadBeforeLayout(Rule):
    ops = ("Pad",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> Found | None:
        graph = node.graph
        uses = graph.uses(node.output(0))
        if len(uses) != 1 or uses[0][1] != 0 or graph.is_output(node.output(0)):
            return None
        reader = uses[0][0]
        if not _is_layout(reader) or not self.feeds_windows(reader):
            return None
        try:
            padding = pad.read(node)
        except Skip:
            return None
        sources = _sources(reader)
        if padding.mode != "constant" or sources is None or not set(padding.moved) <= set(sources):
            return None
        if reader.op == "Reshape" and _reshaped(graph.shape(node.input(0)), sources) is None:
            return None
        return Found(reader, padding, sources)

    def feeds_windows(self, reader: Node) -> bool:
        """Whether windows read what comes out, at most behind more layout nodes."""
        for _ in range(_STEPS):
            uses = reader.graph.uses(reader.output(0))
            if not uses or reader.graph.is_output(reader.output(0)) or any(index != 0 for _, index in uses):
                return False
            if all(user.op in window.OPERATORS and not user.domain for user, _ in uses):
                return True
            reader = uses[0][0]
            if len(uses) > 1 or not _is_layout(reader):
                return False
        return False

    def rewrite(self, node: Node, found: Found, edit: Edit, ctx: Context) -> None:
        reader, padding, x = found.reader, found.padding, node.input(0)
        if reader.op == "Reshape":
            shape = _reshaped(node.graph.shape(x), found.sources)
            assert shape is not None
            y = emit.reshape(edit, x, shape)
        else:
            attributes = {a.name: reader.attr(a.name) for a in reader.proto.attribute}
            y = edit.add(reader.op, [x, *reader.inputs[1:]], **attributes)
        begins, ends = (
            [0 if source is None else side[source] for source in found.sources]
            for side in (padding.begins, padding.ends)
        )
        edit.replace_node(reader, emit.pad(edit, y, begins, ends, padding.value))
        edit.remove(node)


def _is_layout(node: Node) -> bool:
    return node.op in _LAYOUT and not node.domain and not any(a.ref_attr_name for a in node.proto.attribute)


def _sources(reader: Node) -> list[int | None] | None:
    before, after = (reader.graph.shape(name) for name in (reader.input(0), reader.output(0)))
    if before is None or after is None:
        return None
    if reader.op == "Transpose":
        perm = reader.attr("perm") or list(range(len(before)))[::-1]
        return list(perm)
    if reader.op == "Reshape":
        return _aligned(before, after)
    listed = (reader.attr("axes") if reader.opset < 13 else reader.graph.known(reader.input(1))) or []
    axes: list[int] = [a for a in listed if a is not None]
    if not axes or len(axes) < len(listed):
        return None
    if reader.op == "Unsqueeze":
        new = {a % len(after) for a in axes}
        rest = iter(range(len(before)))
        return [None if a in new else next(rest) for a in range(len(after))]
    gone = {a % len(before) for a in axes}
    return [a for a in range(len(before)) if a not in gone]


def _aligned(before: Shape, after: Shape) -> list[int | None] | None:
    """Which axis is which, for a Reshape that only puts in or takes out axes of size 1."""
    left = [a for a, d in enumerate(before) if d != 1]
    right = [a for a, d in enumerate(after) if d != 1]
    sizes = [[d if isinstance(d, int) else None for d in shape if d != 1] for shape in (before, after)]
    # One unknown size is fixed by the number of elements, more are not.
    if sizes[0] != sizes[1] or sizes[0].count(None) > 1 or 0 in sizes[0]:
        return None
    source = dict(zip(right, left, strict=True))
    return [source.get(a) for a in range(len(after))]


def _reshaped(shape: Shape | None, sources: list[int | None]) -> list[int] | None:
    """The target of the Reshape, in front of the Pad; None when more than one of its sizes is unknown."""
    if shape is None:
        return None
    sizes = [1 if source is None else shape[source] for source in sources]
    target = [s if isinstance(s, int) else -1 for s in sizes]
    return target if target.count(-1) <= 1 and 0 not in target else None
