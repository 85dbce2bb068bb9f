"""What only a build tells: models on each side of such a limit, given to TensorRT-RTX's parser and builder and judged.

Each is small and asks one thing. "taken" parses and builds, "refused" does not parse, "fails" parses and does not
build. Where the matrix cannot know, it must say so: "open" stands before what the builder says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.parser
import pytest

from onnxfix import backends, matrix, shapes
from onnxfix.backends import BackendError, trt
from onnxfix.model import Model
from onnxfix.report import Effect

# An If whose else_branch gives x (a) as it is negated, (b) longer, or (c) with another rank.
IF = """({inputs}) => (float y) {stored} {{ {condition} z = If(c) <
    then_branch = t () => (float[A,B] p) {{ p = Relu(x) }},
    else_branch = e () => ({other}) {{ {body} }}> y = ReduceSum<keepdims=0>(z) }}"""
NEGATED = {"other": "float[C,D] q", "body": "q = Neg(x)"}
LONGER = {"other": "float[C,D] q", "body": "q = Concat<axis=0>(x, x)"}
FLAT = {"other": "float[C] q", "body": "one = Constant<value_ints=[-1]>() q = Reshape(x, one)"}
FED = {"inputs": "bool c, float[2,3] x", "stored": "", "condition": ""}
STORED = {"inputs": "float[2,3] x", "stored": "<bool c = {1}>", "condition": ""}
FROM_FLOATS = {"inputs": "float w, float[2,3] x", "stored": "", "condition": "c = Greater(w, w)"}
FROM_SHAPE = {"inputs": "float[N,3] x", "stored": "", "condition": "s = Size(x) n = Identity(s) c = Equal(s, n)"}
FROM_INPUT = {
    "inputs": "int64 n, float[2,3] x",
    "stored": "<int64 two = {2}>",
    "condition": "c = Greater(n, two)",
}

RESIZE = "(float[2,4,8,8] x) => (float[A,B,C,D] y) <float[4] s = {%s}, int64[4] z = {%s}> { y = Resize<%s>(%s) }"
SCALES, SIZES = "x, , s", "x, , , z"
LINEAR, CUBIC, TF = 'mode="linear"', 'mode="cubic"', 'coordinate_transformation_mode="tf_half_pixel_for_nn"'
BATCH, FEATURES, PLANE = ("2,1,1,1", "4,4,8,8"), ("1,2,1,1", "2,8,8,8"), ("1,1,2,2", "2,4,16,16")

MODELS = [
    ("if-same", IF.format(**FED, **NEGATED), "taken"),
    ("if-other-shape", IF.format(**FED, **LONGER), "taken"),
    ("if-other-rank", IF.format(**FED, **FLAT), "fails"),
    ("if-other-rank-of-floats", IF.format(**FROM_FLOATS, **FLAT), "fails"),
    ("if-other-rank-of-an-input", IF.format(**FROM_INPUT, **FLAT), "fails"),
    ("if-other-rank-stored", IF.format(**STORED, **FLAT), "taken"),
    ("if-other-rank-of-a-shape", IF.format(**FROM_SHAPE, **FLAT), "open taken"),
    ("linear-batch", RESIZE % (*BATCH, LINEAR, SCALES), "refused"),
    ("linear-batch-sizes", RESIZE % (*BATCH, LINEAR, SIZES), "fails"),
    ("linear-batch-axes", RESIZE.replace("[4]", "[1]") % ("2", "4", f"{LINEAR}, axes=[0]", SCALES), "fails"),
    ("linear-features", RESIZE % (*FEATURES, LINEAR, SCALES), "taken"),
    ("linear-features-sizes", RESIZE % (*FEATURES, LINEAR, SIZES), "taken"),
    ("cubic-features", RESIZE % (*FEATURES, CUBIC, SCALES), "refused"),
    ("cubic-features-sizes", RESIZE % (*FEATURES, CUBIC, SIZES), "taken"),
    ("cubic-plane", RESIZE % (*PLANE, CUBIC, SCALES), "taken"),
    ("tf-scales", RESIZE % (*PLANE, TF, SCALES), "taken"),
    ("tf-sizes", RESIZE % (*PLANE, TF, SIZES), "refused"),
    ("tf-linear-floor", RESIZE % (*PLANE, f'{TF}, {LINEAR}, nearest_mode="floor"', SCALES), "refused"),
]


@pytest.fixture(scope="module")
def tensorrt() -> Iterator[trt.TensorRT]:
    if backends.absent("tensorrt_rtx"):
        pytest.skip("TensorRT-RTX is not installed")
    with trt.TensorRT("tensorrt_rtx") as tensorrt:
        if not tensorrt.about().version.startswith("1.7."):
            pytest.skip(f"the matrix is of 1.7, installed is {tensorrt.about()}")
        yield tensorrt


def model_of(text: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')


def judged(model: onnx.ModelProto, target: str) -> list[tuple[str, Effect]]:
    graph = shapes.index(Model(model))
    return [(v.limit, v.effect) for _, v in matrix.judge_model(graph, matrix.target(target))]


def by_matrix(model: onnx.ModelProto) -> str:
    effects = [effect for _, effect in judged(model, "rtx-1.7")]
    words = {Effect.REFUSED: "refused", Effect.BUILD_FAILS: "fails", Effect.UNDECIDED: "open"}
    return words[effects[0]] if effects else "taken"


def by_tensorrt(tensorrt: trt.TensorRT, path: Path) -> str:
    if tensorrt.parse(path).refusals:
        return "refused"
    try:
        tensorrt.build(path, path.with_suffix(".plan"), trt.BuildOptions())
    except BackendError:
        return "fails"
    return "taken"


@pytest.mark.parametrize(("text", "wanted"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_matrix_and_builder_agree(tensorrt: trt.TensorRT, tmp_path: Path, text: str, wanted: str) -> None:
    model, (*opened, outcome) = model_of(text), wanted.split()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert by_matrix(model) == (opened[0] if opened else outcome)
    assert by_tensorrt(tensorrt, path) == outcome


def test_branches_had_to_have_one_shape_up_to_10_10() -> None:
    same, longer, flat = (model_of(IF.format(**FED, **other)) for other in (NEGATED, LONGER, FLAT))
    refused = [("if/branch-shapes", Effect.REFUSED)]
    for target in ("trt-8.2", "trt-10.3", "trt-10.10"):
        assert judged(same, target) == [] and judged(longer, target) == judged(flat, target) == refused
    for target in ("trt-10.11", "trt-11.1"):
        assert judged(same, target) == judged(longer, target) == []
        assert judged(flat, target) == [("if/branch-ranks", Effect.BUILD_FAILS)]


def test_resize_of_opset_10_shrinks_like_onnx_runtime_by_whole_numbers_only() -> None:
    text = '(float[1,1,12,12] x) => (float[A,B,C,D] y) <float[4] s = {%s}> { y = Resize<mode="%s">(x, s) }'
    wrong = [("resize/shrink-opset-10", Effect.WRONG)]
    for target in ("trt-8.2", "trt-10.3", "rtx-1.7"):
        assert judged(model_of(text % ("1,1,0.6,0.6", "nearest"), 10), target) == wrong
        for scales, mode in (("1,1,0.5,0.5", "nearest"), ("1,1,1.7,1.7", "nearest"), ("1,1,0.6,0.6", "linear")):
            assert judged(model_of(text % (scales, mode), 10), target) == []
