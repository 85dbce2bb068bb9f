"""The gate as SARIF 2.1.0: a rule for each limit that was met, with its help; a result for each finding.

Results are placed in the model's file, at its first line since there are none, and at the node as a logical location.
Their fingerprints are the gate's, which stay the same when a model is exported anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onnxfix import page
from onnxfix.gating import UNREADABLE, Gated, GateReport, Hit, limit_of
from onnxfix.render import json
from onnxfix.render.gate import unproved
from onnxfix.render.layout import clean
from onnxfix.report import Finding
from onnxfix.rule import Rule

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
# GitHub compares the first between runs; the second is the same under a name of our own.
_FINGERPRINTS = ("primaryLocationLineHash", "onnxfixFinding/v1")
# What a reason says of one node only.
_HERE = re.compile(r" \(here: .*\)| \('[^']*'[^)]*\)|; (nothing uses|all its inputs are constant).*|: remove the .*")


def dumps(report: GateReport, rules: Mapping[str, Rule]) -> str:
    """The report as a SARIF log with one run. `rules` are the rewriting rules known, by id, for the help."""
    found = [(model, hit) for model in report.models for hit in model.hits]
    ids = list(dict.fromkeys(limit_of(hit.finding) for _, hit in found))
    index = {identity: i for i, identity in enumerate(ids)}
    examples: dict[str, list[Finding]] = {identity: [] for identity in ids}
    for _, hit in found:
        examples[limit_of(hit.finding)].append(hit.finding)
    run = {
        "tool": {
            "driver": {
                "name": "onnxfix",
                "semanticVersion": report.onnxfix,
                "rules": [_rule(identity, examples[identity], rules) for identity in ids],
            }
        },
        # Runs for other targets are kept apart by whoever collects them.
        "automationDetails": {"id": f"onnxfix-gate/{_slug(report.target)}/"},
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "the top of the repository"}}},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(report)],
        "artifacts": [_artifact(model) for model in report.models],
        "results": [
            _result(number, model, hit, index, bool(report.baseline))
            for number, model in enumerate(report.models)
            for hit in model.hits
        ],
        "properties": {
            "target": report.target,
            "verdict": report.verdict,
            "rules": report.rules,
            "vanished": [f"{v.model}: {v.limit} at {v.where}" for v in report.vanished],
        },
    }
    return f"{json.dumps({'$schema': SCHEMA, 'version': '2.1.0', 'runs': [run]})}\n"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


# ---- rules ----


def _rule(identity: str, findings: list[Finding], rules: Mapping[str, Rule]) -> dict[str, Any]:
    first = findings[0]
    says = _general(first.reason) if identity != UNREADABLE else "The file is no model that can be read and judged."
    helpers = [rules[r] for r in dict.fromkeys(r for f in findings for r in f.rules) if r in rules]
    levels = {"undecided": "warning", "needs a plugin": "warning", "warned": "note"}
    return {
        "id": identity,
        "name": "".join(part.capitalize() for part in re.split(r"[^A-Za-z0-9]+", identity)),
        "shortDescription": {"text": clean(says)},
        "fullDescription": {"text": clean(f"{first.where.op}: {says}. {_EFFECTS[first.effect.value]}")},
        "defaultConfiguration": {"level": levels.get(first.effect.value, "error")},
        "help": {"text": _help(says, first, helpers, False), "markdown": _help(says, first, helpers, True)},
        "properties": {"tags": ["onnx", "tensorrt", first.effect.value.replace(" ", "-")], "precision": "high"},
    }


_EFFECTS = {
    "refused": "TensorRT's parser reports an error, and no engine is built.",
    "silently wrong": "TensorRT's parser takes the node, but the engine does not do what the node asks for.",
    "build fails": "TensorRT's parser takes the node, but the engine is not built.",
    "needs a plugin": "The node is a plugin's: without that plugin the parser reports an error.",
    "undecided": "Whether the target takes the node hangs on something the file does not tell.",
    "unknown": "The support matrix knows nothing of this operator, which is never taken for good.",
    "warned": "TensorRT built an engine, and had a warning about this node.",
}


def _general(reason: str) -> str:
    """What the limit says of any node, names and values of this one left out."""
    return _HERE.sub("", reason)


def _help(says: str, finding: Finding, helpers: Iterable[Rule], markdown: bool) -> str:
    code = (lambda text: f"`{text}`") if markdown else (lambda text: text)
    lines = [f"{clean(says)}.", "", _EFFECTS[finding.effect.value]]
    if finding.evidence:
        lines += ["", f"Evidence: {clean(finding.evidence)}"]
    for rule in helpers:
        about = page.read(rule.page).summary if rule.page else rule.summary
        title = f"**{rule.id}**" if markdown else rule.id
        lines += ["", f"{title} ({rule.safety.value}) helps: {about}"]
        lines += [f"{code(f'onnxfix rules show {rule.id}')} has the whole page."]
    if any(True for _ in helpers):
        lines += ["", f"{code('onnxfix apply MODEL --rules FILE')} rewrites the model and proves the result."]
    return "\n".join(lines)


# ---- results ----


def _result(number: int, model: Gated, hit: Hit, index: Mapping[str, int], compared: bool) -> dict[str, Any]:
    finding, identity = hit.finding, limit_of(hit.finding)
    result: dict[str, Any] = {
        "ruleId": identity,
        "ruleIndex": index[identity],
        "level": hit.level,
        "message": {"text": message(model, hit)},
        "locations": [{**_location(number, model), **_node(finding)}],
        "partialFingerprints": {name: hit.fingerprint for name in _FINGERPRINTS},
        "properties": {"effect": finding.effect.value, "judgedBy": finding.by, "evidence": finding.evidence},
    }
    if compared:
        result["baselineState"] = "unchanged" if hit.known else "new"
    if hit.known:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": "in the baseline"}]
    return result


def message(model: Gated, hit: Hit) -> str:
    """What is wrong, where, and what helps, on one line."""
    finding = hit.finding
    if model.error:
        return clean(model.error)
    parts = [f"{finding.where}: {finding.reason} ({finding.by})"]
    if finding.rules:
        parts.append(f"would help: {', '.join(finding.rules)}")
    if hit.level == "note":
        parts.append("the rules take care of it")
    return clean("; ".join(parts))


def _location(number: int, model: Gated) -> dict[str, Any]:
    return {"physicalLocation": {"artifactLocation": {**_uri(model), "index": number}, "region": {"startLine": 1}}}


def _uri(model: Gated) -> dict[str, Any]:
    if os.path.isabs(model.model):  # outside the repository
        return {"uri": Path(model.model).as_uri()}
    return {"uri": quote(model.model), "uriBaseId": "%SRCROOT%"}


def _node(finding: Finding) -> dict[str, Any]:
    where = finding.where
    if where.op == "model":
        return {}
    name = where.node or next((o for o in where.outputs if o), "") or f"#{where.index}"
    kind = f"{where.domain}::{where.op}" if where.domain else where.op
    full = "/".join(p for p in (where.graph, name) if p)
    logical = {"name": clean(name), "fullyQualifiedName": clean(f"{full} ({kind})"), "kind": "node"}
    return {"logicalLocations": [logical]}


def _artifact(model: Gated) -> dict[str, Any]:
    artifact: dict[str, Any] = {"location": _uri(model), "roles": ["analysisTarget"]}
    if model.sha256:
        artifact["hashes"] = {"sha-256": model.sha256}
    notes = {"notes": list(model.notes)} if model.notes else {}
    artifact["properties"] = {"verdict": model.verdict, "judged": model.judged, "changes": model.changes, **notes}
    return artifact


def _invocation(report: GateReport) -> dict[str, Any]:
    missing = unproved(report.models)
    said = [("warning", text) for text in report.notes] + [("error", text) for text in missing]
    return {
        "executionSuccessful": not missing,
        "exitCode": report.exit_status,
        "toolExecutionNotifications": [{"level": level, "message": {"text": clean(text)}} for level, text in said],
    }
