import numpy as np

from onnxfix.lowering import functions
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class OptionalKnown(Rule):
    ops = ("OptionalGetElement", "OptionalHasElement")

    def match(self, node: Node, ctx: Context) -> str | bool | None:
        """The tensor itself, or whether there is one."""
        source = node.input(0)
        if source:
            maker = node.graph.producer(source)
            if maker is not None and maker.op == "Optional" and not maker.domain:
                source = maker.input(0)
        kind = node.graph.type_of(source) if source else None
        holds = None if source and kind is None else bool(source)
        if kind is not None and kind.HasField("optional_type"):
            holds = None
        if holds is None:
            raise Skip("whether there is a tensor is only known when the model runs; export without optionals")
        if not functions.renameable(node):
            return None
        if node.op == "OptionalHasElement":
            return holds
        if not holds:
            raise Skip("there is nothing to get")
        return source

    def rewrite(self, node: Node, found: str | bool, edit: Edit, ctx: Context) -> None:
        result = edit.const(np.asarray(found, np.bool_)) if isinstance(found, bool) else found
        functions.replace_outputs(edit, node, [result])
