import numpy as np

from onnxfix.rule import Context, Edit, Node, Rule


class UpsampleDeprecated(Rule):
    ops = ("Upsample",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool | None:
        has_scales = node.input(1) or node.has_attr("scales")
        return True if node.opset >= 10 and has_scales else None

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        x, mode = node.input(0), "nearest" if node.attr("mode") == "nearest" else "linear"
        scales: str | np.ndarray = node.input(1) or np.array(node.attr("scales"), np.float32)
        if node.opset == 10:
            edit.replace_node(node, edit.add("Resize", [x, scales], mode=mode))
            return
        y = edit.add(
            "Resize",
            [x, np.zeros(0, np.float32) if node.opset < 13 else "", scales],
            mode=mode,
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor" if mode == "nearest" else None,
        )
        edit.replace_node(node, y)
