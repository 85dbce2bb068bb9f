from dataclasses import dataclass

import numpy as np

from onnxfix import emit
from onnxfix.graph import Graph
from onnxfix.lowering import functions
from onnxfix.rule import Context, Edit, Node, Rule, Skip


@dataclass
class _Unrolled:
    body: Graph
    trips: int


class LoopConstant(Rule):
    ops = ("Loop",)
    when = "always"
    options = {"max_nodes": 2000}  # noqa: RUF012

    def match(self, node: Node, ctx: Context) -> _Unrolled | None:
        body = node.bodies["body"]
        inside = [n for scope in body.walk() for n in scope.nodes()]
        if not ctx.refused(node) and not any(ctx.refused(n) for n in inside):
            return None
        if not functions.renameable(node):
            return None
        trips = self._trips(node, body)
        carried = len(node.inputs) - 2
        if trips == 0 and any(not node.graph.unused(o) for o in node.outputs[carried:]):
            raise Skip("it runs no iteration, and its collected outputs are empty")
        limit = int(self.option(ctx, "max_nodes"))
        if trips * len(inside) > limit:
            raise Skip(f"unrolled it would be {trips * len(inside)} nodes; raise 'max_nodes' ({limit}) to have that")
        return _Unrolled(body, trips)

    @staticmethod
    def _trips(node: Node, body: Graph) -> int:
        """The number of iterations. Raises Skip when it is not known beforehand."""
        start = node.graph.const(node.input(1)) if node.input(1) else np.asarray(True)
        if start is not None and not start.reshape(-1)[0]:
            return 0
        keep, given = body.proto.output[0].name, body.proto.input[1].name
        while (producer := body.producers.get(keep)) is not None and producer.op == "Identity":
            keep = producer.input(0)
        goes_on = keep == given if not body.is_const(keep) else bool((body.const(keep) == np.asarray(True)).all())
        if start is None or not goes_on:
            raise Skip("it may end early: its condition is computed; export the loop with a fixed number of iterations")
        trips = node.graph.const(node.input(0)) if node.input(0) else None
        if trips is None:
            raise Skip("the number of its iterations is computed; export it with a fixed number of iterations")
        return max(int(trips.reshape(-1)[0]), 0)

    def rewrite(self, node: Node, found: _Unrolled, edit: Edit, ctx: Context) -> None:
        body, state = found.body, node.inputs[2:]
        index, condition, *arguments = (v.name for v in body.proto.input)
        collected: list[list[str]] = [[] for _ in body.proto.output[1 + len(state) :]]
        shared: dict[str, str] = {}
        true = edit.const(np.asarray(True)) if body.uses(condition) or body.is_output(condition) else condition
        for i in range(found.trips):
            values = {**shared, condition: true, **dict(zip(arguments, state, strict=True))}
            if body.uses(index) or body.is_output(index):
                values[index] = edit.const(np.asarray(i, np.int64))
            names = edit.inline_graph(body, values)
            shared = {name: names[name] for name in body.initializers}
            results = functions.results_of(body, names)[1:]
            state, scanned = results[: len(state)], results[len(state) :]
            for values_of, value in zip(collected, scanned, strict=True):
                values_of.append(value)
        wanted = [not node.graph.unused(o) for o in node.outputs[len(state) :]]
        stacked = [self._stack(edit, v) if w else "" for v, w in zip(collected, wanted, strict=False)]
        edit.note = f"its {found.trips} iterations stand one after the other"
        functions.replace_outputs(edit, node, [*state, *stacked])

    @staticmethod
    def _stack(edit: Edit, values: list[str]) -> str:
        return emit.concat(edit, [emit.unsqueeze(edit, v, [0]) for v in values], 0)
