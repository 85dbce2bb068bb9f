"""A run done again: the same bytes, from the report or from the output; and without some of its changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest

import onnxfix
from onnxfix import record, replay
from onnxfix.cli import main
from onnxfix.errors import ModelError, RequestError
from onnxfix.model import load
from tests.models import fixture_models

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parent.parent
# Where other Pythons with onnxfix[prove] may be found: folders of virtual environments, separated as in PATH.
PYTHONS = [Path(p, "bin", "python") for p in os.environ.get("ONNXFIX_TEST_VENVS", "").split(os.pathsep) if p]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, what apply made of it, and the report."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(fixture_models()["fastsegformer_antialias"], folder / "m.onnx")
    onnxfix.apply(folder / "m.onnx", report_to=folder / "report.json")
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("told", ["report.json", "m.fixed.onnx"])
def test_replay_gives_the_same_bytes(run: Path, tmp_path: Path, told: str) -> None:
    done = replay.replay(run / told, output=tmp_path / "again.onnx")
    assert sha256(tmp_path / "again.onnx") == sha256(run / "m.fixed.onnx") == done.sha256
    assert done.changes == len(json.loads((run / "report.json").read_text())["changes"]) > 10


def test_replay_is_the_same_with_other_hash_seeds(run: Path, tmp_path: Path) -> None:
    import sys

    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        again(Path(sys.executable), run, tmp_path / f"{seed}.onnx", env)
    assert sha256(tmp_path / "1.onnx") == sha256(tmp_path / "2.onnx") == sha256(run / "m.fixed.onnx")


@pytest.mark.skipif(not PYTHONS, reason="ONNXFIX_TEST_VENVS names no other Pythons")
def test_replay_is_the_same_on_other_pythons(run: Path, tmp_path: Path) -> None:
    for number, python in enumerate(PYTHONS):
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        again(python, run, tmp_path / f"{number}.onnx", {**env, "PYTHONPATH": str(ROOT)})
        assert sha256(tmp_path / f"{number}.onnx") == sha256(run / "m.fixed.onnx"), python


def again(python: Path, run: Path, output: Path, env: dict[str, str]) -> None:
    command = [str(python), "-m", "onnxfix", "replay", str(run / "report.json"), "-o", str(output)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_moved_files_are_found_beside_the_report_or_named(run: Path, tmp_path: Path) -> None:
    for name in ("m.onnx", "report.json"):
        shutil.copy(run / name, tmp_path / name)
    text = (tmp_path / "report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace(str(run / "m.onnx"), "elsewhere/m.onnx"))
    replay.replay(tmp_path / "report.json", output=tmp_path / "a.onnx")
    (tmp_path / "m.onnx").rename(tmp_path / "other.onnx")
    with pytest.raises(RequestError, match="is not there; say where it is with --model"):
        replay.replay(tmp_path / "report.json", output=tmp_path / "b.onnx")
    replay.replay(tmp_path / "report.json", model=tmp_path / "other.onnx", output=tmp_path / "b.onnx")
    assert sha256(tmp_path / "a.onnx") == sha256(tmp_path / "b.onnx") == sha256(run / "m.fixed.onnx")


def test_what_is_not_what_it_was_is_refused_and_nothing_written(run: Path, tmp_path: Path) -> None:
    report = json.loads((run / "report.json").read_text())

    def refused(message: str, **changes: object) -> None:
        told = tmp_path / "report.json"
        told.write_text(json.dumps({**report, **changes}))
        with pytest.raises((RequestError, ModelError), match=message):
            replay.replay(told, output=tmp_path / "out.onnx")
        assert not (tmp_path / "out.onnx").exists()

    refused("is not the input of the run", model_sha256="0" * 64)
    refused("gave other bytes", output_sha256="0" * 64)
    refused("holds no record", record=None)
    refused("the rules of jetson.yml are no longer those", record={**report["record"], "rules_sha256": "0" * 64})
    old = {**report["record"]["versions"], "onnxfix": "0.0.1"}
    refused("made by onnxfix 0.0.1", record={**report["record"], "versions": old})
    older = {**report["record"]["versions"], "numpy": "1.0"}
    refused("numpy was 1.0, here it is", output_sha256="0" * 64, record={**report["record"], "versions": older})
    (tmp_path / "junk.json").write_text("[]")
    with pytest.raises(ModelError, match="is no report of onnxfix"):
        replay.replay(tmp_path / "junk.json")
    with pytest.raises(ModelError, match="holds no record of a run"):
        replay.replay(run / "m.onnx")


def test_undo_leaves_out_a_change_and_proves_the_rest(run: Path, tmp_path: Path) -> None:
    before = onnxfix.Report.from_json((run / "report.json").read_text())
    target = next(c for c in before.changes if c.rule == "resize-unsupported-interpolation")
    done = replay.undo(run / "m.fixed.onnx", [target.id], output=tmp_path / "o.onnx", report_to=tmp_path / "r.json")
    assert [c.id for c in done.asked] == [target.id] and not done.followed and not done.came
    assert len(done.report.changes) == len(before.changes) - 1
    assert any(n.op_type == "Resize" for n in onnx.load(tmp_path / "o.onnx").graph.node)
    assert {s.rule: s.reason for s in done.report.skipped}[target.rule] == "left out, as asked"
    assert any(f.where.op == "Resize" for f in done.report.remaining)
    parity = done.report.check("parity")
    assert parity is not None and parity.status.value == "passed"
    # The new run can itself be done again, and says what it left out.
    found = record.read(load(tmp_path / "o.onnx"))
    assert found is not None and [s.rule for s in found[0].left_out] == [target.rule]
    (tmp_path / "m.onnx").write_bytes((run / "m.onnx").read_bytes())
    assert replay.replay(tmp_path / "r.json", output=tmp_path / "p.onnx").sha256 == sha256(tmp_path / "o.onnx")




def test_undo_names_what_needed_the_change(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 20, "mine": 1]>
    g (float[2, 3] x) => (float[2, 3] y) { y = mine.f(x) }
    <domain: "mine", opset_import: ["": 20]> f (a) => (b) { b = HardSwish(a) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    report = onnxfix.apply(tmp_path / "m.onnx", output=tmp_path / "o.onnx", report_to=tmp_path / "r.json")
    first = next(c for c in report.changes if c.rule == "local-function")
    done = replay.undo(tmp_path / "r.json", [first.id], output=tmp_path / "p.onnx")
    assert [c.rule for c in done.asked] == ["local-function"]
    assert {c.where.graph for c in done.followed} == {""} and done.followed


def test_undo_says_when_there_is_no_such_change(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no change 999; it has 1 to"):
        replay.undo(run / "report.json", [1, 999], output=tmp_path / "o.onnx")


def test_settings_are_on_record(run: Path, tmp_path: Path) -> None:
    path = fixture_models()["fastsegformer_dynamic"]
    model = onnx.load(path)
    name = model.graph.input[0].name
    shape = [1, 3, 64, 64]
    report = onnxfix.apply(
        path, output=tmp_path / "o.onnx", set_shape={name: shape}, report_to=tmp_path / "r.json"
    )
    assert report.record is not None and report.record.settings == {"set_shape": {name: shape}}
    assert replay.replay(tmp_path / "r.json", output=tmp_path / "p.onnx").sha256 == sha256(tmp_path / "o.onnx")
    with pytest.raises(RequestError, match="change 1 was asked for when the model was fixed"):
        replay.undo(tmp_path / "r.json", [1], output=tmp_path / "q.onnx")


def test_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(run / "report.json"), "-o", str(tmp_path / "a.onnx")]) == 0
    assert "made again" in capsys.readouterr().out
    assert main(["undo", str(run / "report.json"), "--change", "2", "-o", str(tmp_path / "b.onnx"), "-q"]) == 1
    out, error = capsys.readouterr()
    assert "undone: 2 " in out and "does not take" in error
    assert main(["undo", str(run / "report.json"), "--change", "x"]) == 2
    assert "give numbers of changes" in capsys.readouterr().err
