from onnxfix.lowering import pad
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class PadMode(Rule):
    ops = ("Pad",)

    def match(self, node: Node, ctx: Context) -> pad.Padding | None:
        mode = node.attr("mode") or "constant"
        if mode == "constant" or node.input(3):
            return None
        if mode not in ("reflect", "edge", "wrap"):
            raise Skip(f"the mode '{mode}' is not of the ONNX standard")
        padding = pad.read(node)
        if not padding.moved:
            return None
        sizes = pad.cropped(node.graph, node.input(0), padding)
        for axis in padding.moved:
            size, most = sizes[axis], max(padding.begins[axis], padding.ends[axis])
            if mode == "reflect" and size is not None and most >= size:
                raise Skip(f"axis {axis} has {size} elements, too few to reflect {most}")
            if mode == "wrap" and size is None and most > 0:
                raise Skip(f"how often axis {axis} is wrapped around depends on its size; freeze it")
        return padding

    def rewrite(self, node: Node, padding: pad.Padding, edit: Edit, ctx: Context) -> None:
        sizes = pad.cropped(node.graph, node.input(0), padding)
        x = pad.crop(edit, node.input(0), padding)
        for axis in padding.moved:
            begin, end = max(0, padding.begins[axis]), max(0, padding.ends[axis])
            if begin or end:
                x = pad.repeat(edit, x, padding.mode, axis, begin, end, sizes[axis])
        edit.replace_node(node, x)
