"""What is shown: plain and greppable when piped, tables in a terminal, JSON complete, and nothing hidden silently."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxfix import catalog, matrix, model
from onnxfix.backends import BackendInfo
from onnxfix.inspection import inspect_model
from onnxfix.render import diff, layout, progress, text
from onnxfix.render import json as render_json
from onnxfix.render.layout import Entries, Entry, Facts, Table
from onnxfix.report import Change, Check, Effect, Finding, Report, Safety, Skipped, Status, Where
from onnxfix.ruletest import CaseResult
from tests.models import fixture_models

ESCAPE = "\x1b"
DRAWN = re.compile("[\x1b\u2500-\u257f]")  # colours, and lines of tables


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def finding(number: int, reason: str = "mode cubic is refused", effect: Effect = Effect.REFUSED) -> Finding:
    where = Where(f"node_{number}", "Resize", index=number, outputs=(f"out_{number}",))
    return Finding(where, effect, reason, "matrix trt-8.2", "trt-8.2 resize/mode", ("resize-cubic",))


def change(number: int, message: str = "") -> Change:
    where = Where(f"node_{number}", "Resize", index=number, outputs=(f"out_{number}",))
    return Change(
        number, "resize-cubic", Safety.CLOSE, where, message or f"'out_{number}' = [{number}, 1]",
        removed=(str(where),), added=(f"MatMul m{number} -> a{number}", f"MatMul n{number} -> out_{number}"),
    )  # fmt: skip


def report(count: int) -> Report:
    return Report(
        command="apply", model="m.onnx", target="Jetson Nano", verdict="refused", onnxfix="0", output="f.onnx",
        rules="jetson.yml",
        findings=tuple(finding(i) for i in range(count)),
        remaining=(finding(0, "a last one"),),
        changes=tuple(change(i) for i in range(count)),
        skipped=tuple(Skipped("pad-fold", Where(f"p{i}", "Pad"), f"'v{i}' has another reader") for i in range(count)),
        checks=(
            Check("structure", Status.PASSED, "onnx 1", "no fault"),
            Check("parse", Status.FAILED, "tensorrt 8", "refuses 1 node", findings=(finding(0, "the parser's words"),)),
            Check("parity", Status.NOT_RUN, "onnxruntime", "it is not installed"),
        ),
        notes=("the interface changed",),
    )  # fmt: skip


# ---- layout ----


def test_plain_columns_are_aligned() -> None:
    table = Table("a title", ("name", "empty", "count"), [("a", "", "1"), ("much longer", "", "12345")], frozenset({2}))
    assert layout.plain([Facts([("k", "v"), ("long key", "w")]), table]).splitlines() == [
        "k         v",
        "long key  w",
        "",
        "a title",
        "  name         count",
        "  a                1",
        "  much longer  12345",
    ]


def test_an_entry_has_its_details_below_it() -> None:
    block = Entries("found: 1", [Entry("refused", "Resize: no", [("at", "n1"), ("evidence", "row 3")])])
    assert layout.plain([block]).splitlines() == [
        "found: 1",
        "  refused  Resize: no",
        "           at        n1",
        "           evidence  row 3",
    ]


def test_what_a_model_says_cannot_write_to_the_terminal(terminal: Terminal) -> None:
    evil = f"{ESCAPE}[31mred\n\x9b2J \u202e \ud800 [bold]x[/nothing] :smile: é"
    shown = "\\x1b[31mred\\n\\x9b2J \\u202e \\ud800 [bold]x[/nothing] :smile: é"
    assert layout.clean(evil) == shown
    block = Table("t", ("name",), [(evil,)])
    assert layout.plain([block]).splitlines()[2].strip() == shown
    layout.write([block], terminal)
    assert f"{ESCAPE}[31m" not in terminal.getvalue()
    assert shown in terminal.getvalue()


def test_a_terminal_gets_tables_and_colour(terminal: Terminal) -> None:
    blocks: list[layout.Block] = [
        Table("title", ("word", "n"), [("refused", "1")], frozenset({1})),
        Facts([("verdict", "proved")]),
        Entries("list", [Entry("passed", "a check", [("by", "someone")])]),
    ]
    layout.write(blocks, terminal)
    shown = terminal.getvalue()
    assert "─" in shown and f"{ESCAPE}[1;31mrefused" in shown and f"{ESCAPE}[32mpassed" in shown
    piped = io.StringIO()
    layout.write(blocks, piped)
    assert not DRAWN.search(piped.getvalue())


def test_a_rule_page_is_rendered_in_a_terminal_and_raw_in_a_pipe(terminal: Terminal) -> None:
    page = "# resize\n\nA *summary*.\n"
    layout.write_markdown(page, terminal)
    assert "*summary*" not in terminal.getvalue() and "summary" in terminal.getvalue()
    piped = io.StringIO()
    layout.write_markdown(page, piped)
    assert piped.getvalue() == page


# ---- inspection ----


@pytest.mark.parametrize("name", fixture_models())
def test_an_inspection_piped(name: str) -> None:
    rules = [r for r in catalog.load_folder(catalog.shipped()).values()]
    found = inspect_model(model.load(fixture_models()[name]), matrix.target("jetson-nano"), rules)
    shown = layout.plain(text.inspection(found, verbose=True))
    assert not DRAWN.search(shown)
    lines = shown.splitlines()
    assert all(line == line.rstrip() for line in lines)
    for count in found.ops:
        assert any(line.split() == [count.op, count.domain or "ai.onnx", str(count.count)] for line in lines)
    for value in (*found.inputs, *found.outputs):
        assert any(line.split()[:2] == [value.name, value.dtype] for line in lines)
    for item in found.findings:
        assert item.reason in shown and item.evidence in shown and item.where.node in shown
    assert found.sha256 in shown and f"verdict     {found.verdict}".split() in [line.split() for line in lines]


def test_scopes_functions_and_external_data_are_shown(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[N] x, bool c) => (float[N] y) <float[2] w = {0, 0}> {
          [choose] y = If (c) <
            then_branch = t () => (float[N] a) { a = local.f(x) },
            else_branch = e () => (float[N] b) { b = Relu(x) }
          >
        }
        <domain: "local", opset_import: ["": 18]> f (v) => (w) { w = Relu(v) }"""
    )
    tensor = proto.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="gone.bin")
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    shown = layout.plain(text.inspection(inspect_model(model.load(path))))
    lines = [line.split() for line in shown.splitlines()]
    assert ["choose/then_branch", "body", "1", "1", "0"] in lines
    assert ["local::f", "v", "w", "1", "1", "ai.onnx", "18"] in lines
    assert ["gone.bin", "1", "8", "B", "missing"] in lines
    assert ["Relu", "ai.onnx", "2", "0", "2"] in lines  # count, at depth 0, at depth 1


def test_long_tables_say_that_they_are_cut() -> None:
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 13]> g (float[1] x) => (float[1] y) { y = Relu(x) }')
    for i in range(text.ROWS + 5):
        function = proto.functions.add(name=f"f{i}", domain="d")
        function.node.add(op_type="Relu", input=["x"], output=["y"])
    found = inspect_model(model.Model(proto))
    short = layout.plain(text.inspection(found))
    assert f"functions: the first {text.ROWS} of {text.ROWS + 5} (--verbose lists them)" in short
    assert f"d::f{text.ROWS - 1} " in short and f"d::f{text.ROWS} " not in short
    assert all(f"d::f{i} " in layout.plain(text.inspection(found, verbose=True)) for i in range(text.ROWS + 5))


# ---- reports ----


def test_every_word_of_a_report_is_shown() -> None:
    shown = layout.plain(text.report(report(3)))
    assert not DRAWN.search(shown)
    for words in (
        "m.onnx", "f.onnx", "Jetson Nano", "jetson.yml", "the interface changed", "mode cubic is refused",
        "trt-8.2 resize/mode", "resize-cubic", "node_0, node_1, node_2", "'out_0' = [0, 1]", "3 removed, 6 added",
        "pad-fold (3), such as: 'v0' has another reader", "p0, p1, p2", "a last one",
        "structure: no fault", "parse: refuses 1 node", "the parser's words", "parity: it is not installed",
    ):  # fmt: skip
        assert words in shown


def test_hundreds_are_grouped_and_counted_and_verbose_spells_them_out() -> None:
    short = layout.plain(text.report(report(300)))
    assert len(short.splitlines()) < 50
    assert "Resize (300): mode cubic is refused" in short
    assert "and 294 more (--verbose lists them)" in short
    assert "resize-cubic (300), such as: 'out_0' = [0, 1]" in short
    verbose = layout.plain(text.report(report(300), verbose=True))
    for i in range(300):
        assert re.search(rf"\bnode_{i}\b", verbose) and f"'out_{i}' = [{i}, 1]" in verbose
        assert f"'v{i}' has another reader" in verbose
    value = json.loads(render_json.dumps(report(300)))
    assert [len(value[k]) for k in ("findings", "changes", "skipped")] == [300, 300, 300]


def test_other_reasons_are_other_entries_and_the_worst_come_first() -> None:
    found = [finding(0, "not known", Effect.UNDECIDED), finding(1, "rank 5"), finding(2, "rank 6"), finding(3, "rank 5")]
    (block,) = text.findings("t", found, False)
    assert isinstance(block, Entries)
    assert [(e.word, e.text, e.details[0][1]) for e in block.items] == [
        ("refused", "Resize (2): rank 5", "node_1, node_3"),
        ("refused", "Resize: rank 6", "node_2"),
        ("undecided", "Resize: not known", "node_0"),
    ]


def test_a_refusal_without_a_rule_says_so_and_grades_are_shown() -> None:
    bare = Finding(Where("", "Foo", "mine", 4, ("", "y"), "If_1/then_branch"), Effect.REFUSED, "no importer", "m")
    (block,) = text.findings("t", [bare, finding(1)], False, {"resize-cubic": Safety.LOSSY})
    assert isinstance(block, Entries)
    assert block.items[0].text == "mine::Foo: no importer"
    assert list(block.items[0].details) == [("at", "-> y in If_1/then_branch"), ("would help", "no rule here")]
    assert ("would help", "resize-cubic (lossy)") in block.items[1].details


def test_the_summary_keeps_every_check() -> None:
    shown = layout.plain(text.summary(report(2)))
    assert [line.split()[0] for line in shown.splitlines()] == [
        "model", "output", "target", "rules", "verdict", "findings", "structure", "parse", "parity",
    ]  # fmt: skip


def test_the_diff_has_a_line_for_each_node(terminal: Terminal) -> None:
    changes = [change(1, f"uses {ESCAPE}[0m"), change(2)]
    lines = list(diff.lines(changes))
    assert lines[:4] == [
        "@@ 1 resize-cubic (close) Resize node_1 -> out_1 @@ uses \\x1b[0m",
        "- Resize node_1 -> out_1",
        "+ MatMul m1 -> a1",
        "+ MatMul n1 -> out_1",
    ]
    piped = io.StringIO()
    diff.write(changes, piped)
    assert piped.getvalue().splitlines() == lines
    diff.write(changes, terminal)
    assert f"{ESCAPE}[31m- Resize node_1 -> out_1" in terminal.getvalue()


def test_cases_and_backends() -> None:
    results = [
        CaseResult("a", "fine", 3, ()),
        CaseResult("a", "wrong", 9, ("not what the page says", "numbers differ")),
        CaseResult("b", "half", 4, (), ("parser: not installed",)),
    ]
    shown = layout.plain(text.cases(results))
    assert shown.startswith("3 cases: 2 passed, 1 failed; of 1 some proofs could not run\n")
    assert "failed  a:9 wrong" in shown and "numbers differ" in shown and "parser: not installed" in shown
    shown = layout.plain(
        text.doctor(
            [
                BackendInfo("onnxruntime", True, "1.31", notes=("through polygraphy 0.53",)),
                BackendInfo("tensorrt", False, why_not="no module", how_to_get="with JetPack"),
            ]
        )
    )
    assert re.search(r"available +onnxruntime 1.31\n +note +through polygraphy", shown)
    assert re.search(r"not available +tensorrt\n +why +no module\n +get it +with JetPack", shown)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_950, "100 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"),
     (1 << 30, "1.1 GB"), (5 * 10**12, "5000 GB")],
)  # fmt: skip
def test_bytes_for_people(count: int, shown: str) -> None:
    assert text.size(count) == shown


# ---- JSON ----


def test_json_takes_what_json_has_no_word_for() -> None:
    @dataclass(frozen=True)
    class Thing:
        figures: dict[str, Any] = field(default_factory=dict)

    value = Thing({"nan": math.nan, "inf": math.inf, "low": -math.inf, "n": np.float32(0.5), "i": np.int64(7), "s": "é"})
    shown = render_json.dumps([value])
    assert json.loads(shown) == [
        {"figures": {"nan": "nan", "inf": "inf", "low": "-inf", "n": 0.5, "i": 7, "s": "é"}}
    ]
    assert "é" in shown


# ---- progress ----


def test_no_progress_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.shown() as bar:
        assert bar is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.shown(False) as bar:
        assert bar is None
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_bar_names_the_stage_and_goes_away(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.shown() as bar:
        assert bar is not None
        bar("rules", 10, 100)
        bar("rules", 100, 100)
        bar("parse", 1, None)
        bar("a stage of [tomorrow]", 0, None)
    shown = terminal.getvalue()
    assert "asking TensorRT's parser" in shown or "a stage of [tomorrow]" in shown
    assert shown.endswith(f"{ESCAPE}[2K")  # the last line is erased
