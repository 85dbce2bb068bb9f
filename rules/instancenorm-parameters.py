from collections.abc import Mapping
from typing import Any, ClassVar

from onnxfix import emit
from onnxfix.lowering import norm
from onnxfix.report import Effect
from onnxfix.rule import Context, Edit, Node, Rule, Safety, Skip


class InstanceNormParameters(Rule):
    ops = ("InstanceNormalization",)
    safety = Safety.CLOSE
    when = "always"  # because of the option
    options: ClassVar[Mapping[str, Any]] = {"replace_plugin": False}

    def match(self, node: Node, ctx: Context) -> int | None:
        verdict = ctx.judge(node)
        by_plugin = verdict is not None and verdict.effect is Effect.PLUGIN and self.option(ctx, "replace_plugin")
        if not by_plugin and not ctx.refused(node):
            return None
        rank = node.graph.rank(node.input(0))
        if rank is None or rank < 3:
            raise Skip("the rank of its input is " + ("not known" if rank is None else f"{rank}, below 3"))
        norm.working_dtype(node.graph, node.input(0))
        return rank

    def rewrite(self, node: Node, rank: int, edit: Edit, ctx: Context) -> None:
        x, scale, bias = node.inputs
        dtype = node.graph.dtype(x)
        work = norm.working_dtype(node.graph, x)
        parts = norm.standardize(edit, emit.cast(edit, x, work), range(2, rank), node.attr("epsilon"), work, ctx)
        y = edit.add("Mul", [emit.cast(edit, parts.result, dtype), norm.per_channel(edit, scale, rank)])
        edit.replace_node(node, edit.add("Add", [y, norm.per_channel(edit, bias, rank)]))
