"""Rules for operators that TensorRT has no importer for: what their pages can't show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxfix import api, catalog, engine, matrix, shapes
from onnxfix.graph import Edit
from onnxfix.lowering import fourier, scatter
from onnxfix.model import Model
from onnxfix.report import Safety, Status

ort = pytest.importorskip("onnxruntime")

ML = "ai.onnx.ml"
_DETECTIONS = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")


def _model(
    op: str, x: np.ndarray, outputs: dict[str, int], *, domain: str = "", ir: int = 9, **attributes: Any
) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], list(outputs), domain=domain, **attributes)
    dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", dtype, x.shape)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
    )
    opsets = [helper.make_opsetid(domain or "", 3 if domain else 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def _rewritten(proto: onnx.ModelProto, rule: str) -> onnx.ModelProto:
    model, target = Model(onnx.ModelProto.FromString(proto.SerializeToString())), matrix.target("rtx-1.7")
    rules = [catalog.load_folder(catalog.shipped())[rule]]
    outcome = engine.run(
        shapes.index(model), rules, target, lambda node: matrix.judge(node, target), allow=Safety.CLOSE
    )
    assert [c.rule for c in outcome.changes] == [rule], outcome.skipped
    return model.proto


def _run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def test_a_model_of_ir_3_lists_new_initializers_as_inputs() -> None:
    x = np.array([[0.5, 1.5]], np.float32)
    proto = _rewritten(_model("Binarizer", x, {"y": TensorProto.FLOAT}, domain=ML, ir=3, threshold=1.0), "ml-features")
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2]))
    onnx.checker.check_model(proto, full_check=True)
    assert {t.name for t in proto.graph.initializer} < {v.name for v in proto.graph.input}
    assert _run(proto, x)[0].tolist() == [[0, 1]]


def test_contributors_keep_the_order_of_updates() -> None:
    places = scatter.flat_places(np.array([[1], [-1], [1], [0]]), (3, 2), None)
    assert scatter.contributors(places, 3).tolist() == [[3, 0, 1], [4, 2, 4]]


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("taken", [2, 4])
def test_transforms_are_those_of_numpy(length: int, taken: int) -> None:
    rng = np.random.default_rng(length)
    x = rng.standard_normal((taken, 2))
    signal = np.einsum("np,npkc->kc", x, fourier.matrix(taken, max(length, taken), 2))
    expected = np.fft.fft(x[:, 0] + 1j * x[:, 1], max(length, taken))
    np.testing.assert_allclose(signal[:, 0] + 1j * signal[:, 1], expected, atol=1e-5)
    back = fourier.matrix(length // 2 + 1, length, 2, inverse=True, onesided=True)
    spectrum = rng.standard_normal((length // 2 + 1, 2))
    expected = np.fft.irfft(spectrum[:, 0] + 1j * spectrum[:, 1], length)
    np.testing.assert_allclose(np.einsum("np,npkc->k", spectrum, back), expected, atol=1e-5)


@pytest.mark.parametrize(
    "modes", [["BRANCH_LEQ"], ["BRANCH_GTE"], ["BRANCH_EQ", "BRANCH_GT"], ["BRANCH_LT", "BRANCH_NEQ", "BRANCH_LEQ"]]
)
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN"])
def test_forests_go_where_they_went(modes: list[str], aggregate: str) -> None:
    """Random trees of different depths, every kind of comparison, values on the thresholds, and NaN."""
    rng = np.random.default_rng(len(modes))
    nodes: dict[str, list[Any]] = {k: [] for k in ("treeids", "nodeids", "modes", "featureids", "values")}
    nodes |= {k: [] for k in ("missing_value_tracks_true", "truenodeids", "falsenodeids")}
    leaves: list[tuple[int, int]] = []

    def grow(tree: int, depth: int) -> int:
        row, number = len(nodes["nodeids"]), nodes["treeids"].count(tree)
        leaf = depth == 0 or rng.random() < 0.2
        entry = (tree, number, "LEAF" if leaf else str(rng.choice(modes)), int(rng.integers(3)))
        values = (*entry, float(rng.integers(-2, 3)), int(rng.integers(2)), 0, 0)
        for column, value in zip(nodes.values(), values, strict=True):
            column.append(value)
        if leaf:
            leaves.append((tree, number))
        else:
            nodes["truenodeids"][row] = grow(tree, depth - 1)
            nodes["falsenodeids"][row] = grow(tree, depth - 1)
        return number

    for tree, depth in enumerate((0, 2, 4)):
        grow(tree, depth)
    x = rng.integers(-2, 3, (60, 3)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    proto = _model(
        "TreeEnsembleRegressor",
        x,
        {"y": TensorProto.FLOAT},
        domain=ML,
        n_targets=1,
        aggregate_function=aggregate,
        target_treeids=[t for t, _ in leaves],
        target_nodeids=[n for _, n in leaves],
        target_ids=[0] * len(leaves),
        target_weights=rng.standard_normal(len(leaves)).tolist(),
        **{f"nodes_{k}": v for k, v in nodes.items()},
    )
    before, after = _run(proto, x)[0], _run(_rewritten(proto, "ml-trees"), x)[0]
    assert len(np.unique(before)) > 1
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_what_new_nodes_need_is_imported_in_the_function_that_gets_them() -> None:
    text = """<ir_version: 8, opset_import: ["d": 1]>
    g (float[2, 2] x) => (float[2, 2] y) { y = d.f(x) }
    <domain: "d", opset_import: ["com.microsoft": 1]>
    f (x) => (y) { y = com.microsoft.FusedGemm<activation = "Relu">(x, x) }"""
    model, target = Model(onnx.parser.parse_model(text)), matrix.target("rtx-1.7")
    rules = [catalog.load_folder(catalog.shipped())["ms-fused"]]
    engine.run(shapes.index(model), rules, target, lambda node: matrix.judge(node, target), allow=Safety.CLOSE)
    (function,) = model.proto.functions
    assert {"", "com.microsoft"} == {o.domain for o in function.opset_import}
    onnx.checker.check_model(model.proto)


def test_efficient_nms_gives_the_model_other_outputs_where_a_rule_file_asks(tmp_path: Path) -> None:
    page = (catalog.shipped() / "plugin-efficient-nms.md").read_text(encoding="utf-8")
    given = onnx.parser.parse_model(page.split("```onnx before")[1].split("\n", 1)[1].split("```")[0])
    onnx.save(given, tmp_path / "model.onnx")
    (tmp_path / "mine.yml").write_text(
        "rules: [{id: plugin-efficient-nms, options: {max_output_boxes: 20}}]\n"
        "plugins: [EfficientNMS_TRT]\ntarget: trt-8.5\nallow: lossy\nrequire: [structure]\n"
    )
    report = api.apply(tmp_path / "model.onnx", rules=tmp_path / "mine.yml")
    made = onnx.load(report.output).graph
    assert [o.name for o in made.output] == ["all", *_DETECTIONS]
    assert [len(o.type.tensor_type.shape.dim) for o in made.output] == [3, 2, 3, 2, 2]
    assert [n.op_type for n in made.node] == ["Sigmoid", "Transpose", "EfficientNMS_TRT"]
    assert {a.name: helper.get_attribute_value(a) for a in made.node[-1].attribute} == {
        "plugin_version": b"1", "plugin_namespace": b"", "score_threshold": 0.25, "iou_threshold": 0.5,
        "max_output_boxes": 20, "background_class": -1, "score_activation": 0, "box_coding": 0,
    }  # fmt: skip
    assert any("'chosen' is gone" in note for note in report.notes)
    parity = report.check("parity")
    assert parity is not None and parity.status is Status.NOT_RUN, "nothing here can run a plugin"


def test_outputs_and_imports_come_back_when_an_edit_is_rolled_back() -> None:
    text = '<ir_version: 8, opset_import: ["": 13]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    model = Model(onnx.parser.parse_model(text))
    graph, before = shapes.index(model), model.proto.SerializeToString()
    edit = Edit(graph, next(graph.nodes()), "mine")
    made = edit.add("Neg", ["x"])
    edit.add("Gelu", ["x"], domain="com.microsoft")
    edit.replace_outputs(["y"], [helper.make_tensor_value_info(made, TensorProto.FLOAT, [2])])
    assert list(graph.output_names) == [made] and len(edit.interface) == 2
    edit.rollback()
    graph.commit()
    assert model.proto.SerializeToString() == before and list(graph.output_names) == ["y"]
