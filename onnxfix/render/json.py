"""JSON: complete, nothing grouped or shortened."""

from __future__ import annotations

import json
import math
from typing import Any

from onnxfix.report import to_dict


def dumps(value: Any) -> str:
    """Dataclasses and plain values as indented JSON.

    Numbers that JSON has no word for (infinities, NaN) become the strings "inf", "-inf" and "nan".
    """
    return json.dumps(_plain(to_dict(value)), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):  # a numpy scalar among the figures of a check
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
