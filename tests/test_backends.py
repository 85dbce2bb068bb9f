"""The backends with their real parts: TensorRT-RTX in its child process, ONNX Runtime, the reference evaluator."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfix import backends
from onnxfix.backends import BackendError, feeds, ort, reference, trt
from onnxfix.backends.compare import compare
from onnxfix.errors import RequestError, UnavailableError

needs_rtx = pytest.mark.skipif(bool(backends.absent("tensorrt_rtx")), reason=backends.absent("tensorrt_rtx"))
needs_signals = pytest.mark.skipif(os.name == "nt", reason="stops and kills a process by POSIX signals")

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'
REFUSED = (
    HEAD
    + """g (float[1,3,8,8] x) => (float[1,3,16,16] y, float[a,b] u)
<float[4] s = {1, 1, 2, 2}>
{
  y = Resize<mode = "linear", antialias = 1>(x, , s)
  d = Det(x)
  u = Flatten<axis = 0>(d)
}"""
)
ACCEPTED = (
    HEAD
    + """g (float[batch,3,h,w] x) => (float[m,n,o,p] y)
<float[4] s = {1, 1, 2, 2}>
{ y = Resize<mode = "linear">(x, , s) }"""
)


def write(folder: Path, text: str, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture(scope="module")
def tensorrt() -> Iterator[trt.TensorRT]:
    with trt.TensorRT("tensorrt_rtx") as tensorrt:
        yield tensorrt


# ---- the survey ----


def test_survey_names_every_backend_and_how_to_get_the_missing() -> None:
    infos = {i.name: i for i in backends.survey()}
    assert list(infos) == ["onnxruntime", "tensorrt", "tensorrt_rtx"]
    for info in infos.values():
        assert info.version if info.available else info.why_not and info.how_to_get


@needs_rtx
def test_survey_asks_the_real_tensorrt(tensorrt: trt.TensorRT) -> None:
    info = next(i for i in backends.survey() if i.name == "tensorrt_rtx")
    assert info.available
    assert info.version == tensorrt.about().version
    assert any("8.6" in note for note in info.notes)


def test_a_placeholder_is_no_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if backends.version("tensorrt"):
        pytest.skip("the real tensorrt is installed here")
    assert "not installed" in backends.absent("tensorrt")  # a folder of that name on the path
    (tmp_path / "tensorrt" / "__init__.py").write_text("raise ImportError('placeholder')")
    assert "placeholder" in backends.absent("tensorrt")
    (tmp_path / "tensorrt" / "tensorrt.so").touch()
    assert backends.absent("tensorrt") == ""
    # Looks real, does not import: the reason is the import's own.
    with trt.TensorRT("tensorrt") as broken:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(UnavailableError, match=r"does not start: .*placeholder"):
            broken.about()


def test_unknown_flavour_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trt.FLAVOUR_VARIABLE, "tensorflow")
    with pytest.raises(RequestError, match="tensorflow"):
        trt.TensorRT()


# ---- TensorRT-RTX ----


@needs_rtx
def test_parse_brings_every_refusal(tensorrt: trt.TensorRT, tmp_path: Path) -> None:
    parsed = tensorrt.parse(write(tmp_path, REFUSED))
    assert [(r.node, r.node_operator, r.code) for r in parsed.refusals] == [
        (0, "Resize", "UNSUPPORTED_NODE_ATTR"),
        (1, "Det", "UNSUPPORTED_NODE"),
    ]
    assert "antialias" in parsed.refusals[0].desc


@needs_rtx
def test_parse_keeps_what_the_logger_said(tensorrt: trt.TensorRT, tmp_path: Path) -> None:
    text = HEAD + "g (float[2,3] a, float[4,5] b) => (float[m,n] y) { y = MatMul(a, b) }"
    (refusal,) = tensorrt.parse(write(tmp_path, text)).refusals
    assert any("must match" in sentence for sentence in refusal.said)
    assert not any("cudaError" in sentence for sentence in refusal.said)


@needs_rtx
def test_parse_finds_external_data(tensorrt: trt.TensorRT, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    model = onnx.parser.parse_model(HEAD + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert not tensorrt.parse(path).refusals
    (tmp_path / "w.bin").unlink()
    assert tensorrt.parse(path).refusals


@needs_rtx
def test_supports(tensorrt: trt.TensorRT) -> None:
    assert tensorrt.supports("Resize")
    assert not tensorrt.supports("NoSuchOp")


@needs_rtx
def test_build_and_read_back(tensorrt: trt.TensorRT, tmp_path: Path) -> None:
    plan, told = tmp_path / "engine.plan", []
    options = trt.BuildOptions("8.6", workspace_mib=64, dims={"h": (8, 16, 32), "w": (8, 16, 32)})
    built = tensorrt.build(write(tmp_path, ACCEPTED), plan, options, lambda text, done: told.append((text, done)))
    assert built.bytes == plan.stat().st_size > 10_000
    assert built.shapes == ({"x": [[1, 3, 8, 8], [1, 3, 16, 16], [1, 3, 32, 32]]},)
    assert told and all(text and 0 <= done <= 1 for text, done in told)
    assert [p.name for p in tmp_path.glob("*.plan*")] == ["engine.plan"]  # no draft left
    back = tensorrt.readback(plan)
    assert back.stage == "header" if tensorrt.about().no_driver else back.stage in ("header", "context")


@needs_rtx
@pytest.mark.parametrize(
    "damage", [lambda plan: plan[:-100], lambda plan: plan[:64], lambda plan: b"x" * 999, lambda plan: b""]
)
def test_a_damaged_plan_gets_no_further_than_the_runtime(
    tensorrt: trt.TensorRT, tmp_path: Path, damage: object
) -> None:
    plan = tmp_path / "engine.plan"
    tensorrt.build(write(tmp_path, ACCEPTED), plan, trt.BuildOptions("8.6"))
    plan.write_bytes(damage(plan.read_bytes()))  # type: ignore[operator]
    back = tensorrt.readback(plan)
    assert back.stage == "runtime" and back.detail


@needs_rtx
def test_a_failing_build_says_why_and_writes_nothing(tensorrt: trt.TensorRT, tmp_path: Path) -> None:
    text = HEAD + "g (float[n,3] x, float[m,3] z) => (float[p,3] y) { y = Add(x, z) }"
    dims = {"n": (2, 2, 2), "m": (3, 3, 3)}
    with pytest.raises(BackendError) as raised:
        tensorrt.build(write(tmp_path, text), tmp_path / "engine.plan", trt.BuildOptions("8.6", dims=dims))
    assert "broadcast" in str(raised.value).lower() and "\n" not in str(raised.value)
    assert not (tmp_path / "engine.plan").exists()


@needs_rtx
def test_settings_it_cannot_take_are_refused_before_the_build(tensorrt: trt.TensorRT, tmp_path: Path) -> None:
    model = write(tmp_path, ACCEPTED)
    with pytest.raises(RequestError, match=r"8.7"):
        tensorrt.build(model, tmp_path / "engine.plan", trt.BuildOptions("8.7"))
    with pytest.raises(RequestError, match="strongly typed"):
        tensorrt.build(model, tmp_path / "engine.plan", trt.BuildOptions("8.6", fp16=True))


# ---- a child that dies ----


@needs_rtx
@needs_signals
def test_a_crash_is_an_outcome_and_the_next_call_works(tmp_path: Path) -> None:
    with trt.TensorRT("tensorrt_rtx") as tensorrt:
        model = write(tmp_path, ACCEPTED)
        tensorrt.parse(model)
        pid = tensorrt.pid
        assert pid
        os.kill(pid, signal.SIGSTOP)  # so that the call is surely under way when the signal comes
        threading.Timer(0.3, lambda: (os.kill(pid, signal.SIGSEGV), os.kill(pid, signal.SIGCONT))).start()
        with pytest.raises(trt.DiedError, match=r"crashed .SIGSEGV. during parse"):
            tensorrt.parse(model)
        assert not tensorrt.parse(model).refusals
        assert tensorrt.pid != pid


@needs_rtx
@needs_signals
def test_a_hang_ends_at_the_time_limit(tmp_path: Path) -> None:
    with trt.TensorRT("tensorrt_rtx") as tensorrt:
        model = write(tmp_path, ACCEPTED)
        tensorrt.parse(model)
        assert tensorrt.pid
        os.kill(tensorrt.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(trt.DiedError, match=r"did not finish parse within 0.5 s"):
            tensorrt.parse(model, seconds=0.5)
        assert time.monotonic() - started < 5
        assert not tensorrt.parse(model).refusals


@needs_rtx
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a child is read from /proc")
def test_memory_over_the_limit_ends_the_child() -> None:
    with (
        trt.TensorRT("tensorrt_rtx", memory_mib=5) as tensorrt,
        pytest.raises(UnavailableError, match="over the limit of 5 MiB"),
    ):
        tensorrt.about()


@needs_rtx
@needs_signals
def test_close_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    tensorrt = trt.TensorRT("tensorrt_rtx")
    tensorrt.about()
    child = tensorrt._child
    assert child and child.folder.exists()
    tensorrt.close()
    assert child.process.poll() is not None and not child.folder.exists()


# ---- ONNX Runtime and the reference evaluator ----


def test_evaluate() -> None:
    model = onnx.parser.parse_model(HEAD + "g (float[2] a) => (float[2] y) { y = Add(a, a) }")
    made = ort.evaluate(model.SerializeToString(), {"a": np.array([1, 2], np.float32)})
    assert made["y"].tolist() == [2, 4]
    with pytest.raises(BackendError):
        ort.evaluate(b"garbage", {})


def test_ort_says_when_it_lacks_an_operator(tmp_path: Path) -> None:
    path = write(
        tmp_path, '<ir_version: 8, opset_import: ["": 18, "x": 1]> g (float[2] a) => (float[2] y) { y = x.Foo(a) }'
    )
    with pytest.raises(ort.UnsupportedError):
        ort.Runner(path)


def test_reference_evaluator_agrees_with_ort(tmp_path: Path) -> None:
    path = write(
        tmp_path, HEAD + "g (float[n,2] a, float[2] b) => (float[n,2] y, float[n,2] z) { y = Sub(a, b) z = Tanh(y) }"
    )
    sample = {"a": np.ones((3, 2), np.float32), "b": np.array([0.5, 2], np.float32)}
    with ort.Runner(path) as one, reference.Runner(path) as other:
        assert one.inputs == other.inputs
        expected, got = one.run(sample), other.run(sample)
    assert list(expected) == list(got)
    assert all(compare(n, expected[n], got[n], 1e-6).verdict in ("equal", "within") for n in expected)


def test_reference_evaluator_passes_its_reason_on(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "g (float[n,m] a, float[3] b) => (float[n,m] y) { y = Sub(a, b) }")
    with reference.Runner(path) as runner, pytest.raises(BackendError, match="Sub"):
        runner.run({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)})


# ---- comparing ----


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (np.float32([1, 2]), np.float32([1, 2]), "equal"),
        (np.float32([1, 100]), np.float32([1.0005, 100]), "within"),  # within 1e-5 of 100
        (np.float32([1, 2]), np.float32([1, 2.001]), "beyond"),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), "equal"),
        (np.float32([1, np.nan]), np.float32([1, 2]), "finite"),
        (np.float32([1, 2]), np.float32([1, np.nan]), "finite"),
        (np.float32([1, np.inf]), np.float32([1, -np.inf]), "finite"),
        (np.float32([1, np.inf]), np.float32([1, np.inf]), "equal"),
        (np.int64([1, 10**9]), np.int64([1, 10**9 + 1]), "beyond"),  # whole numbers get no tolerance
        (np.int64([2**62]), np.int64([2**62 + 1]), "beyond"),
        (np.int32([3]), np.int64([3]), "equal"),  # by value
        (np.array([True]), np.array([False]), "beyond"),
        (np.float32([1]), np.float32([[1]]), "shape"),
        (np.array(["a"], object), np.array(["b"], object), "beyond"),
        ([1], [1], "kind"),
    ],
)
def test_compare(before: object, after: object, verdict: str) -> None:
    assert compare("y", before, after, 1e-5).verdict == verdict


@pytest.mark.parametrize(("dtype", "verdict"), [("float32", "within"), ("float64", "beyond"), ("float16", "beyond")])
def test_digits_lost_to_underflow_are_nobodys_fault(dtype: str, verdict: str) -> None:
    """A network that fades out ends in denormal numbers, where each way to sum loses other digits; a zero asks for more."""
    unit = {"float32": 1e-40, "float64": 1e-40, "float16": 1e-5}[dtype]
    before, after = (np.array([4 * unit, v * unit]).astype(dtype) for v in (1.0, 1.5))
    assert compare("y", before, after, 1e-5).verdict == verdict
    assert compare("y", before, after, 0.0).verdict == "beyond"


# ---- inputs ----


def tensor(name: str, dtype: str, *shape: int | str) -> feeds.Tensor:
    return feeds.Tensor(name, np.dtype(dtype), shape, f"tensor({dtype})")


def test_seeded_inputs_repeat_and_keep_dtype_and_shape() -> None:
    inputs = [
        tensor("image", "float32", "batch", 3, "h", "w"),
        tensor("half", "float16", 2),
        tensor("ids", "int64", "batch", "n"),
        tensor("pair", "int64", 2),
        tensor("rate", "int64"),
        tensor("one", "int32", 1),
        tensor("mask", "bool", "n"),
        tensor("pixels", "uint8", 4, 4),
    ]
    draw = feeds.Draw({"batch": 2, "h": 8, "w": 8, "n": 5}, scalar=16000)
    first, second = feeds.seeded(inputs, draw, 1), feeds.seeded(inputs, draw, 1)
    assert {n: (a.dtype.name, a.shape) for n, a in first.items()} == {
        "image": ("float32", (2, 3, 8, 8)),
        "half": ("float16", (2,)),
        "ids": ("int64", (2, 5)),
        "pair": ("int64", (2,)),
        "rate": ("int64", ()),
        "one": ("int32", (1,)),
        "mask": ("bool", (5,)),
        "pixels": ("uint8", (4, 4)),
    }
    assert all(np.array_equal(first[n], second[n]) for n in first)
    assert first["rate"] == first["one"] == 16000
    assert first["ids"].min() >= 0 and first["ids"].max() <= 7
    assert not np.array_equal(first["image"], feeds.seeded(inputs, draw, 2)["image"])


def test_seeded_bounds_leave_room_between_them() -> None:
    """An fmin drawn above its fmax would let nothing through, and prove nothing."""
    inputs = [tensor("audio", "float32", 1, 9), tensor("fmin", "float32"), tensor("fmax", "float32", 1)]
    for seed in range(3):
        drawn = feeds.seeded(inputs, feeds.Draw({}), seed)
        assert drawn["fmin"] == 0.0 and drawn["fmax"] == [1e4] and drawn["fmax"].dtype == np.float32
    alone = feeds.seeded(inputs[:2], feeds.Draw({}), 1)
    assert 0.0 < abs(alone["fmin"]) <= 1.0


def test_sizes_start_with_the_likely_and_keep_what_is_fixed() -> None:
    inputs = [tensor("x", "float32", "batch", "c", "h", "w"), tensor("y", "float32", "batch", "t")]
    parts = feeds.axes(inputs)
    assert parts == {"batch": "batch", "c": "channel", "h": "length", "w": "length", "t": "other"}
    first = next(feeds.sizes(parts, {"w": 48}))
    assert first == {"batch": 1, "c": 3, "h": 64, "w": 48, "t": 64}
    others = list(feeds.other_sizes(first, parts, {"w": 48}))
    assert others and first not in others
    assert others[0]["batch"] == 2 and others[0]["h"] != 64
    assert all(s["w"] == 48 for s in others)


def test_inputs_from_files(tmp_path: Path) -> None:
    from polygraphy.json import save_json

    inputs = [tensor("x", "float32", "n", 2)]
    sample = np.arange(4, dtype=np.float64).reshape(2, 2)
    np.savez(tmp_path / "a.npz", x=sample, other=sample)
    (read,) = feeds.read(tmp_path / "a.npz", inputs)
    assert list(read) == ["x"] and read["x"].dtype == np.float32 and read["x"].tolist() == sample.tolist()
    save_json([{"x": sample}, {"x": sample + 1}], str(tmp_path / "a.json"))
    assert [s["x"][0, 0] for s in feeds.read(tmp_path / "a.json", inputs)] == [0, 1]


@pytest.mark.parametrize("name", ["absent.npz", "text.npz", "text.json", "other.npz", "shape.npz"])
def test_bad_input_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.json").write_text("no json")
    np.savez(tmp_path / "other.npz", z=np.ones((1, 2)))
    np.savez(tmp_path / "shape.npz", x=np.ones((1, 3)))
    with pytest.raises(RequestError, match=name) as raised:
        feeds.read(tmp_path / name, [tensor("x", "float32", "n", 2)])
    assert "\n" not in str(raised.value)
