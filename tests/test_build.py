"""`onnxfix build`: what is asked, what the release can take, what is written. With the real TensorRT-RTX builder; what
only TensorRT itself has goes through Polygraphy to a stand-in that keeps what reached it (`fake_builder.py`)."""

from __future__ import annotations

import _ctypes
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfix import backends, cli, plan, prove
from onnxfix.backends import options as settings
from onnxfix.backends import trt, worker
from onnxfix.backends.options import Abilities, BuildOptions
from onnxfix.build import Data, build
from onnxfix.errors import RequestError, RuleError
from onnxfix.report import Effect, Report, Status

needs_rtx = pytest.mark.skipif(bool(backends.absent("tensorrt_rtx")), reason=backends.absent("tensorrt_rtx"))
needs_polygraphy = pytest.mark.skipif(bool(backends.absent("polygraphy")), reason=backends.absent("polygraphy"))

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
CONV = """g (float[batch,3,16,16] x) => (float[batch,4,16,16] y) <float[4,3,1,1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
  [conv] c = Conv(x, w)
  [act] y = Relu(c)
}"""
NO_IMPORTER = "g (float[3,3] x) => (float y) { [lost] y = Det(x) }"
MISFIT = "g (float[n,3] x, float[m,3] z) => (float[p,3] y) { [sum] y = Add(x, z) }"


def write(folder: Path, text: str = CONV, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(onnx.parser.parse_model(text if text.startswith("<") else HEAD + text), path)
    return path


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(trt.FLAVOUR_VARIABLE, "tensorrt_rtx")
    prove.close()
    yield
    prove.close()


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """TensorRT 10.3 on a board, played by the stand-in."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "tensorrt").mkdir()
    shutil.copyfile(Path(__file__).with_name("fake_builder.py"), folder / "tensorrt" / "__init__.py")
    (folder / "tensorrt" / "tensorrt.so").touch()  # a package without a library is taken for a placeholder
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv(trt.FLAVOUR_VARIABLE, "tensorrt")
    prove.close()
    yield
    backends.use_plugins(())
    prove.close()


def reached(path: Path) -> dict[str, Any]:
    """What the stand-in's builder configuration was given: its plan holds it behind the header."""
    told: dict[str, Any] = json.loads(path.read_bytes()[64:])
    return told


# ---- what is asked ----


def test_profiles_in_words() -> None:
    (profile,) = settings.read({"profile": ["x:0:1x3,4x3,8x3; ids:1x8"]}).profiles
    assert profile == {"x:0": ((1, 3), (4, 3), (8, 3)), "ids": ((1, 8), (1, 8), (1, 8))}


@pytest.mark.parametrize("text", ["", "x", "x:", "x:1x3,2x3", "x:1x3,2x3,1x3", "x:1x3,2x3x3,3x3", ":1x3", "x:1x-3", "x:1xa"])
def test_profiles_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match=r"profile.*1x3x224x224"):
        settings.profile(text)


def test_memory_pools() -> None:
    read = settings.read({"workspace": 512, "pool": {"dla_sram": "0.5"}})
    assert (read.workspace_mib, read.pools) == (512, {"dla_sram": 0.5})
    assert settings.read({"pool": {"workspace": 8}}).workspace_mib == 8
    for wrong in ({"pool": {"shared": 1}}, {"workspace": "much"}, {"workspace": -1}):
        with pytest.raises(RequestError, match="memory pool"):
            settings.read(wrong)


@pytest.mark.parametrize(
    ("profile", "words"),
    [("z:1x3x16x16", "no input 'z'; it has x"), ("x:1x3x8x8", r"\?x3x16x16"), ("x:1x3x16", r"\?x3x16x16")],
)
def test_profiles_that_do_not_fit(profile: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        settings.fitting(settings.read({"profile": [profile]}), {"x": [None, 3, 16, 16]})


def test_the_build_section_of_a_rule_file(tmp_path: Path) -> None:
    from onnxfix import catalog

    rules = tmp_path / "team.yml"
    rules.write_text("rules: []\nbuild: {precision: fp16, pool: {tactic_dram: 4}, dla_core: 1, profile: ['x:1x3']}\n")
    section = catalog.load_set(rules).build
    read = settings.read(section, dla_core=0)
    assert (read.pools, read.dla_core, read.profiles) == ({"tactic_dram": 4}, 0, ({"x": ((1, 3),) * 3},))
    rules.write_text("rules: []\nbuild: {workspaec: 4}\n")
    with pytest.raises(RuleError, match="workspaec"):
        catalog.load_set(rules)


# ---- what the release can take ----

OLD = Abilities(  # 8.2, as on a Jetson Nano: no memory pools, no levels, no compatibility
    frozenset({"FP16", "INT8", "GPU_FALLBACK", "TF32", "SPARSE_WEIGHTS"}),
    frozenset(),
    frozenset({"max_workspace_size", "create_timing_cache"}),
    frozenset({"EXPLICIT_BATCH"}),
    frozenset({"IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator"}),
    gpu="5.3",
)
TEN = Abilities(
    OLD.flags | {"BF16", "FP8", "VERSION_COMPATIBLE"},
    frozenset(settings.POOLS.values()),
    OLD.settings | {"builder_optimization_level", "hardware_compatibility_level"},
    frozenset({"STRONGLY_TYPED"}),
    OLD.calibrators,
    dla_cores=2,
    gpu="8.7",
)
ELEVEN = Abilities(TEN.flags - {"FP16", "INT8", "BF16", "FP8"}, TEN.pools, TEN.settings, TEN.networks, frozenset())
RELEASES = {
    "8.2": (trt.About("tensorrt", "8.2.1", "", "", ()), OLD),
    "10.3": (trt.About("tensorrt", "10.3.0", "", "", ()), TEN),
    "11.1": (trt.About("tensorrt", "11.1.0", "", "", ()), ELEVEN),
    "rtx": (trt.About("tensorrt_rtx", "1.7.1", "", "no NVIDIA driver", ("7.5", "8.6")), ELEVEN),
}


@pytest.mark.parametrize(
    ("release", "asked", "words"),
    [
        ("8.2", {"fp16": True, "workspace_mib": 256, "timing_cache": "t", "compute_capability": "5.3"}, ""),
        ("8.2", {"bf16": True}, "tensorrt 8.2.1 has no BF16 flag"),
        ("8.2", {"strongly_typed": True}, "no strongly typed networks"),
        ("8.2", {"pools": {"dla_sram": 1}}, "no memory pool dla_sram: leave it out"),
        ("8.2", {"optimization_level": 3}, "no optimization levels"),
        ("8.2", {"version_compatible": True}, "no engines for other versions"),
        ("8.2", {"hardware_compatible": True}, "no engines for other hardware"),
        ("8.2", {"fp16": True, "dla_core": 0}, "there is no DLA here"),
        ("8.2", {"compute_capability": "8.7"}, "the GPU at hand, which is of compute capability 5.3, not 8.7"),
        ("10.3", {"int8": True, "dla_core": 1, "gpu_fallback": True, "calibration": "folder"}, ""),
        ("10.3", {"fp8": True, "pools": {"dla_sram": 1}, "optimization_level": 5, "hardware_compatible": True}, ""),
        ("10.3", {"strongly_typed": True, "dla_core": 0}, ""),
        ("10.3", {"dla_core": 0}, "FP16 and INT8 only"),
        ("10.3", {"fp16": True, "dla_core": 2}, "no DLA core 2: there are 0 to 1"),
        ("10.3", {"gpu_fallback": True}, "name the core"),
        ("10.3", {"optimization_level": 6}, "0 to 5"),
        ("10.3", {"strongly_typed": True, "fp16": True}, "from the model, not from a fp16 flag"),
        ("10.3", {"int8": True, "calibration": "folder", "calibrator": "percentile"}, "entropy or minmax"),
        ("10.3", {"compute_capability": "87"}, "give it like 8.6"),
        ("10.3", {"pools": {"sram": 1}}, "no memory pool called 'sram'"),
        ("11.1", {"int8": True}, "strongly typed: write the precision in the model"),
        ("11.1", {"calibration_cache": "cache"}, "does not calibrate"),
        ("rtx", {"compute_capability": "7.5, 8.6", "optimization_level": 1, "sparse_weights": True}, ""),
        ("rtx", {"compute_capability": "8.7"}, "it does for 7.5, 8.6"),
        ("rtx", {"timing_cache": "t"}, "runtime cache"),
        ("rtx", {"version_compatible": True}, "no engines for other versions"),
        ("rtx", {"hardware_compatible": True}, "build for each compute capability"),
        ("rtx", {"pools": {"dla_sram": 1}}, "no memory pool dla_sram"),
        ("rtx", {"fp16": True}, "no FP16 flag, its networks are strongly typed"),
    ],
)  # fmt: skip
def test_what_a_release_can_take(release: str, asked: dict[str, Any], words: str) -> None:
    said = settings.unsupported(*RELEASES[release], BuildOptions(**asked))
    assert words in said if words else not said


def test_before_pools_there_was_a_workspace_size() -> None:
    old, config = SimpleNamespace(), SimpleNamespace()
    asked = BuildOptions(workspace_mib=256, fp16=True).request()
    given = settings.arguments(old, asked)
    assert given["fp16"] and "memory_pool_limits" not in given
    settings.finish(old, config, asked)
    assert config.max_workspace_size == 256 << 20


# ---- with TensorRT-RTX ----


@needs_rtx
def test_a_plan_with_its_description(rtx: None, tmp_path: Path) -> None:
    model = write(tmp_path)
    told: list[tuple[str, int, int | None]] = []
    report = build(
        model, tmp_path / "model.plan", report_to=tmp_path / "report.json",
        options=settings.read({"compute_capability": "7.5,8.6", "workspace": 64, "profile": ["x:1x3x16x16,2x3x16x16,4x3x16x16"]}),
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    assert [c.name for c in report.checks] == ["parse", "build", "readback"]
    assert (report.command, report.verdict, report.output) == ("build", "proved", str(tmp_path / "model.plan"))
    assert Report.from_json((tmp_path / "report.json").read_text()) == report
    assert left(tmp_path) == ["model.onnx", "model.plan", "model.plan.json", "report.json"]
    assert {"parse", "build", "readback"} == {stage for stage, _done, _total in told}
    described = plan.read_sidecar(tmp_path / "model.plan")
    assert (described.plan_sha256, described.model_sha256) == (report.output_sha256, report.model_sha256)
    assert (described.capabilities, described.pools) == (("7.5", "8.6"), {"workspace": 64})
    assert described.profiles == ({"x": [[1, 3, 16, 16], [2, 3, 16, 16], [4, 3, 16, 16]]},)
    assert [layer["onnx"] for layer in described.layers if layer["type"] == "convolution"] == [["conv"]]


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precision_is_written_in_the_graph(rtx: None, tmp_path: Path, precision: str) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((4, 3, 16, 16), np.float32))
    report = build(
        write(tmp_path), tmp_path / "model.plan", precision=precision, data=Data(data), options=BuildOptions("8.6")
    )
    check = report.check("precision")
    assert check and check.status is Status.PASSED and "cosine" in check.detail
    described = plan.read_sidecar(tmp_path / "model.plan")
    assert described.precision == precision and bool(described.calibration_sha256) == (precision == "int8")
    dtypes = {dtype for layer in described.layers for dtype in layer["dtypes"]}
    assert precision.replace("fp16", "half") in dtypes


@needs_rtx
def test_rules_come_first_and_their_build_section_holds(rtx: None, tmp_path: Path) -> None:
    cubic = "g (float[N,3,8,8] x) => (float[N,3,16,16] y) <float[4] s = {1, 1, 2, 2}> { [up] y = Resize<mode = \"cubic\", antialias = 1>(x, , s) }"
    model = write(tmp_path, cubic.join(['<ir_version: 8, opset_import: ["": 18]>\n', ""]))
    rules = tmp_path / "team.yml"
    rules.write_text("rules: ['resize-*']\nallow: lossy\nrequire: [build]\nbuild: {compute_capability: '8.6', precision: fp16, calibrator: percentile}\n")
    report = build(model, tmp_path / "model.plan", rules=rules)
    assert {"changes", "structure", "parse", "parity", "precision", "build", "readback"} == {c.name for c in report.checks}
    assert report.changes and report.rules == "team.yml" and not report.remaining
    described = plan.read_sidecar(tmp_path / "model.plan")
    assert (described.precision, described.capabilities) == ("fp16", ("8.6",))
    assert list(described.rules) == ["team.yml"] and described.model == str(model)
    assert left(tmp_path) == ["model.onnx", "model.plan", "model.plan.json", "team.yml"]


@needs_rtx
def test_what_the_rules_could_not_prove_is_not_built(rtx: None, tmp_path: Path) -> None:
    model = write(tmp_path, "g (float[2,3] x) => (float[2,3] y) { r = RandomNormalLike(x) y = Add(x, r) }")
    (tmp_path / "team.yml").write_text("rules: []\n")
    report = build(model, tmp_path / "model.plan", rules=tmp_path / "team.yml", require=("parity",))
    assert report.check("parity") and report.check("build") is None and not report.output
    assert "nothing was written: parity" in report.notes[-1] and left(tmp_path) == ["model.onnx", "team.yml"]


@needs_rtx
def test_what_is_refused_leaves_nothing(rtx: None, tmp_path: Path) -> None:
    report = build(write(tmp_path, NO_IMPORTER), tmp_path / "model.plan")
    assert report.verdict == "refused" and "parse failed" in report.notes[-1]
    assert report.check("build") is None and left(tmp_path) == ["model.onnx"]


@needs_rtx
def test_what_the_builder_says_stands_at_its_node(rtx: None, tmp_path: Path) -> None:
    options = BuildOptions("8.6", dims={"n": (2, 2, 2), "m": (3, 3, 3)})
    report = build(write(tmp_path, MISFIT), tmp_path / "model.plan", options=options)
    check = report.check("build")
    assert check and check.status is Status.FAILED and left(tmp_path) == ["model.onnx"]
    assert [(f.where.node, f.effect) for f in check.findings] == [("sum", Effect.BUILD_FAILS)]
    assert "broadcast" in check.findings[0].reason and "/_src/" not in check.findings[0].reason


def test_names_in_messages(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) y = Exp(b) }")
    model = onnx.load(path)
    for node, name in zip(model.graph.node, ("/a/Relu", "b.1", ""), strict=True):
        node.name = name
    onnx.save(model, path)
    said = [
        "Could not find any implementation for node {ForeignNode[/a/Relu...b.1]}.",
        "Layer 'node_of_y' is not supported on DLA, falling back to GPU.",
        "TensorRT was linked against cuDNN 8",
    ]
    found = prove._told(path, said, Effect.WARNED, "tensorrt")
    assert [(f.where.node or f.where.outputs[0], f.effect) for f in found] == [
        ("/a/Relu", Effect.WARNED), ("b.1", Effect.WARNED), ("y", Effect.WARNED),
    ]  # fmt: skip


@needs_rtx
def test_layers_are_traced_to_nodes_of_bodies_and_functions(rtx: None, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
    g (float[2,3] x, bool c) => (float[2,3] y) {
      z = own.f(x)
      [choose] y = If (c) <
        then_branch = t () => (float[2,3] a) { [inside] a = Relu(z) },
        else_branch = e () => (float[2,3] b) { b = Neg(z) }
      >
    }
    <domain: "own", opset_import: ["": 17]> f (a) => (b) { [soft] b = Softmax(a) }"""
    model = write(tmp_path, text)
    built = trt.shared().build(model, tmp_path / "model.plan", BuildOptions("8.6"))
    named = {layer["type"]: layer["onnx"] for layer in prove.onnx_nodes(model, built.layer_list)}
    assert (named["activation"], named["softmax"]) == (["inside"], ["soft"])
    assert named["unary"] == ["Neg #0 -> b in choose/else_branch"]
    assert named["conditional_output"] == ["choose"]
    other = {"name": "Reformat", "onnx": ["Reformat"]}  # a layer of TensorRT's own
    assert prove.onnx_nodes(model, [other]) == ({"name": "Reformat", "onnx": []},)


@needs_rtx
@pytest.mark.parametrize(
    ("node", "words"),
    [
        ('own.Foo<plugin_version = "2">(x)', "no plugin Foo of version 2 is registered; give its library"),
        ("own.ROIAlign_TRT(x)", "no plugin ROIAlign_TRT of version 1 is registered; there is version 2"),
    ],
)
def test_plugins_are_looked_up_before_parsing(rtx: None, tmp_path: Path, node: str, words: str) -> None:
    head = '<ir_version: 8, opset_import: ["": 17, "own": 1]>\n'
    model = write(tmp_path, f"{head}g (float[3,3] x) => (float[3,3] y) {{ r = Relu(x) [mine] y = {node} }}")
    report = build(model, tmp_path / "model.plan")
    check = report.checks[0]
    assert (check.name, check.status) == ("plugins", Status.FAILED) and words in check.detail
    assert [(f.where.node, f.effect) for f in check.findings] == [("mine", Effect.PLUGIN)]
    assert left(tmp_path) == ["model.onnx"]


@needs_rtx
def test_plan_and_description_appear_together(rtx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, replace = write(tmp_path), os.replace

    def full(here: Any, place: Any) -> None:
        if Path(place) == tmp_path / "model.plan.json":
            raise OSError(28, "No space left on device")
        replace(here, place)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RequestError, match=r"model.plan: cannot be written: No space left"):
        build(model, tmp_path / "model.plan")
    assert left(tmp_path) == ["model.onnx"]


@needs_rtx
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp16", "--dla-core", "0"], "there is no DLA here"),
        (["--timing-cache", "t"], "no timing cache"),
        (["--precision", "int8", "--calibration-cache", "none/cache"], "its folder does not exist"),
        (["--profile", "z:1x2"], "no input 'z'"),
        (["--pool", "workspace"], "give a pool, '=' and MiB"),
        (["--workspace", "0"], "memory pool workspace"),
        (["--calibrate", "data.npz"], "name one, such as int8"),
        (["--require", "parity"], "name the rules"),
        (["--require", "luck"], "no proof called 'luck'"),
        (["--plugins", "libnone.so"], "no such library"),
        (["--compute-capability", "5.3"], "it does for 7.5"),
        (["-o", "other.onnx"], "an engine is no ONNX model"),
        (["-o", "none/model.plan"], "its folder does not exist"),
        (["--precision", "int8", "--calibrate", "gone.npz"], "gone.npz"),
    ],
)  # fmt: skip
def test_requests_that_are_wrong(
    rtx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], words: str,
) -> None:  # fmt: skip
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["build", "model.onnx", "-o", "model.plan", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("onnxfix: error: ") and err.count("\n") == 1 and words in err
    assert left(tmp_path) == ["model.onnx"]


@needs_rtx
def test_the_command(
    rtx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = ["build", "model.onnx", "-o", "model.plan", "--compute-capability", "8.6", "--dims", "batch=1:2:4"]
    assert cli.main([*asked, "--format", "json"]) == 0
    report = Report.from_json(capsys.readouterr().out)
    assert report.check("build").figures["shapes"] == [{"x": [[1, 3, 16, 16], [2, 3, 16, 16], [4, 3, 16, 16]]}]  # type: ignore[union-attr]
    if trt.shared().about().no_driver:  # a proof that is asked for and can't run here
        assert cli.main([*asked, "--require", "readback", "-q"]) == 3
        assert "nothing was written" in capsys.readouterr().err


# ---- with what only TensorRT itself has, on the stand-in ----


@needs_polygraphy
def test_every_setting_reaches_the_builder(jetson: None, tmp_path: Path) -> None:
    asked = settings.read(
        {
            "workspace": 64, "pool": {"dla_sram": 1, "tactic_shared_memory": 0.5}, "dla_core": 1, "gpu_fallback": True,
            "optimization_level": 4, "sparse_weights": True, "version_compatible": True, "hardware_compatible": True,
            "timing_cache": str(tmp_path / "timings"), "compute_capability": "8.7", "tf32": True,
            "profile": ["x:1x3x16x16,2x3x16x16,4x3x16x16", "x:8x3x16x16"],
        }
    )  # fmt: skip
    (tmp_path / "timings").write_bytes(b"measured")
    report = build(write(tmp_path), tmp_path / "model.plan", options=asked, precision="fp16")
    assert [c.status for c in report.checks] == [Status.PASSED] * 3 and "device memory" in report.checks[-1].detail
    told = reached(tmp_path / "model.plan")
    assert {"FP16", "GPU_FALLBACK", "SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "TF32"} <= set(told["flags"])
    assert told["pools"] == {"WORKSPACE": 64 << 20, "DLA_MANAGED_SRAM": 1 << 20, "TACTIC_SHARED_MEMORY": 1 << 19}
    assert "fp16 is a flag here" in report.notes[0]
    assert (told["dla"], told["level"], told["hardware"]) == (["DLA", 1], 4, "AMPERE_PLUS")
    assert (told["timing"], told["parser"], told["strongly_typed"]) == ("measured", "NATIVE_INSTANCENORM", False)
    assert [p["x"][1][0] for p in told["profiles"]] == [2, 8]
    assert (tmp_path / "timings").read_bytes() == b"timings"  # what the build measured
    described = plan.read_sidecar(tmp_path / "model.plan")
    assert described.layers == ({"name": "conv + act", "type": "caskconvolution", "dtypes": ["Half"], "onnx": ["conv", "act"]},)
    assert described.settings["dla_core"] == 1 and described.capabilities == ("8.7",)


@needs_polygraphy
def test_a_plugin_that_is_registered(jetson: None, tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["": 17, "TRT": 1]>\n'
    model = write(tmp_path, f"{head}g (float[1,9,4] x) => (float[1,9,4] y) {{ [nms] y = TRT.EfficientNMS_TRT(x) }}")
    library = _ctypes.__file__  # any that can be loaded
    report = build(model, tmp_path / "model.plan", plugins=[library])
    assert (report.checks[0].name, report.checks[0].status) == ("plugins", Status.PASSED)
    named = {"name": "EfficientNMS_TRT", "version": "1", "library": Path(library).name}
    assert plan.read_sidecar(tmp_path / "model.plan").plugins == (named,)


@needs_polygraphy
def test_calibration_by_tensorrt_and_its_cache(jetson: None, tmp_path: Path) -> None:
    model, target, data, cache = write(tmp_path), tmp_path / "model.plan", tmp_path / "data.npz", tmp_path / "cache"
    images = np.arange(3 * 3 * 16 * 16, dtype=np.float32).reshape(3, 3, 16, 16)

    def calibrated(calibrator: str = "entropy") -> dict[str, Any]:
        build(model, target, precision="int8", data=Data(data), calibrator=calibrator, calibration_cache=cache)
        told = reached(target)
        assert told["flags"] == ["INT8"]
        found: dict[str, Any] = told["calibration"]
        return found

    np.savez(data, x=images)
    first = calibrated()
    assert first["base"] == "IInt8EntropyCalibrator2"
    assert [name for name, _values in first["seen"]] == ["x"] * 3
    assert np.array_equal([values for _name, values in first["seen"]], images[:, None])
    assert first["profile"] == {"x": [[1, 3, 16, 16]] * 3}  # of the data, whatever the engine's own profiles
    assert calibrated() == {"cache": "TRT-100300-EntropyCalibration2\n"}
    np.savez(data, x=images + 1)
    assert "seen" in calibrated()
    assert calibrated("minmax")["base"] == "IInt8MinMaxCalibrator"
    described = plan.read_sidecar(target)
    assert described.precision == "int8" and described.calibration_sha256


@needs_polygraphy
@pytest.mark.parametrize(("sizes", "words"), [("(1, 2)", "sample 2 .*one size"), ("()", "gives no sample")])
def test_samples_that_are_no_use(jetson: None, tmp_path: Path, sizes: str, words: str) -> None:
    (tmp_path / "loader.py").write_text(
        f"import numpy\ndef samples():\n    for n in {sizes}:\n        yield {{'x': numpy.zeros((n, 3, 16, 16), numpy.float32)}}\n"
    )
    data = Data(f"{tmp_path / 'loader.py'}:samples")
    with pytest.raises(RequestError, match=words):
        build(write(tmp_path), tmp_path / "model.plan", precision="int8", data=data)


@needs_polygraphy
def test_strongly_typed_takes_the_precision_from_the_graph(jetson: None, tmp_path: Path) -> None:
    asked = BuildOptions(strongly_typed=True)
    report = build(write(tmp_path), tmp_path / "model.plan", options=asked, precision="fp16")
    assert report.check("precision") is not None
    told = reached(tmp_path / "model.plan")
    assert told["strongly_typed"] and told["flags"] == []


@needs_polygraphy
def test_without_a_driver_tensorrt_builds_nothing(
    jetson: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_NO_DRIVER", "no NVIDIA driver")
    assert cli.main(["build", str(write(tmp_path)), "-o", str(tmp_path / "model.plan"), "-q"]) == 3
    assert "builds for the GPU at hand only" in capsys.readouterr().err
    assert left(tmp_path) == ["model.onnx"]


# ---- layers ----


def test_layers_of_old_releases_are_called_as_their_nodes() -> None:
    output = SimpleNamespace(dtype=SimpleNamespace(name="HALF"))
    layer = SimpleNamespace(name="conv", type=SimpleNamespace(name="CONVOLUTION"), num_outputs=1, get_output=lambda _i: output)
    assert worker.parsed_layer(layer) == {"name": "conv", "type": "convolution", "dtypes": ["half"], "onnx": ["conv"]}


def test_engines_built_with_names_only() -> None:
    (layer,) = worker.engine_layers(json.dumps({"Layers": ["conv + act"]}))
    assert layer == {"name": "conv + act", "type": "", "dtypes": [], "onnx": ["conv", "act"]}


def test_names_with_brackets_in_layer_metadata() -> None:
    assert worker.onnx_nodes("[ONNX Layer: a[0]]\x1e[ONNX Layer: b]") == ["a[0]", "b"]
