"""JSON: complete, nothing grouped or shortened."""

from __future__ import annotations

import json
from typing import Any

from onnxfix.report import to_dict


def dumps(value: Any) -> str:
    """Dataclasses and plain values as indented JSON; see `report.to_dict` for numbers JSON has no word for."""
    return json.dumps(to_dict(value), indent=2, ensure_ascii=False, allow_nan=False)
