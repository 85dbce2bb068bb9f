from onnxfix.rule import Context, Edit, Graph, Rule


class UnusedInitializer(Rule):
    ops = ("<graph>",)
    when = "always"

    def match(self, node: Graph, ctx: Context) -> list[str] | None:
        if node.kind == "function":
            return None
        found = [
            name
            for name, tensor in node.initializers.items()
            if node.unused(name) and not ctx.target.takes_dtype(tensor.data_type) and name not in node._orphans
        ]
        return found or None

    def rewrite(self, node: Graph, found: list[str], edit: Edit, ctx: Context) -> None:
        for name in found:
            edit.drop_initializer(name)
        what = "an unused initializer goes" if len(found) == 1 else f"{len(found)} unused initializers go"
        edit.note = f"{what}, of a type that the parser refuses: {', '.join(found[:3])}"
