"""`benchmarks.models`: the lines of its results file, and the tables they become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import models, models_page
from onnxfix.backends import absent
from tests.models import FIXTURES

GEMM = "IBuilder: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile operation 'dense' for Turing: no. In compileGraph at /_src/x.cpp:20) (a.onnx)"


def line(model: str, stage: str, **figures: Any) -> dict[str, Any]:
    return {"model": model, "form": "", "also": "", "stage": stage, "by": "1", **figures}


def engine(why: str = "") -> dict[str, Any]:
    return {"build": "failed" if why else "passed", "stage": "header", "why": why}


LINES = [
    line("p/x/a", "apply", nodes=3, before="taken", after="taken", changes=0, proved=True),
    line("p/y/a", "apply", nodes=4, before="refused", after="taken", changes=7, proved=True),
    line("p/y/b", "apply", nodes=5, before="refused", after="taken", changes=2, proved=False, why="/home/x/b.onnx: no parity"),
    line("p/x/a", "matrix", **{"trt-8.2": {"before": "refused", "after": "undecided"}}),
    line("p/y/a", "matrix", **{"trt-8.2": {"before": "refused", "after": "taken", "changes": 7, "plugins": True}}),
    line("p/x/a", "build", **{"7.5": engine(GEMM), "8.6": engine()}),
    line("p/y/a", "build", **{"7.5": engine("[pass.cpp:337: check] Cannot compile operation 'other' for Turing: no"), "8.6": engine()}),
    line("p/x/a", "fp16", parse="taken", outputs={"o": {"max_rel": 0.00234, "cosine": 0.9991, "top1": 1.0}}),
    line("p/x/a", "speed", ratios={"trt-8.2": [0.5, 0.4, 0.6], "rtx-1.7": [1.25, 1.1, 1.5]}),
]  # fmt: skip


def row(text: str, model: str) -> list[str]:
    return [c.strip() for c in next(x for x in text.splitlines() if x.startswith(f"| {model} |")).split("|")[1:-1]]


def test_a_row_for_each_model() -> None:
    text = models_page.text(LINES)
    cells = dict(zip(models_page.HEAD, row(text, "p/x/a"), strict=True))
    assert cells["RTX"] == "takes" and cells["8.2"] == "undecided" and cells["engines"] == "8.6"
    assert cells["FP16"] == "0.002, cosine 0.9991, top-1 100%" and cells["INT8"] == ""
    assert cells["time"] == "1.25 (1.10 to 1.50, rtx-1.7)"  # the slowest
    assert row(text, "p/y/a")[2] == "takes after 7" and row(text, "p/y/a")[3] == "takes after 7, by plugins"
    assert row(text, "p/b")[2] == "takes after 2, unproved"  # the only b: its folder says nothing
    assert "3 models. TensorRT-RTX's parser takes 1 as they are, 2 after" in text
    assert "Engines built: 0 for 7.5, 2 for 8.6." in text and "All 2 plans" in text


def test_a_reason_is_told_once() -> None:
    text = models_page.text(LINES)
    assert "- Cannot compile operation … for Turing: no (build 7.5; p/x/a, p/y/a)" in text
    assert "- no parity (apply; p/b)" in text


def test_groups_are_counted_by_judge() -> None:
    lines = [
        line("m/a", "apply", before="refused", after="taken", proved=True) | {"form": "all"},
        line("m/b", "apply", before="refused", after="taken", proved=False) | {"form": "all"},
        line("m/c", "apply", before="taken", after="refused") | {"form": "all"},
        line("f/d", "matrix", **{"trt-8.5": {"before": "refused", "after": "undecided"}}) | {"also": "f"},
    ]  # fmt: skip
    text = models_page.text(lines)
    assert row(text, "all")[2:] == ["TensorRT-RTX", "3", "2", "1", "0", "1", "1"]
    assert row(text, "as exported") == ["as exported", "f", "TensorRT 8.5", "1", "1", "0", "1", "0", "0"]


def test_the_page_keeps_what_stands_around(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"head\n{models_page.MARKS[0]}\nold\n{models_page.MARKS[1]}\ntail\n")
    for _ in range(2):
        models_page.write(page, "new")
        assert page.read_text() == f"head\n{models_page.MARKS[0]}\n\nnew\n\n{models_page.MARKS[1]}\ntail\n"


@pytest.mark.skipif(bool(absent("tensorrt_rtx")), reason=absent("tensorrt_rtx"))
def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real model through two stages; a line that was cut off is made again, and what is told is not."""
    monkeypatch.setattr(models, "CACHE", tmp_path)
    results = tmp_path / "results.jsonl"
    job = models.Job("f/antialias", FIXTURES / "fastsegformer_antialias.onnx", "", ("apply", "matrix"), results)
    models.work(replace(job, stages=("apply",)))
    (apply,) = models.read(results)
    assert (apply["before"], apply["after"], apply["proved"]) == ("refused", "taken", True)
    assert apply["changes"] > 0 and job.fixed.is_file()
    with results.open("a") as file:
        file.write('{"model": "f/antialias", "form": "", "st')
    (left,) = models._left([job])
    assert left.stages == ("matrix",)
    job.tell("matrix", {"why": "gone"})
    assert not models._left([job])
