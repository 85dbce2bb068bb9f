"""The rescue benchmark on a sample: its cases, its judging and its pool, and that no rule harms a model of the sample."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import rescue, rescue_pool, rescue_work
from benchmarks.rescue_cases import Case, cases
from onnxfix import backends, catalog

needs_rtx = pytest.mark.skipif(bool(backends.absent("tensorrt_rtx")), reason=backends.absent("tensorrt_rtx"))

RULES = "rtx.yml"
SHIPPED = catalog.load_folder(catalog.shipped())
EVERY = 31


@pytest.fixture(scope="module")
def all_cases() -> dict[str, Case]:
    return {c.name: c for c in cases()}


@pytest.fixture(scope="module")
def folder(all_cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("rescue")
    for case in all_cases.values():
        rescue._store(case, place)
    yield place


def _judged(name: str, do: str, folder: Path) -> rescue_work.Result:
    return rescue_work.work(rescue_work.Job(name, folder, do, RULES))


def test_parameters_become_initializers_and_data_stays(all_cases: dict[str, Case]) -> None:
    resize = all_cases["test_resize_upsample_scales_nearest"]
    assert list(resize.feeds) == ["X"]
    assert [t.name for t in resize.model.graph.initializer] == ["scales"]
    expanded = all_cases["test_layer_normalization_2d_axis0_expanded"]
    assert list(expanded.feeds) == ["X"], "as in the test of the operator itself"
    assert set(all_cases["test_where_example"].feeds) == {"condition", "x", "y"}
    assert len(resize.whole.graph.initializer) == 0, "the test as it stands is left alone"


@needs_rtx
def test_no_model_of_the_sample_is_harmed(all_cases: dict[str, Case], folder: Path) -> None:
    outcomes: dict[str, tuple[str, str, str]] = {}
    for name in list(all_cases)[::EVERY]:
        reproduced = _judged(name, "reference", folder).outcome == "reproduced"
        before, after = _judged(name, "raw", folder), _judged(name, "onnxfix", folder)
        outcomes[name] = (before.outcome, after.outcome, f"{after.why} ({', '.join(after.rules)})")
        if reproduced and after.outcome in rescue.TAKEN:
            assert after.numbers == "same", f"{name}: {after.numbers} ({after.rules})"
            if after.rules:
                other = _judged(name, "others onnxfix", folder)
                told = other.outcome == "special" and rescue.told(after.rules, SHIPPED)
                good = told or other.outcome in ("same", "by definition", "not run")
                assert good, f"{name}: {other.outcome}: {other.why} ({after.rules})"
    harmed = {n: o for n, o in outcomes.items() if o[1] in ("wrong", "crash", "failed")}
    harmed |= {n: o for n, o in outcomes.items() if o[0] in rescue.TAKEN and o[1] not in rescue.TAKEN}
    assert not harmed
    rescued = [n for n, o in outcomes.items() if o[0] == "refused" and o[1] in rescue.TAKEN]
    assert len(rescued) >= len(outcomes) // 10


@needs_rtx
@pytest.mark.parametrize(
    "name",
    ["test_nllloss_NC", "test_matmulinteger", "test_averagepool_2d_dilations", "test_layer_normalization_2d_axis0"],
)
def test_rescued(name: str, folder: Path) -> None:
    assert _judged(name, "reference", folder).outcome == "reproduced"
    assert _judged(name, "raw", folder).outcome == "refused"
    fixed = _judged(name, "onnxfix", folder)
    assert fixed.outcome == "unchanged", f"{fixed.why} ({fixed.rules})"


@needs_rtx
def test_wrong_numbers_are_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(proto: onnx.ModelProto, job: rescue_work.Job) -> rescue_work.Tooled:
        proto.graph.node[0].op_type = "Sub"
        return rescue_work.Tooled(proto)

    monkeypatch.setattr(rescue_work, "TOOLS", {"swapped": swapped})
    assert _judged("test_add", "reference", folder).outcome == "reproduced"
    result = _judged("test_add", "swapped", folder)
    assert result.outcome == "wrong"
    assert "not what the test expects" in result.why


def test_a_tool_that_raises_is_an_outcome(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(proto: onnx.ModelProto, job: rescue_work.Job) -> rescue_work.Tooled:
        raise KeyError("lost")

    monkeypatch.setattr(rescue_work, "TOOLS", {"broken": broken})
    result = _judged("test_add", "broken", folder)
    assert (result.outcome, result.why) == ("failed", "KeyError: 'lost'")


def _obey(job: str) -> str:
    if job == "die":
        os._exit(3)
    if job == "sleep":
        time.sleep(60)
    return job.upper()


def test_the_pool_outlives_its_children() -> None:
    jobs = ["a", "die", "b", "sleep", "c"]
    results = {job: r if isinstance(r, str) else r.how for job, r in rescue_pool.run(_obey, jobs, 2, 5.0)}
    assert {j: results[j] for j in "abc"} == {"a": "A", "b": "B", "c": "C"}
    assert results["die"] == "the process ended with 3"
    assert results["sleep"] == "not done within 5 s"


def test_releases_stand_beside_each_other(all_cases: dict[str, Case], folder: Path) -> None:
    names = ["test_relu", "test_hardswish", "test_regex_full_match_basic"]
    for name in names:
        _judged(name, "reference", folder)
    results = {(n, "matrix trt-8.2"): _judged(n, "matrix trt-8.2", folder) for n in names}
    share = rescue.by_matrix("trt-8.2", names, names[:2], results)
    assert (list(share.before), list(share.after), list(share.wrong)) == (names[:1], names[:2], [])
    assert list(share.same_after) == names[:2]


def test_stored_cases_read_back(all_cases: dict[str, Case], folder: Path) -> None:
    data = pickle.loads((folder / "test_add.pickle").read_bytes())
    assert np.array_equal(data["expected"][0], all_cases["test_add"].expected[0])
