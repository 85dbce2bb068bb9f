import math
from dataclasses import dataclass

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_MOST = 8  # dimensions of a tensor


@dataclass
class _Short:
    source: str  # what the Reshape in front reads
    sizes: list[int]
    perm: list[int]


class TransposeRank(Rule):
    ops = ("Transpose",)

    def match(self, node: Node, ctx: Context) -> _Short | None:
        graph, x = node.graph, node.input(0)
        if (graph.rank(x) or 0) <= _MOST:
            return None
        shape, front = elementwise.static(graph, x), graph.producer(x)
        if front is None or front.op != "Reshape" or front.domain or front.graph is not graph:
            raise Skip(f"'{x}' has {len(shape)} dimensions before it comes here; TensorRT has no more than {_MOST}")
        readers = [u for u, _ in graph.uses(node.output(0))]
        if graph.is_output(node.output(0)) or not all(u.op == "Reshape" and not u.domain for u in readers):
            raise Skip(f"something other than a Reshape reads '{node.output(0)}' with its {len(shape)} dimensions")
        if 0 in shape:
            raise Skip("it is empty, and Reshape reads a 0 otherwise")
        if not all(0 not in (graph.known(u.input(1)) or [0]) for u in readers):
            raise Skip("a Reshape behind it copies a dimension (0), or is computed; give it all sizes")
        sizes, perm = _shortened(shape, node.attr("perm") or list(range(len(shape)))[::-1])
        if len(sizes) > _MOST:
            raise Skip(f"{len(sizes)} axes move apart from each other; TensorRT has no more than {_MOST}")
        return _Short(front.input(0), sizes, perm)

    def rewrite(self, node: Node, found: _Short, edit: Edit, ctx: Context) -> None:
        x = emit.reshape(edit, found.source, found.sizes)
        edit.replace_node(node, emit.transpose(edit, x, found.perm))
        edit.forget_type(node.output(0))  # the same elements in another shape, which the Reshapes behind don't mind


def _shortened(shape: tuple[int, ...], perm: list[int]) -> tuple[list[int], list[int]]:
    """The sizes and the permutation of as few axes as do the same."""
    moved = [a for a in perm if shape[a] != 1]
    order = {a: i for i, a in enumerate(sorted(moved))}
    runs: list[list[int]] = []  # axes that are neighbours before and after
    for axis in moved:
        if runs and order[axis] == order[runs[-1][-1]] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    place = {run[0]: i for i, run in enumerate(sorted(runs))}
    return [math.prod(shape[a] for a in run) for run in sorted(runs)], [place[run[0]] for run in runs]
