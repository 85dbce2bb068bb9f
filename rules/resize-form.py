from onnxfix.errors import Skip
from onnxfix.lowering import resize
from onnxfix.rule import Context, Edit, Node, Rule


class ResizeForm(Rule):
    ops = ("Resize", "Upsample")

    def match(self, node: Node, ctx: Context) -> tuple[resize.Spec, resize.Form] | None:
        try:
            spec = resize.read(node)
            form = resize.equal_form(node, spec, ctx, exact=True)
        except Skip:  # the rules that take a Resize apart say why
            return None
        return (spec, form) if form else None

    def rewrite(self, node: Node, found: tuple[resize.Spec, resize.Form], edit: Edit, ctx: Context) -> None:
        spec, form = found
        edit.note = f"written as a Resize the target takes: {form}"
        edit.replace_node(node, resize.write(form, node, spec, edit))
