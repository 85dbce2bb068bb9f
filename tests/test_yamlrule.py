"""YAML rules and rule files: what they match, and how mistakes in them are told."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxfix import catalog, yamlrule
from onnxfix.errors import RuleError
from onnxfix.report import Safety
from tests.test_engine import run

GELU = {
    "before": """(x) => (y) {
      r = Constant<value = float {1.4142135}>()
      one = Constant<value = float {1.0}>()
      half = Constant<value = float {0.5}>()
      d = Div(x, r) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)
    }""",
    "after": "(x) => (y) { y = Gelu(x) }",
    "when": "always",
}


def rule(**document) -> yamlrule.YamlRule:
    return yamlrule.YamlRule("test-rule", {"when": "always", **document}, "test.yml")


def model(body: str, more: str = "") -> str:
    return f'<ir_version: 10, opset_import: ["": 20]>\ng (float[2, 3] x{more}) => (float[2, 3] y)\n{{ {body} }}'


ERF = """
  r = Constant<value = float {1.4142135}>() one = Constant<value = float {1.0}>() half = Constant<value = float {0.5}>()
  d = Div(x, r) e = Erf(d) p = Add(one, e) m = Mul(p, x) y = Mul(m, half)
"""


def test_a_graph_is_matched_with_operands_in_either_order() -> None:
    proto, outcome = run(model(ERF), rule(**GELU))
    assert [n.op_type for n in proto.graph.node] == ["Gelu"]
    assert len(outcome.changes) == 1


def test_a_value_that_is_read_outside_stays() -> None:
    text = model(ERF.replace("y = Mul(m, half)", "z = Mul(m, half) y = Add(z, e)"))
    proto, outcome = run(text, rule(**GELU))
    assert not outcome.changes and len(proto.graph.node) == 9


def test_another_constant_is_no_match() -> None:
    _, outcome = run(model(ERF.replace("{0.5}", "{0.25}")), rule(**GELU))
    assert not outcome.changes


def test_an_attribute_not_mentioned_must_have_its_default() -> None:
    swap = {"before": "(x) => (y) { y = LeakyRelu(x) }", "after": "(x) => (y) { y = Relu(x) }"}
    assert not run(model("y = LeakyRelu<alpha = 0.5>(x)"), rule(**swap))[1].changes
    assert run(model("y = LeakyRelu<alpha = 0.01>(x)"), rule(**swap))[1].changes
    assert run(model("y = LeakyRelu(x)"), rule(**swap))[1].changes


def test_attributes_are_captured_and_filled_in() -> None:
    swap = {
        "before": "(x) => (y) { y = LeakyRelu<alpha: float = @a>(x) }",
        "after": "(x) => (y) { y = Elu<alpha: float = @a>(x) }",
        "attributes": ["a"],
    }
    proto, _ = run(model("y = LeakyRelu<alpha = 0.5>(x)"), rule(**swap))
    assert proto.graph.node[0].op_type == "Elu" and proto.graph.node[0].attribute[0].f == 0.5


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"x": {"rank": 4}}, "rank 2"),
        ({"x": {"rank": [3, 4]}}, "rank 2"),
        ({"x": {"dtype": "float16"}}, "is float, the rule takes float16"),
        ({"x": {"const": True}}, "not constant"),
        ({"x": {"static": False}}, "fully known"),
        ({"a": {"in": [0.25]}}, "attribute 'a' is 0.5"),
    ],
)
def test_where(where: dict, reason: str) -> None:
    swap = {
        "before": "(x) => (y) { y = LeakyRelu<alpha: float = @a>(x) }",
        "after": "(x) => (y) { y = Elu<alpha: float = @a>(x) }",
        "attributes": ["a"],
    }
    _, outcome = run(model("y = LeakyRelu<alpha = 0.5>(x)"), rule(**swap, where=where))
    assert not outcome.changes and reason in outcome.skipped[0].reason
    _, outcome = run(model("y = LeakyRelu<alpha = 0.5>(x)"), rule(**swap, where={"x": {"rank": 2, "dtype": ["float"]}}))
    assert outcome.changes


def test_opset_range() -> None:
    swap = {"before": "(x) => (y) { y = Abs(x) }", "after": "(x) => (y) { y = Relu(x) }"}
    assert not run(model("y = Abs(x)"), rule(**swap, opset=[7, 19]))[1].changes
    assert run(model("y = Abs(x)"), rule(**swap, opset=[20, None]))[1].changes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rules: [identity\n", ":2:1: not valid YAML"),
        ("- a\n- b\n", ":1:1: expected a mapping"),
        ("rules: ['*']\ntarge: trt-8.2\n", ":2:1: unknown key 'targe'; did you mean 'target'?"),
        ("rules: ['*']\nallow: anything\n", ":2:1: 'anything' is not one of exact, close, lossy"),
        ("rules: ['*']\nrequire: [structure, parsing]\n", ":2:22: 'parsing' is not one of"),
        ("rules: [identiti]\n", "no rule 'identiti'; did you mean 'identity'?"),
        ("rules: ['nothing-like-it-*']\n", "no rule 'nothing-like-it-*'"),
        ("rules: [{id: identity, options: {speed: 3}}]\n", "rule 'identity' has no option 'speed'"),
        ("rules: [{id: mine, before: '(x) => (y) { y = Abs(x }', after: '(x) => (y) { y = Relu(x) }'}]\n", "not ONNX text"),
        ("rules: [{id: mine, before: '(x) => (y) { y = Abs(x) }', after: '(z) => (y) { y = Relu(z) }'}]\n", "same inputs"),
        ("rules: [{id: mine, before: '(x) => (y) { y = Abs(x) }', after: '(x) => (y) { y = Relu(x) }', where: {z: {rank: 2}}}]\n",
         "'z' is neither an input nor an attribute"),
        ("before: '(x) => (y) { y = Abs(x) }'\nafter: '(x) => (y) { y = Relu(x) }'\n", "is a single rule"),
        ("target: trt-8.2\n", "'rules' is a required property"),
    ],
)  # fmt: skip
def test_mistakes_are_told_at_their_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(text)
    with pytest.raises(RuleError) as caught:
        catalog.load_set(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_selecting_rules(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("""
target: trt-8.2
allow: exact
rules:
  - "*"
  - "!identity"
  - id: my-abs
    before: "(x) => (y) { y = Abs(x) }"
    after: "(x) => (y) { y = Relu(x) }"
    when: always
""")
    chosen = catalog.load_set(path)
    ids = [r.id for r in chosen.rules]
    assert "identity" not in ids and ids[-1] == "my-abs" and len(ids) == len(
        catalog.without_plugins(catalog.load_folder(catalog.shipped()).values())
    )
    assert chosen.allow is Safety.EXACT and chosen.target == "trt-8.2"
    proto, _ = run(model("y = Abs(x)"), *chosen.rules[-1:])
    assert proto.graph.node[0].op_type == "Relu"


@pytest.mark.parametrize("name", catalog.shipped_sets())
def test_shipped_rule_files_load(name: str) -> None:
    assert catalog.load_set(name).rules


def test_unknown_rule_file_names_the_shipped_ones() -> None:
    with pytest.raises(RuleError, match="no such rule file"):
        catalog.load_set("nowhere.yml")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("bad-syntax.py", "class X(:\n", "bad-syntax.py:1: SyntaxError"),
        ("bad-import.py", "import os\nimport nowhere_at_all\n", "bad-import.py:2: ModuleNotFoundError"),
        ("no-rule.py", "x = 1\n", "holds 0 rules"),
        ("Bad_Name.py", "from onnxfix.rule import Rule\nclass A(Rule):\n  ops = ('Abs',)\n", "kebab-case"),
        ("no-ops.py", "from onnxfix.rule import Rule\nclass A(Rule):\n  pass\n", "names no `ops`"),
        ("no-page.py", "from onnxfix.rule import Rule\nclass A(Rule):\n  ops = ('Abs',)\n", "needs its page no-page.md"),
    ],
)
def test_rules_that_do_not_load_are_errors(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RuleError, match=says):
        catalog.load_folder(tmp_path)


def test_onnx_text_round_trip() -> None:
    function = yamlrule.parse_function("(x) => (y) { y = Abs(x) }", [], 18, "here")
    assert isinstance(function, onnx.FunctionProto)
