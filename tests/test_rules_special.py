"""What a grade promises about hard inputs: zeros, ties, denormal numbers, whole ranges of integers, infinities, NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxfix import catalog, page, ruletest
from onnxfix.backends import BackendError, hard
from onnxfix.report import Safety

HEAD = '<ir_version: 8, opset_import: ["": 13]>\ng (float[64] x) => (float[64] y) '
RULE = """from onnxfix.rule import Context, Edit, Node, Rule


class Planted(Rule):
    ops = ("LeakyRelu",)
    when = "always"

    def match(self, node: Node, ctx: Context) -> bool:
        return True

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, {made})
"""
PAGE = """# planted

LeakyRelu of slope 1 is written otherwise.

{section}## Cases

### One

```onnx before
<ir_version: 8, opset_import: ["": 13]>
g (float[8, 8] x) => (float[8, 8] y) {{ y = LeakyRelu<alpha = 1.0>(x) }}
```

```onnx after parser=any
<ir_version: 8, opset_import: ["": 13]>
g (float[8, 8] x) => (float[8, 8] y) <float k> {{ {after} }}
```
"""


def outcomes(before: str, after: str, safety: Safety = Safety.EXACT) -> dict[str, hard.Outcome]:
    models = (onnx.parser.parse_model(HEAD + text).SerializeToString() for text in (before, after))
    return {o.inputs: o for o in hard.outcomes(*models, {"x": np.zeros(64, np.float32)}, safety)}


def differing(before: str, after: str, safety: Safety = Safety.EXACT) -> set[str]:
    return {name for name, o in outcomes(before, after, safety).items() if o.differs}


def test_the_same_is_the_same_on_all() -> None:
    found = outcomes("{ y = Relu(x) }", "{ a = Relu(x) y = Relu(a) }")
    assert len(found) == 8 and not any(o.how for o in found.values())


def test_a_bit_less_is_not_exact_and_is_close() -> None:
    halves = "<float h = {0.3333333}, float k = {3}> "
    before, after = "<float h = {1}> { y = Mul(x, h) }", halves + "{ a = Mul(x, h) y = Mul(a, k) }"
    assert {"noise", "wide noise"} <= differing(before, after)
    assert not differing(before, after, Safety.CLOSE) - {"infinities", "infinities and NaN"}


def test_the_sign_of_zero_counts_where_exact_is_promised() -> None:
    before, after = "<float z = {0}> { y = Add(x, z) }", "<float o = {1}> { y = Mul(x, o) }"
    found = outcomes(before, after)["edge values"]
    assert found.differs and found.special and "another sign" in found.how
    assert not differing(before, after, Safety.CLOSE)


def test_infinities_are_told_from_numbers() -> None:
    before, after = "{ y = Identity(x) }", "<float z = {0}> { a = Mul(x, z) y = Add(x, a) }"
    assert differing(before, after, Safety.CLOSE) == {"infinities", "infinities and NaN"}
    assert all(outcomes(before, after)[n].special for n in ("infinities", "infinities and NaN"))


def test_where_onnx_runtime_departs_from_the_standard_the_standard_decides() -> None:
    """Its ArgMax passes over NaN unless it comes first; the standard's reference takes the first NaN for the largest."""
    graph = '<ir_version: 8, opset_import: ["": 13]>\ng (float[64] x) => (int64[1] y) '
    texts = (
        "{ y = ArgMax<axis = 0, select_last_index = 1>(x) }",
        "<int64[1] s = {-1}, int64[1] e = {-65}, int64[1] a = {0}, int64[1] t = {63}>"
        " { r = Slice(x, s, e, a, s) i = ArgMax<axis = 0>(r) y = Sub(t, i) }",
    )
    models = [onnx.parser.parse_model(graph + text).SerializeToString() for text in texts]
    found = {o.inputs: o for o in hard.outcomes(*models, {"x": np.zeros(64, np.float32)}, Safety.EXACT)}
    assert found["NaN"].how and found["NaN"].defined_alike
    assert not any(o.differs for o in found.values())


def test_an_overflow_is_told_from_ordinary_numbers() -> None:
    wide = "{ d = Cast<to = 11>(x) e = Exp(d) l = Log(e) y = Cast<to = 1>(l) }"
    found = outcomes(wide, "{ e = Exp(x) y = Log(e) }", Safety.CLOSE)
    assert not found["noise"].differs
    assert found["wide noise"].differs and found["wide noise"].special


def test_numbers_drawn_anew_on_every_run_are_no_difference() -> None:
    drawn = "{ r = RandomUniformLike(x) z = Identity(x) y = Sub(r, z) }"
    assert "noise" not in outcomes(drawn, "{ r = RandomUniformLike<seed = 3.0>(x) y = Sub(r, x) }")


def test_what_onnx_runtime_lacks_the_reference_evaluator_runs() -> None:
    texts = ("{ y = BitCast<to = 1>(x) }", "{ y = Identity(x) }", "{ y = Neg(x) }")
    head = HEAD.replace("13", "26").replace("ir_version: 8", "ir_version: 13")
    one, same, other = (onnx.parser.parse_model(head + text).SerializeToString() for text in texts)
    sample = {"x": np.zeros(64, np.float32)}
    alike = list(hard.outcomes(one, same, sample, Safety.EXACT, hard.Evaluated))
    assert len(alike) == 8 and not any(o.differs for o in alike)
    assert any(o.differs for o in hard.outcomes(one, other, sample, Safety.EXACT, hard.Evaluated))
    with pytest.raises(BackendError):
        hard.Evaluated(one).run({})


def test_inputs_keep_shape_and_dtype_and_repeat() -> None:
    given = {"x": np.ones((2, 3), np.float16), "i": np.ones(4, np.uint32), "b": np.array([True]), "e": np.ones((0, 2))}
    for (name, feeds), (_, again) in zip(hard.harder(given), hard.harder(given), strict=True):
        for key, value in given.items():
            assert (feeds[key].shape, feeds[key].dtype) == (value.shape, value.dtype), name
            assert np.array_equal(feeds[key], again[key], equal_nan=value.dtype.kind == "f")
        assert name not in ("NaN", "infinities and NaN") or not np.isfinite(feeds["x"]).all()


def test_uint64_goes_into_int64_bit_for_bit() -> None:
    text = '<ir_version: 8, opset_import: ["": 13]>\ng ({} [2] x) => ({} [2] y) {{ y = Identity(x) }}'
    given = {"x": np.array([7, 1 << 63], np.uint64)}
    loaded = [hard.Loaded(onnx.parser.parse_model(text.format(d, d)).SerializeToString()) for d in ("uint64", "int64")]
    was, got = (model.run(given)[0] for model in loaded)
    assert hard.same(was, got, Safety.EXACT) == "" and got.tolist() == [7, -(1 << 63)]


INFINITE = (
    'edit.add("Add", [node.input(0), edit.add("Mul", [node.input(0), edit.const(0.0)])])',
    "a = Mul(x, k) y = Add(x, a)",
)
ROUNDED = ('edit.add("Mul", [node.input(0), edit.const(1.0000001)])', "y = Mul(x, k)")


@pytest.mark.parametrize(
    ("planted", "section", "problems"),
    [
        (INFINITE, "", {"infinities", "infinities and NaN"}),
        (INFINITE, f"## {page.SPECIAL}\n\nInfinity comes out as NaN.\n\n", set()),
        (
            ROUNDED,
            f"## {page.SPECIAL}\n\nThey are the same.\n\n",
            {"noise", "wide noise", "edge values", "whole ranges"},
        ),
    ],
)
def test_a_page_must_say_what_becomes_of_them(
    planted: tuple[str, str], section: str, problems: set[str], tmp_path: Path
) -> None:
    made, after = planted
    (tmp_path / "planted.py").write_text(RULE.format(made=made), encoding="utf-8")
    (tmp_path / "planted.md").write_text(PAGE.format(section=section, after=after), encoding="utf-8")
    rules = catalog.load_folder(tmp_path)
    found = [p for r in ruletest.run_page(rules["planted"], rules) for p in r.problems]
    assert {p.removeprefix("numbers differ on ").split(":")[0] for p in found} == problems
