"""What the rules cost a model that needs none: `python -m benchmarks.idle`, both runs side by side.

`apply` without proofs and without writing (a dry run: load, infer types, judge, rules, judge again) of 20,000 nodes
that no rule changes, with the whole library against no rules at all, in turn. Bar: the median ratio is at most 2.
`--profile` prints what takes the time, by function, instead.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from onnxfix import api, catalog
from onnxfix.catalog import RuleSet

BAR = 2.0
TARGET = "rtx-1.7"
SHAPE = [1, 4, 8, 8]
# Operators that many rules look at: (operator, shapes of its constants, attributes).
BLOCK = (
    ("Conv", [[4, 4, 1, 1], [4]], {}),
    ("BatchNormalization", [[4]] * 4, {}),
    ("Relu", [], {}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("Add", [SHAPE], {}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [], {"perm": [0, 3, 1, 2]}),
    ("LayerNormalization", [[8], [8]], {}),
    ("MatMul", [[8, 8]], {}),
    ("Softmax", [], {"axis": -1}),
    ("Mul", [[1, 4, 1, 1]], {}),
    ("Sigmoid", [], {}),
)


def network(nodes: int) -> onnx.ModelProto:
    """A chain of the block, which TensorRT-RTX takes as it is; every second block's output is added further on."""
    made, weights, last, kept = [], [], "x", "x"
    for i in range(nodes):
        op, shapes, attributes = BLOCK[i % len(BLOCK)]
        names = [f"w{i}_{j}" for j in range(len(shapes))]
        weights += [numpy_helper.from_array(np.full(s, 0.5, np.float32), n) for s, n in zip(shapes, names, strict=True)]
        inputs = [last, kept] if i % 24 == 4 else [last, *names]
        made.append(helper.make_node(op, inputs, [f"v{i}"], name=f"n{i}", **attributes))
        last = f"v{i}"
        kept = last if i % 24 == 2 else kept
    used = {name for node in made for name in node.input}
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, SHAPE)],
        [w for w in weights if w.name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def seconds(path: Path, rules: RuleSet) -> float:
    """Of one dry run, in this process's own time. Raises SystemExit when a rule changes the model after all."""
    gc.collect()
    start = time.process_time()
    report = api.apply(path, rules=rules, target=TARGET, dry_run=True)
    took = time.process_time() - start
    if report.changes or report.findings:
        raise SystemExit(f"the model needs something: {(report.changes or report.findings)[0]}")
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where the time with all rules goes, by function")
    arguments = parser.parse_args()
    every = RuleSet(name="all", rules=tuple(catalog.load_folder(catalog.shipped()).values()))
    none = RuleSet(name="none", rules=())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "idle.onnx")
        onnx.save(network(arguments.nodes), path)
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(seconds, path, every)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            return 0
        seconds(path, every)  # what is read once
        rounds = [(seconds(path, none), seconds(path, every)) for _ in range(arguments.rounds)]
    ratio = statistics.median(b / a for a, b in rounds)
    table = Table("", "seconds", "for each node", title=f"{arguments.nodes:,} nodes that need nothing, {TARGET}")
    for label, times in zip(("no rules", f"{len(every.rules)} rules"), zip(*rounds, strict=True), strict=True):
        middle = statistics.median(times)
        table.add_row(label, f"{middle:.2f}", f"{middle / arguments.nodes * 1e6:.0f} µs")
    console = Console()
    console.print(table)
    console.print(f"ratio {ratio:.2f}, bar {BAR:g}: {'met' if ratio <= BAR else 'MISSED'}")
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
