"""Two models by their numbers: outputs, metrics, images, sizes; the first node that differs; the FP16 form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxfix import backends, catalog, cli, engine, matrix, shapes, verify
from onnxfix.backends import images, metrics, ort, reference
from onnxfix.backends.metrics import Metric
from onnxfix.errors import RequestError
from onnxfix.graph import Graph
from onnxfix.model import load
from onnxfix.report import Status
from onnxfix.rule import Rule
from onnxfix.verify import Verification

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'

TEXT = """g (float[1,3,8,8] x) => (float[1,3,8,8] y) <float[3,1,1] s = {2, 3, 4}>
{ a = Relu(x) [mul] b = Mul(a, s) c = Exp(b) [sq] d = Sqrt(c) y = Add(d, a) }"""


def write(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    onnx.save(onnx.parser.parse_model(text if text.startswith("<") else HEAD + text), path)
    return path


def compared(folder: Path, before: str, after: str, **settings: object) -> Verification:
    one, other = write(folder, before, "one.onnx"), write(folder, after, "other.onnx")
    return verify.verify(one, other, **settings)  # type: ignore[arg-type]


# ---- where it differs ----


def test_equal_models_pass_and_nothing_inside_is_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, TEXT, TEXT)
    assert (found.check.status, found.first, found.path, found.compared) == (Status.PASSED, None, (), 0)


def test_the_first_node_that_differs_is_named_and_the_worst_error_stands_first(tmp_path: Path) -> None:
    found = compared(tmp_path, TEXT, TEXT.replace("4}", "4.5}"))
    assert found.check.status is Status.FAILED
    assert found.first is not None and found.first.node == "Mul mul -> b"
    assert {s.before for s in found.path} == {"b", "c", "d", "y"}
    errors = [s.relative for s in found.path]
    assert errors == sorted(errors, reverse=True)


def test_other_names_everywhere_are_matched_by_structure(tmp_path: Path) -> None:
    other = TEXT.replace("4}", "4.5}").replace("[mul]", "").replace("[sq]", "")
    for a, b in zip("abcdyxs", ("k1", "k2", "k3", "k4", "out", "inp", "w"), strict=True):
        other = re.sub(rf"\b{a}\b", b, other)
    found = compared(tmp_path, TEXT, other)
    assert found.first is not None
    assert (found.first.node, found.first.after, found.first.matched) == ("Mul mul -> b", "k2", "structure")


def test_a_wrong_rule_is_named_through_provenance(tmp_path: Path) -> None:
    """The rule's nodes bear other names than the node they stand for; the value after them is renamed too."""
    (rule,) = _rules(tmp_path, "(x) => (y) { t = Neg(x) y = Relu(t) }")
    one = write(tmp_path, TEXT, "one.onnx")
    model = load(one)
    graph = shapes.index(model)
    goal = matrix.target("trt-8.2")
    engine.run(graph, [rule], goal, lambda node: matrix.judge(node, goal))
    proto = model.proto
    for node in proto.graph.node:  # nothing is left to go by but the metadata
        for names in (node.input, node.output):
            names[:] = [{"d": "renamed"}.get(n, n) for n in names]
    onnx.save(proto, tmp_path / "other.onnx")
    found = verify.verify(one, tmp_path / "other.onnx")
    assert found.first is not None
    assert (found.first.before, found.first.after, found.first.matched) == ("d", "renamed", "provenance")
    assert found.first.rules == ("mine",) and any("(by rule mine)" in n for n in found.between)


def _rules(folder: Path, after: str) -> list[Rule]:
    path = folder / "mine.yml"
    path.write_text(
        "target: trt-8.2\nrules:\n"
        f'  - {{id: mine, before: "(x) => (y) {{ y = Sqrt(x) }}", after: "{after}", when: always}}\n'
    )
    return list(catalog.load_set(path).rules)


def test_memory_is_bounded_by_batches_with_the_same_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compared(tmp_path, TEXT, TEXT.replace("4}", "4.5}"))
    sizes: list[int] = []
    real = verify._compared

    def counted(graph: Graph, twin: Graph, batch: list[verify.Pair], *rest: object) -> list[verify.Step]:
        sizes.append(len(batch))
        return real(graph, twin, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "_compared", counted)
    monkeypatch.setattr(verify, "BATCH_BYTES", 2 * 3 * 8 * 8 * 4)
    assert compared(tmp_path, TEXT, TEXT.replace("4}", "4.5}")) == whole
    assert sizes == [2, 2, 1]


def test_external_data_is_found(tmp_path: Path) -> None:
    for name, value in (("one.onnx", 1.0), ("other.onnx", 1.5)):
        model = onnx.parser.parse_model(HEAD + "g (float[1,64] x) => (float[1,64] y) { a = MatMul(x, w) y = Neg(a) }")
        weight = np.eye(64, dtype=np.float32) * value
        model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
        onnx.save(model, tmp_path / name, save_as_external_data=True, location=f"{name}.bin", size_threshold=0)
    found = verify.verify(tmp_path / "one.onnx", tmp_path / "other.onnx")
    assert found.first is not None and found.first.before == "a"


def test_the_reference_evaluator_stands_in(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[4,6] x) => (float[4,6] y) { a = Relu(x) b = Neg(a) y = Abs(b) }"""
    one, two = write(tmp_path, text, "one.onnx"), write(tmp_path, text.replace("Neg", "Exp"), "two.onnx")
    with pytest.MonkeyPatch.context() as patch:
        def lacking(*_: object, **__: object) -> None:
            raise ort.UnsupportedError("no such operator here")

        patch.setattr(ort, "Runner", lacking)
        patch.setattr(ort, "Session", lacking)
        found = verify.verify(one, two, seeds=(0,))
        assert found.check.by == str(reference.Runner(one)) and found.first is not None
        assert found.first.before == "b"
        patch.setattr(reference, "NODES", 2)
        assert verify.verify(one, two).check.status is Status.NOT_RUN


# ---- sizes, metrics, images ----


def test_min_opt_and_max_of_dynamic_axes(tmp_path: Path) -> None:
    text = "g (float[batch,3,side,8] x) => (float[batch,3,side,8] y) { y = Relu(x) }"
    found = compared(tmp_path, text, text, dims={"batch": (1, 2, 5), "side": (4, 6, 9)}, seeds=(0, 1))
    assert found.check.figures["sizes"] == [{"batch": b, "side": s} for b, s in ((2, 6), (1, 4), (5, 9))]
    assert found.check.figures["samples"] == 4
    with pytest.raises(RequestError, match="no dynamic axis called 'width'; there are batch, side"):
        compared(tmp_path, text, text, dims={"width": (1, 1, 1)})


def test_a_size_at_which_the_original_fails_is_told(tmp_path: Path) -> None:
    text = "g (float[n] x, float[2] b) => (float[n] y) { y = Add(x, b) }"
    found = compared(tmp_path, text, text, dims={"n": (1, 2, 5)})
    assert found.check.status is Status.PASSED and "not run at n=5" in found.check.detail


def test_a_model_wrong_at_its_largest_size_only(tmp_path: Path) -> None:
    text = "g (float[n] x) => (float[m] y) <int64[1] z = {0}, int64[1] e = {%d}> { y = Slice(x, z, e) }"
    one, other = text % 100, text % 4
    assert compared(tmp_path, one, other, dims={"n": (1, 2, 4)}).check.status is Status.PASSED
    assert compared(tmp_path, one, other, dims={"n": (1, 2, 5)}).check.status is Status.FAILED


@pytest.mark.parametrize(
    ("metric", "before", "after", "score"),
    [
        (Metric("absolute", 1), [[1, 2]], [[1, 2.5]], 0.5),
        (Metric("relative", 1), [[1, 2]], [[1, 2.5]], 0.25),
        (Metric("cosine", 1), [[1, 0]], [[0, 1]], 0),
        (Metric("top", 1), [[1, 2, 3], [3, 2, 1]], [[1, 2, 3], [1, 2, 3]], 0.5),
        (Metric("top", 1, 2), [[1, 2, 3], [3, 2, 1]], [[1, 2, 3], [1, 2, 3]], 0.75),
        (Metric("iou", 1), [[[[0.9, 0.9, 0.1, 0.1]]]], [[[[0.9, 0.1, 0.1, 0.1]]]], (1 / 2 + 2 / 3) / 2),
        (Metric("iou", 1), [[[[5, 5, 1, 1]], [[1, 1, 5, 5]]]], [[[[5, 5, 1, 1]], [[1, 1, 5, 5]]]], 1),
    ],
)
def test_scores(metric: Metric, before: list[float], after: list[float], score: float) -> None:
    assert metric.score(np.asarray(before, np.float32), np.asarray(after, np.float32)) == pytest.approx(score)


def test_labels_are_compared_as_labels() -> None:
    assert Metric("iou", 1).score(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1])) == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_metrics_are_read_and_wrong_ones_refused() -> None:
    assert metrics.parse(["cosine", "logits=top5:0.98"]) == {"": Metric("cosine", 0.999), "logits": Metric("top", 0.98, 5)}
    for text in ("nonsense", "top0", "iou:x", "cosine5"):
        with pytest.raises(RequestError):
            metrics.parse([text])


def test_a_metric_judges_in_the_tolerances_place(tmp_path: Path) -> None:
    text = "g (float[4,10] x) => (float[4,10] y) <float k = {1.0}> { y = Mul(x, k) }"
    scaled = text.replace("1.0}", "1.3}")
    assert compared(tmp_path, text, scaled).check.status is Status.FAILED
    found = compared(tmp_path, text, scaled, metrics=metrics.parse(["top3"]))
    assert found.check.status is Status.PASSED and "top-3 agreement" in found.check.detail
    failed = compared(tmp_path, text, text.replace("1.0}", "-1.0}"), metrics=metrics.parse(["y=cosine"])).check
    assert failed.status is Status.FAILED and failed.detail == "output y: cosine of -1 (asked for: cosine, at least 0.999)"
    with pytest.raises(RequestError, match="no output"):
        compared(tmp_path, text, text, metrics=metrics.parse(["z=cosine"]))


def test_tolerances_by_output(tmp_path: Path) -> None:
    text = "g (float[9] x) => (float[9] y, float[9] z) <float k = {1.0}, float l = {1.0}> { y = Mul(x, k) z = Mul(x, l) }"
    other = text.replace("k = {1.0}", "k = {1.01}")
    assert compared(tmp_path, text, other).check.status is Status.FAILED
    assert compared(tmp_path, text, other, tolerances={"y": 0.02}).check.status is Status.PASSED
    assert compared(tmp_path, text, other, tolerances={"z": 0.02}).check.status is Status.FAILED
    assert compared(tmp_path, text, other, tolerances={"": 0.02}).check.status is Status.PASSED


def _picture(folder: Path, size: tuple[int, int] = (20, 10)) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder.mkdir(exist_ok=True)
    picture = image.new("RGB", size, (255, 0, 51))
    picture.save(folder / "one.png")
    return folder


def test_images_become_inputs_as_stated(tmp_path: Path) -> None:
    folder = _picture(tmp_path / "photos")
    how = images.parse("size=4x6,mean=0.5/0.5/0.5,std=0.5,color=bgr")
    (array,) = images.read(folder, (1, 3, "h", "w"), np.float32, how)
    assert array.shape == (1, 3, 4, 6) and array.dtype == np.float32
    assert np.allclose(array[0, :, 0, 0], [-0.6, -1.0, 1.0], atol=1e-6)
    (array,) = images.read(folder, (1, 8, 8, 3), np.uint8, images.parse("layout=nhwc,scale=1"))
    assert array.shape == (1, 8, 8, 3) and array[0, 0, 0].tolist() == [255, 0, 51]
    (array,) = images.read(folder, (1, 3, 8, 8), np.float32, images.parse("fit=letterbox,scale=1"))
    assert array[0, :, 0, 0].tolist() == [114] * 3 and array[0, :, 4, 4].tolist() == [255, 0, 51]


def test_images_are_fed_to_both(tmp_path: Path) -> None:
    found = compared(tmp_path, TEXT, TEXT, inputs=_picture(tmp_path / "photos"))
    assert found.check.status is Status.PASSED and found.check.figures["samples"] == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(RequestError, match="holds no images"):
        compared(tmp_path, TEXT, TEXT, inputs=tmp_path / "none")
    for wrong in ("size=0x3", "color=pink", "std=0", "what=1"):
        with pytest.raises(RequestError, match="preprocessing"):
            images.parse(wrong)


# ---- FP16 ----


def test_fp16_names_what_overflows_with_the_range_seen(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT.replace("4}", "40}"), "one.onnx")
    found = verify.verify(path, precision="fp16")
    assert found.check.status is Status.FAILED
    first = found.unfit[0]
    assert (first.name, first.why, first.origin, first.node) == ("c", "overflow", True, "Exp #2 -> c")
    assert first.high > 65504
    assert not any(u.origin for u in found.unfit if u.name in ("d", "y"))


def test_fp16_passes_where_the_numbers_are_kind(tmp_path: Path) -> None:
    found = verify.verify(write(tmp_path, TEXT.replace("{2, 3, 4}", "{1, 1, 1}"), "one.onnx"), precision="fp16")
    assert found.check.status is Status.PASSED and found.unfit == ()
    assert not found.check.figures["outputs"]["y"]["equal"]  # it really ran in FP16


def test_fp16_names_weights_and_lost_accuracy(tmp_path: Path) -> None:
    text = """g (float[1,8] x) => (float[1,8] y) <float big = {100000}, float[2] tiny = {0.000000001, 1}, float[8] far = {1000,1000,1000,1000,1000,1000,1000,1000}>
{ h = Add(x, far) [lost] l = Sub(h, far) k = Div(l, big) t = ReduceSum(tiny) y = Mul(k, t) }"""
    found = verify.verify(write(tmp_path, text, "one.onnx"), precision="fp16")
    named = {u.name: u.why for u in found.unfit}
    assert named["big"] == "overflow" and named["tiny"] == "underflow" and named["l"] == "accuracy"


def test_fp16_leaves_operators_that_know_no_fp16_alone(tmp_path: Path) -> None:
    text = """g (float[2,8] x) => (float[2,8] y) <float w = {0.01}, uint8 z = {3}>
{ a = Neg(x) q, s, p = DynamicQuantizeLinear(a) d = DequantizeLinear(q, s, p) k = QuantizeLinear(d, w, z) e = DequantizeLinear(k, w, z) y = Abs(e) }"""
    found = verify.verify(write(tmp_path, text, "one.onnx"), precision="fp16", tolerances={"": 0.1})
    assert found.check.status is Status.PASSED


# ---- the command line ----


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write(tmp_path, TEXT, "one.onnx"), write(tmp_path, TEXT.replace("4}", "4.5}"), "other.onnx")
    assert cli.main(["verify", str(one), str(other)]) == 1
    shown = capsys.readouterr()
    assert "the first node that differs" in shown.out and "Mul mul -> b" in shown.err
    assert cli.main(["verify", str(one), str(other), "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["first"]["before"] == "b"
    assert cli.main(["verify", str(one), str(other), "--tolerance", "0.9", "--seeds", "0,1"]) == 0
    assert cli.main(["verify", str(one)]) == 2
    assert cli.main(["verify", str(one), str(one), "--dims", "n=3:2:1"]) == 2
    assert cli.main(["diff", str(one), str(one)]) == 0
    assert cli.main(["diff", str(one), str(other)]) == 1
    assert "initializer s" in capsys.readouterr().out


def test_a_proof_that_did_not_run_is_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, TEXT, "one.onnx")
    monkeypatch.setattr(backends, "absent", lambda module: f"the Python package {module} is not installed")
    found = verify.verify(path, path)
    assert found.check.status is Status.NOT_RUN and "not installed" in found.check.detail
    assert cli.main(["verify", str(path), str(path), "--require"]) == 3
    assert cli.main(["verify", str(path), str(path)]) == 0
