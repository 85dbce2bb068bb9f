"""The support matrix: its files, its predicates on both sides, its verdicts, and how it fares against the parser."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from onnx import TensorProto, helper

from onnxfix import backends, limits, matrix, shapes
from onnxfix.errors import TargetError
from onnxfix.graph import Graph, Node
from onnxfix.model import Model
from onnxfix.report import Effect

DATA = Path(matrix.__file__).parent / "data"
FILES = sorted((DATA / "matrix").glob("*.json"))
RELEASES = [path.stem for path in FILES]


def graph_of(text: str, opset: int = 17, extra: str = "") -> Graph:
    """`text` is the graph's signature and body in ONNX's textual syntax; `extra` are functions."""
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.acme" : 1, "com.microsoft" : 1]>'
    return shapes.index(Model(onnx.parser.parse_model(f"{head} g {text} {extra}")))


def last(graph: Graph) -> Node:
    return list(graph.nodes())[-1]


def found(graph: Graph, target: str, **options: bool) -> list[tuple[str, Effect, str]]:
    goal = matrix.target(target)
    return [(n.op, v.effect, v.limit) for n, v in matrix.judge_graph(graph, goal, **options)]


# ---- the files ----


@pytest.fixture(scope="module")
def schema() -> Any:
    text = json.loads((DATA / "matrix.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(text)
    return jsonschema.Draft202012Validator(text)


def all_limits(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from data["shared"].values()
    for row in data["ops"].values():
        yield from (limit for limit in row.get("limits", ()) if isinstance(limit, dict))


@pytest.mark.parametrize("path", FILES, ids=RELEASES)
def test_file(path: Path, schema: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    errors = [f"{list(e.absolute_path)}: {e.message[:200]}" for e in schema.iter_errors(data)]
    assert not errors
    assert path.stem == (data["release"] if data["product"] == "TensorRT-RTX" else f"trt-{data['release']}")
    used = [limit for row in data["ops"].values() for limit in row.get("limits", ()) if isinstance(limit, str)]
    assert set(used) == set(data["shared"])
    for op, row in data["ops"].items():
        own = [data["shared"][x] if isinstance(x, str) else x for x in row.get("limits", ())]
        ids = [limit["id"] for limit in own]
        assert len(ids) == len(set(ids)), f"{op} has two limits of one id: {ids}"
    assert not set(data["ops"]) & set(data["unsupported"])
    assert path.stat().st_size < 1 << 20


def test_every_release_is_there_and_small() -> None:
    names = json.loads((DATA / "targets.json").read_text(encoding="utf-8"))["releases"]
    assert sorted(RELEASES) == sorted([*(f"trt-{n}" for n in names), "rtx-1.7"])
    assert sum(path.stat().st_size for path in FILES) < 2 << 20


@pytest.mark.parametrize("release", RELEASES)
def test_every_standard_operator_is_answered(release: str) -> None:
    """In a row, known to be missing, or said to be unknown: none passes as fine for want of a row."""
    target = matrix.target(release)
    unknown = []
    for standard in onnx.defs.get_all_schemas():
        op, domain = standard.name, standard.domain
        if target.supports(op, domain):
            assert not target.refuses(op, domain)
            continue
        model = helper.make_model(
            helper.make_graph([helper.make_node(op, [], ["y"], domain=domain)], "g", [], []),
            opset_imports=[helper.make_opsetid(domain, standard.since_version)],
        )
        verdict = matrix.judge(last(shapes.index(Model(model))), target)
        assert verdict is not None and verdict.effect in (Effect.REFUSED, Effect.PLUGIN, Effect.UNKNOWN)
        if verdict.effect is Effect.UNKNOWN:
            unknown.append(op)
    # What onnx 1.23 has is covered; a newer onnx may bring operators that the files do not know yet.
    assert not unknown or tuple(int(p) for p in onnx.__version__.split(".")[:2]) > (1, 23)


# ---- predicates: (predicate, graph it takes, graph it does not take), each asked of the last node ----

X = "(float[2,3,4,4] x) => (y)"
RESIZE = '(float[1,3,8,8] x) => (y) <float[4] s = {%s}> { y = Resize<mode="%s">(x, , s) }'
BRANCHES_OF = """(float[3] x%s) => (y) %s
    { y = If(c) <then_branch = t () => (%s) { %s }, else_branch = e () => (%s) { %s }> }"""
PREDICATES: list[tuple[dict[str, Any], str, str]] = [
    (
        {"attr": "mode", "in": ["nearest", "linear"]},
        RESIZE % ("1,1,2,2", "linear"),
        RESIZE % ("1,1,2,2", "cubic"),
    ),
    ({"attr": "to", "not_in": [22]}, X + "{ y = Cast<to=1>(x) }", X + "{ y = Cast<to=22>(x) }"),
    (
        {"attr": "dilations", "each_in": [1]},
        X + "{ y = MaxPool<kernel_shape=[2,2]>(x) }",
        X + "{ y = MaxPool<kernel_shape=[2,2], dilations=[1,2]>(x) }",
    ),
    ({"attr": "k", "below": 10}, X + "{ y, i = TopK<k=9>(x) }", X + "{ y, i = TopK<k=10>(x) }"),
    (
        {"attr": "to", "dtype_in": ["FLOAT", "INT32"]},
        X + "{ y = Cast<to=6>(x) }",
        X + "{ y = Cast<to=5>(x) }",
    ),
    (
        {"attr": "equation", "chars": "abij->, "},
        X + '{ y = Einsum<equation="ab -> ba">(x) }',
        X + '{ y = Einsum<equation="Ab -> bA">(x) }',
    ),
    (
        {"attr": "equation", "einsum_without": ["ellipsis", "repeated"]},
        X + '{ y = Einsum<equation="ab,bc->ac">(x, x) }',
        X + '{ y = Einsum<equation="ii->i">(x) }',
    ),
    (
        {"attr": "equation", "einsum_without": ["ellipsis"]},
        X + '{ y = Einsum<equation="ii->i">(x) }',
        X + '{ y = Einsum<equation="...i->...">(x) }',
    ),
    (
        {"attr": "pads", "pads": "symmetric"},
        X + "{ y = MaxPool<kernel_shape=[2,2], pads=[1,0,1,0]>(x) }",
        X + "{ y = MaxPool<kernel_shape=[2,2], pads=[1,0,0,1]>(x) }",
    ),
    (
        {"attr": "pads", "pads": "nonnegative-begin"},
        X + "{ y = MaxPool<kernel_shape=[2,2], pads=[0,0,-1,0]>(x) }",
        X + "{ y = MaxPool<kernel_shape=[2,2], pads=[-1,0,0,0]>(x) }",
    ),
    (
        {"attr": "pads", "pads": "end-at-most-one-more"},
        X + "{ y = MaxPool<kernel_shape=[2,2], pads=[0,0,1,1]>(x) }",
        X + "{ y = MaxPool<kernel_shape=[2,2], pads=[0,0,2,0]>(x) }",
    ),
    (
        {"attr": "output_padding", "index": 0, "in": [0]},
        X + "{ y = ConvTranspose<output_padding=[0,1]>(x, x) }",
        X + "{ y = ConvTranspose<output_padding=[1,0]>(x, x) }",
    ),
    (
        {"attr": ["activations"], "halves_equal": True},
        X + '{ y = GRU<activations=["Relu","Tanh","Relu","Tanh"]>(x, x, x) }',
        X + '{ y = GRU<activations=["Relu","Tanh","Tanh","Relu"]>(x, x, x) }',
    ),
    (
        {"attr": ["start", "end"], "absent": True},
        X + "{ y = Shape(x) }",
        X + "{ y = Shape<end=2>(x) }",
    ),
    ({"attr": "axis", "present": True}, X + "{ y = Softmax<axis=1>(x) }", X + "{ y = Softmax(x) }"),
    ({"input": 0, "dtype_in": ["FLOAT"]}, X + "{ y = Abs(x) }", "(int32[2] x) => (y) { y = Abs(x) }"),
    (
        {"input": "any", "dtype_not_in": ["BOOL"]},
        X + "{ y = Add(x, x) }",
        "(bool[2] x) => (y) { y = Add(x, x) }",
    ),
    ({"input": [0, 1], "rank_in": [4]}, X + "{ y = Add(x, x) }", "(float[2] x) => (y) { y = Add(x, x) }"),
    ({"input": 0, "rank_min": 3}, X + "{ y = Relu(x) }", "(float[2,2] x) => (y) { y = Relu(x) }"),
    ({"input": 0, "rank_max": 4}, X + "{ y = Relu(x) }", "(float[1,1,1,1,1] x) => (y) { y = Relu(x) }"),
    (
        {"input": 1, "constant": "initializer"},
        "(float[2] x) => (y) <int64[1] a = {0}> { y = Unsqueeze(x, a) }",
        "(float[2] x) => (y) <int64[1] a = {0}> { b = Identity(a) y = Unsqueeze(x, b) }",
    ),
    (
        {"input": 1, "constant": "cast"},
        "(float[2] x) => (y) <int32[1] a = {0}> { b = Cast<to=7>(a) y = Unsqueeze(x, b) }",
        "(float[2] x) => (y) <int64[1] a = {0}> { b = Add(a, a) y = Unsqueeze(x, b) }",
    ),
    (
        {"input": 1, "constant": "foldable"},
        "(float[2] x) => (y) { s = Shape(x) b = Sub(s, s) y = Unsqueeze(x, b) }",
        "(float[N] x) => (y) { s = Shape(x) b = Sub(s, s) y = Unsqueeze(x, b) }",
    ),
    (
        {"input": 1, "constant": "shape"},
        "(float[N] x, int64[1] n) => (y) { s = Shape(x) b = Sub(s, n) y = Unsqueeze(x, b) }",
        "(float[N] x, float[1] n) => (y) { c = Cast<to=7>(n) y = Unsqueeze(x, c) }",
    ),
    (
        {"input": 0, "constant": "never"},
        X + "{ y = RandomNormalLike(x) }",
        "(float x) => (y) <float[2] c = {1, 2}> { y = RandomNormalLike(c) }",
    ),
    ({"input": 2, "present": True}, X + "{ y = Clip(x, x, x) }", X + "{ y = Clip(x, x) }"),
    ({"input": [1, 2], "absent": True}, X + "{ y = Clip(x) }", X + "{ y = Clip(x, , x) }"),
    (
        {"input": 1, "values_in": [0]},
        "(float[2] x) => (y) <float[2] c = {0, 0}> { y = Add(x, c) }",
        "(float[2] x) => (y) <float[2] c = {0, 1}> { y = Add(x, c) }",
    ),
    (
        {"input": 1, "values_above": 0},
        "(float[2] x) => (y) <float[2] c = {1, 2}> { y = Add(x, c) }",
        "(float[2] x) => (y) <float[2] c = {0, 1}> { y = Add(x, c) }",
    ),
    (
        {"input": 1, "values_below": 3840},
        "(float[9000] x) => (y) <int64[1] k = {3839}> { y, i = TopK(x, k) }",
        "(float[9000] x) => (y) <int64[1] k = {3840}> { y, i = TopK(x, k) }",
    ),
    ({"input": 0, "elements": "even"}, X + "{ y = Relu(x) }", "(float[3] x) => (y) { y = Relu(x) }"),
    ({"input": 0, "static": True}, X + "{ y = Relu(x) }", "(float[N] x) => (y) { y = Relu(x) }"),
    (
        {"input": 0, "static_axis": "axis"},
        "(float[N,2] x) => (y) { y = Hardmax<axis=1>(x) }",
        "(float[N,2] x) => (y) { y = Hardmax<axis=0>(x) }",
    ),
    (
        {"input": [0, 1], "same_dtype": True},
        X + "{ y = Add(x, x) }",
        "(float[2] x, float16[2] z) => (y) { y = GridSample(x, z) }",
    ),
    (
        {"input": [0, 1], "same_shape": True},
        X + "{ y = Add(x, x) }",
        "(float[2] x, float[1] z) => (y) { y = Add(x, z) }",
    ),
    (
        {"output": 0, "dtype_in": ["INT8"]},
        "(float[2] x) => (y) <float s = {1}, int8 z = {0}> { y = QuantizeLinear(x, s, z) }",
        "(float[2] x) => (y) <float s = {1}, uint8 z = {0}> { y = QuantizeLinear(x, s, z) }",
    ),
    (
        {"output": 0, "dtype_not_in": ["UINT8"]},
        "(int64[1] x) => (y) { y = ConstantOfShape(x) }",
        "(int64[1] x) => (y) { y = ConstantOfShape<value = uint8[1] {1}>(x) }",
    ),
    (
        {"outputs_max": 1},
        X + "{ y = MaxPool<kernel_shape=[2,2]>(x) }",
        X + "{ y, i = MaxPool<kernel_shape=[2,2]>(x) }",
    ),
    (
        {"input": 0, "made_by": ["QuantizeLinear"]},
        "(float[2] x) => (y) <float s = {1}, int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        "(int8[2] x) => (y) <float s = {1}, int8 z = {0}> { y = DequantizeLinear(x, s, z) }",
    ),
    (
        {"last_axis_like": [1, 0, -2]},
        "(float[2,3,4] x, float[2,3] m) => (y) { y = Add(x, m) }",
        "(float[2,3,4] x, float[2,4] m) => (y) { y = Add(x, m) }",
    ),
    (
        {"body_reads": 1},
        "(int64 m, bool c, float[2] x) => (y) { y = Loop(m, c, x) <body = b (int64 i, bool p, float[2] v) => (bool q, float[2] w) { q = Identity(p) w = Add(v, v) }> }",
        "(int64 m, bool c, float[2] x) => (y) { y = Loop(m, c, x) <body = b (int64 i, bool p, float[2] v) => (bool q, float[2] w) { q = Constant<value = bool {1}>() w = Add(v, v) }> }",
    ),
    (
        {"scan_outputs": True},
        "(int64 m, bool c, float[2] x) => (y, z) { y, z = Loop(m, c, x) <body = b (int64 i, bool p, float[2] v) => (bool q, float[2] w, float[2] s) { q = Identity(p) w = Add(v, v) s = Identity(v) }> }",
        "(int64 m, bool c, float[2] x) => (y) { y = Loop(m, c, x) <body = b (int64 i, bool p, float[2] v) => (bool q, float[2] w) { q = Identity(p) w = Add(v, v) }> }",
    ),
    (
        {"input": 0, "constant": "runtime"},
        BRANCHES_OF % (", bool c", "", "float[M] p", "p = Relu(x)", "float[N] q", "q = Neg(x)"),
        BRANCHES_OF % ("", "<bool c = {1}>", "float[M] p", "p = Relu(x)", "float[N] q", "q = Neg(x)"),
    ),
    (
        {"branches": "same_rank"},
        BRANCHES_OF % (", bool c", "", "float[M] p", "p = Relu(x)", "float[N] q", "q = Concat<axis=0>(x, x)"),
        BRANCHES_OF % (", bool c", "", "float[M] p", "p = Relu(x)", "float q", "q = ReduceMax<keepdims=0>(x)"),
    ),
    (
        {"branches": "same_shape"},
        BRANCHES_OF % (", bool c", "", "float[M] p", "p = Relu(x)", "float[N] q", "q = Neg(x)"),
        BRANCHES_OF % (", bool c", "", "float[M] p", "p = Relu(x)", "float[N] q", "q = Concat<axis=0>(x, x)"),
    ),
    (
        {"input": 1, "whole_steps": True},
        "(float[2] x) => (y) <float[2] c = {1.7, 0.2}> { y = Add(x, c) }",
        "(float[2] x) => (y) <float[2] c = {1.7, 0.3}> { y = Add(x, c) }",
    ),
    ({"inputs_max": 1}, X + "{ y = Clip(x) }", X + "{ y = Clip(x, x) }"),
    (
        {"split": "even"},
        X + "{ y, z = Split<axis=2, num_outputs=2>(x) }",
        X + "{ y, z = Split<axis=1, num_outputs=2>(x) }",
    ),
    (
        {"split": "nonempty"},
        X + "{ y, z = Split<axis=1, num_outputs=2>(x) }",
        "(float[5] x) => (y) { y, z, a, b = Split<axis=0, num_outputs=4>(x) }",
    ),
    ({"scaled_dims": 2}, RESIZE % ("1,1,2,2", "cubic"), RESIZE % ("1,2,2,2", "cubic")),
    (
        {"scaled_dims": 1},
        '(float[1,4,8] x) => (y) <int64[3] s = {1,4,16}> { y = Resize<mode="linear">(x, , , s) }',
        '(float[1,4,8] x) => (y) <int64[3] s = {1,8,16}> { y = Resize<mode="linear">(x, , , s) }',
    ),
    (
        {"padded_dims": 2, "last": True},
        X + " <int64[8] p = {0,0,1,1,0,0,1,1}> { y = Pad(x, p) }",
        X + " <int64[8] p = {0,1,0,0,0,0,0,0}> { y = Pad(x, p) }",
    ),
    (
        {"padded_dims": 2},
        X + " <int64[8] p = {0,1,0,1,0,0,0,0}> { y = Pad(x, p) }",
        X + " <int64[8] p = {0,1,1,1,0,0,0,0}> { y = Pad(x, p) }",
    ),
]
NO_TAKEN_SIDE = {"never", "opset_min", "opset_max"}  # tried below


def kind_of(predicate: dict[str, Any]) -> str:
    return "/".join(predicate)


@pytest.mark.parametrize(("predicate", "taken", "refused"), PREDICATES, ids=[kind_of(p[0]) for p in PREDICATES])
def test_predicate(predicate: dict[str, Any], taken: str, refused: str) -> None:
    opset = 9 if "k=" in taken else 18
    check, facts = limits.check_of(predicate), limits.Facts()
    assert check(last(graph_of(taken, opset)), facts) == (True, "")
    assert check(last(graph_of(refused, opset)), facts)[0] is False


def test_predicate_never_and_opset() -> None:
    node = last(graph_of(X + "{ y = Relu(x) }", 17))
    assert limits.check_of({"never": True})(node, limits.Facts())[0] is False
    assert limits.check_of({"opset_max": 16})(node, limits.Facts()) == (False, "opset 17")
    assert limits.check_of({"opset_max": 17})(node, limits.Facts())[0] is True
    assert limits.check_of({"opset_min": 18})(node, limits.Facts())[0] is False


def test_predicates_in_use_are_all_tried() -> None:
    used = set()
    for path in FILES:
        for limit in all_limits(json.loads(path.read_text(encoding="utf-8"))):
            used.update(kind_of(p) for p in (limit["need"], *limit.get("when", ())) if p)
    assert used - NO_TAKEN_SIDE == {kind_of(p[0]) for p in PREDICATES}


@pytest.mark.parametrize(
    ("predicate", "text"),
    [
        ({"input": 0, "dtype_in": ["FLOAT"]}, "(x) => (y) { z = com.acme.Op(x) y = Relu(z) }"),
        ({"input": 0, "rank_min": 2}, "(x) => (y) { z = com.acme.Op(x) y = Relu(z) }"),
        ({"input": 0, "static": True}, "(x) => (y) { z = com.acme.Op(x) y = Relu(z) }"),
        ({"input": 1, "values_in": [0]}, "(float[2] x, float[2] c) => (y) { y = Add(x, c) }"),
        ({"scaled_dims": 2}, '(float[1,3,8,8] x, float[4] s) => (y) { y = Resize<mode="cubic">(x, , s) }'),
        ({"padded_dims": 2}, "(float[2,2,2] x, int64[6] p) => (y) { y = Pad(x, p) }"),
        (
            {"input": 0, "constant": "runtime"},
            """(float[N] x, int64[1] n) => (y) { s = Shape(x) b = Equal(s, s) c = Squeeze(b)
                y = If(c) <then_branch = t () => (p) { p = Relu(x) }, else_branch = e () => (q) { q = Neg(x) }> }""",
        ),
        (
            {"branches": "same_rank"},
            BRANCHES_OF % (", bool c", "", "p", "p = com.acme.Op(x)", "q", "q = Neg(x)"),
        ),
        (
            {"branches": "same_shape"},
            """(float[N] x, float[M] z, bool c) => (y)
                { y = If(c) <then_branch = t () => (p) { p = Relu(x) }, else_branch = e () => (q) { q = Neg(z) }> }""",
        ),
        ({"split": "even"}, "(float[N] x) => (y) { y, z = Split<num_outputs=2>(x) }"),
    ],
)
def test_predicate_says_when_it_cannot_know(predicate: dict[str, Any], text: str) -> None:
    assert limits.check_of(predicate)(last(graph_of(text, 18)), limits.Facts()) == (None, "")


def test_external_data_is_not_read() -> None:
    """A zero point in a file that is not even there leaves the question open."""
    graph = graph_of("(float[2] x) => (y) <float s = {1}, int8 z = {0}> { y = QuantizeLinear(x, s, z) }")
    tensor = graph.initializers["z"]
    tensor.ClearField("int32_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere.bin")
    assert found(graph, "trt-8.6") == [("QuantizeLinear", Effect.UNDECIDED, "quantizelinear/zero-point")]


# ---- targets ----


@pytest.mark.parametrize("name", matrix.targets())
def test_target_resolves(name: str) -> None:
    target = matrix.target(name)
    assert target.supports("Relu") and not target.supports("StringConcat") and target.refuses("StringConcat")
    assert target.by in {f"matrix {r}" for r in RELEASES}


@pytest.mark.parametrize(
    ("name", "release", "label"),
    [
        ("jetpack-4.6", "8.0", "JetPack 4.6 (TensorRT 8.0)"),
        ("jetpack-4.6.1", "8.2", "JetPack 4.6.1 (TensorRT 8.2)"),
        ("JetPack-5.1.2", "8.5", "JetPack 5.1.2 (TensorRT 8.5)"),
        ("trt-8.2.1", "8.2", "TensorRT 8.2.1"),
        ("trt-10.3", "10.3", "TensorRT 10.3"),
        ("rtx", "rtx-1.7", "TensorRT-RTX 1.7"),
    ],
)
def test_target_names(name: str, release: str, label: str) -> None:
    target = matrix.target(name)
    assert (target.release, target.label) == (release, label)


def test_boards() -> None:
    nano, orin = matrix.target("jetson-nano"), matrix.target("jetson-orin-nano")
    assert (nano.release, nano.board, nano.facts["compute_capability"]) == ("8.2", "jetson-nano", "5.3")
    assert nano.facts["fp16"] and not nano.facts["int8"] and nano.jetpack.startswith("4.6.")
    assert orin.facts["compute_capability"] == "8.7" and orin.jetpack == "7.2"


def test_targets_agree_with_each_other() -> None:
    data = json.loads((DATA / "targets.json").read_text(encoding="utf-8"))
    for version, pack in data["jetpack"].items():
        assert pack["tensorrt"].startswith(pack["release"]), version
        assert set(pack["boards"]) <= set(data["boards"]), version
    assert {matrix.target(alias).release for alias in data["aliases"]} <= {*data["releases"], "rtx-1.7"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("jetpack-4.61", "jetpack-4.6.1"),
        ("jetson-nanoo", "jetson-nano"),
        ("trt-8.3", "trt-8.2"),
        ("trt-8.x", "trt-8.6"),
        ("zzz", "known are"),
        ("", "known are"),
    ],
)
def test_unknown_target(name: str, hint: str) -> None:
    with pytest.raises(TargetError, match=hint.replace(".", r"\.")) as error:
        matrix.target(name)
    assert "\n" not in str(error.value)


# ---- verdicts ----


def test_resize_through_the_releases() -> None:
    cubic = graph_of(RESIZE % ("1,1,2,2", "cubic"))
    assert found(cubic, "jetson-nano") == [("Resize", Effect.REFUSED, "resize/mode")]
    assert found(cubic, "trt-8.5") == found(cubic, "rtx") == []
    verdict = matrix.judge(last(cubic), matrix.target("jetpack-4.6.1"))
    assert verdict is not None
    assert verdict.reason == "mode may only be nearest or linear (here: mode cubic)"
    assert verdict.evidence.startswith("trt-8.2 resize/mode (code), onnx/onnx-tensorrt@85e79f629f")


def test_what_is_taken_is_none() -> None:
    graph = graph_of(RESIZE % ("1,1,2,2", "linear"))
    assert all(matrix.judge(last(graph), matrix.target(name)) is None for name in ("trt-8.2", "trt-10.3", "rtx"))


def test_the_worst_limit_leads_and_the_others_follow() -> None:
    text = '(float[1,3,8,8] x, float[4] s) => (y) { y = Resize<mode="cubic", antialias=1>(x, , s) }'
    verdict = matrix.judge(last(graph_of(text, 18)), matrix.target("trt-8.2"))
    assert verdict is not None and verdict.effect is Effect.REFUSED
    everything = {v.limit: v.effect for v in (verdict, *verdict.also)}
    assert everything == {
        "resize/mode": Effect.REFUSED,
        "resize/scales": Effect.REFUSED,
        "resize/antialias": Effect.WRONG,
    }


def test_limits_start_at_their_opset() -> None:
    # The scales are input 1 in opset 10 and input 2 from 11 on.
    run_time = "(float[1,3,8,8] x, float[4] s) => (y) { y = Resize(x, s) }"
    assert found(graph_of(run_time, 10), "trt-8.2") == [("Resize", Effect.REFUSED, "resize/scales-opset-10")]
    axes = "(float[2,2] x) => (y) <int64[1] a = {0}> { y = ReduceMean(x, a) }"
    assert found(graph_of(axes, 18), "trt-8.2") == [("ReduceMean", Effect.WRONG, "reducemean/axes-input")]
    assert found(graph_of(axes, 18), "trt-10.3") == []


def test_what_the_matrix_does_not_know_is_unknown() -> None:
    assert found(graph_of(X + "{ y = NoSuchOp(x) }"), "trt-8.2") == [("NoSuchOp", Effect.UNKNOWN, "no-row")]


def test_other_domains() -> None:
    assert found(graph_of(X + "{ y = com.acme.Thing(x) }"), "trt-8.2") == [("Thing", Effect.REFUSED, "no-importer")]
    nms = X + "{ y = com.acme.EfficientNMS_TRT(x, x) }"
    assert found(graph_of(nms), "trt-8.2") == [("EfficientNMS_TRT", Effect.PLUGIN, "plugin")]
    assert found(graph_of(nms), "rtx") == [("EfficientNMS_TRT", Effect.REFUSED, "no-importer")]
    # The parser takes it for ONNX's operator of that name: nobody here knows whether it is.
    assert found(graph_of(X + "{ y = com.microsoft.Gelu(x) }", 20), "rtx") == [("Gelu", Effect.UNDECIDED, "domain")]
    assert found(graph_of(X + "{ y = com.microsoft.Gelu(x) }", 20), "trt-8.2") == [
        ("Gelu", Effect.REFUSED, "no-importer")
    ]


FUNCTION = """<domain: "com.acme", opset_import: ["" : 17]> Double (a) => (b) { c = Add(a, a) b = %s(c) }"""


def test_local_functions() -> None:
    called = graph_of(X + "{ y = com.acme.Double(x) }", extra=FUNCTION % "Relu")
    assert found(called, "trt-8.2") == [("Double", Effect.REFUSED, "functions")]
    assert found(called, "trt-9.0") == found(called, "rtx") == []
    bad = FUNCTION % "Det"
    refused = [("Double", Effect.REFUSED, "functions")]  # its body is never met
    assert found(graph_of(X + "{ y = com.acme.Double(x) }", extra=bad), "trt-8.2") == refused
    assert found(graph_of(X + "{ y = com.acme.Double(x) }", extra=bad), "rtx") == [
        ("Det", Effect.REFUSED, "no-importer")
    ]
    assert found(graph_of(X + "{ y = Relu(x) }", extra=bad), "rtx") == []  # nobody calls it


def test_dtypes() -> None:
    # INT64 and DOUBLE are narrowed, never refused; neither is integer shape arithmetic.
    shape = """(float[N,2] x, double[2] d) => (y) <int64[1] one = {1}, int64[1] zero = {0}> {
        s = Shape(x) n = Gather(s, zero) m = Mul(n, one) t = Concat<axis=0>(m, one, one) z = Add(d, d)
        u = Cast<to=1>(z) v = Add(u, x) y = Reshape(v, t) }"""
    for name in ("trt-7.1", "trt-8.2", "trt-10.3", "rtx"):
        assert found(graph_of(shape), name) == []
    int16 = graph_of("(int16[2] x) => (y) { y = Cast<to=1>(x) }")
    assert found(int16, "trt-8.2") == found(int16, "rtx") == [("Cast", Effect.REFUSED, "dtype")]
    assert not matrix.target("rtx").takes_dtype(TensorProto.INT16)
    assert matrix.target("rtx").takes_dtype(TensorProto.UINT8)
    sequence = graph_of("(float[2] x) => (y) { s = SequenceConstruct(x) y = Identity(s) }")
    assert ("Identity", Effect.REFUSED, "no-tensor") in found(sequence, "rtx")


def test_uint8_belongs_to_the_border() -> None:
    border = graph_of("(uint8[2] x) => (uint8[2] y) { f = Cast<to=1>(x) g = Add(f, f) y = Cast<to=2>(g) }")
    inside = graph_of("(float[2] x) => (y) { u = Cast<to=2>(x) y = Cast<to=1>(u) }")
    moved = graph_of("(uint8[2,2] x) => (uint8[2,2] y) { y = Transpose(x) }")
    assert found(border, "trt-10.3") == found(border, "rtx") == []
    assert found(inside, "rtx") == [("Cast", Effect.REFUSED, "dtype-inside")]
    assert found(moved, "rtx") == [("Transpose", Effect.REFUSED, "dtype-inside")]
    assert found(border, "trt-8.2") == [("Cast", Effect.REFUSED, "dtype")] * 2  # before 8.5 nowhere


def test_rank() -> None:
    nine = "(float[1,1,1,1,1,1,1,1,2] x) => (y) { y = Relu(x) }"
    assert found(graph_of(nine), "trt-10.3") == [("Relu", Effect.REFUSED, "rank")]


def test_open_questions_are_said() -> None:
    text = "(float[2] x, float s, int8 z) => (y) { y = QuantizeLinear(x, s, z) }"
    assert found(graph_of(text), "rtx") == [("QuantizeLinear", Effect.BUILD_FAILS, "quantizelinear/zero-point-constant")]
    unknown = "(x, int64[1] i) => (y) { z = com.acme.Relu(x) y = Gather(z, i) }"
    assert found(graph_of(unknown), "rtx") == [("Relu", Effect.UNDECIDED, "domain")]


# ---- what the parser meets ----

BRANCHES = """(float[2,2] x%s) => (y) %s {
    y = If(c) <then_branch = t () => (p) { p = Relu(x) }, else_branch = e () => (q) { d = Det(x) q = Add(x, d) }> }"""


def test_a_branch_that_cannot_run_is_not_met() -> None:
    det = ("Det", Effect.REFUSED, "no-importer")
    assert found(graph_of(BRANCHES % ("", "<bool c = {1}>")), "trt-8.2") == []
    assert found(graph_of(BRANCHES % ("", "<bool c = {0}>")), "trt-8.2") == [det]
    assert found(graph_of(BRANCHES % (", bool c", "")), "trt-8.2") == [det]


def test_what_nothing_uses_or_what_folds_is_met_and_marked() -> None:
    unused = graph_of("(float[2,2] x) => (y) { y = Relu(x) d = Det(x) e = Abs(d) }")
    folds = graph_of("(float[2,2] x) => (y) <float[2,2] c = {1,2,3,4}> { i = Neg(c) d = Det(i) y = Add(x, d) }")
    for graph, moot in ((unused, "unused"), (folds, "constant")):
        [(node, verdict)] = matrix.judge_graph(graph, matrix.target("rtx"))
        assert (node.op, verdict.effect, verdict.moot) == ("Det", Effect.REFUSED, moot)
        assert verdict.reason.endswith("is enough")
        assert found(graph, "rtx", live_only=True) == []
    used = graph_of("(float[2,2] x) => (y) { y = Det(x) }")
    assert found(used, "rtx", live_only=True) == [("Det", Effect.REFUSED, "no-importer")]


def test_what_folds_is_found_alike_from_below_and_from_above() -> None:
    text = """(float[2,2] x, float[N] f, bool c) => (y) <float[2,2] w = {1,2,3,4}>
        { s = Shape(x) d = Shape(f) z = NonZero(w) n = Shape(z) m = Neg(w) a = Add(m, w) p = Add(s, d) e = Mul(x, w)
        y = If(c) <then_branch = t () => (p1) { k = Constant<value = float {1}>() q = Add(k, m) p1 = Mul(q, x) },
                   else_branch = u () => (r) { v = Abs(a) r = Relu(v) }> }"""
    graph, facts = graph_of(text), limits.Facts()
    nodes = [node for scope in graph.walk() for node in scope.nodes()]
    fold = {n.output(0) for n in nodes if facts.folds(n)}
    assert fold == {"z", "n", "m", "a", "q", "v", "r"}
    for node in nodes:
        names = [name for name in (*node.inputs, *node.captured) if name]
        asked = limits.Facts()
        assert (node.output(0) in fold) == (names != [] and all(asked.constant(node.graph, n, "foldable") for n in names))


def test_a_value_a_body_captures_is_used() -> None:
    text = """(float[2,2] x, bool c) => (y) { d = Det(x)
        y = If(c) <then_branch = t () => (p) { p = Add(x, d) }, else_branch = e () => (q) { q = Relu(x) }> }"""
    assert found(graph_of(text), "trt-8.2", live_only=True) == [("Det", Effect.REFUSED, "no-importer")]


def chain(length: int) -> Graph:
    nodes, value = [], "x"
    for i in range(length):
        inputs = {0: [value], 1: [value, "x"], 2: [value, "", "s"], 3: [value, "p"]}[i % 4]
        op = ("Sigmoid", "Add", "Resize", "Pad")[i % 4]
        nodes.append(helper.make_node(op, inputs, [f"v{i}"]))
        value = f"v{i}"
    tensors = [
        helper.make_tensor("s", TensorProto.FLOAT, [4], [1] * 4),
        helper.make_tensor("p", TensorProto.INT64, [8], [0] * 8),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in ("x", value)]
    model = helper.make_model(
        helper.make_graph(nodes, "chain", info[:1], info[1:], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    graph = shapes.index(Model(model))
    assert graph.dtype(value) == TensorProto.FLOAT  # types are inferred here, once
    return graph


def test_judging_is_linear_and_quick() -> None:
    def seconds(graph: Graph) -> float:
        start = time.process_time()  # of this process alone: other tests run beside it
        assert found(graph, "trt-8.2") == []
        return time.process_time() - start

    small, large = chain(2_000), chain(20_000)
    best = min(seconds(small) for _ in range(3)), min(seconds(large) for _ in range(3))
    assert best[1] < 25 * best[0]
    assert best[1] < 2.0  # 0.3 s on an idle core


# ---- against the real parser ----


def node_tests(every: int) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Every so-many-th of ONNX's own node tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they compute reference numbers that overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    for case in cases[::every]:
        yield case.name, case.model


@pytest.mark.parametrize("name", ["trt-7.2", "trt-8.2", "rtx-1.7"])
def test_a_node_is_judged_alike_alone_and_in_its_graph(name: str) -> None:
    """In a graph, limits on dtypes that none of its values has are not looked at."""
    target, hit = matrix.target(name), 0
    for _, model in node_tests(every=13):
        graph = shapes.index(Model(model))
        judged = {n: (v.limit, [a.limit for a in v.also]) for n, v in matrix.judge_graph(graph, target)}
        for node in graph.nodes():
            alone = matrix.judge(node, target)
            assert judged.get(node) == (alone and (alone.limit, [a.limit for a in alone.also])), node
            hit += alone is not None
    assert hit > 50


@pytest.mark.skipif(bool(backends.absent("tensorrt_rtx")), reason="TensorRT-RTX is not installed")
def test_rtx_matrix_agrees_with_the_rtx_parser(tmp_path: Path) -> None:
    from onnxfix.backends.trt import DiedError, TensorRT

    target, path, wrong, total = matrix.target("rtx"), tmp_path / "m.onnx", [], 0
    refusing = {Effect.REFUSED, Effect.PLUGIN, Effect.UNKNOWN}
    with TensorRT("tensorrt_rtx") as parser:
        if not parser.about().version.startswith("1.7."):
            pytest.skip(f"the matrix is of 1.7, installed is {parser.about()}")
        for name, model in node_tests(every=11):
            graph = shapes.index(Model(model))
            predicted = not any(v.effect in refusing for _, v in matrix.judge_graph(graph, target))
            path.write_bytes(model.SerializeToString())
            try:
                taken = not parser.parse(path).refusals
            except DiedError:
                taken = False
            total += 1
            wrong += [name] if predicted != taken else []
    assert total > 150
    assert len(wrong) <= 0.02 * total, wrong
