"""What a board sends back, as a Report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxfix import __version__, matrix, verdict
from onnxfix.bundle import board
from onnxfix.errors import ModelError, RequestError
from onnxfix.graph import Graph
from onnxfix.model import load
from onnxfix.report import Check, Effect, Finding, Report, Status, Where, from_dict

CHECKS = ("parse", "build", "readback", "parity", "bench")


def read(path: str | Path, model: str | Path | None = None) -> Report:
    """The report of a run on a board, from the result.json that its script wrote.

    What the board's parser refused is told by the names of nodes when the bundle's `model` is at hand: by default the
    model.onnx beside the result. Raises RequestError for a file that is no such result.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != board.FORMAT:
            raise ValueError(f"its format is {data['format']}, this onnxfix knows {board.FORMAT}")
        return _report(data, Path(model) if model else path.with_name("model.onnx"), path)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise RequestError(f"{path}: is no result of a bundle's script, or is damaged ({reason})") from None


def _report(data: Mapping[str, Any], model: Path, path: Path) -> Report:
    manifest, about = data["manifest"], data["about"]
    target = matrix.target(manifest["target"]["name"])
    version = about.get("tensorrt", "")
    by = f"tensorrt {version or 'not found'} on {about.get('board') or about['machine']}"
    places = _places(model, manifest["model"]["sha256"])
    checks = [_check(c, by, places) for c in data["checks"]]
    refused = [f for c in checks for f in c.findings]
    remaining = tuple(from_dict(Finding, f) for f in manifest["remaining"])
    found = verdict.judge(target, remaining, checks)
    return Report(
        command="bundle read",
        model=manifest["model"]["original"],
        target=manifest["target"]["label"],
        verdict=found.word,
        judged=found.why,
        onnxfix=__version__,
        model_sha256=manifest["model"]["original_sha256"],
        output_sha256=manifest["model"]["sha256"],
        rules=manifest["rules"]["name"],
        remaining=tuple(refused) or tuple(f for f in remaining if not verdict.overruled(f, checks)),
        checks=tuple(checks),
        notes=tuple(_notes(data, target)),
    )


def _places(model: Path, sha256: str) -> Sequence[Where]:
    """The nodes of the bundle's model by index, none where it is not that file."""
    try:
        loaded = load(model)
    except ModelError:
        return ()
    return [node.where() for node in Graph.of(loaded).nodes()] if loaded.sha256 == sha256 else ()


def _check(data: Mapping[str, Any], by: str, places: Sequence[Where]) -> Check:
    if data["name"] not in CHECKS:
        raise ValueError(f"no check called '{data['name']}'")
    figures = dict(data["figures"])
    if data["name"] == "parity" and "outputs" in figures:
        figures["outputs"] = {name: _worst(found) for name, found in figures["outputs"].items()}
    findings = tuple(_finding(f, by, places) for f in data["findings"])
    return Check(data["name"], Status(data["status"]), by, data["detail"], figures, findings)


def _finding(data: Mapping[str, Any], by: str, places: Sequence[Where]) -> Finding:
    index = int(data["node"])
    where = places[index] if 0 <= index < len(places) else Where("", str(data["op"]), index=index)
    evidence = f"{data['code']}: {data['where']}"
    return Finding(where, Effect.REFUSED, data["reason"], by, evidence, limit=f"parser/{str(data['code']).lower()}")


def _worst(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the samples, under the names that the parity's figures have everywhere."""
    cosines = [s["cosine"] for s in samples if s["cosine"] is not None]
    return {
        "max_abs": max(s["max_abs"] for s in samples),
        "max_rel": max(s["relative"] for s in samples),
        "range": [min(s["low"] for s in samples), max(s["high"] for s in samples)],
        "cosine": min(cosines) if cosines else None,
        "elements": sum(s["elements"] for s in samples),
        "equal": all(s["verdict"] == "equal" for s in samples),
        "scores": [s["score"] for s in samples if s["score"] is not None],
    }


def _notes(data: Mapping[str, Any], target: matrix.Target) -> list[str]:
    manifest, about = data["manifest"], data["about"]
    facts = ("board", "machine", "l4t", "compute_capability", "cuda_runtime", "power_mode", "python", "numpy")
    notes = [f"run on {data['date']}: " + ", ".join(f"{f.replace('_', ' ')} {about[f]}" for f in facts if about.get(f))]
    version = about.get("tensorrt", "")
    if version and not version.startswith(f"{target.release}."):
        notes.append(f"made for TensorRT {target.release}, run with {version}: make a bundle for that one")
    notes += manifest["notes"]
    notes += [f"TensorRT's {word}: {text}" for word, text in data["messages"][:20]]
    return notes
