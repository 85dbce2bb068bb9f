"""Freezing inputs and axes: what becomes of the model, what is said of it, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxfix
from onnxfix import freeze
from onnxfix.cli import main
from onnxfix.errors import RequestError
from onnxfix.model import Model

PICK = """<ir_version: 8, opset_import: ["": 13]>
g (float[B, N] x, int64[1] k, float t) => (float[B, M] y, int64[B, M] i) {
  z = Mul(x, t)
  y, i = TopK(z, k)
}"""
CUBIC = """<ir_version: 8, opset_import: ["": 13]>
g (float[1, 3, h, 8] x) => (float[1, 3, h2, 16] y) <float[4] s = {1.0, 1.0, 2.0, 2.0}> {
  y = Resize <mode = "cubic"> (x, "", s)
}"""


def pick() -> Model:
    return Model(parser.parse_model(PICK))


def saved(folder: Path, text: str) -> Path:
    path = folder / "model.onnx"
    onnx.save(parser.parse_model(text), path)
    return path


def dims(info: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in info.type.tensor_type.shape.dim]


def test_a_frozen_input_is_an_initializer_in_its_own_dtype() -> None:
    model = pick()
    changes, values = freeze.apply(model, {"k": 3, "t": 2})
    assert [v.name for v in model.proto.graph.input] == ["x"]
    stored = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    assert stored["k"].dtype == np.int64 and stored["k"].tolist() == [3]
    assert stored["t"].dtype == np.float32 and stored["t"].shape == ()
    assert set(values) == {"k", "t"} and [c.id for c in changes] == [1, 2]
    assert all(c.rule == "freeze" and c.interface for c in changes)
    onnx.checker.check_model(model.proto, full_check=True)


def test_a_set_size_reaches_whatever_has_its_symbol() -> None:
    model = pick()
    freeze.apply(model, shapes={"x": [4, None]})
    graph = model.proto.graph
    assert dims(graph.input[0]) == [4, "N"]
    assert dims(graph.output[0]) == dims(graph.output[1]) == [4, "M"]


@pytest.mark.parametrize(
    ("values", "shapes", "words"),
    [
        ({"nothing": 1}, {}, "no input 'nothing'"),
        ({"k": 1.5}, {}, "is INT64, which can't hold 1.5"),
        ({"k": [1, 2]}, {}, "does not fit"),
        ({"k": "three"}, {}, "only be frozen to numbers"),
        ({}, {"x": [2]}, "of rank 2; 1 sizes"),
        ({}, {"k": [2]}, "axis 0 can't be set to 2"),
    ],
)
def test_what_does_not_fit_is_said(values: dict[str, Any], shapes: dict[str, list[int]], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        freeze.apply(pick(), values, shapes)


def test_two_sizes_of_one_symbol() -> None:
    model = Model(parser.parse_model('<ir_version: 8, opset_import: ["": 13]> g (float[n] a, float[n] b) => (float[n] y) { y = Add(a, b) }'))
    with pytest.raises(RequestError, match="was set to 2 already"):
        freeze.apply(model, shapes={"a": [2], "b": [3]})


def test_a_model_that_freezing_rescues(tmp_path: Path) -> None:
    path = saved(tmp_path, PICK)
    plain = onnxfix.apply(path, target="trt-8.2", dry_run=True)
    assert plain.verdict == "refused"
    assert any("--freeze k=VALUE" in n and "alone" in n for n in plain.notes)
    done = onnxfix.apply(path, target="trt-8.2", freeze={"k": 3, "t": 2.5}, set_shape={"x": [2, None]})
    assert done.verdict == "accepted", done
    parity = done.check("parity")
    assert parity is not None and parity.status.value == "passed"
    assert "the model's interface changed: input 'k' frozen to [3]" in done.notes
    assert [c.id for c in done.changes] == list(range(1, len(done.changes) + 1))


def test_parity_feeds_the_original_the_frozen_value(tmp_path: Path) -> None:
    """With any other value than the frozen one the two models differ."""
    path = saved(tmp_path, '<ir_version: 8, opset_import: ["": 13]> g (float[4] x, float t) => (float[4] y) { y = Mul(x, t) }')
    done = onnxfix.apply(path, target="trt-8.2", freeze={"t": -7.25})
    parity = done.check("parity")
    assert parity is not None and parity.status.value == "passed"
    made = onnx.load(tmp_path / "model.fixed.onnx")
    assert [v.name for v in made.graph.input] == ["x"]


def test_an_output_that_bears_a_wrong_symbol_gets_the_size_that_is_computed(tmp_path: Path) -> None:
    """Exporters name an output's axis as it was while they traced; set to the batch's size it would be a lie."""
    text = """<ir_version: 8, opset_import: ["": 13]>
g (float[batch, 4] x) => (float[batch] y, float[batch] z) <int64[1] rows = {0}, int64[1] columns = {1}> {
  s = ReduceSum<keepdims = 0>(x, rows)
  y = Identity(s)
  z = ReduceSum<keepdims = 0>(x, columns)
}"""
    done = onnxfix.apply(saved(tmp_path, text), target="trt-8.2", set_shape={"x": [1, None]})
    structure = done.check("structure")
    assert structure is not None and structure.status.value == "passed", structure.detail
    made = onnx.load(tmp_path / "model.fixed.onnx")
    assert [dims(v) for v in made.graph.output] == [[4], [1]]


def test_a_model_that_a_shape_rescues(tmp_path: Path) -> None:
    path = saved(tmp_path, CUBIC)
    plain = onnxfix.apply(path, target="trt-8.2", dry_run=True)
    assert any("--set-shape x:1x3xNx8" in n for n in plain.notes)
    done = onnxfix.apply(path, target="trt-8.2", set_shape={"x": [1, 3, 6, 8]})
    assert done.verdict == "accepted" and "resize-unsupported-interpolation" in {c.rule for c in done.changes}


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, PICK)
    arguments = ["apply", str(path), "--target", "trt-8.2", "--dry-run"]
    assert main([*arguments, "--freeze", "k=3", "--freeze", "t=1e-3", "--set-shape", "x:2x?"]) == 0
    assert "input 'x': BxN -> 2xN" in capsys.readouterr().out
    assert main(["inspect", str(path), "--target", "trt-8.2", "--freeze", "k=3"]) == 0
    capsys.readouterr()
    for wrong in (["--freeze", "k"], ["--freeze", "k=many"], ["--set-shape", "x:2xb"], ["--set-shape", "x"]):
        assert main([*arguments, *wrong]) == 2
        assert "give an input's name" in capsys.readouterr().err
