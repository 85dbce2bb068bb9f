"""Resize against ONNX Runtime over a grid of modes, transformations and sizes, and what rule pages cannot express."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxfix import catalog, engine, matrix, shapes
from onnxfix.errors import Skip
from onnxfix.graph import Graph, Node
from onnxfix.lowering import resize
from onnxfix.model import Model

ort = pytest.importorskip("onnxruntime")

TRANSFORMS = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
# (height, width) and the factors of both: down and up, whole and not, one axis alone, down to one position.
SIZES = [
    ((7, 10), (0.6, 0.5)),
    ((7, 10), (2.0, 3.0)),
    ((4, 4), (1.5, 2.75)),
    ((4, 4), (4.0, 0.25)),
    ((16, 9), (0.26, 1.7)),
    ((16, 9), (2.5, 1.0)),
    ((5, 1), (1 / 3, 5.0)),
    ((4, 4), (1.2, 0.5)),
]
ROIS = ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0.2, 0.1, 1, 1, 0.7, 0.9], [0, 0, -0.2, 0.3, 1, 1, 1.4, 0.6])


def resize_model(
    shape: list[int | str],
    *,
    scales: Any = None,
    sizes: Any = None,
    roi: Any = None,
    opset: int = 19,
    dtype: int = TensorProto.FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    tensors = []
    for name, kind, values in (("roi", 1, roi), ("scales", 1, scales), ("sizes", 7, sizes)):
        if values is not None:
            tensors.append(helper.make_tensor(name, kind, [len(values)], values))
    given = {t.name for t in tensors}
    node = helper.make_node(
        "Resize", ["x", *(n if n in given else "" for n in ("roi", "scales", "sizes"))], ["y"], **attributes
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def only_node(proto: onnx.ModelProto) -> Node:
    return next(shapes.index(Model(proto)).nodes())


def by_maps(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The Resize of a model computed from the maps of its axes alone."""
    spec = resize.read(only_node(proto))
    y = x.astype(np.float64)
    for i in spec.moved:
        axis = spec.axes[i]
        if spec.mode == "nearest":
            y = np.take(y, resize.indices(spec, axis), axis=i)
        else:
            y = np.moveaxis(np.moveaxis(y, i, -1) @ resize.weights(spec, axis).T, -1, i)
    for i in spec.moved:
        beyond = resize.outside(spec, spec.axes[i])
        y = np.where(beyond.reshape([-1 if k == i else 1 for k in range(y.ndim)]), spec.extrapolation, y)
    return y


def grid(transform: str) -> list[dict[str, Any]]:
    """Ways to give the sizes of one Resize of each of SIZES."""
    found = []
    for (hw, factors), roi in itertools.product(SIZES, ROIS if transform == "tf_crop_and_resize" else [None]):
        scales = [1.0, 1.0, *factors]
        sizes = [1, 2, *(int(np.float32(n) * np.float32(f)) for n, f in zip(hw, factors, strict=True))]
        extra = {} if roi is None else {"roi": roi, "extrapolation_value": 10.0}
        found += [{"shape": [1, 2, *hw], "scales": scales, **extra}, {"shape": [1, 2, *hw], "sizes": sizes, **extra}]
    return found


def agree(cases: list[dict[str, Any]], tolerance: float) -> tuple[int, int]:
    """How many cases were compared, and how many declined as disputed."""
    compared = declined = 0
    random = np.random.default_rng(0)
    for case in cases:
        proto = resize_model(**case)
        x = random.standard_normal(case["shape"]).astype(np.float32)
        try:
            mine = by_maps(proto, x)
        except Skip:
            declined += 1
            continue
        theirs = run(proto, x)
        assert mine.shape == theirs.shape, case
        assert np.abs(mine - theirs).max() <= tolerance, case
        compared += 1
    return compared, declined


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_nearest_is_onnx_runtimes(transform: str) -> None:
    cases = [
        {**where, "mode": "nearest", "coordinate_transformation_mode": transform, "nearest_mode": rounding}
        for where, rounding in itertools.product(grid(transform), ROUNDINGS)
    ]
    compared, declined = agree(cases, tolerance=0.0)
    assert compared > declined


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    ("mode", "antialias", "exclude"),
    [("linear", 0, 0), ("linear", 1, 0), ("linear", 1, 1), ("cubic", 0, 0), ("cubic", 0, 1), ("cubic", 1, 0), ("cubic", 1, 1)],
)
def test_interpolation_is_onnx_runtimes(transform: str, mode: str, antialias: int, exclude: int) -> None:
    cases = [
        {
            **where,
            "mode": mode,
            "coordinate_transformation_mode": transform,
            "antialias": antialias,
            "exclude_outside": exclude,
            "cubic_coeff_a": -0.5,
        }
        for where in grid(transform)
    ]
    compared, declined = agree(cases, tolerance=1e-5)
    assert compared > declined


def rules() -> list[Any]:
    folder = catalog.load_folder(catalog.shipped())
    return [rule for name, rule in folder.items() if name.startswith(("resize-", "upsample-"))]


def fixed(proto: onnx.ModelProto, target: str) -> tuple[onnx.ModelProto, engine.Outcome]:
    model = Model(onnx.ModelProto.FromString(proto.SerializeToString()))
    wanted = matrix.target(target)
    outcome = engine.run(shapes.index(model), rules(), wanted, lambda node: matrix.judge(node, wanted))
    return model.proto, outcome


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.FLOAT])
@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_a_whole_repeat_holds_at_any_size(dtype: int, scale: float) -> None:
    proto = resize_model(
        ["n", 1, "h", "w"],
        scales=[1.0, 1.0, scale, 2.0],
        opset=13,
        dtype=dtype,
        mode="nearest",
        coordinate_transformation_mode="tf_half_pixel_for_nn",
        nearest_mode="floor",
    )
    after, outcome = fixed(proto, "trt-8.2")
    assert outcome.changes
    for h, w in ((1, 1), (5, 2), (31, 64)):
        x = np.random.default_rng(h).integers(-(2**30), 2**30, (2, 1, h, w))
        x = x.astype(helper.tensor_dtype_to_np_dtype(dtype))
        np.testing.assert_array_equal(run(proto, x), run(after, x))


def test_booleans_go_through_float_and_back() -> None:
    """ONNX Runtime has no Resize of BOOL: bytes show what it must give."""
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    sizes = {"scales": [1.0, 1.0, 2.0, 1.5], "opset": 13}
    shape: list[int | str] = [1, 1, 4, 4]
    after, _ = fixed(resize_model(shape, dtype=TensorProto.BOOL, **sizes, **attributes), "rtx-1.7")
    assert ops(after) == ["Cast", "Resize", "Cast"]
    x = np.random.default_rng(0).integers(0, 2, (1, 1, 4, 4)).astype(bool)
    expected = run(resize_model(shape, dtype=TensorProto.UINT8, **sizes, **attributes), x.astype(np.uint8))
    np.testing.assert_array_equal(run(after, x), expected.astype(bool))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [10, 11, 13])
def test_upsample_becomes_the_resize_it_stands_for(mode: str, opset: int) -> None:
    scales = helper.make_tensor("s", 1, [4], [1.0, 1.0, 2.0, 2.5])
    graph = helper.make_graph(
        [helper.make_node("Upsample", ["x", "s"], ["y"], mode=mode)],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 2, 3, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [scales],
    )
    old = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=8)
    raised = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    after, _ = fixed(raised, "rtx-1.7")
    assert ops(after) == ["Resize"]
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(old, x), run(after, x))


def test_max_mib_bounds_the_matrices() -> None:
    proto = resize_model([1, 1, 8, 3000], scales=[1.0, 1.0, 1.0, 0.5], opset=13, mode="cubic")
    target = matrix.target("trt-8.2")
    for most, expected in ((17, False), (18, True)):
        model = Model(onnx.ModelProto.FromString(proto.SerializeToString()))
        outcome = engine.run(
            shapes.index(model),
            rules(),
            target,
            lambda node: matrix.judge(node, target),
            options={"resize-unsupported-interpolation": {"max_mib": most}},
        )
        assert bool(outcome.changes) is expected  # 3000 x 1500 x 4 bytes are 17.2 MiB


def test_a_declined_candidate_leaves_nothing_behind() -> None:
    """Candidates are built to be judged; the model must come out as it went in."""
    proto = resize_model(["n", 3, "h", "w"], scales=[1.0, 1.0, 1.5, 1.5], opset=13, mode="cubic")
    after, outcome = fixed(proto, "trt-8.2")
    assert outcome.skipped and not outcome.changes
    assert after == proto


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("s = Shape(x) z = Mul(s, k)", [1, 1, 2, 2]),
        ("s = Shape(x) f = Cast<to=1>(s) k2 = Cast<to=1>(k) g = Mul(f, k2) c = Floor(g) z = Cast<to=7>(c)", [1, 1, 2, 2]),
        ("s = Shape(x) a = Slice(s, i0, i2) b = Slice(s, i2, i4) d = Mul(b, i2) z = Concat<axis=0>(a, d)", [1, 1, 2, 2]),
        ("r = Relu(x) s = Shape(r) z = Gather(s, at)", [1, 1, 1, None]),
        ("s = Shape(x) z = Div(s, k)", [1, 1, None, None]),
    ],
)
def test_sizes_are_followed_to_scales(lines: str, expected: list[int | None]) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 13]>
    g (float[n, 3, h, w] x) => (float[a, b, c1, d1] y)
    <int64[4] k = {{1, 1, 2, 2}}, int64[1] i0 = {{0}}, int64[1] i2 = {{2}}, int64[1] i4 = {{4}}, int64[4] at = {{0, 1, 2, 2}}>
    {{ {lines} y = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(x, "", "", z) }}"""
    graph: Graph = shapes.index(Model(onnx.parser.parse_model(text)))
    spec = resize.read(next(n for n in graph.nodes() if n.op == "Resize"))
    assert [a.scale for a in spec.axes] == expected
