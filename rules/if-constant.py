from onnxfix.lowering import functions
from onnxfix.rule import Context, Edit, Graph, Node, Rule


class IfConstant(Rule):
    ops = ("If",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> Graph | None:
        condition = node.graph.const(node.input(0))
        if condition is None or condition.size != 1 or not functions.renameable(node):
            return None
        return node.bodies.get("then_branch" if condition.reshape(-1)[0] else "else_branch")

    def rewrite(self, node: Node, found: Graph, edit: Edit, ctx: Context) -> None:
        names = edit.inline_graph(found, {})
        taken = "then" if found is node.bodies.get("then_branch") else "else"
        edit.note = f"the condition is constant: the {taken} branch stands in place of the If"
        functions.replace_outputs(edit, node, functions.results_of(found, names))
