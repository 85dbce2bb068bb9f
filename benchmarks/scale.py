"""How cost grows with the model: `python benchmarks/scale.py` (one run, ratios side by side).

Prints, and exits 1 when a bar is missed:
- `apply` per node, from 10,000 to 80,000 nodes (bar: grows by less than 1.5x);
- `inspect` of 20,000 nodes against `onnx.load` plus one walk over the nodes (bar: at most 3x);
- judging 20,000 nodes against loading them, for two networks and two targets (bar: less). Loading is what every command
  begins with: `model.load` (read, parse, hash, check names) and the index over the nodes. Judging is
  `matrix.judge_model`, all verdicts with their texts, of types that are inferred already: ONNX infers them, once for
  all that asks. The ratio with that inference on the side of judging is printed beside it, and so is loading against
  `onnx.load` alone, which parses and no more;
- start-up of `onnxfix --help` against `python -c pass` (bar: at most 0.2 s more);
- memory and time for a model with 1 GiB of external data (bars: inspect 150 MiB, 1 s beyond start-up; apply 300 MiB).
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

import onnxfix
from onnxfix import catalog, engine, inspection, matrix, model, shapes

TABLE = Table("what", "measured", "bar", "met")
MISSED: list[str] = []


def row(what: str, measured: str, bar: str, met: bool) -> None:
    TABLE.add_row(what, measured, bar, "yes" if met else "NO")
    if not met:
        MISSED.append(what)


def network(nodes: int) -> onnx.ModelProto:
    """Conv, Add, HardSwish, Identity, Relu in turn, with parameters of their own: a third needs a rule on 8.2."""
    made, weights = [], []
    kernel = np.ones((4, 4, 1, 1), np.float32) / 4
    last = "x"
    for i in range(nodes):
        out, kind = f"v{i}", i % 5
        if kind == 0:
            weights.append(numpy_helper.from_array(kernel, f"w{i}"))
            made.append(helper.make_node("Conv", [last, f"w{i}"], [out], name=f"conv{i}"))
        elif kind == 1:
            weights.append(numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32), f"b{i}"))
            made.append(helper.make_node("Add", [last, f"b{i}"], [out], name=f"add{i}"))
        else:
            made.append(helper.make_node(("HardSwish", "Identity", "Relu")[kind - 2], [last], [out], name=f"n{i}"))
        last = out
    made[-1].output[0] = "y"
    shape = [1, 4, 8, 8]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def encoder(nodes: int) -> onnx.ModelProto:
    """MatMul, Add, Reshape, Transpose, Softmax, Transpose, Reshape, Erf in turn: attention without its products."""
    sizes = {"split": [1, 8, 4, 4], "merge": [1, 8, 16]}
    weights = [numpy_helper.from_array(np.array(size), name) for name, size in sizes.items()]
    made, last = [], "x"
    for i in range(nodes):
        kind, inputs, settings = i % 8, [last], {}
        if kind < 2:
            shape = [16, 16] if kind == 0 else [16]
            weights.append(numpy_helper.from_array(np.ones(shape, np.float32), f"w{i}"))
            inputs.append(f"w{i}")
        elif kind in (2, 6):
            inputs.append("split" if kind == 2 else "merge")
        elif kind in (3, 5):
            settings["perm"] = [0, 2, 1, 3]
        op = ("MatMul", "Add", "Reshape", "Transpose", "Softmax", "Transpose", "Reshape", "Erf")[kind]
        last = f"v{i}"
        made.append(helper.make_node(op, inputs, [last], name=f"n{i}", **settings))
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def best(action, repeats: int) -> float:
    """The best of several runs in seconds: the machine's noise only ever adds."""
    times = []
    for _ in range(repeats):
        gc.collect()
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def growth(repeats: int) -> None:
    rules = catalog.load_set("jetson.yml")
    target = matrix.target(rules.target)

    def apply(data: bytes) -> None:
        graph = shapes.index(model.Model(model.parse(data)))
        list(matrix.judge_graph(graph, target))
        outcome = engine.run(graph, rules.rules, target, lambda n: matrix.judge(n, target), allow=rules.allow)
        assert outcome.changes

    per_node = {}
    for nodes in (10_000, 80_000):
        data = network(nodes).SerializeToString()
        per_node[nodes] = best(lambda data=data: apply(data), repeats) / nodes * 1e6
    ratio = per_node[80_000] / per_node[10_000]
    row(
        "apply per node, 10k -> 80k nodes",
        f"{per_node[10_000]:.0f} -> {per_node[80_000]:.0f} µs: {ratio:.2f}x",
        "< 1.5x",
        ratio < 1.5,
    )


def inspecting(repeats: int, folder: Path) -> None:
    path = folder / "m20k.onnx"
    onnx.save(network(20_000), path)

    def floor() -> None:
        for node in onnx.load(path).graph.node:
            _ = node.op_type, list(node.input), list(node.output)

    rounds = [
        (best(floor, 1), best(lambda: inspection.inspect_model(model.load(path), None, ()), 1)) for _ in range(repeats)
    ]
    ratio = statistics.median(b / a for a, b in rounds)
    row("inspect of 20k nodes / (onnx.load + walk)", f"{ratio:.2f}x", "<= 3x", ratio <= 3)


def judging(repeats: int, folder: Path) -> None:
    def seconds(action) -> tuple[float, object]:
        gc.collect()
        start = time.process_time()  # work, not waiting: the steps of one round are compared with each other
        result = action()
        return time.process_time() - start, result

    def once(path: Path, target: matrix.Target) -> tuple[float, float, float, float]:
        parse, _ = seconds(lambda: onnx.load(path))
        load, graph = seconds(lambda: shapes.index(model.load(path)))
        types, _ = seconds(lambda: graph.type_of("x"))
        judge, _ = seconds(lambda: list(matrix.judge_model(graph, target)))
        return parse, load, types, judge

    for make in (network, encoder):
        path = folder / f"{make.__name__}.onnx"
        onnx.save(make(20_000), path)
        for name in ("trt-8.2", "rtx-1.7"):
            target = matrix.target(name)
            list(matrix.judge_model(shapes.index(model.Model(make(100))), target))  # its matrix is read once
            rounds = [once(path, target) for _ in range(repeats)]
            ratio = statistics.median(judge / load for _, load, _, judge in rounds)
            whole = statistics.median((types + judge) / load for _, load, types, judge in rounds)
            parse = statistics.median(load / parse for parse, load, _, _ in rounds)
            row(
                f"judging 20k nodes / loading them: {make.__name__}, {name}",
                f"{ratio:.2f}x; with type inference {whole:.2f}x; loading is {parse:.1f}x onnx.load",
                "< 1x",
                ratio < 1,
            )


def start_up(repeats: int) -> None:
    def run(*command: str) -> float:
        return best(lambda: subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL), repeats)

    extra = run("-m", "onnxfix", "--help") - run("-c", "pass")
    row("onnxfix --help beyond python -c pass", f"{extra:.3f} s", "<= 0.2 s", extra <= 0.2)


def external(folder: Path) -> None:
    values = 1 << 28
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]>\ng (float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }'
    )
    tensor = proto.graph.initializer.add(name="big", data_type=TensorProto.FLOAT, dims=[values])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="big.bin")
    proto.graph.node.insert(0, helper.make_node("Gather", ["big", "at"], ["ga"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), "at"))
    proto.graph.node[1].input[0] = "s"
    proto.graph.node.insert(1, helper.make_node("Add", ["x", "ga"], ["s"]))
    path = folder / "big.onnx"
    path.write_bytes(proto.SerializeToString())
    with open(folder / "big.bin", "wb") as file:
        file.write(os.urandom(1 << 20))
        file.truncate(values * 4)
    peak = 'import re; print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])'
    warm = "import onnxfix.inspection, onnxfix.matrix, onnxfix.catalog, time; start = time.perf_counter(); "
    code = warm + f"import onnxfix; onnxfix.inspect({str(path)!r}); print(time.perf_counter() - start); " + peak
    seconds, kib = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    row("inspect, 1 GiB external: memory", f"{int(kib) >> 10} MiB", "<= 150 MiB", int(kib) >> 10 <= 150)
    row("inspect, 1 GiB external: time beyond start-up", f"{float(seconds):.2f} s", "<= 1 s", float(seconds) <= 1)
    code = (
        "from onnxfix import catalog, engine, matrix, model, shapes; from pathlib import Path\n"
        f"m = model.load({str(path)!r}); g = shapes.index(m)\n"
        "s = catalog.load_set('jetson.yml'); t = matrix.target(s.target)\n"
        "engine.run(g, s.rules, t, lambda n: matrix.judge(n, t), options=s.options)\n"
        f"d = model.Draft(m, Path({str(folder / 'out' / 'fixed.onnx')!r})); d.publish()\n" + peak
    )
    (folder / "out").mkdir()
    kib = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    row("rewrite + save, 1 GiB external: memory", f"{int(kib) >> 10} MiB", "<= 300 MiB", int(kib) >> 10 <= 300)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        growth(repeats)
        inspecting(max(repeats, 3), Path(folder))
        judging(max(repeats, 5), Path(folder))
        start_up(max(repeats, 5))
        external(Path(folder))
    Console().print(f"onnxfix {onnxfix.__version__}, onnx {onnx.__version__}, Python {sys.version.split()[0]}", TABLE)
    return 1 if MISSED else 0


if __name__ == "__main__":
    sys.exit(main())
