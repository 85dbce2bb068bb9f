"""Where the tests find models: the committed fixtures, and those inside packages somebody else wrote."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from fixtures.fetch_models import CACHE, VERSIONS

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def fixture_models() -> dict[str, Path]:
    """Name -> path of every committed model."""
    return {path.stem: path for path in sorted(FIXTURES.glob("*.onnx"))}


def package_models() -> dict[str, Path]:
    """Name -> path of every `.onnx` file of the known packages that are here, in the cache or installed.

    A name is the package's and the file's path below the package's folder, without its ending:
    `swift-f0/model`, `rapidocr-onnxruntime/models/ch_PP-OCRv4_det_infer`. Fetches nothing; empty where
    `python -m fixtures.fetch_models` never ran.
    """
    found: dict[str, Path] = {}
    for package in VERSIONS:
        places = [str(CACHE / package), *sys.path]
        for dist in importlib.metadata.distributions(name=package, path=places):
            for file in dist.files or ():
                if file.suffix == ".onnx":
                    path = Path(str(dist.locate_file(file)))
                    name = "/".join((package, *file.with_suffix("").parts[1:]))
                    found.setdefault(name, path)
            break  # the cache comes first
    return dict(sorted(found.items()))


def package_model(name: str) -> Path:
    """The path of one model of `package_models`; where it is not, skips and says how to get it."""
    path = package_models().get(name)
    if path is None:
        package = name.split("/")[0]
        pytest.skip(f"{name} is not here: python -m fixtures.fetch_models {package}")
    return path
