"""Fixtures that several test modules use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onnxfix import prove
from onnxfix.backends import trt


@pytest.fixture(scope="module")
def only_rtx() -> Iterator[None]:
    """What TensorRT-RTX says is judged, even where TensorRT is installed too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(trt.FLAVOUR_VARIABLE, "tensorrt_rtx")
        prove.close()
        yield
    prove.close()
