"""TensorRT plugins: written only where they are asked for by name, and libraries of the user's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxfix import backends, catalog
from onnxfix.errors import RequestError, RuleError


def test_rules_that_write_plugins_wait_for_the_plugins_name() -> None:
    plain = catalog.load_set("jetson.yml")
    asked = catalog.load_set("jetson.yml", ["ROIAlign_TRT"])
    assert not any(r.plugin for r in plain.rules)
    assert [r.id for r in asked.rules if r.plugin] == ["plugin-roialign"]


def test_a_rule_file_names_plugins(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text('rules: ["plugin-*"]\nplugins: [EfficientNMS_ONNX_TRT]\n')
    assert [r.id for r in catalog.load_set(path).rules] == ["plugin-nms"]


def test_a_plugin_no_rule_writes_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text('rules: ["*"]\nplugins: [RoiAlign]\n')
    with pytest.raises(RuleError, match=r"mine.yml: no rule writes the plugin 'RoiAlign'; there are .*ROIAlign_TRT"):
        catalog.load_set(path)


SWISH_RULE = """\
before: |
  (x) => (y) { s = Sigmoid(x)  y = Mul(x, s) }
after: |
  (x) => (y) { y = TRT.MySwish<plugin_version = "2", plugin_namespace = "acme">(x) }
safety: close
when: always
"""


def test_a_rule_of_ones_own_maps_a_subgraph_to_a_plugin_which_build_looks_up(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    import onnx

    from onnxfix import build

    (tmp_path / "mine.yml").write_text("target: rtx-1.7\nrules: [swish-plugin]\n")
    (tmp_path / "swish-plugin.yml").write_text(SWISH_RULE)
    (tmp_path / "swish-plugin.md").write_text("# swish-plugin\n\nSwish becomes a plugin of our own.\n")
    text = '<ir_version: 8, opset_import: ["": 13]> g (float[2] x) => (float[2] y) { s = Sigmoid(x) y = Mul(x, s) }'
    (tmp_path / "model.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    report = build.build(tmp_path / "model.onnx", tmp_path / "model.plan", rules=tmp_path / "mine.yml")
    assert [c.rule for c in report.changes] == ["swish-plugin"]
    check = report.check("plugins")
    assert check and "no plugin MySwish of version 2 is registered; give its library with --plugins" in check.detail
    assert not (tmp_path / "model.plan").exists()


def test_a_library_that_is_not_there_is_said_before_any_work() -> None:
    with pytest.raises(RequestError, match=r"nowhere.so: no such library of plugins"):
        backends.use_plugins(["nowhere.so"])


def test_a_library_that_does_not_load_is_one_line_of_the_parsers_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    import onnx

    from onnxfix import prove

    model, library = tmp_path / "model.onnx", tmp_path / "bad.so"
    library.write_text("no library")
    text = '<ir_version: 8, opset_import: ["": 13]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    model.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    monkeypatch.setenv(backends.PLUGINS_VARIABLE, os.environ.get(backends.PLUGINS_VARIABLE, ""))
    try:
        backends.use_plugins([library])
        check = prove.parse(model)
    finally:
        backends.use_plugins([])
    assert "the library of plugins cannot be loaded" in check.detail and "bad.so" in check.detail
    assert "\n" not in check.detail
    assert prove.parse(model).status.value == "passed"
