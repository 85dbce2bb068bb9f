"""What rules for the operators of ai.onnx.ml share."""

from __future__ import annotations

from onnxfix.graph import Edit

_STANDARD = 13  # the opset of ai.onnx for a model that had none: old enough for every TensorRT from 8.0 on


def import_standard(edit: Edit) -> None:
    """Make the standard's own operators available in a model that only imports ai.onnx.ml."""
    edit.graph.model.import_opset("", _STANDARD)
