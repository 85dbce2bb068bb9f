"""The proofs on small models, with the real checker, parser, builder and ONNX Runtime."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfix import backends, prove
from onnxfix import plan as plans
from onnxfix.backends import ort, trt
from onnxfix.backends.trt import BuildOptions
from onnxfix.errors import RequestError
from onnxfix.report import Check, Effect, Safety, Status, Where, from_dict, to_dict

pytestmark = pytest.mark.usefixtures("only_rtx")
needs_rtx = pytest.mark.skipif(bool(backends.absent("tensorrt_rtx")), reason=backends.absent("tensorrt_rtx"))

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'


def write(folder: Path, text: str, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(onnx.parser.parse_model(text if text.startswith("<") else HEAD + text), path)
    return path


def parity(folder: Path, before: str, after: str, **settings: object) -> Check:
    one, other = write(folder, before, "before.onnx"), write(folder, after, "after.onnx")
    check = prove.parity(one, other, **settings)  # type: ignore[arg-type]
    assert from_dict(Check, to_dict(check)) == check  # reports travel as JSON
    return check


# ---- structure ----


def test_structure_passes(tmp_path: Path) -> None:
    check = prove.structure(write(tmp_path, "g (float[2] a) => (float[2] y) { y = Relu(a) }"))
    assert (check.name, check.status) == ("structure", Status.PASSED)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("g (float[2] a) => (float[2] y) { y = Relu(b) }", "b"),  # no such value
        ("g (float[2,3] a, float[4,5] b) => (float[2,5] y) { y = MatMul(a, b) }", "MatMul"),  # shape inference
    ],
)
def test_structure_fails_in_one_line(tmp_path: Path, text: str, word: str) -> None:
    path = write(tmp_path, text)
    check = prove.structure(path)
    assert check.status is Status.FAILED
    assert word in check.detail and "\n" not in check.detail
    assert prove.structure(path, before=path).figures == {"in_original": True}


def test_structure_wants_external_data_but_does_not_read_it(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(HEAD + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    # 64 GiB of holes: reading them would fail or take minutes.
    os.truncate(tmp_path / "w.bin", 64 << 30)
    assert prove.structure(path).status is Status.PASSED
    (tmp_path / "w.bin").unlink()
    assert prove.structure(path).status is Status.FAILED


def test_structure_of_a_large_model_leaves_the_weights_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "INLINE_LIMIT", 0)
    model = onnx.parser.parse_model(HEAD + "g (float[1,64] x) => (float[1,9] y) { y = MatMul(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 9), np.float32), "w"))
    path = tmp_path / "large.onnx"
    onnx.save(model, path)
    assert prove.structure(path).status is Status.PASSED
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 10
    onnx.save(model, path)
    assert prove.structure(path).status is Status.FAILED


# ---- parse ----


@needs_rtx
def test_parse_passes(tmp_path: Path) -> None:
    check = prove.parse(write(tmp_path, "g (float[2] a) => (float[2] y) { y = Relu(a) }"))
    assert (check.name, check.status, check.findings) == ("parse", Status.PASSED, ())
    assert check.by.startswith("tensorrt_rtx ") and " through polygraphy " in check.by


@needs_rtx
def test_parse_finds_every_refused_node_and_says_why(tmp_path: Path) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,3,16,16] y, float[a,b] u)
<float[4] s = {1, 1, 2, 2}>
{ r = Relu(x) y = Resize<mode = "linear", antialias = 1>(r, , s) d = Det(r) u = Flatten<axis = 0>(d) }"""
    check = prove.parse(write(tmp_path, text))
    assert check.status is Status.FAILED
    assert [f.where for f in check.findings] == [
        Where("", "Resize", "", 1, ("y",), ""),
        Where("", "Det", "", 2, ("d",), ""),
    ]
    assert check.findings[0].reason == "Antialiasing is not supported currently."
    assert "false" not in check.findings[1].reason
    assert all(f.effect is Effect.REFUSED and f.by == check.by and f.evidence for f in check.findings)


@needs_rtx
def test_parse_reason_is_the_sentence_of_the_log(tmp_path: Path) -> None:
    check = prove.parse(write(tmp_path, "g (float[2,3] a, float[4,5] b) => (float[m,n] y) { y = MatMul(a, b) }"))
    assert check.findings[0].reason.endswith("= 3 and second to last dimension of input1 = 4 but must match")


@needs_rtx
def test_parse_places_a_refusal_inside_bodies_and_functions(tmp_path: Path) -> None:
    text = """g (bool c, float[1,3,8,8] x) => (float[a,b,d,e] y)
{
  y = If(c) <
    then_branch = t () => (float[a,b,d,e] u) <float[4] s = {1, 1, 2, 2}>
      { q = Relu(x) u = Resize<mode = "linear", antialias = 1>(q, , s) },
    else_branch = e () => (float[a,b,d,e] v) { v = Relu(x) }
  >
}"""
    (finding,) = prove.parse(write(tmp_path, text)).findings
    assert finding.where == Where("", "Resize", "", 1, ("u",), "y/then_branch")
    text = """<ir_version: 8, opset_import: ["": 18, "my": 1]>
g (float[3,3] x) => (float[a] y) { z = Relu(x) y = my.foo(z) }
<domain: "my", opset_import: ["": 18]> foo (x) => (y) { q = Relu(x) y = Det(q) }"""
    (finding,) = prove.parse(write(tmp_path, text)).findings
    assert finding.where == Where("", "Det", "", 1, ("y",), "function my::foo")
    # Two alike without names, and the parser does not say which: the scope is all that is known.
    text = text.replace("q = Relu(x) y = Det(q)", "q = Det(x) y = Det(q)")
    findings = prove.parse(write(tmp_path, text)).findings
    assert {f.where for f in findings} == {Where("", "Det", graph="function my::foo")}


@needs_rtx
def test_parse_takes_the_callers_places(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[3,3] x) => (float y) { y = Det(x) }")
    check = prove.parse(path, node_where=lambda index: Where("mine", "Det", index=index + 7))
    assert check.findings[0].where == Where("mine", "Det", index=7)


@needs_rtx
def test_parse_names_an_input_it_cannot_take(tmp_path: Path) -> None:
    (finding,) = prove.parse(write(tmp_path, "g (int16[2] late) => (int16[2] y) { y = Neg(late) }")).findings
    assert finding.reason.startswith("graph input late: ")


@needs_rtx
def test_parse_knows_a_missing_plugin(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 18, "x": 1]> g (float[2] a) => (float[2] y) { y = x.Foo(a) }'
    (finding,) = prove.parse(write(tmp_path, text)).findings
    assert finding.effect is Effect.PLUGIN and finding.where.domain == "x"


@needs_rtx
@pytest.mark.skipif(os.name == "nt", reason="stops and kills a process by POSIX signals")
def test_a_crash_of_the_parser_is_a_finding(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[2] a) => (float[2] y) { y = Relu(a) }")
    assert prove.parse(path).status is Status.PASSED
    pid = trt.shared().pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, lambda: (os.kill(pid, signal.SIGSEGV), os.kill(pid, signal.SIGCONT))).start()
    check = prove.parse(path)
    assert check.status is Status.FAILED and "crashed (SIGSEGV)" in check.detail and path.name in check.detail
    assert check.findings[0].effect is Effect.REFUSED
    assert prove.parse(path).status is Status.PASSED


def test_without_tensorrt_nothing_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prove.close()
    monkeypatch.setattr(trt, "absent", lambda module: f"the Python package {module} is not installed")
    path = write(tmp_path, "g (float[2] a) => (float[2] y) { y = Relu(a) }")
    plan = tmp_path / "engine.plan"
    for check in (prove.parse(path), prove.build(path, plan, BuildOptions())):
        assert check.status is Status.NOT_RUN
        assert "not installed" in check.detail and "pip install" in check.detail
    prove.close()


# ---- parity ----

STATIC = "g (float[4,8] x) => (float[4,8] y) { y = Relu(x) }"


def scaled(factor: str) -> str:
    return f"g (float[4,8] x) => (float[4,8] y) <float f = {{{factor}}}> {{ r = Relu(x) y = Mul(r, f) }}"


def test_parity_of_the_same(tmp_path: Path) -> None:
    check = parity(tmp_path, STATIC, "g (float[4,8] x) => (float[4,8] y) { i = Identity(x) y = Relu(i) }")
    assert check.status is Status.PASSED and "equal in every value over 3 samples" in check.detail
    assert check.by.startswith("onnxruntime ") and "polygraphy" in check.by
    figures = check.figures["outputs"]["y"]
    assert figures["max_abs"] == 0 and figures["equal"] and figures["cosine"] == pytest.approx(1)
    assert figures["range"][0] == 0 < figures["range"][1] <= 3


@pytest.mark.parametrize(
    ("factor", "safety", "status"),
    [
        ("1.0000005", Safety.EXACT, Status.PASSED),  # summed in another order, say
        ("1.000002", Safety.EXACT, Status.FAILED),
        ("1.000002", Safety.CLOSE, Status.PASSED),
        ("1.00002", Safety.CLOSE, Status.FAILED),
        ("1.1", Safety.LOSSY, Status.NOT_RUN),  # nothing stated to judge by
    ],
)
def test_parity_by_grade(tmp_path: Path, factor: str, safety: Safety, status: Status) -> None:
    check = parity(tmp_path, STATIC, scaled(factor), safety=safety)
    assert check.status is status
    assert check.figures["outputs"]["y"]["max_rel"] == pytest.approx(float(factor) - 1, rel=0.2)
    if safety is Safety.EXACT and status is Status.PASSED:
        assert "but for rounding" in check.detail


def test_parity_by_stated_tolerances(tmp_path: Path) -> None:
    def status(**tolerances: float) -> Status:
        return parity(tmp_path, STATIC, scaled("1.1"), safety=Safety.LOSSY, tolerances=tolerances).status

    assert status(lossy=0.11) is Status.PASSED
    assert status(lossy=0.09) is Status.FAILED
    assert status(lossy=0.09, y=0.11) is Status.PASSED
    assert status(y=0.11) is Status.PASSED
    assert status(close=0.11) is Status.NOT_RUN
    check = parity(tmp_path, STATIC, scaled("1.1"), safety=Safety.CLOSE, tolerances={"close": 0.11})
    assert check.status is Status.PASSED and "wider than the 1e-05 of the grade" in check.detail


def test_parity_of_a_pad_folded_into_a_convolution_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 3, 3, 3), np.float32)

    def model(text: str, name: str) -> Path:
        proto = onnx.parser.parse_model(HEAD + text)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        onnx.save(proto, tmp_path / name)
        return tmp_path / name

    before = """g (float[1,3,n,n] x) => (float[1,8,n,n] y) <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}>
{ q = Pad(x, p) y = Conv(q, w) }"""
    after = "g (float[1,3,n,n] x) => (float[1,8,n,n] y) { y = Conv<pads = [1, 1, 1, 1]>(x, w) }"
    check = prove.parity(model(before, "before.onnx"), model(after, "after.onnx"), safety=Safety.EXACT)
    assert check.status is Status.PASSED
    assert check.figures["outputs"]["y"]["equal"], "graph optimisations off: the same sums in the same order"


def test_parity_tries_two_sizes_of_dynamic_axes(tmp_path: Path) -> None:
    text = "g (float[batch,3,h,w] x, float[batch,k] z) => (float[batch,3,h,w] y, float[batch,k] u) { y = Relu(x) u = Abs(z) }"
    check = parity(tmp_path, text, text)
    assert check.status is Status.PASSED and check.figures["samples"] == 6
    first, second = check.figures["sizes"]
    assert first["batch"] == 1 and second["batch"] == 2
    assert first["h"] != second["h"] and set(first) == {"batch", "h", "w", "k"}


def test_parity_catches_what_only_another_size_shows(tmp_path: Path) -> None:
    before = "g (float[batch,3] x) => (float[batch,3] y) <int64[2] s = {0, 3}> { y = Reshape(x, s) }"
    after = "g (float[batch,3] x) => (float[batch,3] y) <int64[2] s = {1, 3}> { y = Reshape(x, s) }"
    check = parity(tmp_path, before, after)
    assert check.status is Status.FAILED and "fails where the original runs" in check.detail


def test_parity_says_where_the_original_does_not_run(tmp_path: Path) -> None:
    text = "g (float[batch,n] x) => (float[batch,2,m] y) <int64[3] s = {1, 2, 112}> { y = Reshape(x, s) }"
    check = parity(tmp_path, text, text)
    assert check.status is Status.PASSED
    assert check.figures["sizes"][0] == {"batch": 1, "n": 224}
    assert any(reason.startswith("batch=1, n=64: ") for reason in check.figures["original_fails_at"])


def test_parity_finds_a_value_for_a_single_integer(tmp_path: Path) -> None:
    # Only a sample rate of 8000 gives a valid reshape here.
    text = """g (float[8] x, int64 rate) => (float[m,n] y) <int64 k = {1000}, int64[1] one = {1}, int64[1] rest = {-1}>
{ d = Div(rate, k) c = Reshape(d, one) s = Concat<axis = 0>(c, rest) y = Reshape(x, s) }"""
    check = parity(tmp_path, text, text)
    assert check.status is Status.PASSED, check.detail


def test_parity_keeps_to_a_size_the_fixed_model_has(tmp_path: Path) -> None:
    check = parity(
        tmp_path,
        "g (float[batch,n] x) => (float[batch,n] y) { y = Relu(x) }",
        "g (float[1,n] x) => (float[1,n] y) { y = Relu(x) }",
    )
    assert check.status is Status.PASSED
    assert len(check.figures["sizes"]) == 2 and all(s["batch"] == 1 for s in check.figures["sizes"])


def test_parity_compares_by_value_when_the_interface_changed(tmp_path: Path) -> None:
    check = parity(
        tmp_path,
        "g (int64[4] x, double[4] z) => (int64[4] y, double[4] u) { y = Neg(x) u = Relu(z) }",
        "g (int32[4] x, float[4] z) => (int32[4] y, float[4] u) { y = Neg(x) u = Relu(z) }",
        safety=Safety.CLOSE,
    )
    assert check.status is Status.PASSED and check.figures["outputs"]["y"]["equal"]


NAN = "g (float[4,8] x) => (float[4,8] y) <float k = {-99}> { z = Add(x, k) y = Sqrt(z) }"


def test_parity_takes_no_proof_from_nan(tmp_path: Path) -> None:
    check = parity(tmp_path, NAN, NAN)
    assert check.status is Status.NOT_RUN and "only NaN or infinity" in check.detail


def test_parity_sees_a_nan_that_is_new_or_gone(tmp_path: Path) -> None:
    some = "g (float[4,8] x) => (float[4,8] y) { y = Sqrt(x) }"
    masked = "g (float[4,8] x) => (float[4,8] y) { z = Abs(x) y = Sqrt(z) }"
    for before, after in ((some, masked), (masked, some)):
        check = parity(tmp_path, before, after, safety=Safety.LOSSY, tolerances={"lossy": 10})
        assert check.status is Status.FAILED and "NaN" in check.detail
    kept = parity(tmp_path, some, some)
    assert kept.status is Status.PASSED and kept.figures["outputs"]["y"]["not_finite"] > 0


def test_parity_takes_no_proof_from_empty_outputs(tmp_path: Path) -> None:
    text = "g (float[4] x) => (int64[1,n] y) <float k = {99}> { b = Greater(x, k) y = NonZero(b) }"
    check = parity(tmp_path, text, text)
    assert check.status is Status.NOT_RUN and "is empty" in check.detail


def test_parity_integers_and_booleans_must_be_equal(tmp_path: Path) -> None:
    check = parity(
        tmp_path,
        "g (float[4,8] x) => (int64[4] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }",
        "g (float[4,8] x) => (int64[4] y) { y = ArgMin<axis = 1, keepdims = 0>(x) }",
        safety=Safety.LOSSY,
        tolerances={"lossy": 10.0},
    )
    assert check.status is Status.FAILED


def test_parity_fails_on_another_shape_or_interface(tmp_path: Path) -> None:
    shape = parity(tmp_path, STATIC, "g (float[4,8] x) => (float[8,4] y) { y = Transpose(x) }")
    assert shape.status is Status.FAILED and "[4, 8] before, [8, 4] after" in shape.detail
    output = parity(tmp_path, STATIC, "g (float[4,8] x) => (float[4,8] z) { z = Relu(x) }")
    assert output.status is Status.FAILED and "y gone, z new" in output.detail
    entry = parity(tmp_path, STATIC, "g (float[4,8] x, float[4,8] w) => (float[4,8] y) { y = Add(x, w) }")
    assert entry.status is Status.FAILED and "w" in entry.detail


def test_parity_fails_when_the_fixed_model_does_not_load(tmp_path: Path) -> None:
    broken = parity(tmp_path, STATIC, "g (float[4,8] x) => (float[4,8] y) { y = Relu(nothing) }")
    assert broken.status is Status.FAILED and "does not load" in broken.detail


def test_parity_knows_a_random_original(tmp_path: Path) -> None:
    text = "g (float[4,8] x) => (float[4,8] y) { r = RandomNormalLike(x) y = Add(x, r) }"
    check = parity(tmp_path, text, text)
    assert check.status is Status.NOT_RUN and "on every run" in check.detail


def test_large_models_take_turns_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(tmp_path, HEAD + "g (float[n,2] a) => (float[n,2] y) { y = Exp(a) }")
    together = prove.parity(one, one)
    held: set[int] = set()
    most = 0
    opened, rested = ort.Runner._open, ort.Runner.rest

    def opening(self: ort.Runner) -> object:
        nonlocal most
        held.add(id(self))
        most = max(most, len(held))
        return opened(self)

    def resting(self: ort.Runner) -> None:
        held.discard(id(self))
        rested(self)

    monkeypatch.setattr(ort.Runner, "_open", opening)
    monkeypatch.setattr(ort.Runner, "rest", resting)
    monkeypatch.setattr(prove, "INLINE_LIMIT", 0)
    in_turns = prove.parity(one, one)
    assert most == 1 and not held
    assert in_turns == together and in_turns.status is Status.PASSED


def test_parity_falls_back_to_the_reference_evaluator(tmp_path: Path) -> None:
    # ONNX Runtime has no kernel for 16-bit integers here.
    text = "g (int16[2,3] x) => (int16[2,3] y) { y = Relu(x) }"
    check = parity(tmp_path, text, text, seeds=(0,))
    assert check.status is Status.PASSED and "reference evaluator" in check.by


def test_parity_that_nobody_can_run_says_so(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 18, "x": 1]> g (float[2] a) => (float[2] y) { y = x.Foo(a) }'
    check = parity(tmp_path, text, text)
    assert check.status is Status.NOT_RUN and "Foo" in check.detail


def test_parity_with_inputs_of_the_user(tmp_path: Path) -> None:
    sample = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)
    np.savez(tmp_path / "in.npz", x=sample)
    check = parity(tmp_path, NAN, NAN, inputs=tmp_path / "in.npz")
    assert check.status is Status.NOT_RUN and check.figures["inputs"] == "in.npz"
    np.savez(tmp_path / "in.npz", x=sample + 100)
    check = parity(tmp_path, NAN, NAN, inputs=tmp_path / "in.npz")
    assert check.status is Status.PASSED and check.figures["samples"] == 1
    np.savez(tmp_path / "in.npz", other=sample)
    with pytest.raises(RequestError, match="lacks input x"):
        parity(tmp_path, NAN, NAN, inputs=tmp_path / "in.npz")


def test_parity_of_strings_asks_for_inputs(tmp_path: Path) -> None:
    text = "g (string[2] x) => (string[2] y) { y = Identity(x) }"
    check = parity(tmp_path, text, text)
    assert check.status is Status.NOT_RUN and "--inputs" in check.detail


def test_parity_ends_in_time_with_a_sample_at_least(tmp_path: Path) -> None:
    told: list[str] = []
    settings = {"seeds": range(50), "seconds": 0.0, "progress": lambda text, _: told.append(text)}
    check = parity(tmp_path, STATIC, STATIC, **settings)
    assert check.status is Status.PASSED and check.figures["samples"] == len(told) == 1


def test_parity_says_when_outputs_prove_little(tmp_path: Path) -> None:
    text = "g (float[4,8] x) => (float[4,8] y) <float k = {0}> { y = Mul(x, k) }"
    check = parity(tmp_path, text, text)
    assert check.status is Status.PASSED and "y never varied" in check.detail


# ---- build and read back ----


@needs_rtx
def test_build_and_readback(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[batch,3,8,8] x) => (float[batch,3,8,8] y) { y = Relu(x) }")
    plan = tmp_path / "engine.plan"
    built, back = prove.build(path, plan, BuildOptions("8.6", dims={"batch": (1, 2, 4)})), plans.readback(plan, path)
    assert (built.name, built.status) == ("build", Status.PASSED)
    assert f"{plan.stat().st_size:,} bytes for compute capability 8.6" in built.detail
    assert "x from 1x3x8x8 to 4x3x8x8" in built.detail
    assert back.name == "readback"
    if trt.shared().about().no_driver:
        assert back.status is Status.NOT_RUN
        assert "header" in back.detail and trt.shared().about().no_driver in back.detail


@needs_rtx
def test_build_of_a_refused_model_has_the_findings(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[3,3] x) => (float y) { y = Det(x) }")
    check = prove.build(path, tmp_path / "engine.plan", BuildOptions())
    assert check.status is Status.FAILED and check.findings[0].where.op == "Det"
    assert not (tmp_path / "engine.plan").exists()


@needs_rtx
def test_build_that_fails_says_why(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[n,3] x, float[m,3] z) => (float[p,3] y) { y = Add(x, z) }")
    options = BuildOptions("8.6", dims={"n": (2, 2, 2), "m": (3, 3, 3)})
    check = prove.build(path, tmp_path / "engine.plan", options)
    assert check.status is Status.FAILED and "broadcast" in check.detail.lower()
