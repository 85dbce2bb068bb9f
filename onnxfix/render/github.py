"""The gate as GitHub workflow commands, which become annotations: error, warning and notice lines.

GitHub shows ten of each kind for a step, so errors of different models come before more of the same model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest

from onnxfix.gating import Gated, GateReport, Hit, limit_of
from onnxfix.render.gate import summary, unproved
from onnxfix.render.sarif import message


def dumps(report: GateReport) -> str:
    """A line for each finding that counts, and a notice with the summary."""
    lines = [line for _, line in sorted(_lines(report), key=lambda pair: pair[0])]
    lines += [_command("error", {"title": "onnxfix gate: unproved"}, text) for text in unproved(report.models)]
    lines += [_command("warning", {"title": "onnxfix gate"}, text) for text in report.notes]
    lines.append(_command("notice", {"title": f"onnxfix gate, {report.target}"}, summary(report)))
    return "".join(f"{line}\n" for line in lines)


def _lines(report: GateReport) -> Iterator[tuple[int, str]]:
    """(round, line): the first finding of every model, then the second of every model, and so on."""
    per_model = [[_annotation(m, h) for h in m.hits if not h.known and h.level != "note"] for m in report.models]
    for round_, row in enumerate(zip_longest(*per_model)):
        yield from ((round_, line) for line in row if line is not None)


def _annotation(model: Gated, hit: Hit) -> str:
    properties = {"title": f"{model.verdict}: {limit_of(hit.finding)}"}
    if not os.path.isabs(model.model):  # GitHub knows files of the repository only
        properties = {"file": model.model, **properties}
    return _command(hit.level, properties, message(model, hit))


def _command(kind: str, properties: dict[str, str], text: str) -> str:
    told = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{kind} {told}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
