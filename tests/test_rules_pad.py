"""Pads, windows and normalisations against ONNX Runtime: random forms, and what rule pages cannot express."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfix import catalog, engine, matrix, shapes
from onnxfix.graph import Node
from onnxfix.lowering import norm, pad, window
from onnxfix.model import Model

ort = pytest.importorskip("onnxruntime")

FAMILIES = ("pad", "conv", "convtranspose", "pool", "maxpool", "averagepool")
FAMILIES += ("batchnorm", "instancenorm", "layernorm", "groupnorm")
RULES = [r for name, r in catalog.load_folder(catalog.shipped()).items() if name.split("-")[0] in FAMILIES]
TARGETS = ("trt-7.1", "trt-8.2", "trt-8.5", "trt-10.3", "rtx-1.7")
ROUNDING = 2e-6  # of the largest magnitude, for rules that only round

Sizes = dict[str, int]


def parse(text: str, opset: int = 13) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}')


def build(
    nodes: list[onnx.NodeProto], inputs: list[Any], opset: int, *, shape: Any = None, **constants: Any
) -> onnx.ModelProto:
    """A model with the output y, of the shape that inference gives it unless that is stated."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    kind = inputs[0].type.tensor_type.elem_type
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", kind, shape)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def apply(model: onnx.ModelProto, target: str) -> tuple[onnx.ModelProto, list[str]]:
    fixed = Model(onnx.ModelProto.FromString(model.SerializeToString()))
    goal = matrix.target(target)
    outcome = engine.run(shapes.index(fixed), RULES, goal, lambda n: matrix.judge(n, goal))
    onnx.checker.check_model(fixed.proto, full_check=True)
    return fixed.proto, [c.rule for c in outcome.changes]


def session(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(model: onnx.ModelProto, sizes: Sizes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in kind.shape.dim]
        found[value.name] = (rng.standard_normal(shape) * 4).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return found


def difference(before: onnx.ModelProto, after: onnx.ModelProto, sizes: Sizes) -> float | None:
    """Largest error relative to the largest magnitude; None when the original does not run."""
    data = feeds(before, sizes)
    try:
        expected = session(before).run(None, data)
    except Exception:  # what ONNX Runtime refuses, no rule has to keep
        return None
    worst = 0.0
    for left, right in zip(expected, session(after).run(None, data), strict=True):
        assert left.shape == right.shape and left.dtype == right.dtype
        wide = left.astype(np.float64)
        scale = float(np.abs(wide[np.isfinite(wide)]).max(initial=1e-30))
        apart = (left != right) & ~((left != left) & (right != right))
        worst = max(worst, float(np.abs(wide[apart] - right[apart]).max(initial=0)) / scale)
    return worst


# ---- random forms ----


def random_pad(draw: random.Random) -> tuple[onnx.ModelProto, Sizes]:
    opset = draw.choice([9, 10, 11, 13, 18, 19, 21])
    rank = draw.choice([3, 4, 4, 5])
    dims = [draw.randint(1, 3), draw.randint(1, 3), *(draw.randint(3, 7) for _ in range(rank - 2))]
    shape = [f"d{i}" if draw.random() < 0.3 else d for i, d in enumerate(dims)]
    mode = draw.choice(["constant", "constant", "reflect", "edge", *(["wrap"] if opset >= 19 else [])])
    amounts = [draw.choice([0, 0, draw.randint(-1, 2)]) for _ in range(2 * rank)]
    dtypes = [np.float32, np.float32, *([np.float16, np.int32] if opset >= 11 else [])]
    dtype = draw.choice([*dtypes, *([np.bool_, np.uint8, np.int8] if opset >= 13 else [])])
    x = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
    sizes = {f"d{i}": d for i, d in enumerate(dims)}
    value = draw.choice([0, 1])
    if opset < 11:
        node = helper.make_node("Pad", ["x"], ["y"], mode=mode, pads=amounts, value=float(value))
        return build([node], [x], opset), sizes
    names, constants = ["x", "p", draw.choice(["", "v"]) if not value else "v"], {"v": np.asarray(value, dtype)}
    if opset >= 18 and draw.random() < 0.5:
        axes = draw.sample(range(rank), draw.randint(1, rank))
        amounts = [amounts[a + side] for side in (0, rank) for a in axes]
        names.append("a")
        constants["a"] = np.asarray([a - rank if draw.random() < 0.5 else a for a in axes])
    constants["p"] = np.asarray(amounts)
    return build([helper.make_node("Pad", names, ["y"], mode=mode)], [x], opset, **constants), sizes


def random_window(draw: random.Random) -> tuple[onnx.ModelProto, Sizes]:
    """Often with Relu, Pad and a change of layout in front."""
    opset, spatial = draw.choice([11, 13, 17, 19]), draw.choice([1, 2, 2, 3])
    channels, operator = draw.choice([1, 2, 4]), draw.choice([*window.OPERATORS, "Conv", "MaxPool"])
    dims = [draw.randint(1, 2), channels, *(draw.randint(4, 8) for _ in range(spatial))]
    shape = [d if a == 1 or draw.random() < 0.8 else f"d{a}" for a, d in enumerate(dims)]
    kernel = [draw.randint(1, 3) for _ in range(spatial)]
    strides = [draw.randint(1, 3) for _ in range(spatial)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    gaps = operator in ("Conv", "ConvTranspose", "MaxPool") or opset >= 19
    if gaps and draw.random() < 0.4:
        attributes["dilations"] = [draw.randint(1, 2) for _ in range(spatial)]
    if draw.random() < 0.7:
        attributes["pads"] = [draw.randint(0, k - 1) for k in kernel * 2]
    elif operator != "ConvTranspose" and "dilations" not in attributes:
        attributes["auto_pad"] = draw.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
    if operator in ("MaxPool", "AveragePool"):
        attributes["ceil_mode"] = int(draw.random() < 0.2)
    if operator == "AveragePool":
        attributes["count_include_pad"] = draw.randint(0, 1)
    nodes, x, constants = [], "x", {}
    if draw.random() < 0.5:
        nodes.append(helper.make_node("Relu", [x], ["r"]))
        x = "r"
    last = draw.random() < 0.3  # channels last, as TensorFlow has it
    order = [0, *range(2, spatial + 2), 1] if last else list(range(spatial + 2))
    if draw.random() < 0.7:
        amounts = [[0, 0, *(draw.randint(0, 2) for _ in kernel)] for _ in range(2)]
        constants["p"] = np.asarray([side[a] for side in amounts for a in order])
        # Of a window that holds -inf alone ONNX Runtime says the lowest finite number; gaps make such windows.
        lowest = np.finfo(np.float32).min if "dilations" in attributes else -np.inf
        constants["v"] = np.asarray(lowest if operator == "MaxPool" and draw.random() < 0.5 else 0, np.float32)
        nodes.append(helper.make_node("Pad", [x, "p", "v"], ["q"]))
        x = "q"
    if last:
        nodes.append(helper.make_node("Transpose", [x], ["t"], perm=[0, spatial + 1, *range(1, spatial + 1)]))
        x = "t"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [shape[a] for a in order])]
    names = [x]
    if operator in ("Conv", "ConvTranspose"):
        groups = draw.choice([1, channels])
        first, second = (groups, channels // groups) if operator == "Conv" else (channels, 1)
        attributes["group"] = groups
        for name, sides in (("w", [first, second, *kernel]), ("b", [groups])):
            if draw.random() < 0.3:
                inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sides))
            else:
                constants[name] = np.random.default_rng(1).standard_normal(sides).astype(np.float32)
            names.append(name)
        if operator == "ConvTranspose" and draw.random() < 0.4:
            attributes["output_padding"] = [draw.randint(0, s - 1) for s in strides]
    nodes.append(helper.make_node(operator, names, ["y"], **attributes))
    return build(nodes, inputs, opset, **constants), {f"d{a}": d for a, d in enumerate(dims)}


def random_norm(draw: random.Random) -> tuple[onnx.ModelProto, Sizes]:
    opset = draw.choice([11, 15, 17, 18, 21])
    operator = draw.choice(
        ["BatchNormalization", "InstanceNormalization"]
        + ["LayerNormalization"] * (opset >= 17)
        + ["GroupNormalization"] * (opset >= 18)
    )
    dims = [2, 4, draw.randint(2, 5), draw.randint(2, 5)]
    shape: list[int | str] = [d if a == 1 or draw.random() < 0.7 else f"d{a}" for a, d in enumerate(dims)]
    attributes: dict[str, Any] = {"epsilon": draw.choice([1e-5, 1e-3])}
    lengths = {"s": [4], "b": [4]}
    outputs = ["y"]
    if operator == "BatchNormalization":
        lengths |= {"m": [4], "v": [4]}
        if opset >= 14 and draw.random() < 0.5:
            attributes["training_mode"] = 1
            outputs += ["running_mean", "running_variance"]
    elif operator == "LayerNormalization":
        attributes["axis"] = draw.choice([-1, 2])
        shape[2:] = dims[2:]
        lengths = {"s": dims[attributes["axis"] :], "b": dims[attributes["axis"] :]}
    elif operator == "GroupNormalization":
        attributes["num_groups"] = draw.choice([1, 2, 4])
        count = 4 if opset >= 21 else attributes["num_groups"]
        lengths = {"s": [count], "b": [count]}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    constants = {}
    for name, sides in lengths.items():
        if name != "v" and draw.random() < 0.5:
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sides))
        else:
            constants[name] = (np.random.default_rng(2).random(sides) + 0.5).astype(np.float32)
    node = helper.make_node(operator, ["x", *lengths], outputs, **attributes)
    return build([node], inputs, opset, shape=shape, **constants), {f"d{a}": d for a, d in enumerate(dims)}


@pytest.mark.parametrize(
    ("make", "cases", "rules"),
    [
        (random_pad, 400, {"pad-axes", "pad-constant", "pad-mode", "pad-dtype"}),
        (
            random_window,
            800,
            {"pad-before-window", "pad-before-layout", "conv-bias", "conv-weights", "convtranspose-dilated"}
            | {"convtranspose-pads", "maxpool-dilated", "averagepool-window", "pool-lp"},
        ),
        (random_norm, 300, {"batchnorm-parameters", "batchnorm-training", "instancenorm-parameters"}
            | {"layernorm-missing", "groupnorm-missing"}),
    ],
    ids=["pad", "window", "norm"],
)  # fmt: skip
def test_random_forms_keep_their_numbers(make: Any, cases: int, rules: set[str]) -> None:
    draw, seen = random.Random(1), Counter[str]()
    exact = {r.id for r in RULES if r.safety.value == "exact"}
    for _ in range(cases):
        model, sizes = make(draw)
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
            continue  # drawn larger than its input
        target = draw.choice(TARGETS)
        fixed, acted = apply(model, target)
        error = difference(model, fixed, sizes) if acted else None
        if error is not None:
            seen.update(set(acted))
            # Exact rules change at most the order in which a window is summed.
            summed = model.graph.node[-1].op_type in ("Conv", "ConvTranspose", "AveragePool", "LpPool")
            allowed = ROUNDING if summed or not set(acted) <= exact else 0.0
            assert error <= allowed, f"{error} on {target} by {acted}: {onnx.printer.to_text(model)}"
    assert rules <= set(seen), f"never tried: {rules - set(seen)}"


# ---- what pages cannot express ----


def test_a_mean_far_from_zero_keeps_its_digits() -> None:
    """E[x²] - E[x]² would lose everything here."""
    model = parse("""g (float[2, 64] x, float[64] s) => (float[2, 64] y) {
        y = LayerNormalization(x, s)
    }""", 17)
    fixed, acted = apply(model, "trt-8.5")
    assert acted == ["layernorm-missing"]
    rng = np.random.default_rng(0)
    data = {"x": (rng.standard_normal((2, 64)) + 1000).astype(np.float32), "s": np.ones(64, np.float32)}
    wide = data["x"].astype(np.float64)
    wide -= wide.mean(1, keepdims=True)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5)
    assert np.abs(session(fixed).run(None, data)[0] - expected).max() < 1e-4


def test_a_pad_whose_reader_is_in_a_body_stays() -> None:
    model = parse("""g (float[1, 1, 4, 4] x, bool c) => (float[1, 1, 5, 5] y)
    <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float[1, 1, 2, 2] w = {1, 2, 3, 4}> {
        a = Pad(x, p)
        y = If(c) <
            then_branch = t () => (float[1, 1, 5, 5] ty) { ty = Conv(a, w) },
            else_branch = e () => (float[1, 1, 5, 5] ey) { k = Relu(a)  ey = Conv(k, w) }
        >
    }""")
    assert apply(model, "trt-8.2")[1] == []


def test_a_pad_inside_a_body_is_folded_there() -> None:
    model = parse("""g (float[1, 1, 4, 4] x, bool c) => (float[1, 1, 5, 5] y)
    <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float[1, 1, 2, 2] w = {1, 2, 3, 4}> {
        y = If(c) <
            then_branch = t () => (float[1, 1, 5, 5] ty) { a = Pad(x, p)  ty = Conv(a, w) },
            else_branch = e () => (float[1, 1, 5, 5] ey) { b = Pad(x, p)  ey = MaxPool<kernel_shape = [2, 2]>(b) }
        >
    }""")
    fixed, acted = apply(model, "trt-8.2")
    assert acted == ["pad-before-window"]  # the zeros before the maximum of anything stay
    for choice in (True, False):
        data = {"x": np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) - 8, "c": np.asarray(choice)}
        assert np.array_equal(session(model).run(None, data)[0], session(fixed).run(None, data)[0])


def test_a_refused_average_does_not_chase_its_pad() -> None:
    """Uneven pads become a convolution, which takes them; no Pad comes and goes."""
    model = parse("""g (float[1, 2, 6, 6] x) => (float[1, 2, 4, 4] y)
    <int64[8] p = {0, 0, 0, 0, 0, 0, 1, 1}> {
        a = Pad(x, p)
        y = AveragePool<kernel_shape = [4, 4], pads = [0, 0, 0, 0]>(a)
    }""")
    assert apply(model, "trt-8.2")[1] == ["pad-before-window"]
    uneven = parse("""g (float[1, 2, 6, 6] x) => (float[1, 2, 6, 6] y) {
        y = AveragePool<kernel_shape = [4, 4], pads = [0, 0, 3, 3], count_include_pad = 1>(x)
    }""")
    fixed, acted = apply(uneven, "trt-8.2")
    assert acted == ["averagepool-window"]
    assert difference(uneven, fixed, {}) == pytest.approx(0, abs=ROUNDING)


@pytest.mark.parametrize(
    ("text", "floor"),
    [
        ("v = Clip(x, three, ten)", 3.0),
        ("v = Clip(x, ten, three)", 3.0),  # crossed bounds: the upper one wins
        ("v = Clip(x, three)", 3.0),
        ("v = Clip(x, , three)", -np.inf),
        ("a = Clip(x, , three)  v = Relu(a)", 0.0),
        ("a = Relu(x)  v = Clip(a, , ten)", 0.0),
        ("a = Relu(x)  b = Tanh(x)  v = Concat<axis = 0>(a, b)", -1.0),
        ("a = Relu(x)  v = Concat<axis = 0>(a, x)", -np.inf),
        ("a = Relu(x)  v = Sub(a, three)", -np.inf),
        ("a = Sigmoid(x)  v = Transpose(a)", 0.0),
    ],
)
def test_what_no_element_is_below(text: str, floor: float) -> None:
    model = parse(f"g (float[4] x) => (float[N] v) <float three = {{3}}, float ten = {{10}}> {{ {text} }}")
    assert pad.floor_of(shapes.index(Model(model)), "v") == floor


def test_counts_of_a_window_match_counting_by_hand() -> None:
    geometry = window.Window((3,), (2,), (2,), (2,), (3,))
    # Taps of the windows at -2, 0, 2 over five elements: {0, 2}, {0, 2, 4}, {2, 4}.
    assert window.counts(geometry, [5]).tolist() == [2, 3, 2]


def test_the_mean_takes_a_form_the_target_reads() -> None:
    goal = matrix.target("trt-8.5")
    model = parse("g (float[N, 4, 8] x) => (float[N, 4, 1] y) { y = GlobalAveragePool(x) }", 18)
    graph = shapes.index(Model(model))
    from onnxfix.graph import Edit
    from onnxfix.rule import Context

    edit = Edit(graph, next(graph.nodes()), "test")
    context = Context(goal, lambda n: matrix.judge(n, goal))
    made = [graph.producer(norm.mean(edit, "x", axes, context)) for axes in ([2], [1])]
    assert [node.op for node in made if isinstance(node, Node)] == ["GlobalAveragePool", "Mul"]
    assert [n.op for n in edit.added] == ["GlobalAveragePool", "ReduceSum", "Mul"]
