"""The probe: its models, what follows from outcomes, the bundle and the script of a board, the shipped result."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from onnxfix import backends, cli, matrix
from onnxfix.errors import RequestError, TargetError
from onnxfix.probe import board, derive, models, run
from onnxfix.probe.ask import Outcome, ask_all
from onnxfix.probe.assemble import assemble, curated, judge_as_one, written
from onnxfix.probe.models import FOLDED, RUN_TIME, Case, Feed, Spec

TAKEN, REFUSED = Outcome(True), Outcome(False, "Op", "UNSUPPORTED_NODE", "no")
SOURCE = {"package": "tensorrt", "version": "8.2.1"}
RULES = {"dtypes_narrowed": {}, "dtypes_interface_only": ["UINT8"], "functions": True, "plugins": [], "rank_max": 8}
OPS = ("ArgMax", "LayerNormalization", "MaxPool", "Mul", "Relu", "Resize", "Squeeze")


@pytest.fixture(scope="module")
def asked() -> list[Case]:
    return list(models.cases(OPS))


# ---- the models ----


def test_every_question_is_there(asked: list[Case]) -> None:
    names = [case.name for case in asked]
    assert len(set(names)) == len(names) and {case.spec.key for case in asked} == set(OPS)
    about = {(case.spec.op, case.about, case.value) for case in asked}
    assert {
        ("Relu", "dtype 0", "INT32"),
        ("Relu", "dtype 0 at run time", "FLOAT16"),
        ("Relu", "rank", 9),
        ("Relu", "dims", "first free"),
        ("Resize", "attribute mode", "cubic"),
        ("Resize", "input 2", "run-time"),
        ("Squeeze", "input 1", FOLDED),
        ("MaxPool", "outputs", 2),
        ("LayerNormalization", "left out 2", "left out"),
    } <= about
    assert {case.spec.opset for case in asked if case.spec.op == "Mul"} > {6, 12}


def test_models_are_valid(asked: list[Case]) -> None:
    for case in asked[::7]:
        if all(o.type.tensor_type.HasField("shape") for o in case.model.graph.output):
            onnx.checker.check_model(case.model)
        kinds = {o.type.tensor_type.elem_type for o in case.model.graph.output}
        assert TensorProto.UNDEFINED not in kinds


def test_an_older_form_has_its_attribute_back() -> None:
    import numpy as np

    axes = Feed(TensorProto.INT64, (1,), np.array([0], np.int64), models.STORED)
    squeeze = Spec("Squeeze", "", 23, (), (Feed(TensorProto.FLOAT, (1, 3)), axes), 1)
    older = models.downgrade(squeeze, 11)
    assert older is not None
    assert (older.opset, len(older.inputs), older.attribute("axes")) == (12, 1, [0])
    assert models.downgrade(squeeze.with_input(1, replace(axes, value=None, how=RUN_TIME)), 11) is None
    assert models.downgrade(squeeze, 13) is not None


# ---- from outcomes to limits ----


def derived(asked: list[Case], takes: Callable[[Case], bool]) -> dict[str, list[derive.Limit]]:
    outcomes = {case.name: TAKEN if takes(case) else REFUSED for case in asked}
    found, missing, _ = derive.rows(asked, outcomes, {}, frozenset(), frozenset())
    assert not missing
    return found


def test_a_parser_that_takes_all_has_no_limits(asked: list[Case]) -> None:
    assert not any(derived(asked, lambda case: True).values())


@pytest.mark.parametrize(
    ("op", "takes", "need", "opsets"),
    [
        (
            "Relu",
            lambda c: c.spec.inputs[0].dtype not in (TensorProto.INT32, TensorProto.BFLOAT16),
            {"input": 0, "dtype_not_in": ["BFLOAT16", "INT32"]},
            (),
        ),
        ("ArgMax", lambda c: len(c.spec.inputs[0].dims) > 1, {"input": 0, "rank_min": 2}, ()),
        ("Relu", lambda c: len(c.spec.inputs[0].dims) < 5, {"input": 0, "rank_max": 4}, ()),
        ("Relu", lambda c: len(c.spec.inputs[0].dims) in (2, 4), {"input": 0, "rank_in": [2, 4]}, ()),
        ("MaxPool", lambda c: c.spec.outputs == 1, {"outputs_max": 1}, ()),
        ("Resize", lambda c: c.spec.attribute("mode") != "cubic", {"attr": "mode", "in": ["nearest", "linear"]}, ()),
        (
            "MaxPool",
            lambda c: set(c.spec.attribute("dilations") or [1]) == {1},
            {"attr": "dilations", "each_in": [1]},
            (),
        ),
        (
            "Squeeze",
            lambda c: len(c.spec.inputs) < 2 or c.spec.inputs[1].how in ("stored", "cast"),
            {"input": 1, "constant": "cast"},
            (),
        ),
        ("Relu", lambda c: not isinstance(c.spec.inputs[0].dims[0] if c.spec.inputs[0].dims else 0, str) and
            not isinstance(c.spec.inputs[0].dims[-1] if c.spec.inputs[0].dims else 0, str), {"input": 0, "static": True}, ()),
        ("Mul", lambda c: c.spec.opset > 6, {"opset_min": 7}, ()),
        (
            "Relu",
            lambda c: c.spec.opset < 14 or c.spec.inputs[0].dtype != TensorProto.FLOAT16,
            {"input": 0, "dtype_not_in": ["FLOAT16"]},
            (14,),
        ),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else None,
)  # fmt: skip
def test_limits_are_found_again(asked, op, takes, need, opsets) -> None:  # type: ignore[no-untyped-def]
    """A parser with one limit: the probe derives this limit, and no other."""
    found = derived(asked, lambda case: case.spec.op != op or takes(case))
    assert [limit["need"] for limit in found[op]] == [need]
    assert tuple(limit["opset_min"] for limit in found[op] if "opset_min" in limit) == opsets
    assert not any(limits for other, limits in found.items() if other != op)


def test_an_operator_never_taken(asked: list[Case]) -> None:
    mul = [case for case in asked if case.spec.op == "Mul"]
    outcomes = {case.name: REFUSED for case in mul}
    assert derive.rows(mul, outcomes, {"Mul": False}, frozenset(), frozenset())[1] == ["Mul"]
    plugin = {name: Outcome(False, words="Plugin creator of Mul was not found") for name in outcomes}
    found, missing, _ = derive.rows(mul, plugin, {"Mul": True}, frozenset(), frozenset())
    assert (missing, found["Mul"][0]["id"], found["Mul"][0]["need"]) == ([], "plugin", {"never": True})


def test_a_file_is_assembled(asked: list[Case], tmp_path: Path) -> None:
    """Derived and curated limits make one file; a derived one that another outcome contradicts is left out."""
    by_hand = {
        "rules": RULES,
        "ops": {"Resize": {"limits": [{"id": "mode", "effect": "ignored", "need": {"attr": "mode", "in": ["nearest"]},
                                       "text": "by hand", "basis": "code", "why": "a reason"}]}},
    }  # fmt: skip
    outcomes = {
        case.name: Outcome(case.spec.op != "Relu" or case.value not in ("INT32", "INT16", 9))
        for case in asked
    }
    int32 = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (int32[2] x) => (int32[2] y) { y = Relu(x) }')
    taken = {**outcomes, "another": TAKEN}
    for against, kept in (({}, True), ({"another": int32}, False)):
        data, dropped = assemble("8.2", asked, taken, {"Relu": True, "Det": False}, by_hand, SOURCE, against)
        relu = [data["shared"][x] if isinstance(x, str) else x for x in data["ops"]["Relu"].get("limits", ())]
        assert [x["need"] for x in relu] == [{"input": 0, "dtype_not_in": ["INT32", "INT16"]}] * kept
        assert dropped == [] if kept else ["relu/dtype"]
        assert data["unsupported"] == ["Det"] and data["rules"]["rank_max"] == 8
        assert [x["text"] for x in data["ops"]["Resize"]["limits"]] == ["by hand"]
    path = tmp_path / "mine.json"
    path.write_text(written(data), encoding="utf-8")
    assert judge_as_one(int32, matrix.target(str(path))) == ("taken", "")


def test_what_is_known_of_a_release_stands_in() -> None:
    assert curated("rtx-1.7")["ops"]["Loop"]["limits"][0]["why"]
    assert curated("trt-8.2")["ops"]["Resize"]["limits"][0]["basis"] == "code"
    assert curated("trt-99.9") == {}


# ---- on a board ----

FAKE = '''
import os, sys
__version__ = "8.2.1.8"
class Logger:
    ERROR = 0
    def __init__(self, level): pass
class NetworkDefinitionCreationFlag:
    EXPLICIT_BATCH = 0
def init_libnvinfer_plugins(logger, name): print("a library that prints")
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): assert flags == 1; return object()
class Error:
    def desc(self): return "no  such\\nop"
    def func(self): return "importIt"
    def code(self): return "ErrorCode.UNSUPPORTED_NODE"
class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger): pass
    def supports_operator(self, op): return op != "Det"
    def get_error(self, i): return Error()
    def parse(self, data):
        if b"Abs" in data: os.abort()
        if b"Neg" in data:
            import time; time.sleep(60)
        if b"Det" in data: self.num_errors = 1
        return self.num_errors == 0
'''


def one(op: str) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x) => (y) {{ y = {op}(x) }}'
    return onnx.parser.parse_model(text)


def pythons() -> list[str]:
    """This one, and a 3.6 where one is found: the Jetson Nano's."""
    old = [shutil.which("python3.6"), *map(str, Path.home().glob(".pyenv/versions/3.6*/bin/python"))]
    works = [p for p in old if p and subprocess.run([p, "-c", ""], capture_output=True).returncode == 0]
    return [sys.executable, *works[:1]]


def test_the_script_is_python_3_6() -> None:
    text = Path(board.__file__).read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 6))
    used = {n.names[0].name for n in ast.walk(tree) if isinstance(n, ast.Import)}
    assert used <= set(sys.stdlib_module_names) and not any(isinstance(n, ast.ImportFrom) for n in ast.walk(tree))


@pytest.mark.parametrize("python", pythons(), ids=lambda p: "this" if p == sys.executable else "3.6")
def test_the_script_on_a_board(python: str, tmp_path: Path) -> None:
    asked = [(op, one(op)) for op in ("Relu", "Abs", "Det", "Neg", "Sigmoid")]
    assert run.bundle(tmp_path / "bundle", asked=asked) == 5
    assert sorted(os.listdir(tmp_path / "bundle")) == ["bundle.json", "models.zip", "probe_tensorrt.py"]
    (tmp_path / "tensorrt.py").write_text(FAKE, encoding="utf-8")
    done = subprocess.run(
        [python, "bundle/probe_tensorrt.py", "--seconds", "1.5"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "result.json: tensorrt 8.2.1.8 took 2 of 5 models\n"
    result = run.read(tmp_path / "result.json")
    assert (result.release, result.package, result.importers["Det"], result.importers["Abs"]) == ("8.2", "tensorrt", False, True)
    assert {name: (o.taken, o.code) for name, o in result.outcomes.items()} == {
        "Relu": (True, ""), "Abs": (False, "CRASH"), "Det": (False, "UNSUPPORTED_NODE"), "Neg": (False, "CRASH"),
        "Sigmoid": (True, ""),
    }  # fmt: skip
    assert result.outcomes["Det"].words == "no such op importIt" and "1.5 s" in result.outcomes["Neg"].words
    run.save(result, tmp_path / "again.json")
    assert run.read(tmp_path / "again.json") == result


def test_the_script_without_tensorrt(tmp_path: Path) -> None:
    run.bundle(tmp_path, asked=[("Relu", one("Relu"))])
    command = [sys.executable, "-S", str(tmp_path / "probe_tensorrt.py"), "--module", "no_such_tensorrt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "result.json").exists()
    assert done.stderr.startswith("probe_tensorrt: no_such_tensorrt cannot be used: ModuleNotFoundError")


def test_a_bundle_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run.bundle(tmp_path / name, asked=[("Relu", one("Relu"))])
    for file in ("models.zip", "bundle.json", "probe_tensorrt.py"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(RequestError, match="is there already"):
        run.bundle(tmp_path / "a", asked=[])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "bundle": "", "outcomes": {}}'])
def test_what_is_no_result(text: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match="is no result of the probe"):
        run.read(path)
    assert cli.main(["matrix", "probe", "--read", str(path)]) == 2
    assert cli.main(["matrix", "probe", "--read", str(tmp_path / "none.json")]) == 2


def test_what_is_no_matrix_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    for text in ("", "[]", '{"release": "8.2"}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(TargetError, match="is no matrix file"):
            matrix.target.__wrapped__(str(path))


def test_a_result_of_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_questions", lambda: ((), (("Relu", one("Relu")),)))
    result = run.Result("tensorrt", "8.2.1", onnx.__version__, "2026-01-01", {}, {"Relu": TAKEN})
    assert run.evaluate(result).tests.right == 1
    with pytest.raises(RequestError, match=r"models of onnx 1\.0"):
        run.evaluate(replace(result, onnx="1.0"))
    with pytest.raises(RequestError, match="read it where the bundle was made"):
        run.evaluate(replace(result, outcomes={"Abs": TAKEN}))


# ---- the shipped result ----


@pytest.mark.skipif(bool(backends.absent("tensorrt_rtx")), reason="TensorRT-RTX is not installed")
def test_the_shipped_rows_follow_from_the_parser(asked: list[Case]) -> None:
    """Some operators asked anew: the same rows as in the file."""
    from onnxfix.backends.trt import TensorRT

    shipped = matrix.data_of(matrix.target("rtx"))
    measured = shipped["source"]["measured"]
    with TensorRT("tensorrt_rtx") as parser:
        if parser.about().version != shipped["source"]["version"] or onnx.__version__ != measured["onnx"]:
            pytest.skip(f"measured with {shipped['source']['version']} and onnx {measured['onnx']}")
        outcomes = ask_all(parser, [(case.name, case.model) for case in asked])
    data, dropped = assemble("rtx-1.7", asked, outcomes, {}, curated("rtx-1.7"), SOURCE, {})
    assert not dropped

    def row(found: matrix.Mapping[str, object], op: str) -> object:
        shared, ops = found["shared"], found["ops"]
        return [shared[x] if isinstance(x, str) else x for x in ops[op].get("limits", ())]  # type: ignore[index,call-overload]

    assert {op: row(data, op) for op in OPS} == {op: row(shipped, op) for op in OPS}


def test_the_shipped_file_says_how_it_was_made() -> None:
    measured = matrix.data_of(matrix.target("rtx"))["source"]["measured"]
    right, total = map(int, measured["node_tests_agree"].split(" of "))
    assert total > 3000 and right / total >= 0.99 and measured["models"] > 25_000
    own, asked = map(int, measured["own_models_agree"].split(" of "))
    assert own / asked >= 0.99
    assert measured["command"] == "onnxfix matrix probe"


def test_curated_limits_have_a_reason() -> None:
    path = matrix.DATA / "curated" / "rtx-1.7.json"
    for op, row in json.loads(path.read_text(encoding="utf-8"))["ops"].items():
        for limit in row.get("limits", ()):
            assert len(limit["why"]) > 15, f"{op}/{limit['id']}"
