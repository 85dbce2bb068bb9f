from onnxfix.rule import Context, Edit, Graph, Node, Rule


class ConstantNode(Rule):
    ops = ("<graph>",)
    when = "always"

    def match(self, node: Graph, ctx: Context) -> list[Node] | None:
        if node.kind == "function":
            return None  # a function has no initializers
        found = [n for n in node.nodes() if n.op == "Constant" and not n.domain and self._plain(n)]
        return found or None

    @staticmethod
    def _plain(node: Node) -> bool:
        result = node.output(0)
        if node.graph.is_output(result) or any(a.ref_attr_name for a in node.proto.attribute):
            return False
        return not node.has_attr("sparse_value")

    def rewrite(self, node: Graph, found: list[Node], edit: Edit, ctx: Context) -> None:
        for constant in found:
            edit.initialize(constant)
        edit.note = f"{len(found)} Constant {'node is' if len(found) == 1 else 'nodes are'} now initializers"
