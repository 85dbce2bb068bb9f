"""`bench`: real ONNX Runtime for what runs on a CPU, stand-ins for the GPU that is not here."""

from __future__ import annotations

import json
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfix import bench as benching
from onnxfix.backends import ort, stopwatch, trt
from onnxfix.bench import Bench, bench
from onnxfix.cli import main
from onnxfix.errors import ModelError, RequestError, UnavailableError
from onnxfix.render import bench as shown
from onnxfix.render import layout

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
FAST = HEAD + "g (float[n,3,h,w] x) => (float[n,3,h,w] y) { y = Relu(x) }"
SIZED = HEAD + "g (float[n,3,32,48] x) => (float[n,3,32,48] y) { y = Relu(x) }"
STRANGE = HEAD + "g (float[n,3,h,w] x) => (float[n,3,h,w] y) { y = Unheard(x) }"


def write(folder: Path, text: str, name: str) -> str:
    onnx.save(onnx.parser.parse_model(text), folder / name)
    return str(folder / name)


def slow(folder: Path) -> str:
    """What takes FAST's input and works a thousand times as long."""
    chain = "\n".join(f"v{i + 1} = MatMul(w, v{i})" for i in range(40))
    text = f"""g (float[n,3,h,w] x) => (float[256,256] v40)
<float[2] size = {{256, 256}}>
{{ z = ReduceSum<keepdims = 0>(x) e = Constant<value_ints = [256, 256]>() v0 = Expand(z, e) w = Identity(v0) {chain} }}"""
    return write(folder, HEAD + text, "slow.onnx")


def row(found: Bench, model: str, engine: str) -> benching.Row:
    return next(r for r in found.rows if (r.model, r.engine) == (model, engine))


# ---- ONNX Runtime on this CPU ----


def test_a_slower_model_is_seen(tmp_path: Path) -> None:
    one, other = write(tmp_path, FAST, "fast.onnx"), slow(tmp_path)
    found = bench([one, other], against=["ort"], iterations=21, rounds=4, warmup=1)
    first, second = row(found, one, "ort"), row(found, other, "ort")
    assert first.runs == second.runs == 21
    for r in (first, second):
        assert 0 < r.p50 <= r.p90 <= r.p99 and r.fps == pytest.approx(1e3 / r.mean) and r.load_seconds > 0
        assert ort.version("onnxruntime") in r.by
    assert first.ratio is None
    assert second.ratio and second.ratio.of == f"{one} on ort" and second.ratio.word == "slower"
    assert second.ratio.low <= second.ratio.median <= second.ratio.high
    assert second.memory_mib >= 0


def test_inputs_suit_all_models(tmp_path: Path) -> None:
    """A size that only the second model states; a batch that was asked for, which counts in frames."""
    paths = [write(tmp_path, FAST, "free.onnx"), write(tmp_path, SIZED, "sized.onnx")]
    found = bench(paths, against=["ort"], dims={"n": 4}, iterations=6, rounds=2)
    assert "x float32 4x3x32x48" in found.inputs
    assert all(row(found, p, "ort").fps == pytest.approx(4e3 / row(found, p, "ort").mean) for p in paths)


def test_inputs_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 3, 5, 7), np.float32))
    path = write(tmp_path, SIZED.replace("32,48", "5,7"), "m.onnx")
    found = bench([path], against=["ort"], inputs=tmp_path / "data.npz", iterations=2, rounds=1)
    assert "data.npz" in found.inputs and row(found, path, "ort").runs == 2


def test_seconds_bound_a_row(tmp_path: Path) -> None:
    path = write(tmp_path, FAST, "m.onnx")
    found = bench([path], against=["ort"], seconds=0.2, rounds=3)
    assert row(found, path, "ort").runs >= 3


def test_a_model_that_fails_leaves_the_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write(tmp_path, FAST, "m.onnx"), write(tmp_path, STRANGE, "strange.onnx")
    assert (
        main(["bench", other, one, "--against", "ort", "--iterations", "2", "--rounds", "1", "--format", "json"]) == 1
    )
    out = capsys.readouterr()
    rows = {(r["model"], r["engine"]): r for r in json.loads(out.out)["rows"]}
    assert rows[one, "ort"]["runs"] == 2
    assert rows[other, "ort"]["failed"] and "Unheard" in rows[other, "ort"]["why"]
    assert f"{other} does not run on ort" in out.err and out.err.count("\n") == 1


def test_a_process_over_its_memory_is_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "memory_limit", lambda: 1)
    path = write(tmp_path, FAST, "m.onnx")
    found = bench([path], against=["ort"], iterations=1, rounds=1)
    assert row(found, path, "ort").failed and "the process of the model took" in row(found, path, "ort").why


def test_a_provider_that_is_not_here_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "providers", lambda: ("CPUExecutionProvider",))
    path = write(tmp_path, FAST, "m.onnx")
    found = bench([path], against=["ort-cuda"], iterations=1, rounds=1)
    missing = row(found, path, "ort-cuda")
    assert not missing.failed and missing.why == "this onnxruntime has no CUDAExecutionProvider"
    assert {r.engine for r in bench([path], iterations=1, rounds=1).rows} == {"tensorrt", "ort"}  # unasked, unnamed


# ---- requests that are wrong ----


@pytest.mark.parametrize(
    ("paths", "options", "said"),
    [
        ([], {}, "name a model"),
        (["gone.onnx"], {}, "no such file"),
        (["."], {}, "is a folder"),
        (["m.onnx"], {"against": ["gpu"]}, "no engine called 'gpu'; there are tensorrt, ort"),
        (["m.onnx"], {"seconds": 0.0}, "above zero"),
        (["m.onnx"], {"rounds": 0}, "above zero"),
        (["m.onnx"], {"threads": -1}, "not below"),
        (["m.onnx"], {"dims": {"z": 3}}, "no dynamic axis called 'z'; there are n, h, w"),
        (["strange.onnx"], {}, "Unheard"),
    ],
)  # fmt: skip
def test_wrong_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: Sequence[str], options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FAST, "m.onnx")
    write(tmp_path, STRANGE, "strange.onnx")
    with pytest.raises(RequestError, match=said):
        bench(paths, **options)


def test_no_model_and_bad_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"\xff\x00nonsense" * 9)
    with pytest.raises(ModelError):
        bench([junk])
    assert main(["bench", str(junk), "--dims", "n"]) == 2
    assert "give an axis, '=' and a size" in capsys.readouterr().err


# ---- TensorRT, without a GPU ----


def about(no_driver: str) -> trt.About:
    return trt.About("tensorrt_rtx", "1.7", "0.53", no_driver, ("8.6",))


class Machine:
    """A machine with a GPU: what `trt.shared()` answers, and children whose times are known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: dict[tuple[str, str], list[list[float]]]) -> None:
        self.times, self.built, self.asked = times, [], []
        machine = self

        class Child:
            def __init__(self, flavour: str, *_rest: object) -> None:
                self.flavour = flavour

            def ask(self, request: dict[str, Any], _seconds: float, _progress: object) -> dict[str, Any]:
                if request["do"] == "load":
                    name = Path(request["path"]).name
                    self.key = (name if name in {n for n, _ in machine.times} else "built", self.flavour)
                    return {"by": self.flavour, "seconds": 0.5}
                machine.asked.append(self.key)
                return {"times": machine.times[self.key].pop(0), "memory_mib": 7}

            def end(self) -> None:
                pass

        def build(path: Path, plan: Path, options: trt.BuildOptions) -> trt.Built:
            self.built.append((path.name, options.profiles))
            return trt.Built(())

        monkeypatch.setattr(trt, "Child", Child)
        monkeypatch.setattr(trt, "shared", lambda: types.SimpleNamespace(about=lambda: about(""), build=build))


def test_ratios_are_taken_round_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path, FAST, "a.onnx"), write(tmp_path, FAST, "b.onnx"), str(tmp_path / "c.plan")]
    Path(paths[2]).write_bytes(b"plan")
    machine = Machine(monkeypatch, {
        ("a.onnx", "ort"): [[10.0, 10.0], [40.0], [20.0]],
        ("b.onnx", "ort"): [[11.0], [44.0], [18.0]],
        ("built", "tensorrt_rtx"): [[5.0]] * 6,
        ("c.plan", "tensorrt_rtx"): [[1.0], [4.0], [2.0]],
    })  # fmt: skip
    found = bench(paths, against=["ort"], iterations=3, rounds=3, warmup=0, dims={"n": 2})
    ratios = {(Path(r.model).name, r.engine): r.ratio for r in found.rows}
    assert list(ratios) == [(n, "tensorrt") for n in ("a.onnx", "b.onnx", "c.plan")] + [
        ("a.onnx", "ort"),
        ("b.onnx", "ort"),
    ]
    second = ratios["b.onnx", "ort"]
    assert second and (second.low, second.median, second.high) == pytest.approx((1.0, 1.1, 1.1))
    assert second.of == f"{paths[0]} on ort" and second.word == "the same within the noise"
    plan = ratios["c.plan", "tensorrt"]  # over the first model in TensorRT, and that over ONNX Runtime
    assert plan and plan.median == pytest.approx(0.4) and plan.of == f"{paths[0]} on tensorrt" and plan.word == "faster"
    first = ratios["a.onnx", "tensorrt"]
    assert first and first.of == f"{paths[0]} on ort" and first.median == pytest.approx(0.25)
    assert ratios["a.onnx", "ort"] is None
    assert [name for name, _ in machine.built] == ["a.onnx", "b.onnx"]
    assert machine.built[0][1] == ({"x": ((2, 3, 64, 64),) * 3},)
    order = machine.asked
    assert order[:5] == order[9:4:-1] == order[10:]  # there, back and there again


def test_a_plan_without_a_gpu_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trt, "shared", lambda: types.SimpleNamespace(about=lambda: about("no NVIDIA driver")))
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"plan")
    assert main(["bench", str(plan)]) == 3
    out = capsys.readouterr()
    assert "not run  tensorrt: no NVIDIA driver" in out.out and "nothing could run here" in out.err


def test_no_tensorrt_at_all_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> trt.About:
        raise UnavailableError("the Python package tensorrt is not installed")

    monkeypatch.setattr(trt, "shared", lambda: types.SimpleNamespace(about=missing))
    path = write(tmp_path, FAST, "m.onnx")
    found = bench([path], iterations=1, rounds=1)
    assert "not installed" in row(found, path, "tensorrt").why and not row(found, path, "tensorrt").failed


def test_the_watch_feeds_an_engine_what_its_profile_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's own calls, answered by a stand-in: a dynamic input gets the profile's best size, in its own dtype."""
    polygraphy = pytest.importorskip("polygraphy.backend.trt")
    fed: list[Any] = []
    engine = types.SimpleNamespace(
        num_io_tensors=2,
        device_memory_size=5 << 20,
        get_tensor_name=lambda i: ("x", "y")[i],
        get_tensor_mode=lambda name: {"x": "in", "y": "out"}[name],
        get_tensor_dtype=lambda name: "half",
        get_tensor_shape=lambda name: (-1, 3),
        get_tensor_profile_shape=lambda name, profile: ((1, 3), (4, 3), (8, 3)),
    )

    class Runner:
        def __init__(self, of: object) -> None:
            assert of is engine

        def activate(self) -> None:
            pass

        def infer(self, feeds: Any, check_inputs: bool) -> None:
            fed.append(feeds["x"])

    monkeypatch.setattr(polygraphy, "engine_from_bytes", lambda data: engine)
    monkeypatch.setattr(polygraphy, "TrtRunner", Runner)
    watch = object.__new__(stopwatch.PlanWatch)
    watch.plugins = []
    watch.flavour, watch.trt = "tensorrt", types.SimpleNamespace(
        __version__="10.3", TensorIOMode=types.SimpleNamespace(INPUT="in"), nptype=lambda dtype: np.float16
    )  # fmt: skip
    (tmp_path / "m.plan").write_bytes(b"plan")
    assert watch.load(str(tmp_path / "m.plan"), [], "", 0)["by"] == "tensorrt 10.3"
    answer = watch.run(3, 60.0)
    assert len(answer["times"]) == 3 and answer["memory_mib"] == 5
    assert fed[0].shape == (4, 3) and fed[0].dtype == np.float16
    np.savez(tmp_path / "given.npz", np.ones((2, 3)))
    watch.load(str(tmp_path / "m.plan"), ["x"], str(tmp_path / "given.npz"), 0)
    watch.run(1, 60.0)
    assert fed[-1].shape == (2, 3) and fed[-1].dtype == np.float16


# ---- text ----


def test_the_table(tmp_path: Path) -> None:
    of = benching.Ratio("a.onnx on ort", 1.25, 1.1, 1.4)
    base = benching.Row("a.onnx", "ort", "onnxruntime 1", 100, 2.0, 1.9, 2.5, 123.4, 500.0, 0.25, 30)
    rows = (base, replace(base, model="b.onnx", ratio=of), *(
        benching.Row(m, "tensorrt", why="no NVIDIA driver") for m in ("a.onnx", "b.onnx")
    ))  # fmt: skip
    text = layout.plain(shown.table(Bench("a machine", "drawn", rows)))
    lines = text.splitlines()
    assert next(line for line in lines if line.startswith("  b.onnx")).split("  ")[-3:] == [
        "1.25 (1.10 to 1.40)", "a.onnx on ort", "slower"
    ]  # fmt: skip
    assert sum("no NVIDIA driver" in line for line in lines) == 1  # once, not for each model
    assert "123" in text and "1.90" in text
