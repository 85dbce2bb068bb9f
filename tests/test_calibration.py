"""Values gathered a sample at a time: histograms, ranges, data, the cache that survives, TensorRT's own cache."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfix import calibration
from onnxfix.backends import feeds, images, ort
from onnxfix.calibration import BINS, CALIBRATORS, Data, Histogram, calibrate
from onnxfix.errors import RequestError
from onnxfix.model import load

ROOT = Path(__file__).resolve().parent.parent
TEXT = """<ir_version: 8, opset_import: ["": 18]>
g (float[n,4] x) => (float[n,4] y) <float[4] w = {1, -2, 3, 100}> { h = Mul(x, w) r = Relu(h) y = Sqrt(r) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), path)
    return path


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)


@pytest.fixture
def npz(tmp_path: Path, rows: np.ndarray) -> Path:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=rows)
    return path


# ---- histograms ----


def filled(values: np.ndarray, parts: int = 1) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(values.astype(np.float32), parts):
        histogram.add(part)
    return histogram


def test_neither_order_nor_parts_change_a_histogram() -> None:
    values = np.random.default_rng(1).standard_normal(20_000) * np.logspace(-6, 3, 20_000)
    one, other = filled(values), filled(values[::-1], 37)
    assert np.array_equal(one.bins, other.bins)
    assert (one.low, one.high, one.least, one.small, one.top) == (other.low, other.high, other.least, other.small, other.top)
    assert one.counted == 20_000 and one.top / 2 < one.peak <= one.top
    edges = np.histogram(np.abs(values.astype(np.float32)), BINS, (0, one.top))[0]
    assert np.array_equal(one.bins, edges)


def test_zeros_and_what_is_no_number_are_counted_apart() -> None:
    histogram = filled(np.array([0, 0, -3, 2.0**-20, np.nan, np.inf]))
    assert (histogram.zeros, histogram.odd, histogram.counted, histogram.small) == (2, 2, 2, 1)
    assert (histogram.low, histogram.high, histogram.peak, histogram.least) == (-3, 2.0**-20, 3, 2.0**-20)


def test_a_histogram_of_nothing_has_the_range_zero() -> None:
    for values in (np.zeros(0), np.zeros(5), np.array([np.nan])):
        assert [filled(values).range(c) for c in CALIBRATORS] == [0.0, 0.0, 0.0]


def test_percentile_leaves_out_one_in_ten_thousand() -> None:
    values = np.concatenate([np.linspace(0, 1, 100_000), [50.0] * 5])
    assert filled(values).range("percentile") == pytest.approx(1.0, rel=0.02)
    assert filled(values).range("minmax") == 50


def test_entropy_cuts_what_is_rare_and_far_and_keeps_what_is_even() -> None:
    rng = np.random.default_rng(2)
    long = np.concatenate([rng.standard_normal(300_000), [40.0]])
    assert 3 < filled(long).range("entropy") < 8
    assert filled(rng.uniform(-2, 2, 300_000)).range("entropy") == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("count", [1, 4, 16, 500])
def test_entropy_of_few_values_is_near_all_of_them(count: int) -> None:
    for seed in range(5):
        values = filled(np.random.default_rng(seed).standard_normal(count))
        assert values.range("entropy") > 0.9 * values.peak


def test_signal_over_noise_is_that_of_the_rounded_values() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    for peak in (1.0, 4.0):
        held = np.clip(np.rint(values / (peak / 127)), -127, 127) * (peak / 127)
        noise = ((values - held) ** 2).sum()
        assert filled(values).snr(peak) == pytest.approx(10 * np.log10((values**2).sum() / noise), abs=0.05)
    assert filled(np.zeros(4)).snr(1.0) == math.inf


def test_a_histogram_survives_json() -> None:
    for values in (np.random.default_rng(3).standard_normal(1000), np.zeros(3)):
        one = filled(values)
        other = Histogram.from_dict(json.loads(json.dumps(one.to_dict())))
        assert other.to_dict() == one.to_dict() and other.range("entropy") == one.range("entropy")


# ---- gathering ----


def test_every_value_has_the_range_it_takes(model: Path, npz: Path, rows: np.ndarray) -> None:
    found = calibrate(model, Data(npz))
    assert found.samples == 50
    assert set(found.values) == {"x", "h", "r", "y"}
    ranges = found.ranges("minmax")
    assert ranges["x"] == np.abs(rows).max()
    assert ranges["h"] == np.abs(rows * np.float32([1, -2, 3, 100])).max()
    with pytest.raises(RequestError, match="no calibrator 'max'"):
        found.ranges("max")


def test_the_same_ranges_twice_and_from_the_cache(model: Path, npz: Path, tmp_path: Path) -> None:
    cache = tmp_path / "calib.json"
    one, other = calibrate(model, Data(npz)), calibrate(model, Data(npz), cache=cache)
    told: list[int] = []
    again = calibrate(model, Data(npz), cache=cache, progress=lambda _stage, done, _total: told.append(done))
    assert told == [] and again.resumed == again.samples == 50
    for calibrator in CALIBRATORS:
        assert one.ranges(calibrator) == other.ranges(calibrator) == again.ranges(calibrator)


def test_an_interrupted_run_goes_on_where_it_was(model: Path, npz: Path, tmp_path: Path) -> None:
    cache = tmp_path / "calib.json"

    def stop(_stage: str, done: int, total: int | None) -> None:
        assert total == 50
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, Data(npz), cache=cache, progress=stop)
    told: list[int] = []
    found = calibrate(model, Data(npz), cache=cache, progress=lambda _stage, done, _total: told.append(done))
    assert told == list(range(33, 51)) and found.resumed == 32  # kept after each 16
    whole = calibrate(model, Data(npz))
    assert {n: h.to_dict() for n, h in found.values.items()} == {n: h.to_dict() for n, h in whole.values.items()}


def test_another_model_or_other_data_begin_anew(model: Path, npz: Path, rows: np.ndarray, tmp_path: Path) -> None:
    cache = tmp_path / "calib.json"
    first = calibrate(model, Data(npz), cache=cache)
    np.savez(npz, x=rows * 2)
    second = calibrate(model, Data(npz), cache=cache)
    assert second.resumed == 0 and second.data_sha256 != first.data_sha256
    assert second.ranges("minmax")["x"] == 2 * first.ranges("minmax")["x"]
    onnx.save(onnx.parser.parse_model(TEXT.replace("100}", "200}")), model)
    assert calibrate(model, Data(npz), cache=cache).resumed == 0
    assert calibrate(model, Data(npz, samples=20), cache=cache).resumed == 0


def test_other_external_data_begin_anew(model: Path, npz: Path, tmp_path: Path) -> None:
    cache = tmp_path / "calib.json"
    proto = onnx.load(model)
    (weight,) = proto.graph.initializer
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight), weight.name))  # raw bytes
    onnx.save(proto, model, save_as_external_data=True, location="weights", size_threshold=0)
    weights = tmp_path / "weights"
    assert weights.exists()
    calibrate(model, Data(npz), cache=cache)
    assert calibrate(model, Data(npz), cache=cache).resumed == 50
    before = model.read_bytes()
    weights.write_bytes(np.float32([5, 5, 5, 5]).tobytes())
    assert calibrate(model, Data(npz), cache=cache).resumed == 0 and model.read_bytes() == before


def test_a_cache_that_can_not_be_written_is_told_at_once(model: Path, npz: Path, tmp_path: Path) -> None:
    told: list[int] = []
    with pytest.raises(RequestError, match="its folder does not exist"):
        calibrate(model, Data(npz), cache=tmp_path / "no" / "c.json", progress=lambda _s, done, _t: told.append(done))
    assert told == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"onnxfix_calibration": 1}', "\0\1"])
def test_a_file_that_is_no_cache_is_refused_and_left(model: Path, npz: Path, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "notes.json"
    cache.write_text(text)
    with pytest.raises(RequestError, match="no calibration cache"):
        calibrate(model, Data(npz), cache=cache)
    assert cache.read_text() == text


def test_a_killed_process_leaves_a_cache_that_is_taken_up(model: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle, with a loader that waits once it is there."""
    loader, cache, there = tmp_path / "loader.py", tmp_path / "calib.json", tmp_path / "there"
    loader.write_text(
        "import numpy as np, os, pathlib, time\n"
        "def samples():\n"
        "    rng = np.random.default_rng(0)\n"
        "    for i in range(40):\n"
        f"        if i == 35 and os.environ.get('WAIT') and pathlib.Path({str(cache)!r}).exists():\n"
        f"            pathlib.Path({str(there)!r}).touch(); time.sleep(60)\n"
        "        yield {'x': rng.standard_normal((1, 4)).astype('float32')}\n"
    )
    data = Data(f"{loader}:samples")
    code = "import sys; from pathlib import Path; from onnxfix.calibration import *\n"
    code += "calibrate(Path(sys.argv[1]), Data(sys.argv[2]), cache=Path(sys.argv[3]))"
    command = [sys.executable, "-c", code, str(model), str(data.path), str(cache)]
    run = subprocess.Popen(command, env={**os.environ, "WAIT": "1", "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not there.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    assert run.wait() != 0 and there.exists()
    found = calibrate(model, data, cache=cache)
    assert found.resumed == 32 and found.samples == 40
    assert found.ranges("entropy") == calibrate(model, data).ranges("entropy")


def test_memory_does_not_grow_with_the_samples(model: Path, npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample at a time is alive, whatever their number."""
    alive: list[int] = []
    held: set[int] = set()

    def counted(*_: object) -> Iterator[feeds.Feeds]:
        for _number in range(30):
            array = np.ones((1, 4), np.float32).view(_Tracked)
            array.mark(held)
            alive.append(len(held))
            yield {"x": array}
            del array

    monkeypatch.setattr(calibration, "_samples", counted)
    calibrate(model, Data(npz))
    assert len(alive) == 30 and max(alive) <= 3


class _Tracked(np.ndarray):
    """An array whose owner is told when it is gone."""

    def mark(self, held: set[int]) -> None:
        import weakref

        held.add(id(self))
        weakref.finalize(self, held.discard, id(self))


# ---- data ----


def test_an_npz_is_read_in_slices(npz: Path, model: Path, rows: np.ndarray) -> None:
    with ort.Runner(model) as runner:
        assert feeds.stacked(npz, runner.inputs) == 50
        read = list(calibration.samples(Data(npz, samples=7), runner))
        assert calibration.count(Data(npz, samples=7), runner.inputs) == 7
    assert len(read) == 7
    assert np.array_equal(np.concatenate([s["x"] for s in read]), rows[:7])


def test_an_npz_that_can_not_be_cut_is_one_sample(tmp_path: Path, rows: np.ndarray) -> None:
    inputs = [feeds.Tensor("x", np.dtype("f4"), (50, 4), "tensor(float)"), feeds.Tensor("s", np.dtype("f4"), (), "tensor(float)")]
    path = tmp_path / "two.npz"
    np.savez(path, x=rows, s=np.float32(3))
    assert feeds.stacked(path, inputs) == 0
    (sample,) = feeds.stream(path, inputs)
    assert np.array_equal(sample["x"], rows) and sample["s"] == 3
    np.savez(path, x=np.asfortranarray(rows))
    assert feeds.stacked(path, inputs[:1]) == 0


def test_a_damaged_npz_is_one_line(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"PK\3\4nonsense")
    with pytest.raises(RequestError, match=r"data\.npz"):
        calibrate(model, Data(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"nonsense")
    with pytest.raises(RequestError, match=r"data\.npz"):
        calibrate(model, Data(path))


def test_images_stream(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20):
        image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i:02}.png")
    model = tmp_path / "model.onnx"
    text = '<ir_version: 8, opset_import: ["": 18]>\ng (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), model)
    data = Data(folder, images.parse("scale=1"))
    found = calibrate(model, data)
    assert found.samples == 20 and found.ranges("minmax")["x"] == 19
    assert calibrate(model, Data(folder, images.parse("scale=1"), samples=5)).ranges("minmax")["x"] == 4
    image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "07.png")
    with ort.Runner(model) as runner:
        assert calibration.fingerprint(data, runner.inputs) != found.data_sha256


def test_a_loader_is_known_by_what_it_yields(tmp_path: Path, model: Path) -> None:
    loader, peak = tmp_path / "loader.py", tmp_path / "peak"
    loader.write_text(
        f"import numpy as np\ndef f():\n    peak = float(open({str(peak)!r}).read())\n"
        "    for i in range(3): yield {'x': np.full((2, 4), peak * i)}\n"
    )
    peak.write_text("1")
    first = calibrate(model, Data(f"{loader}:f"))
    peak.write_text("5")
    second = calibrate(model, Data(f"{loader}:f"))
    assert (first.ranges("minmax")["x"], second.ranges("minmax")["x"]) == (2, 10)
    assert first.data_sha256 != second.data_sha256


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def f(): yield {'z': [1]}", "lacks input x"),
        ("def f(): return 3", "TypeError"),
        ("def g(): pass", "AttributeError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def f():\n    yield {'x': [[1, 2, 3, 4]]}\n    raise ValueError('no\\nmore')", "ValueError: no more"),
    ],
)
def test_a_wrong_loader_is_one_line(tmp_path: Path, model: Path, body: str, words: str) -> None:
    loader = tmp_path / "loader.py"
    loader.write_text(body)
    with pytest.raises(RequestError, match=words):
        calibrate(model, Data(f"{loader}:f"))


def test_missing_data_is_one_line(model: Path, tmp_path: Path) -> None:
    for path in ("nowhere", "nowhere.npz", "nowhere.py:f"):
        with pytest.raises(RequestError, match="no such file"):
            calibrate(model, Data(tmp_path / path))


def test_drawn_inputs_are_such_as_the_model_takes(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 18]>
g (float[n,m] x) => (float[1,6] y) <int64[2] s = {1, 6}> { y = Reshape(x, s) }"""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(RequestError, match="runs on no inputs drawn"):
        calibrate(path, Data())
    onnx.save(onnx.parser.parse_model(text.replace("6}", "64}").replace("1,6]", "1,64]")), path)
    assert calibrate(path, Data()).samples == 3


# ---- TensorRT's cache ----


def test_tensorrts_cache(model: Path, npz: Path) -> None:
    written = calibration.trt_cache({"input": 1.0, "a: b": 254.0, "dead": 0.0}, "8.2.1").decode().splitlines()
    assert written == ["TRT-8201-EntropyCalibration2", "input: 3c010204", "a: b: 40000000"]
    assert struct.unpack(">f", bytes.fromhex("3c010204"))[0] == pytest.approx(1 / 127)
    assert calibration.trt_cache({}, "10.3.0.30", "minmax").startswith(b"TRT-100300-MinMaxCalibration\n")
    with pytest.raises(RequestError, match="no version"):
        calibration.trt_cache({}, "latest")
    ranges = calibrate(model, Data(npz)).ranges("entropy")
    assert len(calibration.trt_cache(ranges, "8.5.2").splitlines()) == 1 + len(ranges)
    assert calibration.float_values(load(model)) == ["x", "h", "r", "y"]
