"""Without the extras: what needs no backend works, and what needs one says which, and how to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnxfix import backends
from tests.models import fixture_models

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(fixture_models()["fastsegformer_antialias"])

# `onnxfix`, as after `pip install onnxfix`: the packages of the extras can't be found.
RUN = f"""
import importlib.util, sys
sys.path.insert(0, {str(ROOT)!r})
extras = {tuple(backends.HOW_TO_GET)!r}
class Absent:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in extras:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent)
from onnxfix.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*words: str, folder: Path) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, cwd=folder, timeout=300)
    return done.returncode, done.stdout, done.stderr.strip()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["inspect", MODEL], 0, ""),
        (["apply", MODEL, "--dry-run"], 0, ""),
        (["apply", MODEL, "-o", "fixed.onnx"], 3, "onnxruntime is not installed"),  # jetson.yml requires the parity
        (["gate", MODEL, "--target", "jetson-nano", "--rules", "jetson.yml"], 0, ""),
        (["diff", MODEL, MODEL], 0, ""),
        (["doctor"], 0, ""),
        (["verify", MODEL, MODEL, "--require"], 3, "onnxruntime is not installed"),
        (["reduce", MODEL, "--fails", "parse"], 3, "tensorrt_rtx is not installed"),
        (["convert", MODEL, "--precision", "fp16", "-o", "half.onnx"], 3, "onnxruntime is not installed"),
        (["build", MODEL, "-o", "model.plan"], 3, "tensorrt_rtx is not installed"),
        (["bench", MODEL], 3, "onnxruntime is not installed"),
        (["bundle", MODEL, "--target", "jetson-nano", "-o", "nano"], 3, "onnxruntime is not installed"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_on_the_default_install(tmp_path: Path, words: list[str], status: int, said: str) -> None:
    got, out, err = run(*words, folder=tmp_path)
    assert (got, said in err) == (status, True), err or out
    assert err.count("\n") == 0 and "bug" not in err
    assert not said or "pip install 'onnxfix[" in err
