from onnxfix import folding
from onnxfix.rule import Context, Edit, Node, Rule


class ConstantFold(Rule):
    ops = ("*",)
    when = "always"
    options = {"max_mib": 16}  # noqa: RUF012

    def match(self, node: Node, ctx: Context) -> folding.Fold | None:
        if not folding.constant_inputs(node) or not folding.foldable(node):
            return None
        return folding.fold(node, int(self.option(ctx, "max_mib") * (1 << 20)))

    def rewrite(self, node: Node, found: folding.Fold, edit: Edit, ctx: Context) -> None:
        found.apply(edit)
