"""A large model read without its weights: the same model, its weights where they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnxfix import skeleton
from onnxfix.errors import ModelError
from onnxfix.model import is_external
from tests.models import fixture_models


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "SMALL_FILE", 0)


def write(folder: Path) -> Path:
    """A model with weights of every size, stored as bytes and as numbers, and with an odd distance between them."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[400] x) => (float[400] y) { a = Add(x, big) y = Mul(a, listed) }'
    )
    rng = np.random.default_rng(0)
    proto.graph.initializer.append(numpy_helper.from_array(rng.random(400, np.float32), "big"))
    proto.graph.initializer.append(helper.make_tensor("listed", 1, [400], rng.random(400, np.float32)))
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(3), "small"))
    proto.graph.initializer.append(numpy_helper.from_array(rng.random(70_000), "later"))
    proto.graph.doc_string = "odd"
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return path


def test_weights_stay_in_the_file_and_are_read_from_there(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole, light = onnx.load(path), skeleton.load(path)
    assert light.proto.ByteSize() < 5_000 < whole.ByteSize()
    assert {t.name: is_external(t) for t in light.proto.graph.initializer} == {
        "big": True, "listed": False, "small": False, "later": True,
    }  # fmt: skip
    for before, after in zip(whole.graph.initializer, light.proto.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(before), light.array(after))
    del whole.graph.initializer[:], light.proto.graph.initializer[:]
    assert whole == light.proto


@pytest.mark.parametrize("name", sorted(fixture_models()))
def test_what_is_no_weight_is_the_same(name: str) -> None:
    path = fixture_models()[name]
    whole, light = onnx.load(path), skeleton.load(path).proto
    assert [t.name for t in whole.graph.initializer] == [t.name for t in light.graph.initializer]
    assert [tuple(t.dims) for t in whole.graph.initializer] == [tuple(t.dims) for t in light.graph.initializer]
    del whole.graph.initializer[:], light.graph.initializer[:]
    assert whole == light


def test_onnx_runtime_takes_the_weights_from_the_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from onnxfix.backends import ort

    path = write(tmp_path)
    sample = {"x": np.ones(400, np.float32)}
    light = ort.Session(skeleton.load(path).proto.SerializeToString(), tmp_path, exact=True)
    whole = ort.Session(path.read_bytes(), tmp_path, exact=True)
    assert np.array_equal(light.run(sample, ["y"])["y"], whole.run(sample, ["y"])["y"])


@pytest.mark.parametrize("data", [b"", b"no model", b"\xff" * 40])
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(ModelError):
        skeleton.load(tmp_path / "x.onnx")


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="not an ONNX model"):
        skeleton.load(path)
    with pytest.raises(ModelError, match="no such file"):
        skeleton.load(tmp_path / "none.onnx")
