import itertools
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip

_NUMBERS = 1 << 24  # more comparisons are not put side by side


@dataclass
class _Grams:
    """N-grams of one length, n."""

    windows: np.ndarray  # INT64 [windows, n]: which elements of a row each takes
    pool: np.ndarray  # INT64 [grams, n]
    columns: list[int]  # where each is counted


class TfIdf(Rule):
    ops = ("TfIdfVectorizer",)

    def match(self, node: Node, ctx: Context) -> list[_Grams]:
        shape = elementwise.static(node.graph, node.input(0))
        dtype = elementwise.dtype_of(node.graph, node.input(0))
        pool = np.asarray(node.attr("pool_int64s") or [], np.int64)
        if not len(pool):
            raise Skip("it counts words; TensorRT has no strings: number the words before the network")
        if not shape or 0 in shape or len(shape) > 2:
            raise Skip("it counts in no row or in more than two dimensions")
        if dtype.kind != "i" or pool.min() < np.iinfo(dtype).min or pool.max() > np.iinfo(dtype).max:
            raise Skip(f"its n-grams hold numbers that {dtype} has not")
        columns = node.attr("ngram_indexes")
        if len(set(columns)) < len(columns):
            raise Skip("two of its n-grams are counted in the same column")
        weights = node.attr("weights")
        if weights and node.attr("mode") != "TF" and columns != list(range(len(columns))) and len(set(weights)) > 1:
            raise Skip("runtimes disagree on the order of weights whose n-grams are not in the order of the columns")
        found = [g for g in self._by_length(node, pool, shape[-1]) if len(g.windows) and len(g.pool)]
        if sum(g.windows.size * len(g.pool) for g in found) * (shape[0] if len(shape) > 1 else 1) > _NUMBERS:
            raise Skip("it compares too many n-grams with too many places")
        return found

    @staticmethod
    def _by_length(node: Node, pool: np.ndarray, size: int) -> list[_Grams]:
        starts, columns = [*node.attr("ngram_counts"), len(pool)], iter(node.attr("ngram_indexes"))
        found = []
        for n, (start, end) in enumerate(itertools.pairwise(starts), 1):
            grams = pool[start:end].reshape(-1, n)
            places = [next(columns) for _ in grams]
            if not node.attr("min_gram_length") <= n <= node.attr("max_gram_length"):
                continue
            # Skipping makes no difference to single elements: they are counted once.
            steps = range(1, 2 if n == 1 else node.attr("max_skip_count") + 2)
            windows = [range(i, i + n * s, s) for s in steps for i in range(size - (n - 1) * s)]
            found.append(_Grams(np.array(windows, np.int64).reshape(-1, n), grams, places))
        return found

    def rewrite(self, node: Node, found: list[_Grams], edit: Edit, ctx: Context) -> None:
        x, shape = node.input(0), elementwise.static(node.graph, node.input(0))
        rows = shape[:-1]
        counts = [self._count(edit, x, grams, len(rows)) for grams in found]
        # Behind the counts comes a zero, for columns that no n-gram has and n-grams that no window is long enough for.
        source = emit.concat(edit, [*counts, edit.const(np.zeros((*rows, 1), np.float32))], len(rows))
        columns = [c for grams in found for c in grams.columns]
        order = np.full(max(node.attr("ngram_indexes")) + 1, len(columns))
        order[columns] = np.arange(len(columns))
        edit.replace_node(node, self._weighed(node, edit, edit.add("Gather", [source, order], axis=len(rows))))

    @staticmethod
    def _count(edit: Edit, x: str, grams: _Grams, axis: int) -> str:
        """How often each n-gram occurs: FLOAT [(rows,) grams]."""
        dtype = elementwise.dtype_of(edit.graph, x)
        taken = edit.add("Gather", [x, grams.windows], axis=axis)
        same = edit.add("Equal", [emit.unsqueeze(edit, taken, [axis + 1]), grams.pool.astype(dtype)])
        hits = emit.cast(edit, same, TensorProto.FLOAT)
        whole = emit.reduce(edit, "ReduceMin", hits, [axis + 2], keepdims=0)
        return emit.reduce(edit, "ReduceSum", whole, [axis], keepdims=0)

    @staticmethod
    def _weighed(node: Node, edit: Edit, counts: str) -> str:
        mode, weights = node.attr("mode"), node.attr("weights")
        if mode != "TF":
            width = max(node.attr("ngram_indexes")) + 1
            factors = np.zeros(width, np.float32)
            factors[node.attr("ngram_indexes")] = weights or 1.0
            if mode == "IDF":
                counts = emit.clip(edit, counts, np.float32(0), np.float32(1))
            counts = edit.add("Mul", [counts, factors])
        return counts
