"""What it costs to prove every Change of a large model: `python -m benchmarks.changes` (one run, ratios side by side).

The model is a convolutional network of 2,000 nodes, of which TensorRT 8.2 refuses 200: activations of three kinds and
normalisations. Counted is everything that `changeproof.prove` does (reading the model, drawing inputs, the run of the
original with the values captured, the runs of what was there before and after each Change, the comparisons), and what
its recorder adds to the run of the rules; the sessions that it makes are counted by themselves. The measure is one run
of the model in ONNX Runtime as it comes: all optimisations, all processors.

Prints the figures, and exits 1 when the proof costs more than three such runs, or a Change is not proved.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxfix import catalog, changeproof, engine, matrix, shapes
from onnxfix.backends import ort
from onnxfix.model import Model

BLOCKS = 200  # of ten nodes, one of them refused
BAR = 3.0
REFUSED = ("HardSwish", "Gelu", "Mish", "LayerNormalization")


def network(blocks: int, channels: int, size: int) -> onnx.ModelProto:
    """Residual blocks: three convolutions with their normalisations, the second node of each fourth one refused."""
    rng = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []

    def add(op: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"v{len(nodes)}"], f"n{len(nodes)}", **attributes))
        return f"v{len(nodes) - 1}"

    def weight(array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{len(weights)}"))
        return weights[-1].name

    def conv(value: str, kernel: int) -> str:
        scale = 1 / np.sqrt(channels * kernel * kernel)
        made = weight(rng.normal(0, scale, (channels, channels, kernel, kernel)))
        value = add("Conv", [value, made], kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4)
        ones, zeros = np.ones(channels), np.zeros(channels)
        return add("BatchNormalization", [value, *map(weight, (ones, zeros, zeros, ones))])

    def refused(value: str, op: str) -> str:
        return add(op, [value, weight(np.ones(size))] if op == "LayerNormalization" else [value])

    last = "x"
    for block in range(blocks):
        inner = add("Relu", [conv(refused(conv(last, 3), REFUSED[block % len(REFUSED)]), 1)])
        last = add("Relu", [add("Add", [conv(inner, 3), last])])
    shape = [1, channels, size, size]
    nodes[-1].output[0] = "y"
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "network", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@contextmanager
def timed_sessions(seconds: list[float]) -> Iterator[None]:
    """Note how long each session takes to make."""
    make: Callable[..., Any] = ort._session

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return make(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    ort._session = timed
    try:
        yield
    finally:
        ort._session = make


def rewritten(data: bytes, observer: engine.Observer | None) -> float:
    """Seconds that the rules take."""
    rules, goal = catalog.load_set("jetson.yml"), matrix.target("trt-8.2")
    graph = shapes.index(Model(onnx.ModelProto.FromString(data)))
    start = time.perf_counter()
    engine.run(graph, rules.rules, goal, lambda n: matrix.judge(n, goal), allow=rules.allow, observer=observer)
    return time.perf_counter() - start


def measured(data: bytes, repeats: int) -> tuple[float, float, list[float], list[changeproof.Proof]]:
    """Seconds of one run, of a proof without its sessions, and of these; the proofs. Medians over the repeats."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    sample = {i.name: np.random.default_rng(0).random(i.shape, np.float32) for i in session.get_inputs()}
    session.run(None, sample)
    runs, costs, made = [], [], []
    for _ in range(repeats):
        start = time.perf_counter()
        session.run(None, sample)
        runs.append(time.perf_counter() - start)
        recorder = changeproof.Recorder()
        rewritten(data, recorder)
        seconds: list[float] = []
        with timed_sessions(seconds):
            start = time.perf_counter()
            proofs = changeproof.prove(lambda: Model(onnx.ModelProto.FromString(data)), recorder)
            costs.append(time.perf_counter() - start - sum(seconds))
        made.append(seconds)
    return statistics.median(runs), statistics.median(costs), min(made, key=sum), proofs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=f"of ten nodes (default: {BLOCKS})")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--size", type=int, default=56, help="height and width (default: 56)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    proto = network(args.blocks, args.channels, args.size)
    run, cost, sessions, proofs = measured(proto.SerializeToString(), args.repeats)
    unproved = [p for p in proofs if p.verdict not in ("equal", "within")]
    print(f"model                {len(proto.graph.node)} nodes, {len(proofs)} changes, {len(unproved)} not proved")
    print(f"one run              {run:.3f} s")
    print(f"the proof            {cost:.3f} s = {cost / run:.2f} runs (bar: {BAR:g})")
    print(f"its {len(sessions)} sessions       {sum(sessions):.3f} s")
    for proof in unproved[:5]:
        print(f"  {proof.change.rule} at {proof.change.where}: {proof.verdict}: {proof.detail}")
    return 0 if cost <= BAR * run and not unproved else 1


if __name__ == "__main__":
    sys.exit(main())
