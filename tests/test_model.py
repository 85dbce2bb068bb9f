"""Loading, hostile files, external data, and an output that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfix import model
from onnxfix.errors import ModelError, RequestError

TEXT = """<ir_version: 10, opset_import: ["": 18]>
g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Identity(x) y = Add(a, w) }"""


def save(path: Path, **external: str) -> Path:
    proto = onnx.parser.parse_model(TEXT)
    if external:
        tensor = proto.graph.initializer[0]
        data = numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("float_data")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            tensor.external_data.add(key=key, value=value)
        location = path.parent / external["location"]
        if ".." not in external["location"] and not os.path.isabs(external["location"]):
            location.parent.mkdir(parents=True, exist_ok=True)
            location.write_bytes(data)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b'{"irVersion": 8}', "JSON"),
        (b"PK\x03\x04 and so on", "zip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs"),
        (b"ftrt\x00\x00\x00\x00", "engine"),
        (onnx.parser.parse_model(TEXT).SerializeToString()[:-5], "truncated"),
        (onnx.TensorProto(name="t", data_type=1, dims=[1], float_data=[1.0]).SerializeToString(), "not an ONNX model"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=says) as caught:
        model.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_random_bytes_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    good = onnx.parser.parse_model(TEXT).SerializeToString()
    for seed in range(300):
        rng = random.Random(seed)
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data) if seed % 2 else rng.randbytes(rng.randrange(1, 400)))
        with contextlib.suppress(ModelError):
            model.load(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"0" * 64)
    loaded = model.load(save(folder / "m.onnx", location=location) if location else save(folder / "m.onnx", location="x", key="y"))
    tensor = loaded.proto.graph.initializer[0]
    if not location:
        tensor.external_data[0].value = ""
    with pytest.raises(ModelError, match="outside the model's folder"):
        loaded.array(tensor)
    with pytest.raises(ModelError, match="outside the model's folder"):
        model.Draft(loaded, tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["models", "secret"]


def test_external_data_through_a_link_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    loaded = model.load(save(folder / "m.onnx", location="w.bin"))
    (tmp_path / "secret").write_bytes(b"0" * 64)
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="through a link"):
        loaded.array(loaded.proto.graph.initializer[0])


def test_external_data_missing_or_short(tmp_path: Path) -> None:
    loaded = model.load(save(tmp_path / "m.onnx", location="w.bin", offset="0", length="8"))
    (tmp_path / "w.bin").write_bytes(b"123")
    with pytest.raises(ModelError):
        loaded.array(loaded.proto.graph.initializer[0])
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match="missing"):
        model.Draft(loaded, tmp_path / "out.onnx")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_external_data_goes_along(tmp_path: Path, elsewhere: bool) -> None:
    source = tmp_path / "in"
    source.mkdir()
    loaded = model.load(save(source / "m.onnx", location="sub/w.bin"))
    target = (tmp_path / "out" if elsewhere else source) / "fixed.onnx"
    target.parent.mkdir(exist_ok=True)
    with model.Draft(loaded, target) as draft:
        onnx.checker.check_model(str(draft.path))
        assert not target.exists()
        draft.publish()
    again = onnx.load(target)
    assert numpy_helper.to_array(again.graph.initializer[0]).tolist() == [1.0, 2.0]
    assert sorted(os.listdir(target.parent)) == (
        ["fixed.onnx", "fixed.onnx.data"] if elsewhere else ["fixed.onnx", "m.onnx", "sub"]
    )
    assert loaded.proto.graph.initializer[0].external_data[0].value == "sub/w.bin", "the model itself is unchanged"


def test_an_unpublished_draft_leaves_no_trace(tmp_path: Path) -> None:
    loaded = model.load(save(tmp_path / "m.onnx"))
    with pytest.raises(ZeroDivisionError), model.Draft(loaded, tmp_path / "out.onnx"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    (tmp_path / "link.onnx").symlink_to(path)
    for name in ("m.onnx", "link.onnx", "."):
        with pytest.raises(RequestError):
            model.Draft(model.load(path), tmp_path / name)


def test_a_full_disk_is_one_line_and_no_output(tmp_path: Path) -> None:
    script = f"""
    import resource, signal
    from pathlib import Path
    from onnxfix import model
    from onnxfix.errors import RequestError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    loaded = model.load({str(save(tmp_path / "m.onnx"))!r})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))  # writing beyond 20 bytes fails as a full disk does
    try:
        model.Draft(loaded, Path({str(tmp_path / "out.onnx")!r}))
    except RequestError as error:
        print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert "out.onnx: cannot be written" in done.stdout
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_stale_drafts_are_swept_and_live_ones_are_not(tmp_path: Path) -> None:
    loaded = model.load(save(tmp_path / "m.onnx"))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = tmp_path / f".out.onnx.onnxfix-{gone.pid}-00000000"
    live = tmp_path / f".out.onnx.onnxfix-{os.getpid()}-00000000"
    stale.mkdir()
    live.mkdir()
    with model.Draft(loaded, tmp_path / "out.onnx") as draft:
        draft.publish()
    assert not stale.exists() and live.exists()


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    digests = set()
    for name in ("a.onnx", "b.onnx"):
        with model.Draft(model.load(path), tmp_path / name) as draft:
            digests.add(draft.sha256())
    assert len(digests) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="kills processes and counts memory the Linux way")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """`apply` killed with SIGKILL: the input is as it was, and the output is absent or whole."""
    nodes = [helper.make_node("Identity" if i % 2 else "Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(4000)]
    ends = [helper.make_tensor_value_info(n, 1, [1, 8]) for n in ("v0", "v4000")]
    weights = [numpy_helper.from_array(np.zeros(4_000_000, np.float32), "unused")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    before = path.read_bytes()
    script = (
        "import onnxfix.model as m, onnxfix.shapes as s, pathlib, sys\n"
        f"loaded = m.load({str(path)!r})\nprint('go', flush=True)\n"
        f"while True:\n  with m.Draft(loaded, pathlib.Path({str(out)!r})) as d: d.publish()\n"
        "  print('published', flush=True)\n"
    )
    whole = None
    for round_ in range(12):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "go\n"
        time.sleep(0.004 * round_)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert path.read_bytes() == before
        if out.exists():
            data = out.read_bytes()
            whole = whole or data
            assert data == whole and onnx.load(out).graph.node[0].op_type == "Relu"
            out.unlink()
    visible = [n for n in os.listdir(tmp_path) if not n.startswith(".")]
    assert visible == ["m.onnx"]
    with model.Draft(model.load(path), out) as draft:
        draft.publish()
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "out.onnx"], "the next run sweeps what killed ones left"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted the Linux way")
def test_large_external_data_is_not_read(tmp_path: Path) -> None:
    """A sparse file of 1 GiB stands for the weights: indexing must not read it, saving elsewhere streams it."""
    proto = onnx.parser.parse_model(TEXT)
    tensor = proto.graph.initializer.add(name="big", data_type=TensorProto.FLOAT, dims=[1 << 28])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="big.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(1 << 30)
    script = f"""
    from pathlib import Path
    from onnxfix import model, shapes
    loaded = model.load({str(tmp_path / "m.onnx")!r})
    graph = shapes.index(loaded)
    assert graph.shape("y") == (2,)
    with model.Draft(loaded, Path({str(tmp_path / "fixed.onnx")!r})) as draft:
        draft.publish()
    status = Path("/proc/self/status").read_text()  # not getrusage: its peak includes the parent's, before exec
    print(status.split("VmHWM:")[1].split()[0])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert 10_000 < int(done.stdout) < 150 << 10, "KiB"
