"""Plugins of TensorRT's own library as the goal of a rewrite: what only a rule file asks for, by the plugin's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from onnxfix.errors import Skip
from onnxfix.graph import Edit, Node
from onnxfix.report import Effect
from onnxfix.rule import Context

DOMAIN = "TRT"  # TensorRT goes by the name alone; outside ONNX's own domain the checker lets the operator be


def need(node: Node, plugin: str, ctx: Context) -> None:
    """Raises Skip when the target's plugin library has no plugin of that name, or none of the version known here."""
    version = ctx.target.release.rpartition("-")[2]
    asked = Node(helper.make_node(plugin, ["x"], ["y"], domain=DOMAIN), node.graph)
    verdict = ctx.judge(asked)
    if verdict is None or verdict.effect is not Effect.PLUGIN:
        raise Skip(f"the plugin library of {ctx.target.name} has no {plugin}")
    if int(version.split(".")[0]) >= 11:
        raise Skip(f"version 1 of {plugin} is deprecated since TensorRT 10, and may not be in TensorRT {version}")


def add(edit: Edit, plugin: str, inputs: list[str], outputs: int | Sequence[str] = 1, **fields: Any) -> Any:
    """A plugin's node; `fields` are its creator's fields, of the types it wants (int or float, or lists of them).

    Returns its output's name, or a tuple of names for several.
    """
    return edit.add(
        plugin, inputs, outputs=outputs, domain=DOMAIN, plugin_version="1", plugin_namespace="", **fields
    )


def suppression_limits(node: Node) -> tuple[int, float, float]:
    """How many boxes of a class a NonMaxSuppression keeps, and its thresholds of overlap and score.

    Raises Skip when they are no constants.
    """
    values = [node.graph.const(node.input(i)) if node.input(i) else np.zeros(1) for i in (2, 3, 4)]
    known = [float(v.reshape(-1)[0]) for v in values if v is not None and v.size == 1]
    if len(known) < 3:
        raise Skip("its limits are no constants; freeze them")
    if known[0] < 1:
        raise Skip("it keeps no boxes at all")
    # Without a threshold every score counts, also negative ones.
    return int(known[0]), known[1], known[2] if node.input(4) else float(np.finfo(np.float32).min)
