"""ONNX Runtime's fused attention in its many forms: the same numbers as ONNX Runtime's own kernel gives."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfix import catalog, engine, matrix, shapes
from onnxfix.model import Model
from onnxfix.report import Safety

ort = pytest.importorskip("onnxruntime")
B, S, N, H, PAST = 2, 3, 2, 4, 2
RULES = ("ms-attention", "ms-multihead", "ms-grouped-query", "ms-rotary")
MASKS = {
    "none": None,
    "keys": np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0]], np.int32),
    "ends": np.array([2, 1], np.int32),
    "ends and starts": np.array([3, 2, 1, 0], np.int32),
    "queries and keys": np.random.default_rng(1).integers(0, 2, (B, S, S + PAST)).astype(np.int32),
}


def _run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def _same(
    op: str,
    feeds: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    names: list[str],
    outputs: Sequence[str] = (),
    free: Sequence[str] = (),
    **how: Any,
) -> None:
    """`op` with these inputs gives what its rewritten form gives; the lengths (axis 1) of `free` inputs are dynamic."""
    outputs = outputs or (["y", "present"] if "past" in names else ["y"])
    infos = [
        helper.make_tensor_value_info(
            n,
            helper.np_dtype_to_tensor_dtype(a.dtype),
            [a.shape[0], f"{n}_length", *a.shape[2:]] if n in free else a.shape,
        )
        for n, a in feeds.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, domain="com.microsoft", **how)],
        "g",
        infos,
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    before = helper.make_model(graph, opset_imports=imports, ir_version=8)
    after = Model(onnx.ModelProto.FromString(before.SerializeToString()))
    rules = [catalog.load_folder(catalog.shipped())[r] for r in RULES]
    target = matrix.target("trt-8.2")
    done = engine.run(shapes.index(after), rules, target, lambda n: matrix.judge(n, target), allow=Safety.CLOSE)
    assert done.changes and not [n for n in after.proto.graph.node if n.domain]
    for one, other in zip(_run(before, feeds), _run(after.proto, feeds), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize(("mask", "past", "causal"), list(itertools.product(MASKS, (False, True), (0, 1))))
def test_attention(mask: str, past: bool, causal: int) -> None:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((B, S, 8), np.float32)}
    constants = {"w": rng.standard_normal((8, 24), np.float32), "b": rng.standard_normal(24, np.float32)}
    names = ["x", "w", "b", "", ""]
    given = MASKS[mask]
    if given is not None:
        names[3] = "mask"
        feeds["mask"] = given if past or given.ndim == 1 else np.ascontiguousarray(given[..., PAST:])
    if past:
        names[4] = "past"
        feeds["past"] = rng.standard_normal((2, B, N, PAST, H), np.float32)
    while not names[-1]:
        names.pop()
    _same("Attention", feeds, constants, names, num_heads=N, unidirectional=causal)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", ["none", "keys", "ends"])
def test_multi_head_attention(bias: bool, mask: str) -> None:
    rng = np.random.default_rng(0)
    keys = S + PAST
    feeds = {n: rng.standard_normal((B, s, 8), np.float32) for n, s in (("q", S), ("k", keys), ("v", keys))}
    constants = {"b": rng.standard_normal(24, np.float32)} if bias else {}
    given = MASKS[mask]
    if given is not None:
        feeds["mask"] = given
    _same(
        "MultiHeadAttention",
        feeds,
        constants,
        ["q", "k", "v", "b" if bias else "", "mask" if given is not None else ""],
        num_heads=N,
    )


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"local_window_size": 2},
        {"softcap": 0.7, "scale": 0.3},
        {"do_rotary": 1},
        {"do_rotary": 1, "rotary_interleaved": 1, "local_window_size": 3},
    ],
    ids=lambda how: "-".join(how) or "plain",
)
def test_grouped_query_attention(how: dict[str, Any], past: int, packed: bool, free: bool) -> None:
    rng = np.random.default_rng(0)
    heads, groups, width, new = 4, 2, 16, 4
    sizes = [heads * width, *[groups * width] * 2]
    given = [rng.standard_normal((1, new, s), np.float32) for s in sizes]
    feeds = {"q": np.concatenate(given, 2)} if packed else dict(zip("qkv", given, strict=True))
    names = ["q", "" if packed else "k", "" if packed else "v", "pk", "pv", "last", "total"]
    for name in ("pk", "pv"):
        feeds[name] = rng.standard_normal((1, groups, past, width), np.float32)
    feeds |= {"last": np.array([past + new - 1], np.int32), "total": np.array(past + new, np.int32)}
    constants = {}
    if how.get("do_rotary"):
        angles = np.outer(np.arange(16), 100.0 ** -(np.arange(width // 2) / 4))
        constants = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        names += ["cos", "sin"]
    outputs = ["y", "present_k", "present_v"]
    open_ = [n for n in "qkv" if free and n in feeds]
    _same("GroupQueryAttention", feeds, constants, names, outputs, open_, num_heads=heads, kv_num_heads=groups, **how)
