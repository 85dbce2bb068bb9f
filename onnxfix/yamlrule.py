"""Rules and rule files written in YAML: a before and an after graph in ONNX's own textual syntax.

    before: |
      (x) => (y) { y = HardSwish(x) }
    after: |
      (x) => (y) {
        h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)
        y = Mul(x, h)
      }
    safety: close
    where:
      x: {dtype: [float]}

Names in `attributes` are parameters: `Elu<alpha: float = @a>(x)` captures in `before` and fills in `after`.
Every mistake is a RuleError that begins with `file:line:column`.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import yaml
from onnx import FunctionProto, TensorProto

from onnxfix.errors import RuleError, Skip
from onnxfix.graph import Edit, Node, attribute_value
from onnxfix.model import one_line
from onnxfix.pattern import Match, Pattern
from onnxfix.rule import Context, Rule, Safety


def read(path: Path) -> Any:
    """The YAML document in `path`, with marks kept for `fail`. Raises RuleError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RuleError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(f"{path}: cannot be read as text: {one_line(error)}") from None
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise RuleError(
            f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or one_line(error)}"
        ) from None
    except RecursionError:
        raise RuleError(f"{path}: nested too deeply") from None
    if not isinstance(value, dict) or root is None:
        raise RuleError(f"{path}:1:1: expected a mapping (keys and values)")
    validate(value, root, path)
    return value


@functools.cache
def json_schema() -> dict[str, Any]:
    """The JSON Schema of rule files and YAML rules, for editors and for `read`."""
    text = importlib.resources.files("onnxfix.data").joinpath("rules.schema.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def validate(value: Any, root: yaml.Node, path: Path) -> None:
    """Check a document against the schema. Raises RuleError at the place of the first mistake."""
    import jsonschema

    kind = "rule" if "before" in value or "after" in value else "file"
    validator = jsonschema.Draft202012Validator({**json_schema(), "$ref": f"#/$defs/{kind}"})
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    if error is None:
        return
    steps = list(error.absolute_path)
    message = error.message
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        extra = next(k for k in error.instance if k not in known)
        steps.append(extra)
        close = difflib.get_close_matches(str(extra), known, 1)
        message = f"unknown key '{extra}'" + (
            f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
        )
    elif error.validator == "enum":
        message = f"{error.instance!r} is not one of {', '.join(map(str, error.validator_value))}"
    line, column = _mark(root, steps)
    raise RuleError(f"{path}:{line}:{column}: {one_line(message)}")


def _mark(node: yaml.Node, steps: list[Any]) -> tuple[int, int]:
    """Line and column, from 1, of the value (or of the key, for the last step) that `steps` lead to."""
    mark = node.start_mark
    for step in steps:
        if isinstance(node, yaml.MappingNode):
            key, node = next((k, v) for k, v in node.value if k.value == str(step))
            mark = key.start_mark
        elif isinstance(node, yaml.SequenceNode):
            node = node.value[step]
            mark = node.start_mark
    return mark.line + 1, mark.column + 1


def parse_function(text: str, attributes: list[str], opset: int, where: str) -> FunctionProto:
    """ONNX text `(x) => (y) { … }` to a FunctionProto. Raises RuleError beginning with `where`."""
    parameters = f"<{', '.join(attributes)}>" if attributes else ""
    source = f'<domain: "onnxfix.rule", opset_import: ["" : {opset}]>\nrule {parameters} {text}'
    try:
        return onnx.parser.parse_function(source)
    except onnx.parser.ParseError as error:
        detail = error.args[0]
        detail = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
        raise RuleError(f"{where}: not ONNX text: {one_line(detail)}") from None


_DTYPES = {name.lower(): number for name, number in TensorProto.DataType.items()}


class YamlRule(Rule):
    """A rule made of a `before` and an `after` graph."""

    def __init__(self, identity: str, document: Mapping[str, Any], where: str) -> None:
        self.id = identity
        attributes = list(document.get("attributes", []))
        low = int(document.get("opset", [7])[0])
        self.before = parse_function(document["before"], attributes, max(low, 7), f"{where}: before")
        self.after = parse_function(document["after"], attributes, max(low, 7), f"{where}: after")
        if list(self.before.input) != list(self.after.input) or len(self.before.output) != len(self.after.output):
            raise RuleError(f"{where}: before and after must have the same inputs and as many outputs")
        produced = {o for n in self.before.node for o in n.output}
        if not set(self.before.output) <= produced:
            raise RuleError(f"{where}: before: an output is not produced by any node")
        self.pattern = Pattern(self.before)
        self.ops = (self.pattern.op,)  # type: ignore[misc]
        self.safety = Safety(document.get("safety", "exact"))  # type: ignore[misc]
        self.when = document.get("when", "refused")  # type: ignore[misc]
        self.opset_range = document.get("opset", [1, None])
        self.where: Mapping[str, Mapping[str, Any]] = document.get("where", {})
        for name in self.where:
            if name not in self.before.input and name not in attributes:
                raise RuleError(f"{where}: where: '{name}' is neither an input nor an attribute of the rule")

    def match(self, node: Node, ctx: Context) -> Match | None:
        low, *rest = self.opset_range
        high = rest[0] if rest else None
        if not node.domain and (node.opset < low or (high is not None and node.opset > high)):
            return None
        found = self.pattern.match(node)
        if found is None:
            return None
        for name, conditions in self.where.items():
            for condition, wanted in conditions.items():
                self._require(node, found, name, condition, wanted)
        return found

    def _require(self, node: Node, found: Match, name: str, condition: str, wanted: Any) -> None:
        """Raises Skip when a condition of `where` does not hold."""
        graph = node.graph
        if condition == "in":
            attribute = found.attributes.get(name)
            value = attribute_value(attribute) if attribute is not None else None
            if value not in wanted:
                raise Skip(f"attribute '{name}' is {value}, the rule takes {', '.join(map(str, wanted))}")
            return
        value = found.values[name]
        if condition == "rank":
            ranks = wanted if isinstance(wanted, list) else [wanted]
            if graph.rank(value) not in ranks:
                raise Skip(f"'{value}' has rank {graph.rank(value)}, the rule takes {', '.join(map(str, ranks))}")
        elif condition == "dtype":
            dtypes = wanted if isinstance(wanted, list) else [wanted]
            if graph.dtype(value) not in {_DTYPES[d] for d in dtypes}:
                present = TensorProto.DataType.Name(graph.dtype(value)).lower()
                raise Skip(f"'{value}' is {present}, the rule takes {', '.join(dtypes)}")
        elif condition == "const":
            if graph.is_const(value) is not wanted:
                raise Skip(f"'{value}' is {'not ' if wanted else ''}constant")
        elif condition == "static" and (graph.static_shape(value) is not None) is not wanted:
            raise Skip(f"the shape of '{value}' is {'not ' if wanted else ''}fully known")

    def rewrite(self, node: Node, found: Match, edit: Edit, ctx: Context) -> None:
        values = {name: found.values[name] for name in self.before.input if name in found.values}
        names = edit.inline(self.after.node, values, found.attributes)
        for before, after in zip(self.before.output, self.after.output, strict=True):
            edit.replace(found.values[before], names[after])
