"""The HTML pages, opened in a real browser where one is installed (Debian: `apt-get install chromium`)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --virtual-time-budget=2000")  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page can't be opened in a browser")


@pytest.mark.parametrize(
    ("arguments", "holds"),
    [
        (["show", "Resize", "--target", "jetson-nano"], ["Resize", "mode may only be nearest or linear"]),
        (["diff", "jetpack-4.6.1", "jetpack-6.1"], ["LayerNormalization", "HardSwish"]),
    ],
)
def test_the_matrix_page(tmp_path: Path, arguments: list[str], holds: list[str]) -> None:
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "onnxfix", "matrix", *arguments, "--format", "html"]
    page.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    assert CHROMIUM is not None
    browser = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(browser, check=True, capture_output=True, text=True, timeout=120).stdout
    text = re.sub(r"<[^>]+>", " ", dom)
    for words in holds:
        assert words in re.sub(r"\s+", " ", text)
    assert "<script" not in dom
