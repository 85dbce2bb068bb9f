"""`onnxfix matrix show`, `diff` and `targets` in all forms; what a board cannot do; the split over the DLA."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import onnx
import pytest

from onnxfix import api, boards, cli, matrix, tables
from onnxfix.errors import RequestError
from onnxfix.graph import Graph
from onnxfix.render import matrix as shown
from onnxfix.render.layout import Entries, Entry, Facts, Table
from onnxfix.report import Effect
from tests.test_matrix import found, graph_of


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["matrix", *argv]) == 0
    return capsys.readouterr().out


# ---- tables ----


def test_show_one_operator() -> None:
    [row] = tables.table(matrix.target("trt-8.2"), "topk").rows
    assert (row.op, row.support) == ("TopK", "limited")
    largest = next(x for x in row.limits if x.id == "topk/largest")
    assert (largest.effect, largest.decided, largest.basis) == ("silently wrong", True, "code")


def test_show_all_operators() -> None:
    rows = {r.op: r.support for r in tables.table(matrix.target("jetson-nano")).rows}
    assert rows["Det"] == "refused" and rows["Relu"] != "refused"
    assert rows["Resize"] == "limited" and len(rows) > 150
    assert {r.op: r.support for r in tables.table(matrix.target("rtx")).rows}["RoiAlign"] == "refused"


def test_show_an_operator_nobody_knows() -> None:
    with pytest.raises(RequestError, match="did you mean Resize"):
        tables.table(matrix.target("trt-8.2"), "Resiz")
    with pytest.raises(RequestError, match="lists all rows"):
        tables.table(matrix.target("trt-8.2"), "Zzzzzz")


def test_diff_says_what_a_move_frees() -> None:
    moved = tables.diff(matrix.target("jetpack-4.6"), matrix.target("jetpack-6.1"))
    freed = {c.op: c for c in moved.freed}
    assert (freed["Gelu"].before, freed["Gelu"].after) == ("refused", "taken")
    assert any(c.op == "TopK" and any("largest=0" in text for text in c.freed) for c in (*moved.freed, *moved.mixed))
    assert ("model-local functions", "refused", "taken") in moved.facts
    back = tables.diff(matrix.target("jetpack-6.1"), matrix.target("jetpack-4.6"))
    assert {c.op for c in back.bound} == set(freed) and back.changed == moved.changed
    same = tables.diff(matrix.target("trt-8.2"), matrix.target("jetson-nano"))
    assert same.changed == 0


def test_targets_are_all_there() -> None:
    rows = {r.name: r for r in tables.targets()}
    assert list(rows) == matrix.targets()
    assert rows["jetson-nano"].precisions == ("fp32", "fp16") and "int8" in rows["jetson-nano"].unverified
    assert rows["jetpack-4.6"].release == "matrix trt-8.0"


# ---- forms ----


@pytest.mark.parametrize("argv", [("show", "-t", "rtx"), ("show", "Resize", "-t", "trt-8.2"), ("diff", "trt-8.2", "trt-10.3"), ("targets",)])
def test_forms(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = run(capsys, *argv)
    assert text and "\x1b" not in text
    data = json.loads(run(capsys, *argv, "--format", "json"))
    assert data
    markdown = run(capsys, *argv, "--format", "markdown")
    assert markdown.startswith("# ")
    page = run(capsys, *argv, "--format", "html")
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>").replace('<meta charset="utf-8">', ""))
    assert not {"script", "link", "img"} & {e.tag for e in tree.iter()} and "http" not in page
    path = tmp_path / "page.html"
    assert run(capsys, *argv, "--format", "html", "-o", str(path)) == "" and path.read_text(encoding="utf-8") == page


def test_everything_is_escaped() -> None:
    evil = "<script>a|b*</script>\x1b[1m&"
    blocks = [Facts([(evil, evil)]), Table(evil, (evil,), [(evil,)]), Entries(evil, [Entry(evil, evil, [(evil, evil)])])]
    page, text = shown.html(evil, blocks), shown.markdown(blocks)
    assert "<script" not in page and "\x1b" not in page and page.count("&lt;script&gt;") >= 10
    assert "<script" not in text.replace("\\<", "") and "\x1b" not in text and "\\|" in text


def test_a_wrong_target_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["matrix", "show", "-t", "trt-8.3"]) == 2
    assert cli.main(["matrix", "show", "Rezise", "-t", "trt-8.2"]) == 2
    assert cli.main(["matrix", "show"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


# ---- what belongs to no node ----


def interface(text: str, target: str) -> list[tuple[str, str]]:
    goal = matrix.target(target)
    return [(f"{w.op} {w.outputs[0]}", v.limit) for w, v in matrix.judge_interface(graph_of(text), goal)]


@pytest.mark.parametrize("target", ["rtx", "trt-8.2", "trt-10.3"])
def test_what_nobody_reads_is_refused_too(target: str) -> None:
    text = """(float[2] x, int16[2] i, int16[2] used, seq(float) s, float[1,1,1,1,1,1,1,1,1] n) => (y, z)
        <uint16[2] u = {1, 2}, float[2] fine = {1, 2}, uint8[2] bytes = {1, 2}> { y = Relu(x) z = Cast<to=1>(used) }"""
    assert interface(text, target) == [
        ("input i", "dtype"), ("input s", "no-tensor"), ("input n", "rank"), ("initializer u", "dtype"),
    ]  # fmt: skip
    assert interface("(float[2] x) => (y) { y = Relu(x) }", target) == []
    whole = list(matrix.judge_model(graph_of(text), matrix.target(target)))
    assert ("Cast", "dtype") in [(w.op, v.limit) for w, v in whole] and len(whole) == 5


def test_findings_have_them(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) <uint16[2] u = {1, 2}> { y = Relu(x) }'
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    inspection = api.inspect(path, target="rtx")
    [finding] = inspection.findings
    assert (inspection.verdict, finding.where.op, finding.effect) == ("refused", "initializer", Effect.REFUSED)
    assert "remove the initializer 'u'" in finding.reason


def test_what_a_release_is_too_old_for_is_said() -> None:
    """Attributes and inputs newer than the release, which no limit looks at."""
    newer = "(float[2,2] x) => (y) { y = Cast<to=10, saturate=0>(x) }"
    assert found(graph_of(newer, 19), "trt-8.2") == [("Cast", Effect.UNDECIDED, "cast/newer-opset")] or \
        found(graph_of(newer, 19), "trt-8.2") == [("Cast", Effect.UNDECIDED, "newer-opset")]  # fmt: skip
    assert found(graph_of("(float[2,2] x) => (y) { y = Cast<to=10>(x) }", 19), "trt-8.2") == []
    assert found(graph_of("(float[2,2] x) => (y) { y = Cast<to=10, saturate=1>(x) }", 19), "trt-8.2") == []
    assert found(graph_of("(float[2,2] x) => (y) { y = Cast<to=10>(x) }", 13), "trt-8.2") == []


def test_another_domain_that_asks_for_more() -> None:
    more = "(float[2,2] x) => (y) { y = com.microsoft.Softmax<no_such_thing=1>(x) }"
    same = "(float[2,2] x) => (y) { y = com.microsoft.Softmax<axis=1>(x) }"
    assert found(graph_of(more), "trt-8.2") == [("Softmax", Effect.WRONG, "domain")]
    assert found(graph_of(same), "trt-8.2") == [("Softmax", Effect.UNDECIDED, "domain")]


# ---- boards ----


def test_int8_on_a_nano_is_a_finding() -> None:
    [finding] = boards.board_findings(matrix.target("jetson-nano"), precision="int8")
    assert (finding.effect, finding.where.op) == (Effect.BUILD_FAILS, "board")
    assert "Jetson Nano has no INT8" in finding.reason and "FP16" in finding.reason
    assert finding.evidence.endswith("not confirmed by a page of NVIDIA's")
    assert boards.board_findings(matrix.target("jetson-nano"), precision="fp16") == []
    assert boards.board_findings(matrix.target("jetson-agx-orin"), precision="int8") == []
    assert boards.board_findings(matrix.target("trt-8.2"), precision="int8") == []
    [fp8] = boards.board_findings(matrix.target("jetson-agx-orin"), precision="fp8")
    assert "not confirmed" not in fp8.evidence
    with pytest.raises(RequestError, match="no precision 'int3'"):
        boards.board_findings(matrix.target("jetson-nano"), precision="int3")


@pytest.mark.parametrize(("gigabytes", "effects"), [(0.9, []), (1.5, [Effect.UNDECIDED]), (4.5, [Effect.BUILD_FAILS])])
def test_memory(gigabytes: float, effects: list[Effect]) -> None:
    nano = matrix.target("jetson-nano")  # 2 or 4 GB
    assert [f.effect for f in boards.board_findings(nano, model_bytes=int(gigabytes * 1e9))] == effects


NET = """(float[1,3,32,32] x) => (y) <float[4,3,3,3] w = {%s}, int64[4] to = {1,4,30,30}> {
    a = Conv(x, w) b = Relu(a) c = Softmax(b) d = Erf(c) k = Neg(to) m = MaxPool<kernel_shape=[9,9]>(d) y = Sigmoid(m) }"""


def net() -> Graph:
    return graph_of(NET % ",".join(["1"] * 108))


def placed(target: str, graph: Graph) -> dict[str, str]:
    return {p.where.op: p.runs for p in boards.dla_split(graph, matrix.target(target)).placed}


def test_dla_split() -> None:
    split = boards.dla_split(net(), matrix.target("jetson-agx-orin"))
    runs = {p.where.op: p.runs for p in split.placed}
    assert runs == {"Conv": "DLA", "Relu": "DLA", "Softmax": "DLA", "Erf": "GPU", "MaxPool": "GPU", "Sigmoid": "DLA"}
    assert (split.cores, split.changes, split.count("DLA")) == ("2", 2, 4)
    reasons = {p.where.op: p.reason for p in split.placed}
    assert reasons["Erf"] == "the DLA has no Erf"
    assert reasons["MaxPool"] == "the window may be 1 to 8 (here: kernel_shape [9, 9])"
    assert not {p.where.op: p.verified for p in split.placed}["Conv"]  # ranges that no page confirmed
    assert any("contested" in note for note in split.notes) and any("(unverified)" in note for note in split.notes)
    assert placed("jetson-agx-xavier", net())["Softmax"] == "GPU"  # Orin only
    assert not any("contested" in n for n in boards.dla_split(net(), matrix.target("jetson-agx-xavier")).notes)


def test_dla_of_a_board_without() -> None:
    split = boards.dla_split(net(), matrix.target("jetson-nano"))
    assert split.cores == "" and {p.runs for p in split.placed} == {"GPU"}
    assert "Jetson Nano has no DLA: everything runs on the GPU" in split.notes
    with pytest.raises(RequestError, match="is no board"):
        boards.dla_split(net(), matrix.target("trt-8.2"))


def test_dla_takes_no_dynamic_dimensions() -> None:
    dynamic = graph_of("(float[N,3,8,8] x, int32[1] i) => (y, z) { y = Relu(x) z = Add(i, i) }")
    assert placed("jetson-agx-orin", dynamic) == {"Relu": "GPU", "Add": "GPU"}
    unknown = graph_of("(float[2] x) => (y) { a = com.acme.Op(x) y = Relu(a) }")
    assert placed("jetson-agx-orin", unknown)["Relu"] == "undecided"


def test_board_questions_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 13]> g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }')
    onnx.save(model, path)
    assert cli.main(["inspect", str(path), "-t", "jetson-nano", "--precision", "int8"]) == 1
    assert "no INT8" in capsys.readouterr().out
    assert cli.main(["inspect", str(path), "-t", "jetson-agx-xavier", "--precision", "int8", "--dla"]) == 0
    assert "runs on" in capsys.readouterr().out
    assert cli.main(["inspect", str(path), "-t", "jetson-agx-xavier", "--dla", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["dla"]["placed"][0]["runs"] == "DLA"
    for wrong in (["--dla"], ["-t", "trt-8.2", "--dla"], ["-t", "jetson-nano", "--precision", "int3"]):
        assert cli.main(["inspect", str(path), *wrong]) == 2
