"""Plans: the header of real ones, what damage and exchange do to them, the sidecar, and the command line."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx.parser
import pytest

from onnxfix import backends, cli, plan
from onnxfix.backends import BackendError, planfile
from onnxfix.backends.trt import About, BuildOptions, Readback, TensorRT
from onnxfix.errors import RequestError
from onnxfix.plan import Sidecar
from onnxfix.report import Report, Status

needs_rtx = pytest.mark.skipif(bool(backends.absent("tensorrt_rtx")), reason=backends.absent("tensorrt_rtx"))

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'
MODEL = """g (float[batch,3,8,8] image, int64[1] step, float[2] unused) => (float[batch,3,8,8] scores, int64[1] next)
{ scores = Relu(image) next = Add(step, step) }"""
OTHER = "g (float[1,3,8,8] photo) => (float[1,3,8,8] scores) { scores = Relu(photo) }"


def write(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(HEAD + text), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A model, and real plans of it for two compute capabilities."""
    folder = tmp_path_factory.mktemp("plans")
    files = {"model": write(folder / "model.onnx", MODEL), "other": write(folder / "other.onnx", OTHER)}
    with TensorRT("tensorrt_rtx") as tensorrt:
        for name in ("7.5", "8.6"):
            files[name] = folder / f"{name}.plan"
            assert not tensorrt.build(files["model"], files[name], BuildOptions(name)).refusals
    return files


@pytest.fixture
def real(made: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy of the plan for 8.6, to be changed."""
    path = tmp_path / "model.plan"
    path.write_bytes(made["8.6"].read_bytes())
    return path


class Installed:
    """A TensorRT that is here, in the place of the child process."""

    version, no_driver = "10.3.0.30", ""
    back: Readback | BackendError = Readback("context", "", (), 12_000_000, "8.7")

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour

    def __enter__(self) -> Installed:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def about(self) -> About:
        return About(self.flavour, self.version, "0.53.6", self.no_driver, ())

    def creators(self) -> frozenset[tuple[str, str, str]]:
        return frozenset({("Mine", "1", "")})

    def readback(self, path: Path, **_: object) -> Readback:
        if isinstance(self.back, BackendError):
            raise self.back
        return self.back


def tensorrt_plan(path: Path, version: tuple[int, ...] = (10, 3, 0, 30), tag: bytes = b"ftrt") -> Path:
    """A file with the header of TensorRT's own plans."""
    body = bytes(1000)
    path.write_bytes(struct.pack("<4sIQQ4s", tag, 0, 2, 28 + len(body), bytes(version)) + body)
    return path


def patched(path: Path, at: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def failed(report: Report) -> str:
    """The detail of the only check that failed."""
    (check,) = [c for c in report.checks if c.status is Status.FAILED]
    assert report.verdict == "refused" and report.judged == check.detail and "\n" not in check.detail
    return check.detail


# ---- the header ----


@needs_rtx
def test_header_of_real_plans(made: Mapping[str, Path]) -> None:
    for capability in ("7.5", "8.6"):
        header = planfile.read(made[capability])
        assert header.flavour == "tensorrt_rtx" and header.capabilities == (capability,)
        assert header.version == backends.version("tensorrt_rtx")
        assert header.bytes == made[capability].stat().st_size


@needs_rtx
def test_a_plan_names_its_inputs_and_outputs(made: Mapping[str, Path]) -> None:
    header = planfile.read(made["8.6"])
    names = ["image", "step", "unused", "scores", "next", "imag", "photo"]
    assert planfile.names(made["8.6"], header, names) == ["imag", "photo"]


@needs_rtx
def test_a_plan_cut_anywhere_is_told(real: Path) -> None:
    whole = real.read_bytes()
    for length in (4, 27, 28, 63, 64, 111, 112, 1000, len(whole) // 2, len(whole) - 1):
        real.write_bytes(whole[:length])
        with pytest.raises(planfile.PlanError, match=r"cut short.*copy or build it again"):
            planfile.read(real)
    real.write_bytes(whole + b"\0")
    with pytest.raises(planfile.PlanError, match=r"damaged: it says .* and has"):
        planfile.read(real)
    real.write_bytes(whole[:-4096] + bytes(4096))  # as a download that reserves its space leaves it
    with pytest.raises(planfile.PlanError, match="its end is not that of a plan"):
        planfile.read(real)


@needs_rtx
def test_no_header_crashes_the_reader(real: Path) -> None:
    whole, draw = real.read_bytes(), random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(112)] = draw.randrange(256)
        real.write_bytes(content)
        with contextlib.suppress(RequestError):
            planfile.names(real, planfile.read(real), ["image"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty; build the plan again"),
        (random.Random(0).randbytes(4000), "not a TensorRT plan"),
        (onnx.parser.parse_model(HEAD + OTHER).SerializeToString(), "an ONNX model.*onnxfix build"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "a zip file"),
        (b"strt" + bytes(100), "kind 'strt'"),
        (b"ftrt" + struct.pack("<I", 7) + bytes(100), "layout 7, which onnxfix does not know"),
        (struct.pack("<I12s", 12, b'{"task": 1 }') + b"ftrt" + bytes(100), r"Ultralytics.*tail -c \+17 "),
    ],
)
def test_what_is_no_plan(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(content)
    with pytest.raises(planfile.PlanError, match=said):
        planfile.read(path)
    check = plan.readback(path)
    assert check.status is Status.FAILED and str(path) in check.detail


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file"):
        planfile.read(tmp_path / "model.plan")
    with pytest.raises(RequestError, match="is a folder"):
        planfile.read(tmp_path)


# ---- on this machine, with the real TensorRT-RTX ----


@needs_rtx
def test_a_good_plan_is_read_back_as_far_as_it_goes(made: Mapping[str, Path]) -> None:
    check = plan.readback(made["8.6"], made["model"])
    assert check.name == "readback" and check.by.startswith("tensorrt_rtx ")
    if check.figures["stage"] == "header":  # no driver
        assert check.status is Status.NOT_RUN
        assert "it names the inputs and outputs of model.onnx" in check.detail
    report = plan.check(made["8.6"], model=made["model"])
    assert report.verdict in ("proved", "unverified")
    assert report.check("version").status is Status.PASSED  # type: ignore[union-attr]
    assert Report.from_json(report.to_json()) == report


@needs_rtx
def test_a_plan_of_another_model(made: Mapping[str, Path]) -> None:
    check = plan.readback(made["8.6"], made["other"])
    assert check.status is Status.FAILED
    assert check.detail.startswith("the plan has no 'photo', an input or output of other.onnx")


@needs_rtx
def test_check_compares_with_a_model_wherever_it_can(made: Mapping[str, Path], real: Path) -> None:
    check = plan.check(real, model=made["model"]).check("bindings")
    assert check and check.status is Status.PASSED and "the inputs and outputs of model.onnx" in check.detail
    assert failed(plan.check(real, "rtx-1.7", model=made["other"])).startswith("the plan has no 'photo'")
    plan.write_sidecar(real, Sidecar(bindings=plan.bindings(made["model"])))
    assert failed(plan.check(real, "rtx-1.7", model=made["other"])) == (
        "the plan has no 'photo', an input or output of other.onnx; the plan's input 'image' is none of other.onnx; "
        "the plan's input 'step' is none of other.onnx; the plan's input 'unused' is none of other.onnx; "
        "'scores' is 1x3x8x8 in the model and ?x3x8x8 in the plan; the plan's output 'next' is none of other.onnx"
    )


@needs_rtx
@pytest.mark.parametrize(("version", "age"), [((1, 0, 0, 4), "older"), ((9, 1, 2, 3), "newer")])
def test_a_plan_of_another_version(real: Path, version: tuple[int, ...], age: str) -> None:
    """The real plans of 1.4, 1.5 and 1.6 differ from this one by these bytes, as far as the header goes."""
    patched(real, 24, bytes(version))
    said = failed(plan.check(real))
    assert f"made by TensorRT-RTX {'.'.join(map(str, version))}, {age} than the" in said and "build it again" in said
    check = plan.readback(real)
    assert check.status is Status.FAILED and check.detail == said


@needs_rtx
def test_a_plan_for_another_gpu(made: Mapping[str, Path]) -> None:
    said = failed(plan.check(made["7.5"], compute_capability="8.6"))
    assert said == "made for compute capability 7.5, and this machine has 8.6: build it again for 8.6"
    assert plan.check(made["7.5"], compute_capability="7.5").verdict != "refused"
    with pytest.raises(RequestError, match="give it like"):
        plan.check(made["7.5"], compute_capability="turing")


@needs_rtx
def test_a_plan_for_a_target(made: Mapping[str, Path]) -> None:
    report = plan.check(made["8.6"], "jetson-nano")
    version, gpu = report.check("version"), report.check("gpu")
    assert version and "made by TensorRT-RTX" in version.detail and "Jetson Nano has TensorRT 8.2" in version.detail
    assert gpu and gpu.detail == "made for compute capability 8.6, and Jetson Nano has 5.3: build it again for 5.3"
    assert report.verdict == "refused" and report.check("readback") is None


@needs_rtx
def test_damage_inside_never_ends_us(made: Mapping[str, Path], real: Path) -> None:
    """Without a driver TensorRT does not look inside; with one it may refuse or crash. The sidecar knows anyway."""
    plan.write_sidecar(real, Sidecar(model="model.onnx"))
    patched(real, 5000, bytes(64) + b"damage")
    assert plan.readback(real).name == "readback"
    assert "was changed or damaged" in failed(plan.check(real))


# ---- with a TensorRT that is not here ----


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Installed]]:
    class Here(Installed):
        pass

    monkeypatch.setattr(plan, "TensorRT", Here)
    yield Here


def test_a_plan_that_loads(installed: type[Installed], tmp_path: Path) -> None:
    path = tensorrt_plan(tmp_path / "model.plan")
    model = write(tmp_path / "model.onnx", OTHER)
    bindings = plan.check(path, "trt-10.3", model=model).check("bindings")
    assert bindings and bindings.status is Status.NOT_RUN
    report = plan.check(path)
    assert report.verdict == "proved"
    assert [(c.name, c.status.value) for c in report.checks] == [
        ("file", "passed"), ("sidecar", "not run"), ("version", "passed"), ("gpu", "not run"), ("readback", "passed"),
    ]  # fmt: skip
    assert "12.0 MB of device memory" in report.checks[-1].detail


@pytest.mark.parametrize(
    ("version", "settings", "verdict"),
    [
        ((10, 3, 0, 30), {}, "proved"),
        ((10, 3, 0, 26), {}, "refused"),
        ((8, 6, 1, 6), {}, "refused"),
        ((8, 6, 1, 6), {"version_compatible": True}, "proved"),
        ((10, 9, 0, 34), {"version_compatible": True}, "refused"),
    ],
)
def test_versions(
    installed: type[Installed], tmp_path: Path, version: tuple[int, ...], settings: dict[str, Any], verdict: str
) -> None:
    path = tensorrt_plan(tmp_path / "model.plan", version)
    plan.write_sidecar(path, Sidecar(settings=settings))
    assert plan.check(path).verdict == verdict


@pytest.mark.parametrize(
    ("made_for", "settings", "verdict"),
    [
        (("8.7",), {}, "proved"),
        (("8.6",), {}, "refused"),
        (("8.6",), {"hardware_compatible": True}, "proved"),
        (("7.5",), {"hardware_compatible": True}, "refused"),
    ],
)
def test_gpus(
    installed: type[Installed], tmp_path: Path, made_for: tuple[str, ...], settings: dict[str, Any], verdict: str
) -> None:
    path = tensorrt_plan(tmp_path / "model.plan")
    plan.write_sidecar(path, Sidecar(capabilities=made_for, settings=settings))
    assert plan.check(path).verdict == verdict


def test_plans_before_8_6_do_not_say_their_version(installed: type[Installed], tmp_path: Path) -> None:
    path = tensorrt_plan(tmp_path / "model.plan", tag=b"ptrt")
    assert "made by TensorRT 8.5 or before, and this machine has 10.3.0.30" in failed(plan.check(path))
    report = plan.check(path, "jetson-nano")
    assert report.verdict == "unverified"
    plan.write_sidecar(path, Sidecar(version="8.2.1.8", capabilities=("5.3",), platform="linux/aarch64"))
    report = plan.check(path, "jetson-nano")
    assert {c.name: c.status.value for c in report.checks} == dict.fromkeys(
        ("file", "sidecar", "version", "gpu", "platform"), "passed"
    )
    assert "made by TensorRT 8.2.1.8, older than the 8.5" in failed(plan.check(path, "trt-8.5"))


def test_a_plan_of_another_platform(installed: type[Installed], tmp_path: Path) -> None:
    path = tensorrt_plan(tmp_path / "model.plan")
    plan.write_sidecar(path, Sidecar(platform="win32/amd64"))
    assert failed(plan.check(path)).startswith("made on win32/amd64, and this machine is ")


@pytest.mark.parametrize(("version", "status"), [("1", Status.PASSED), ("2", Status.FAILED)])
def test_plugins(installed: type[Installed], tmp_path: Path, version: str, status: Status) -> None:
    path = tensorrt_plan(tmp_path / "model.plan")
    plan.write_sidecar(path, Sidecar(plugins=({"name": "Mine", "version": version, "library": "libmine.so"},)))
    check = plan.check(path).check("plugins")
    assert check and check.status is status and f"it needs the plugin Mine {version} of libmine.so" in check.detail
    check = plan.check(path, "trt-10.3").check("plugins")
    assert check and check.status is Status.NOT_RUN


@needs_rtx
def test_plugins_of_the_real_tensorrt(real: Path) -> None:
    plan.write_sidecar(real, Sidecar(plugins=({"name": "NoSuchPlugin", "version": "1", "library": ""},)))
    said = failed(plan.check(real))
    assert said.startswith("it needs the plugin NoSuchPlugin 1, which TensorRT does not have here")


def test_bindings_are_compared(installed: type[Installed], tmp_path: Path) -> None:
    path, model = tensorrt_plan(tmp_path / "model.plan"), write(tmp_path / "model.onnx", MODEL)

    def binding(name: str, mode: str, dtype: str, *shape: int) -> dict[str, Any]:
        return {"name": name, "mode": mode, "dtype": dtype, "shape": list(shape)}

    good = [
        binding("image", "input", "float", -1, 3, 8, 8), binding("step", "input", "int32", 1),
        binding("unused", "input", "float", 2), binding("scores", "output", "float", -1, 3, 8, 8),
        binding("next", "output", "int32", 1),
    ]  # fmt: skip

    def differences(*bindings: dict[str, Any]) -> list[str]:
        installed.back = Readback("context", "", bindings, 0, "8.7")
        check = plan.readback(path, model)
        assert (check.status is Status.PASSED) == ("differences" not in check.figures)
        return list(check.figures.get("differences", []))

    assert differences(*good) == []
    assert differences(*good[1:]) == ["the plan has no 'image', an input or output of model.onnx"]
    assert differences(*good, binding("more", "output", "float", 1)) == [
        "the plan's output 'more' is none of model.onnx"
    ]
    half, small = binding("unused", "input", "half", 2), binding("image", "input", "float", -1, 3, 4, 4)
    assert differences(small, half, *good[1:2], *good[3:]) == [
        "'image' is ?x3x8x8 in the model and ?x3x4x4 in the plan",
        "'unused' is float in the model and half in the plan",
    ]


def test_an_output_of_unknown_rank_has_any_shape(installed: type[Installed], tmp_path: Path) -> None:
    path, model = tensorrt_plan(tmp_path / "model.plan"), write(tmp_path / "model.onnx", OTHER)
    proto = onnx.load(model)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, model)
    assert [b["shape"] for b in plan.bindings(model)] == [[1, 3, 8, 8], None]
    shapes = {"photo": [1, 3, 8, 8], "scores": [7]}
    back = [{"name": n, "mode": "input", "dtype": "float", "shape": s} for n, s in shapes.items()]
    installed.back = Readback("context", "", tuple(back), 0, "8.7")
    assert plan.readback(path, model).status is Status.PASSED
    plan.write_sidecar(path, Sidecar(bindings=plan.bindings(model)))
    assert plan.read_sidecar(path).bindings[1]["shape"] is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "The engine plan file is not compatible with this version of TensorRT, expecting library version 8.2.1 got "
            "8.2.3, please rebuild.",
            "made by TensorRT 8.2.3, and this is 8.2.1",
        ),
        (
            "The engine plan file is generated on an incompatible device, expecting compute 7.5 got compute 8.6, please "
            "rebuild.",
            "made for compute capability 8.6, and this GPU has 7.5",
        ),
        (
            "Error Code 1: Serialization (Serialization assertion stdVersionRead == serializationVersion failed.Version "
            "tag does not match. Note: Current Version: 213, Serialized Engine Version: 232)",
            "its format is 232, the one here 213",
        ),
        (
            "(Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed.)",
            "no plan, or one of another",
        ),
        ("(Serialization assertion plan.header.size == blobSize failed.)", "cut short or damaged"),
        ("version mismatch, unsupported cc", "made by another version"),
        ("old cuda driver", "it needs a newer CUDA driver"),
        ("INVALID_ARGUMENT: getPluginCreator could not find plugin Prelu_TRT version 1", "the plugin Prelu_TRT"),
        ("3: getPluginCreator could not find plugin: TRTBatchedNMS version: 1", "the plugin TRTBatchedNMS"),
        ("(Cannot find plugin: EfficientIdxNMS_TRT, version: 1, namespace:.)", "the plugin EfficientIdxNMS_TRT"),
        (
            "(Cannot deserialize plugin since corresponding IPluginCreator not found in Plugin Registry)",
            "needs a plugin",
        ),
    ],
)
def test_errors_of_tensorrt_in_words(installed: type[Installed], tmp_path: Path, error: str, words: str) -> None:
    installed.back = Readback("runtime", error, (), 0, "8.7")
    said = failed(plan.check(tensorrt_plan(tmp_path / "model.plan")))
    assert words in said and said.endswith(f"({error})")


def test_a_new_error_of_tensorrt_is_shown_as_it_is(installed: type[Installed], tmp_path: Path) -> None:
    installed.back = Readback("engine", "the moon\nis full", (), 0, "8.7")
    said = failed(plan.check(tensorrt_plan(tmp_path / "model.plan")))
    assert said == "it gives no execution context: the moon is full"


def test_a_tensorrt_that_crashes(installed: type[Installed], tmp_path: Path) -> None:
    installed.back = BackendError("TensorRT crashed (SIGSEGV) during readback")
    assert failed(plan.check(tensorrt_plan(tmp_path / "model.plan"))) == (
        "TensorRT crashed (SIGSEGV) during readback (model.plan)"
    )


def test_without_tensorrt_the_header_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfix.backends.trt.absent", lambda module: f"the Python package {module} is not installed")
    report = plan.check(tensorrt_plan(tmp_path / "model.plan"))
    assert report.verdict == "unverified" and "TensorRT 10.3.0.30" in report.checks[0].detail
    version = report.check("version")
    assert version and version.status is Status.NOT_RUN and "not installed" in version.detail


# ---- the sidecar ----

FULL = Sidecar(
    model="model.onnx", model_sha256="ab" * 32, rules={"jetson.yml": "cd" * 32}, precision="fp16",
    profiles=({"image": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]},), pools={"workspace": 64.0},
    settings={"version_compatible": True, "dla_core": 0}, calibration_sha256="ef" * 32,
    bindings=({"name": "image", "mode": "input", "dtype": "float", "shape": [-1, 3, 8, 8]},),
    layers=({"name": "conv", "type": "Convolution", "dtypes": ["float"], "onnx": ["/conv/Conv", "/relu/Relu"]},),
    plugins=({"name": "Mine", "version": "1", "library": "libmine.so"},),
)  # fmt: skip


def test_sidecar_goes_and_comes_back(tmp_path: Path) -> None:
    path = tensorrt_plan(tmp_path / "model.plan")
    assert plan.write_sidecar(path, FULL) == tmp_path / "model.plan.json"
    assert sorted(os.listdir(tmp_path)) == ["model.plan", "model.plan.json"]
    back = plan.read_sidecar(path)
    assert back == plan.read_sidecar(tmp_path / "model.plan.json")
    assert (back.plan, back.plan_bytes, back.flavour, back.version) == ("model.plan", 1028, "tensorrt", "10.3.0.30")
    assert len(back.plan_sha256) == 64 and back.platform and back.onnxfix
    assert (back.rules, back.profiles, back.layers) == (FULL.rules, FULL.profiles, FULL.layers)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no sidecar"),
        ("[]", "no sidecar"),
        ('"x"', "no sidecar"),
        ("{", "no sidecar"),
        ("[" * 100_000, "no sidecar"),
        ('{"schema": 99}', "newer onnxfix .schema 99"),
        ('{"schema": 1, "plan_sha256": "", "colour": "red"}', "no sidecar.*colour"),
        ('{"schema": 1, "plan_sha256": "", "layers": 3}', r"\.layers: 3 is not"),
        ('{"schema": 1, "plan_sha256": "", "plugins": [{"version": "1"}]}', r"\.plugins\[0\]: 'name' is a required"),
        ('{"schema": 1, "plan_sha256": "", "profiles": [{"x": [[1], [2]]}]}', r"\.profiles\[0\]\.x"),
        ('{"schema": 1}', "'plan_sha256' is a required"),
    ],
)
def test_a_file_that_is_no_sidecar(tmp_path: Path, text: str, said: str) -> None:
    path = tensorrt_plan(tmp_path / "model.plan")
    plan.sidecar_path(path).write_text(text)
    with pytest.raises(RequestError, match=said):
        plan.read_sidecar(path)
    assert plan.describe(path).sidecar is None


def test_no_sidecar(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file; onnxfix build writes it"):
        plan.read_sidecar(tmp_path / "model.plan")


# ---- the command line ----


def test_check_of_no_plan_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(b"no plan at all" * 10)
    assert cli.main(["plan", "check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith(f"onnxfix: error: {path}: not a TensorRT plan")
    assert "refused" in out
    assert cli.main(["plan", "check", str(path), "--format", "json"]) == 2
    assert json.loads(capsys.readouterr().out)["verdict"] == "refused"


def test_check_names_the_plan_once(
    installed: type[Installed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tensorrt_plan(tmp_path / "model.plan", (8, 5, 3, 1))
    assert cli.main(["plan", "check", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.count(str(path)) == 1 and "older than the 10.3.0.30" in err
    assert cli.main(["plan", "check", str(tensorrt_plan(path))]) == 0
    assert capsys.readouterr().err == ""


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tensorrt_plan(tmp_path / "model.plan")
    assert cli.main(["plan", "show", str(path)]) == 0
    assert "no model.plan.json beside it" in capsys.readouterr().out
    plan.write_sidecar(path, FULL)
    assert cli.main(["plan", "show", str(path)]) == 0
    out = capsys.readouterr().out
    for words in ("TensorRT 10.3.0.30", "fp16", "workspace 64 MiB", "version_compatible yes", "Mine 1 libmine.so",
                  "1x3x8x8", "?x3x8x8", "/conv/Conv, /relu/Relu", "jetson.yml"):  # fmt: skip
        assert words in out
    assert cli.main(["plan", "show", str(path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["sidecar"]["precision"] == "fp16"
