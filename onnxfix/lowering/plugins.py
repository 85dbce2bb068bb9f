"""Plugins of TensorRT's own library as the goal of a rewrite: what only a rule file asks for, by the plugin's name."""

from __future__ import annotations

from typing import Any

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


def add(edit: Edit, plugin: str, inputs: list[str], **fields: Any) -> str:
    """A plugin's node; `fields` are its creator's fields, of the types it wants (int or float, or lists of them)."""
    return str(edit.add(plugin, inputs, domain=DOMAIN, plugin_version="1", plugin_namespace="", **fields))
