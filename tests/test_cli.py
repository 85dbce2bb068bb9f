"""The command line: exit status, one line on standard error, no traceback, and what the commands print."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnxfix
from onnxfix import api, catalog, cli, prove
from onnxfix.report import Check, Report, Status

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = ([], ["inspect"], ["apply"], ["rules"], ["rules", "list"], ["rules", "show"], ["rules", "test"], ["doctor"])

TEXT = """
<ir_version: 8, opset_import: ["": 13, "local": 1]>
g (float[N, 3, 8, 8] x, bool c) => (float[N, 3, 16, 16] y) <float[4] s = {1, 1, 2, 2}> {
  [up] r = Resize <mode = "cubic"> (x, , s)
  k = Constant <value_ints = [1, 2]> ()
  [choose] z = If (c) <
    then_branch = t () => (float[N, 3, 16, 16] a) { a = Relu(r) },
    else_branch = e () => (float[N, 3, 16, 16] b) { b = local.f(r) }
  >
  y = Identity(z)
}
<domain: "local", opset_import: ["": 13]> f (v) => (w) { w = Relu(v) }
"""

FINE = """
<ir_version: 8, opset_import: ["": 13]>
g (float[1, 4] x) => (float[1, 4] y) { a = Identity(x) b = Relu(a) y = Sigmoid(b) }
"""

CUBIC = """
<ir_version: 8, opset_import: ["": 13]>
g (float[1, 3, 8, 8] x) => (float[1, 3, 16, 16] y) <float[4] s = {1, 1, 2, 2}> {
  [up] y = Resize <mode = "cubic"> (x, , s)
}
"""


class Run:
    """What one command did."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def fails(self, status: int, word: str, *said: str) -> Run:
        """One line on standard error, with the word for this status."""
        assert self.status == status, self.err
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"onnxfix: {word}: "), self.err
        for words in said:
            assert words in lines[0]
        return self

    def fine(self) -> Run:
        assert (self.status, self.err) == (0, "")
        return self


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONNXFIX_DEBUG", raising=False)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*args: str | Path) -> Run:
        status = cli.main([str(a) for a in args])
        return Run(status, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, handler)


def process(*args: str, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    defaults: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "onnxfix", *args], env=environment, **{**defaults, **options})


def write(path: Path, text: str) -> Path:
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


@pytest.fixture
def cubic(tmp_path: Path) -> Path:
    return write(tmp_path / "cubic.onnx", CUBIC)


@pytest.fixture
def fine(tmp_path: Path) -> Path:
    return write(tmp_path / "fine.onnx", FINE)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yml"
    path.write_text("target: jetson-nano\nrules: [identity]\n")
    return path


# ---- help and arguments ----


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches_with_examples(run: Any, command: list[str]) -> None:
    shown = run(*command, "--help").fine().out
    assert shown.startswith("usage: onnxfix")
    examples = re.findall(r"^  (onnxfix .*)$", shown.split("examples:\n")[1], re.M)
    assert len(examples) >= 2
    for example in examples:  # what help teaches must at least parse
        words = re.split(r"\s{2,}|[|>]", example)[0].split()
        cli._parser().parse_args(words[1:])


def test_exit_statuses_are_documented(run: Any) -> None:
    for command in ([], ["apply"]):
        shown = run(*command, "--help").out
        assert all(f"  {n}  " in shown.split("exit status:")[1] for n in range(4))
    assert "exit status" in run("inspect", "--help").out


def test_version(run: Any) -> None:
    assert run("--version").fine().out == f"onnxfix {onnxfix.__version__}\n"


def test_the_module_is_the_command() -> None:
    with process("--version") as child:
        assert child.communicate() == (f"onnxfix {onnxfix.__version__}\n", "")
        assert child.returncode == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "no command"),
        (["inspct", "m.onnx"], "invalid choice: 'inspct'"),
        (["inspect"], "MODEL"),
        (["inspect", "m.onnx", "--frmat", "json"], "unrecognized arguments: --frmat"),
        (["inspect", "m.onnx", "--form", "json"], "unrecognized arguments: --form"),
        (["inspect", "m.onnx", "--format", "yaml"], "invalid choice: 'yaml'"),
        (["apply", "m.onnx", "--allow", "all"], "invalid choice: 'all'"),
        (["apply", "m.onnx", "--quiet", "--verbose"], "not allowed with"),
        (["rules"], "COMMAND"),
        (["rules", "show"], "ID"),
        (["rules", "show", "identty"], "did you mean 'identity'?"),
        (["rules", "test", "no-such-thing-at-all"], "`onnxfix rules list`"),
    ],
)
def test_bad_arguments(run: Any, args: list[str], says: str) -> None:
    assert run(*args).fails(2, "error", says).out == ""


def test_wrong_names_are_answered_with_the_known_ones(run: Any, fine: Path, rules: Path) -> None:
    run("inspect", fine, "--target", "jetson-nona").fails(2, "error", "jetson-nona", "jetson-nano")
    run("apply", fine, "--rules", "jetsn.yml").fails(2, "error", "jetsn.yml")
    run("apply", fine, "--rules", rules, "--require", "parse,pairity").fails(2, "error", "pairity", "parity")
    run("apply", fine, "--rules", rules, "--target", "trt-0").fails(2, "error", "trt-0")
    assert sorted(fine.parent.iterdir()) == [fine, rules]


# ---- bad input ----

BAD = {
    "empty": b"",
    "text": b"just some text\n",
    "html": b"<!DOCTYPE html>\n<html></html>",
    "json": b'{"ir_version": 8}',
    "zip": b"PK\x03\x04" + bytes(100),
    "zeros": bytes(1000),
    "tensor": onnx.numpy_helper.from_array(np.zeros(9, np.float32), "t").SerializeToString(),
    "graph": onnx.parser.parse_model(CUBIC).graph.SerializeToString(),
    "no opset": onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g")).SerializeToString(),
}
LOOK = (["inspect"], ["inspect", "--target", "jetson-nano"], ["apply"], ["apply", "--dry-run"])


@pytest.mark.parametrize("command", LOOK, ids=" ".join)
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_model(run: Any, tmp_path: Path, rules: Path, command: list[str], kind: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(BAD[kind])
    extra = ["--rules", rules] if command[0] == "apply" else []
    assert run(*command, path, *extra).fails(2, "error", "m.onnx").out == ""
    assert sorted(tmp_path.iterdir()) == [path, rules]


@pytest.mark.parametrize("command", LOOK, ids=" ".join)
def test_what_is_no_file(run: Any, tmp_path: Path, rules: Path, command: list[str]) -> None:
    extra = ["--rules", rules] if command[0] == "apply" else []
    run(*command, tmp_path / "gone.onnx", *extra).fails(2, "error", "gone.onnx")
    run(*command, tmp_path, *extra).fails(2, "error", str(tmp_path))
    run(*command, "evil\nname\x1b[31m.onnx", *extra).fails(2, "error", "evil name\\x1b[31m.onnx")


def test_truncated_anywhere(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = onnx.parser.parse_model(TEXT).SerializeToString()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        done = run("inspect", path)
        if done.status == 0:  # cut between two fields: what is left is whole, only shorter
            assert onnx.load(path).opset_import
        else:
            done.fails(2, "error", "m.onnx")
    path.write_bytes(whole)
    run("inspect", path).fine()


def test_random_bytes(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for seed in range(300):
        chance = random.Random(seed)
        path.write_bytes(chance.randbytes(chance.choice((1, 3, 20, 300, 5000))))
        run("inspect", path).fails(2, "error", "m.onnx")


@pytest.mark.parametrize("target", [(), ("--target", "jetson-nano")])
def test_damaged_bytes_never_end_in_a_traceback(run: Any, tmp_path: Path, target: tuple[str, ...]) -> None:
    whole = onnx.parser.parse_model(TEXT).SerializeToString()
    path = tmp_path / "m.onnx"
    seen = set()
    for seed in range(400):
        chance = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 5))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        done = run("inspect", path, *target)
        seen.add(done.status)
        assert "bug in onnxfix" not in done.err, (seed, done.err)
        if done.status:
            done.fails(done.status, {1: "refused", 2: "error"}[done.status])
    assert seen >= ({1, 2} if target else {0, 2})


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "folder/../../secret", "link"])
def test_hostile_external_data(run: Any, tmp_path: Path, rules: Path, location: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "secret")
    proto = onnx.parser.parse_model(CUBIC)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    before = sorted(tmp_path.rglob("*"))
    assert "outside the model's folder: refused" in run("inspect", path).fine().out  # and looked at no further
    run("apply", path, "--rules", rules).fails(2, "error", "the model's folder", location)
    assert sorted(tmp_path.rglob("*")) == before


# ---- unexpected ends ----


def test_a_bug_is_one_line_and_shown_in_full_when_asked(
    run: Any, fine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("over\nlines")

    monkeypatch.setattr(api, "inspect", broken)
    run("inspect", fine).fails(2, "error", "please report", "ZeroDivisionError: over lines")
    monkeypatch.setenv("ONNXFIX_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("inspect", fine)


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [(KeyboardInterrupt(), 130, "interrupted"), (MemoryError(), 2, "error"), (PermissionError(13, "no"), 2, "error")],
)
def test_other_ends(
    run: Any, fine: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, word: str
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "inspect", stop)
    run("inspect", fine).fails(status, word)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_apply_leaves_nothing(fine: Path, rules: Path, number: signal.Signals, status: int) -> None:
    """Stopped in the middle of the proofs, when the draft of the output is on the disk."""
    code = (
        "import sys, time; from onnxfix import cli, prove\n"
        "def parity(*_, **__): print('here', flush=True); time.sleep(60)\n"
        "prove.parity = parity\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, "apply", str(fine), "--rules", str(rules)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with child:
        assert child.stdout is not None and child.stdout.readline() == "here\n"
        assert len(list(fine.parent.iterdir())) == 3  # the draft
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (status, "")
    assert err == ("onnxfix: interrupted: stopped; nothing was written\n" if number is signal.SIGINT else "")
    assert sorted(fine.parent.iterdir()) == [fine, rules]


def test_a_reader_that_leaves(fine: Path) -> None:
    with process("inspect", str(fine), "--format", "json") as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.wait(60) == 141
        assert child.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output(fine: Path) -> None:
    with open("/dev/full", "w") as full, process("inspect", str(fine), stdout=full) as child:
        assert child.wait(60) == 2
        assert child.stderr is not None
        assert re.fullmatch(r"onnxfix: error: .*No space left on device.*\n", child.stderr.read())


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", FINE.replace("Sigmoid(b)", "Identity(b)"))
    proto = onnx.load(path)
    proto.doc_string = "größe ☃"
    onnx.save(proto, path)
    for form in ("text", "json"):
        with process("inspect", str(path), "--format", form, env={"PYTHONIOENCODING": "ascii"}) as child:
            out, err = child.communicate()
            assert (child.returncode, err) == (0, "")
            assert "gr\\xf6" in out


# ---- inspect ----


def test_inspect(run: Any, cubic: Path, tmp_path: Path) -> None:
    shown = run("inspect", cubic).fine().out
    assert "Resize" in shown and "target" not in shown
    judged = run("inspect", cubic, "--target", "jetson-nano").fails(1, "refused", "Jetson Nano", "1 of 1 node")
    assert "mode" in judged.out and "cubic" in judged.out
    run("inspect", write(tmp_path / "fine.onnx", FINE), "--target", "jetson-nano").fine()


def test_inspect_as_json(run: Any, cubic: Path, tmp_path: Path) -> None:
    done = run("inspect", cubic, "--target", "jetson-nano", "--format", "json").fails(1, "refused")
    value = json.loads(done.out)
    assert value["verdict"] == "refused"
    assert [f["where"]["node"] for f in value["findings"]] == ["up"]
    again = run("inspect", cubic, "--target", "jetson-nano", "--format", "json", "--output", "i.json")
    assert again.fails(1, "refused").out == ""
    assert (tmp_path / "i.json").read_text() == done.out
    run("inspect", cubic, "-o", "i.txt").fine()
    assert (tmp_path / "i.txt").read_text() == run("inspect", cubic).out
    run("inspect", cubic, "-o", "nowhere/i.txt").fails(2, "error", "nowhere/i.txt")


# ---- apply ----


def test_apply(run: Any, fine: Path, rules: Path, tmp_path: Path) -> None:
    source = fine.read_bytes()
    shown = run("apply", fine, "--rules", rules, "--report", "r.json").fine().out
    assert "identity" in shown and "structure: " in shown and "parse: " in shown and "parity: " in shown
    assert [n.op_type for n in onnx.load(tmp_path / "fine.fixed.onnx").graph.node] == ["Relu", "Sigmoid"]
    report = Report.from_json((tmp_path / "r.json").read_text())
    assert [c.rule for c in report.changes] == ["identity"]
    assert fine.read_bytes() == source

    as_json = run("apply", fine, "--rules", rules, "-o", "other.onnx", "--format", "json").fine().out
    assert Report.from_json(as_json).changes == report.changes
    assert (tmp_path / "other.onnx").is_file()


def test_dry_run_and_diff(run: Any, fine: Path, rules: Path, tmp_path: Path) -> None:
    shown = run("apply", fine, "--rules", rules, "--dry-run", "--diff").fine().out
    assert "nothing written" in shown
    assert "\n@@ 1 identity (exact) Identity" in shown
    assert re.search(r"^- Identity .*-> a$", shown, re.M)
    assert sorted(tmp_path.iterdir()) == [fine, rules]
    quiet = run("apply", fine, "--rules", rules, "--dry-run", "--quiet").fine().out
    assert len(quiet.splitlines()) < len(shown.splitlines())


def test_apply_says_why_it_did_not_end_well(
    run: Any, cubic: Path, rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("apply", cubic, "--rules", rules).fails(1, "refused", "Jetson Nano", "Resize up", "cubic")
    assert "findings that remain: 1" in done.out

    def absent(*_: object, **__: object) -> Check:
        return Check("parse", Status.NOT_RUN, "tensorrt", "no TensorRT here")

    (tmp_path / "cubic.fixed.onnx").unlink(missing_ok=True)
    fine = write(tmp_path / "fine.onnx", FINE)
    monkeypatch.setattr(prove, "parse", absent)
    run("apply", fine, "--rules", rules, "--require", "structure", "--require", "parse,parity").fails(
        3, "unproved", "parse", "no TensorRT here"
    )
    assert sorted(tmp_path.iterdir()) == [cubic, fine, rules]
    run("apply", fine, "--rules", rules).fine()

    def differs(*_: object, **__: object) -> Check:
        return Check("parity", Status.FAILED, "onnxruntime", "y differs by 3")

    monkeypatch.setattr(prove, "parity", differs)
    (tmp_path / "fine.fixed.onnx").unlink()
    run("apply", fine, "--rules", rules).fails(1, "refused", "parity", "y differs by 3")
    assert sorted(tmp_path.iterdir()) == [cubic, fine, rules]


def test_every_argument_reaches_the_api(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def apply(model: str, **options: Any) -> Report:
        seen.update(options, model=model)
        return Report("apply", model, "t", "accepted", "0")

    monkeypatch.setattr(api, "apply", apply)
    run(
        "apply", "m.onnx", "--rules", "r.yml", "-o", "o.onnx", "--target", "t", "--allow", "lossy", "--dry-run",
        "--require", "parse, parity", "--require", "build", "--inputs", "d.npz", "--build", "e.plan",
        "--report", "r.json", "--freeze", "a=b=1,2.5", "--freeze", "t=true", "--set-shape", "x:0:1x?x640",
        "--on-mismatch", "stop", "--plugins", "a.so", "--plugins-use", "ROIAlign_TRT",
    ).fine()  # fmt: skip
    assert seen == {
        "model": "m.onnx", "rules": "r.yml", "output": "o.onnx", "target": "t", "allow": "lossy", "dry_run": True,
        "require": ["parse", "parity", "build"], "inputs": "d.npz", "build_to": "e.plan", "report_to": "r.json",
        "freeze": {"a=b": [1, 2.5], "t": True}, "set_shape": {"x:0": [1, None, 640]}, "progress": None,
        "on_mismatch": "stop", "plugins": ["a.so"], "plugins_use": ["ROIAlign_TRT"],
    }  # fmt: skip
    run("apply", "m.onnx").fine()
    assert seen["require"] == [] and seen["rules"] == api.DEFAULT_RULES


# ---- rules and doctor ----


def test_rules_list(run: Any) -> None:
    known = catalog.load_folder(catalog.shipped())
    shown = run("rules", "list").fine().out
    assert f"rules: {len(known)}\n" in shown
    for rule in known.values():
        assert re.search(rf"^  {rule.id} +{rule.safety.value} .*{re.escape(rule.summary[:40])}", shown, re.M)
    value = json.loads(run("rules", "list", "--format", "json").fine().out)
    assert [r["id"] for r in value["rules"]] == list(known)
    assert value["sets"] == catalog.shipped_sets()
    assert all(name in shown for name in value["sets"])


def test_rules_show(run: Any) -> None:
    page = (catalog.shipped() / "identity.md").read_text()
    assert run("rules", "show", "identity").fine().out == page
    value = json.loads(run("rules", "show", "identity", "--format", "json").fine().out)
    assert (value["id"], value["text"], value["safety"]) == ("identity", page, "exact")


def test_rules_test(run: Any, tmp_path: Path) -> None:
    shown = run("rules", "test", "identity").fine().out
    assert "passed  identity:" in shown and "0 failed" in shown

    (tmp_path / "bare").mkdir()
    run("rules", "test", "bare").fails(2, "error", "bare", "no rules")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "drop-relu.yml").write_text(
        'before: "(x) => (y) { y = Relu(x) }"\nafter: "(x) => (y) { y = Identity(x) }"\nwhen: always\n'
    )
    page = "# drop-relu\n\nDrops a Relu, which is wrong.\n\n### A case\n\n"
    graph = '<ir_version: 8, opset_import: ["": 13]> g (float[2] x) => (float[2] y)'
    page += f"```onnx before\n{graph} {{ y = Relu(x) }}\n```\n\n```onnx after\n{graph} {{ y = Identity(x) }}\n```\n"
    (folder / "drop-relu.md").write_text(page)
    done = run("rules", "test", folder, "identity").fails(1, "refused", "1 case failed", "drop-relu:7", "numbers differ")
    assert "passed  identity:" in done.out and "failed  drop-relu:7 A case" in done.out
    value = json.loads(run("rules", "test", folder, "--format", "json").out)
    assert [c["rule"] for c in value] == ["drop-relu"] and value[0]["problems"]


def test_doctor(run: Any) -> None:
    shown = run("doctor").fine().out
    value = json.loads(run("doctor", "--format", "json").fine().out)
    assert [b["name"] for b in value] == ["onnxruntime", "tensorrt", "tensorrt_rtx"]
    for backend in value:
        assert backend["name"] in shown
        assert backend["available"] or (backend["why_not"] in shown and backend["how_to_get"] in shown)
