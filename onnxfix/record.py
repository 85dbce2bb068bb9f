"""What a run writes down so that it can be done again: in the report, and in the metadata of the output itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix import __version__
from onnxfix.backends import version
from onnxfix.catalog import RuleSet, shipped
from onnxfix.model import Model
from onnxfix.report import Record, Safety, Site, from_dict, to_dict

KEY = "onnxfix.record"  # in the metadata of a model
PACKAGES = ("onnx", "numpy", "onnxruntime")  # folding constants is their arithmetic


def make(
    ruleset: RuleSet, target: str, allow: Safety, settings: Mapping[str, Any], left_out: Iterable[Site]
) -> Record | None:
    """The record of a run; None for rules that come from no file, which nobody could find again."""
    if ruleset.path is None:
        return None
    is_shipped = ruleset.path.resolve().parent == shipped().resolve()
    return Record(
        rules=ruleset.path.name if is_shipped else str(ruleset.path),
        rules_sha256=digest(ruleset),
        target=target,
        allow=allow,
        versions={"onnxfix": __version__, **{p: version(p) for p in PACKAGES}},
        settings={k: _plain(v) for k, v in settings.items() if v},
        left_out=tuple(left_out),
    )


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def digest(ruleset: RuleSet) -> str:
    """A hash of the rule file, of the rules it chooses, and of the lowerings that rules are made of."""
    sha = hashlib.sha256()
    files = {ruleset.path} if ruleset.path else set()
    for rule in ruleset.rules:
        if rule.page is not None:  # others stand in the rule file
            files |= {p for s in (".py", ".yml", ".yaml") if (p := rule.page.with_suffix(s)).is_file()}
    files |= set(Path(__file__).with_name("lowering").glob("*.py"))
    for file in sorted(files, key=lambda f: (f.name, str(f))):
        # Line ends differ where git checks out text for Windows.
        data = file.read_bytes().replace(b"\r\n", b"\n")
        sha.update(f"{file.name} {len(data)}\n".encode() + data)
    return sha.hexdigest()


def embed(model: Model, record: Record, name: str) -> None:
    """Write the record into the model's metadata, with the input's file name and hash.

    Versions of packages stay out of it: they may differ without a difference in the bytes.
    """
    value = {
        "input": name,
        "sha256": model.sha256,
        **{k: v for k, v in to_dict(record).items() if k != "versions"},
        "rules": Path(record.rules).name,
        "onnxfix": record.versions["onnxfix"],
    }
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    props = model.proto.metadata_props
    for i in range(len(props) - 1, -1, -1):
        if props[i].key == KEY:
            del props[i]
    props.add(key=KEY, value=text)


def read(model: Model) -> tuple[Record, str, str] | None:
    """The record in a model's metadata, with the input's file name and hash; None where there is none."""
    text = next((m.value for m in model.proto.metadata_props if m.key == KEY), None)
    if text is None:
        return None
    try:
        value = json.loads(text)
        name, sha256, number = value.pop("input"), value.pop("sha256"), value.pop("onnxfix")
        return from_dict(Record, {**value, "versions": {"onnxfix": number}}), name, sha256
    except (ValueError, KeyError, TypeError):
        return None
