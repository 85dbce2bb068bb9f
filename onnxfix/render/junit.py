"""The gate as JUnit XML: a suite for the run, a case for each model, in the form CI systems read.

A refused model is a failure, a file that cannot be judged an error. Skipped are the models whose failure the baseline
expects, those that could not be decided, and those that a required parse did not reach.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from onnxfix.gating import Gated, GateReport
from onnxfix.render.sarif import message

# What XML 1.0 has no way to write.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def dumps(report: GateReport) -> str:
    """The report as a JUnit XML document."""
    cases = [_case(model, report) for model in report.models]
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(1 for c in cases if c.find("failure") is not None)),
        "errors": str(sum(1 for c in cases if c.find("error") is not None)),
        "skipped": str(sum(1 for c in cases if c.find("skipped") is not None)),
        "time": f"{report.seconds:.3f}",
    }
    suites = ET.Element("testsuites", {"name": "onnxfix gate", **counts})
    suite = ET.SubElement(suites, "testsuite", {"name": _text(f"onnxfix gate, {report.target}"), **counts})
    properties = ET.SubElement(suite, "properties")
    facts = {"target": report.target, "rules": report.rules, "baseline": report.baseline, "onnxfix": report.onnxfix}
    for name, value in facts.items():
        if value:
            ET.SubElement(properties, "property", {"name": name, "value": _text(value)})
    suite.extend(cases)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _case(model: Gated, report: GateReport) -> ET.Element:
    place = {"classname": "onnxfix.gate", "name": _text(model.model), "time": f"{model.seconds:.3f}"}
    case = ET.Element("testcase", place)
    listed = "\n".join(message(model, hit) for hit in model.hits)
    if model.error:
        _outcome(case, "error", "unreadable", model.error, model.error)
    elif model.fails:
        _outcome(case, "failure", "refused", model.judged, "\n".join([listed, *model.notes]).strip())
    elif model.unproved:
        _outcome(case, "skipped", "unproved", model.unproved, listed)
    elif model.verdict == "refused":
        _outcome(case, "skipped", "known", f"refused as {report.baseline} says", listed)
    elif model.verdict == "unverified":
        _outcome(case, "skipped", "unverified", f"unverified: {model.judged}", listed)
    else:
        ET.SubElement(case, "system-out").text = _text("\n".join([f"{model.verdict}: {model.judged}", *model.notes]))
    return case


def _outcome(case: ET.Element, tag: str, kind: str, said: str, text: str) -> None:
    attributes = {"message": _text(said)} if tag == "skipped" else {"type": kind, "message": _text(said)}
    ET.SubElement(case, tag, attributes).text = _text(text) or None


def _text(text: str) -> str:
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)
