"""onnxfix: make ONNX models acceptable to TensorRT, and prove it.

    import onnxfix

    onnxfix.inspect("model.onnx", target="jetson-nano").findings
    report = onnxfix.apply("model.onnx", rules="jetson.yml", output="fixed.onnx")

Everything public is here; it is loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxfix.api import apply as apply
    from onnxfix.api import doctor as doctor
    from onnxfix.api import exit_status as exit_status
    from onnxfix.api import inspect as inspect
    from onnxfix.difference import Difference as Difference
    from onnxfix.difference import diff as diff
    from onnxfix.errors import ModelError as ModelError
    from onnxfix.errors import OnnxfixError as OnnxfixError
    from onnxfix.errors import RequestError as RequestError
    from onnxfix.errors import RuleError as RuleError
    from onnxfix.errors import Skip as Skip
    from onnxfix.errors import TargetError as TargetError
    from onnxfix.gating import GateReport as GateReport
    from onnxfix.gating import gate as gate
    from onnxfix.report import Report as Report
    from onnxfix.report import Safety as Safety
    from onnxfix.rule import Rule as Rule

_HOME = {
    "onnxfix.api": ("apply", "doctor", "exit_status", "inspect"),
    "onnxfix.difference": ("Difference", "diff"),
    "onnxfix.errors": ("ModelError", "OnnxfixError", "RequestError", "RuleError", "Skip", "TargetError"),
    "onnxfix.gating": ("GateReport", "gate"),
    "onnxfix.report": ("Change", "Check", "Finding", "Report", "Safety", "Skipped", "Status", "Where"),
    "onnxfix.rule": ("Context", "Edit", "Graph", "Node", "Rule"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        return getattr(importlib.import_module(_MODULE[name]), name)
    raise AttributeError(f"module 'onnxfix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
