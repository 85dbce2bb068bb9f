"""`apply` from end to end, with real parts: rules, proofs, the parser, the builder, the file on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxfix
from onnxfix import catalog
from onnxfix.errors import ModelError, RequestError, TargetError
from onnxfix.report import Effect, Report, Safety, Status, to_dict
from onnxfix.rule import Rule
from tests.models import fixture_models, package_model, package_models

FIXTURES = fixture_models()
RTX = pytest.mark.skipif(
    not any(b.name == "tensorrt_rtx" and b.available for b in onnxfix.doctor()),
    reason="TensorRT-RTX is not installed: its parser and builder can't be asked",
)


def digest(report: Report) -> str:
    return "\n".join(f"{c.name} {c.status.value}: {c.detail}" for c in report.checks)


@RTX
@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures_for_rtx_are_proved_by_a_build(tmp_path: Path, name: str) -> None:
    report = onnxfix.apply(FIXTURES[name], rules="rtx.yml", output=tmp_path / "fixed.onnx")
    assert report.verdict == "proved", digest(report)
    assert {c.name: c.status for c in report.checks} == dict.fromkeys(
        ("changes", "structure", "parse", "parity", "build"), Status.PASSED
    ), digest(report)
    assert onnxfix.exit_status(report) == 0 and not report.remaining


@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures_for_a_jetson_are_accepted_by_its_matrix(tmp_path: Path, name: str) -> None:
    report = onnxfix.apply(FIXTURES[name], rules="jetson.yml", output=tmp_path / "fixed.onnx")
    # InstanceNormalization runs as a plugin of NVIDIA's own library, which a Jetson has.
    left = [f for f in report.remaining if f.effect is not Effect.PLUGIN]
    assert not left and report.verdict in ("accepted", "unverified"), f"{digest(report)} {left}"
    assert report.check("parity").status is Status.PASSED, digest(report)
    if "antialias" in name or "camera" in name:
        assert any(f.effect.value in ("refused", "silently wrong") for f in report.findings)


@RTX
def test_refused_by_the_real_parser_then_built(tmp_path: Path) -> None:
    """The segmentation network and the detector, whose antialiased resize TensorRT-RTX's own parser refuses."""
    from onnxfix import prove

    for name in ("fastsegformer_antialias", "yolov5s_1class_camera"):
        before = prove.parse(FIXTURES[name])
        assert before.status is Status.FAILED and before.findings[0].where.op == "Resize"
        report = onnxfix.apply(
            FIXTURES[name], rules="jetson.yml", target="rtx-1.7", output=tmp_path / f"{name}.onnx",
            build_to=tmp_path / f"{name}.plan", require=("parse",),
        )  # fmt: skip
        assert report.verdict == "proved", digest(report)
        assert report.check("parity").status is Status.PASSED
        assert (tmp_path / f"{name}.plan").stat().st_size > 10_000
        readback = report.check("readback")
        assert readback.status is Status.PASSED or "header" in readback.detail


@RTX
@pytest.mark.parametrize("name", ["text2tashkeel/models/rawi.int8", "text2tashkeel/models/bilstm.int8"])
def test_quantised_models_nobody_here_wrote(tmp_path: Path, name: str) -> None:
    from onnxfix import prove

    path = package_model(name)
    assert prove.parse(path).status is Status.FAILED
    report = onnxfix.apply(path, rules="rtx.yml", output=tmp_path / "fixed.onnx")
    assert report.verdict == "proved" and report.check("parity").status is Status.PASSED, digest(report)


@pytest.mark.parametrize("target", ["jetpack-4.6.1", "rtx-1.7"])
def test_models_nobody_here_wrote_are_never_made_worse(tmp_path: Path, target: str) -> None:
    """Small third-party models: equal numbers, and nothing refused that was not refused before."""
    heavy = ("speechmos", "text2tashkeel")  # many seconds of arithmetic each; the latter have their own test
    found = {
        n: p for n, p in package_models().items() if p.stat().st_size < 1_500_000 and not n.startswith(heavy)
    }
    if not found:
        pytest.skip("no third-party models here: python -m fixtures.fetch_models")
    for name, path in found.items():
        report = onnxfix.apply(path, rules="jetson.yml", target=target, output=tmp_path / "fixed.onnx")
        assert len(report.remaining) <= len(report.findings), name
        parity = report.check("parity")
        assert parity.status is not Status.FAILED, f"{name}: {parity.detail}"
        assert report.verdict in ("proved", "accepted", "unverified") or report.findings, f"{name}: {digest(report)}"


def test_what_cannot_be_rescued_is_said_well(tmp_path: Path) -> None:
    path = tmp_path / "strings.onnx"
    text = '<ir_version: 8, opset_import: ["": 13]> g (string[2] x) => (string[n] y) { y = StringNormalizer(x) }'
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    report = onnxfix.apply(path, rules="jetson.yml", output=tmp_path / "fixed.onnx")
    assert report.verdict == "refused" and onnxfix.exit_status(report) == 1
    assert report.remaining[0].where.op == "StringNormalizer" and "no importer" in report.remaining[0].reason


def test_the_report_survives_json(tmp_path: Path) -> None:
    out, saved = tmp_path / "fixed.onnx", tmp_path / "r.json"
    report = onnxfix.apply(FIXTURES["yolov5s_1class_camera"], output=out, report_to=saved)
    again = Report.from_json(saved.read_text())
    assert to_dict(again) == to_dict(report)
    assert report.model_sha256 and report.output_sha256 and json.loads(saved.read_text())["changes"]


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    report = onnxfix.apply(FIXTURES["fastsegformer"], output=tmp_path / "fixed.onnx", dry_run=True)
    assert report.changes and not report.checks and os.listdir(tmp_path) == []


class Breaks(Rule):
    """Turns every Relu into Abs: a wrong rewrite that calls itself exact."""

    ops = ("Relu",)
    when = "always"
    id = "relu-is-abs"
    summary = "wrong on purpose"

    def match(self, node, ctx):
        return True

    def rewrite(self, node, found, edit, ctx):
        edit.replace_node(node, edit.add("Abs", node.inputs))


def small(path: Path) -> Path:
    path.write_bytes(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 13]>\ng (float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }'
        ).SerializeToString()
    )
    return path


def test_a_wrong_rewrite_is_found_and_undone(tmp_path: Path) -> None:
    path = small(tmp_path / "m.onnx")
    report = onnxfix.apply(path, rules=catalog.RuleSet("broken", (Breaks(),), "trt-8.2"))
    assert report.verdict == "accepted" and not report.changes, digest(report)
    assert "relu-is-abs" in "".join(s.rule for s in report.skipped) + report.check("changes").detail
    assert [n.op_type for n in onnx.load(tmp_path / "m.fixed.onnx").graph.node] == ["Identity", "Relu"]


def test_a_wrong_rewrite_that_is_kept_is_never_written(tmp_path: Path) -> None:
    path = small(tmp_path / "m.onnx")
    report = onnxfix.apply(path, rules=catalog.RuleSet("broken", (Breaks(),), "trt-8.2"), on_mismatch="keep")
    assert report.verdict == "failed" and onnxfix.exit_status(report) == 1
    assert report.check("parity").status is Status.FAILED
    assert os.listdir(tmp_path) == ["m.onnx"] and report.output == ""


def test_a_required_proof_that_cannot_run_is_exit_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxfix import prove
    from onnxfix.report import Check

    monkeypatch.setattr(prove, "parse", lambda *a, **k: Check("parse", Status.NOT_RUN, "tensorrt", "not installed"))
    path = small(tmp_path / "m.onnx")
    assert onnxfix.exit_status(onnxfix.apply(path, output=tmp_path / "a.onnx")) == 0
    report = onnxfix.apply(path, output=tmp_path / "b.onnx", require=("parse",))
    assert onnxfix.exit_status(report) == 3 and not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"rules": "nowhere.yml"}, RequestError, "no such rule file"),
        ({"target": "jetson-nanno"}, TargetError, "jetson-nano"),
        ({"require": ("parsing",)}, RequestError, "no proof called 'parsing'"),
        ({"output": "nowhere/fixed.onnx"}, RequestError, "folder does not exist"),
        ({"inputs": "nowhere.npz"}, RequestError, "nowhere.npz"),
        ({"build_to": "out.onnx", "output": "out.onnx"}, RequestError, "different names"),
    ],
)
def test_wrong_requests(tmp_path: Path, monkeypatch, arguments: dict, error: type, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = small(tmp_path / "m.onnx")
    with pytest.raises(error, match=says):
        onnxfix.apply(path, **arguments)
    assert os.listdir(tmp_path) == ["m.onnx"]
    with pytest.raises(ModelError):
        onnxfix.apply(tmp_path / "other.onnx")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """In other processes too, where hashes of strings differ."""
    outputs = set()
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.onnx"
        code = f"import onnxfix; onnxfix.apply({str(FIXTURES['fastsegformer_antialias'])!r}, output={str(out)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        outputs.add(out.read_bytes())
    assert len(outputs) == 1


def test_metadata_and_names_survive(tmp_path: Path) -> None:
    path, out = FIXTURES["fastsegformer_antialias"], tmp_path / "fixed.onnx"
    report = onnxfix.apply(path, output=out)
    before, after = onnx.load(path), onnx.load(out)
    for key in ("producer_name", "producer_version", "doc_string", "model_version", "domain"):
        assert getattr(before, key) == getattr(after, key)
    added = [m.key for m in after.metadata_props if m not in before.metadata_props]
    assert all(m in after.metadata_props for m in before.metadata_props) and added == ["onnxfix.record"]
    assert [v.name for v in before.graph.output] == [v.name for v in after.graph.output]
    kept = {n.name: n for n in after.graph.node}
    touched = {c.where.node for c in report.changes} | {n.name for n in after.graph.node if n.metadata_props}
    for node in before.graph.node:
        if node.name in kept and node.name not in touched:
            assert kept[node.name].doc_string == node.doc_string
    made = [n for n in after.graph.node if any(m.key == "onnxfix.rule" for m in n.metadata_props)]
    assert made and all(any(m.key == "onnxfix.from" for m in n.metadata_props) or n.name in {b.name for b in before.graph.node}
                        for n in made)  # fmt: skip


def test_grades_can_be_restricted(tmp_path: Path) -> None:
    report = onnxfix.apply(FIXTURES["fastsegformer_antialias"], output=tmp_path / "f.onnx", allow="exact")
    assert all(c.safety is Safety.EXACT for c in report.changes)
    assert any("only exact is allowed" in s.reason for s in report.skipped) and report.verdict == "refused"


@pytest.mark.skipif(sys.platform != "linux", reason="kills processes the Linux way")
def test_apply_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL at moments all over the run: the input is as it was, and an output, if there is one, is whole."""
    proto = onnx.load(FIXTURES["yolov5s_1class_camera"])
    path, out, plan = tmp_path / "m.onnx", tmp_path / "out.onnx", tmp_path / "e.plan"
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(2_000_000, np.float32), "unused"))
    path.write_bytes(proto.SerializeToString())
    before = path.read_bytes()
    command = [sys.executable, "-m", "onnxfix", "apply", str(path), "--rules", "jetson.yml", "-o", str(out)]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole, seconds = out.read_bytes(), time.monotonic() - start
    out.unlink()
    for moment in range(8):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds * (moment + 1) / 8)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert path.read_bytes() == before
        if out.exists():
            assert out.read_bytes() == whole
            out.unlink()
        assert not plan.exists()
        assert [n for n in os.listdir(tmp_path) if not n.startswith(".")] == ["m.onnx"]
