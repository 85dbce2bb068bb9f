"""Tree ensembles of ai.onnx.ml, in one form for all three operators, and how to walk them with tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxfix import emit
from onnxfix.errors import Skip
from onnxfix.graph import Edit, Node

_MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER")  # as the operator TreeEnsemble numbers them
MEMBER = _MODES.index("MEMBER")


@dataclass
class Forest:
    """All trees in one numbering of nodes. A leaf is a node that leads to itself."""

    roots: np.ndarray  # INT64 [trees]
    modes: np.ndarray  # INT64 [nodes], numbers of _MODES; of leaves, any that occurs elsewhere
    features: np.ndarray  # INT64 [nodes]
    splits: np.ndarray  # FLOAT [nodes]
    members: np.ndarray  # FLOAT [nodes, most members], filled up with NaN
    missing: np.ndarray  # INT64 [nodes], 1 where NaN goes the way of a true comparison
    ways: np.ndarray  # INT64 [2, nodes], where false and true lead to
    weights: np.ndarray  # FLOAT [nodes, targets]
    weighs: np.ndarray  # bool [nodes, targets], where a leaf has a weight at all
    depth: int

    @property
    def leaves(self) -> np.ndarray:
        """bool [nodes]"""
        return np.asarray((self.ways == np.arange(len(self.modes))).all(0))


def read(node: Node, leaf: str, targets: int) -> Forest:
    """The forest of any of the operators; `leaf` is the prefix of its leaves' attributes ("target" or "class")."""
    forest = _one_list(node) if node.op == "TreeEnsemble" else _by_tree(node, leaf, targets)
    if len(forest.roots) == 0 or (forest.features < 0).any():
        raise Skip("it has no trees, or nodes without a feature")
    forest.depth = _depth(forest)
    forest.splits = _narrowed(forest.splits, forest.modes)
    leaves = forest.leaves
    forest.modes[leaves] = forest.modes[~leaves][0] if not leaves.all() else 0
    forest.splits[leaves], forest.features[leaves] = 0, 0
    return forest


def _tensor(node: Node, name: str) -> np.ndarray:
    """A list of numbers, given as FLOATs or as a tensor of DOUBLEs."""
    tensor = node.attr(f"{name}_as_tensor")
    return np.asarray(node.attr(name) or [] if tensor is None else _array(tensor), np.float64)


def _array(tensor: Any) -> np.ndarray:
    return numpy_helper.to_array(tensor) if isinstance(tensor, TensorProto) else np.asarray(tensor)


def base_values(node: Node) -> np.ndarray:
    return _tensor(node, "base_values").astype(np.float32)


def _by_tree(node: Node, leaf: str, targets: int) -> Forest:
    """TreeEnsembleClassifier and TreeEnsembleRegressor number the nodes of each tree anew."""
    trees, ids = node.attr("nodes_treeids") or [], node.attr("nodes_nodeids") or []
    number = {key: i for i, key in enumerate(zip(trees, ids, strict=True))}
    count = len(number)
    names = [m.decode() if isinstance(m, bytes) else m for m in node.attr("nodes_modes") or []]
    try:
        modes = [0 if m == "LEAF" else _MODES.index(m.removeprefix("BRANCH_")) for m in names]
        ways = np.tile(np.arange(count), (2, 1))
        for way, name in zip(ways, ("false", "true"), strict=True):
            for i, (mode, tree, to) in enumerate(zip(names, trees, node.attr(f"nodes_{name}nodeids"), strict=True)):
                if mode != "LEAF":
                    way[i] = number[tree, to]
        weights, weighs = np.zeros((count, targets)), np.zeros((count, targets), bool)
        places = (node.attr(f"{leaf}_{name}") for name in ("treeids", "nodeids", "ids"))
        for tree, to, target, weight in zip(*places, _tensor(node, f"{leaf}_weights"), strict=True):
            weights[number[tree, to], target] += weight
            weighs[number[tree, to], target] = True
    except (KeyError, ValueError, IndexError, TypeError):
        raise Skip("its nodes don't form trees") from None
    entered = np.zeros(count, bool)
    entered[ways[ways != np.arange(count)]] = True
    return Forest(
        roots=np.flatnonzero(~entered),
        modes=np.asarray(modes, np.int64),
        features=np.asarray(node.attr("nodes_featureids"), np.int64),
        splits=_tensor(node, "nodes_values"),
        members=np.zeros((count, 0), np.float32),
        missing=np.asarray(node.attr("nodes_missing_value_tracks_true") or [0] * count, np.int64),
        ways=ways,
        weights=weights.astype(np.float32),
        weighs=weighs,
        depth=0,
    )


def _one_list(node: Node) -> Forest:
    """TreeEnsemble keeps inner nodes and leaves apart: here, leaves come behind the inner nodes."""
    modes = _array(node.attr("nodes_modes")).astype(np.int64)
    inner, leaves, targets = len(modes), len(node.attr("leaf_targetids")), node.attr("n_targets") or 1
    ways = np.zeros((2, inner + leaves), np.int64)
    for way, name in zip(ways, ("false", "true"), strict=True):
        is_leaf = np.asarray(node.attr(f"nodes_{name}leafs"), np.int64)
        way[:inner] = np.asarray(node.attr(f"nodes_{name}nodeids"), np.int64) + inner * is_leaf
        way[inner:] = np.arange(inner, inner + leaves)
    weights, weighs = np.zeros((inner + leaves, targets), np.float32), np.zeros((inner + leaves, targets), bool)
    at = (np.arange(inner, inner + leaves), np.asarray(node.attr("leaf_targetids"), np.int64))
    weights[at], weighs[at] = _array(node.attr("leaf_weights")), True
    if ways.max() >= inner + leaves:
        raise Skip("its nodes don't form trees")

    def behind(values: Any) -> np.ndarray:
        return np.append(np.asarray(values), np.zeros(leaves, np.asarray(values).dtype))

    return Forest(
        roots=np.asarray(node.attr("tree_roots"), np.int64),
        modes=behind(modes),
        features=behind(np.asarray(node.attr("nodes_featureids"), np.int64)),
        splits=behind(_array(node.attr("nodes_splits")).astype(np.float64)),
        members=_members(node, modes, inner + leaves),
        missing=behind(np.asarray(node.attr("nodes_missing_value_tracks_true") or [0] * inner, np.int64)),
        ways=ways,
        weights=weights,
        weighs=weighs,
        depth=0,
    )


def _members(node: Node, modes: np.ndarray, count: int) -> np.ndarray:
    """The sets that nodes test membership of: stored one behind the other, each ended by NaN."""
    sets: list[list[float]] = [[]]
    for value in _array(node.attr("membership_values")) if node.has_attr("membership_values") else ():
        if np.isnan(value):
            sets.append([])
        else:
            sets[-1].append(float(value))
    owners = np.flatnonzero(modes == MEMBER)
    if len(owners) > len(sets):
        raise Skip("a node tests membership of a set that is not given")
    members = np.full((count, max(map(len, sets))), np.nan, np.float32)
    for owner, values in zip(owners, sets, strict=False):
        members[owner, : len(values)] = values
    return members


def _depth(forest: Forest) -> int:
    """How many steps lead from the roots to leaves only, at least one."""
    at = forest.roots
    for depth in range(len(forest.modes) + 1):
        if (forest.ways[:, at] == at).all():
            return max(depth, 1)
        at = np.unique(forest.ways[:, at])
    raise Skip("its nodes don't form trees")


def _narrowed(splits: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """DOUBLE thresholds as FLOAT, such that no FLOAT changes sides."""
    near = splits.astype(np.float32)
    below = np.where(near.astype(np.float64) > splits, np.nextafter(near, np.float32(-np.inf)), near)
    above = np.where(near.astype(np.float64) < splits, np.nextafter(near, np.float32(np.inf)), near)
    equal = np.where(near.astype(np.float64) == splits, near, np.float32(np.nan))
    kinds = [np.isin(modes, kinds) for kinds in ((0, 3), (1, 2), (4, 5))]  # LEQ and GT, LT and GTE, EQ and NEQ
    return np.select(kinds, [below, above, equal], near)


def walk(edit: Edit, forest: Forest, x: str) -> str:
    """For each row of `x`, FLOAT [rows, features], the leaf it comes to in each tree: INT64 [rows, trees]."""
    at: str | np.ndarray = forest.roots
    for _ in range(forest.depth):
        features = _look_up(edit, forest.features, at)
        if isinstance(features, np.ndarray):
            value = edit.add("Gather", [x, features], axis=1)
        else:
            value = edit.add("GatherElements", [x, features], axis=1)
        false, true = (_look_up(edit, way, at) for way in forest.ways)
        at = str(edit.add("Where", [_decide(edit, forest, at, value), true, false]))
    assert isinstance(at, str)
    return at


def _look_up(edit: Edit, table: np.ndarray, at: str | np.ndarray) -> str | np.ndarray:
    return np.asarray(table[at]) if isinstance(at, np.ndarray) else str(edit.add("Gather", [table, at], axis=0))


def _decide(edit: Edit, forest: Forest, at: str | np.ndarray, value: str) -> str:
    """Whether each row goes the way of a true comparison, BOOL [rows, trees]."""
    modes = np.unique(forest.modes).tolist()
    decision = ""
    for mode in modes:
        holds = _compare(edit, forest, mode, at, value)
        if len(modes) > 1:
            holds = str(edit.add("And", [holds, edit.add("Equal", [_look_up(edit, forest.modes, at), np.int64(mode)])]))
        decision = str(edit.add("Or", [decision, holds])) if decision else holds
    if forest.missing.any():
        tracks = edit.add("Equal", [_look_up(edit, forest.missing, at), np.int64(1)])
        lost = edit.add("And", [edit.add("IsNaN", [value]), tracks])
        decision = str(edit.add("Or", [decision, lost]))
    return decision


def _compare(edit: Edit, forest: Forest, mode: int, at: str | np.ndarray, value: str) -> str:
    if mode == MEMBER:
        same = edit.add("Equal", [emit.unsqueeze(edit, value, [2]), _look_up(edit, forest.members, at)])
        found = emit.reduce(edit, "ReduceMax", emit.cast(edit, same, TensorProto.FLOAT), [2], keepdims=0)
        return str(edit.add("Greater", [found, np.float32(0)]))
    split = _look_up(edit, forest.splits, at)
    name = _MODES[mode]
    if name in ("EQ", "NEQ"):
        same = str(edit.add("Equal", [value, split]))
        return same if name == "EQ" else str(edit.add("Not", [same]))
    beyond = str(edit.add("Less" if name.startswith("L") else "Greater", [value, split]))
    if name in ("LT", "GT"):
        return beyond
    return str(edit.add("Or", [beyond, edit.add("Equal", [value, split])]))
