from onnxfix.lowering import functions
from onnxfix.rule import Context, Edit, Graph, Node, Rule


class LocalFunction(Rule):
    ops = ("*",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> Graph | None:
        function = node.graph.root.functions.get((node.domain, node.op))
        if function is None or not (ctx.refused(node) or self._refused_inside(function, ctx)):
            return None
        functions.bind(node, function.proto)
        functions.same_opsets(function.proto, node.graph)
        return function if functions.renameable(node) else None

    def _refused_inside(self, function: Graph, ctx: Context) -> bool:
        for scope in function.walk():
            for node in scope.nodes():
                called = function.root.functions.get((node.domain, node.op))
                if ctx.refused(node) or (called is not None and self._refused_inside(called, ctx)):
                    return True
        return False

    def rewrite(self, node: Node, found: Graph, edit: Edit, ctx: Context) -> None:
        values, attributes = functions.bind(node, found.proto)
        for opset in found.proto.opset_import:
            node.graph.model.import_opset("" if opset.domain == "ai.onnx" else opset.domain, opset.version)
        names = edit.inline_graph(found, values, attributes)
        edit.note = f"the call of {node.domain}::{node.op} is replaced by the {len(edit.added)} nodes of its body"
        functions.replace_outputs(edit, node, [names.get(o, o) for o in found.proto.output])
