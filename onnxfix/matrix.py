"""What each TensorRT release takes, as data, and the verdict on a node.

`data/matrix/*.json` hold one release each: the limits its ONNX parser puts on each operator, as predicates
(`onnxfix.limits`). `data/targets.json` says which release a board or JetPack has. Nothing is read before it
is asked for, and a file is read once.

The matrix predicts; the parser judges. A limit that cannot be decided here says so (`Effect.UNDECIDED`), and
an operator without a row is `Effect.UNKNOWN`, never fine.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from onnxfix.errors import TargetError
from onnxfix.graph import Graph, Node, attribute_value, schema
from onnxfix.limits import DTYPE, Check, Facts, check_of, dtypes, values
from onnxfix.report import Effect, Where

DATA = Path(__file__).parent / "data"

# A stored UINT8 tensor is read as INT32: as long as no node takes it, it harms nobody.
_HARMLESS_STORED = frozenset({TensorProto.UINT8})

# Worst first: the effect of the first one that hits is the node's.
_SEVERITY = (
    Effect.REFUSED,
    Effect.WRONG,
    Effect.BUILD_FAILS,
    Effect.PLUGIN,
    Effect.UNKNOWN,
    Effect.UNDECIDED,
)
_EFFECTS = {
    "reject": Effect.REFUSED,
    "ignored": Effect.WRONG,
    "build_fail": Effect.BUILD_FAILS,
    "plugin": Effect.PLUGIN,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a target does not take a node as it is: the worst limit it meets, the others in `also`."""

    effect: Effect
    reason: str  # one clause a user understands
    evidence: str  # release, limit, how it is known, and where from
    limit: str  # e.g. "resize/mode"; stable
    also: tuple[Verdict, ...] = ()
    moot: str = ""  # "unused" or "constant": removing or folding the node is enough (set by `judge_graph`)
    at_worst: Effect | None = None  # of an undecided one: the effect, should the limit be broken


@dataclass(frozen=True)
class Target:
    """A release of TensorRT, perhaps on a board."""

    name: str
    release: str  # the matrix it is judged by: "8.2", "rtx-1.7"
    label: str
    board: str = ""
    jetpack: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)  # of board and JetPack, as in the data
    own: _Matrix | None = field(default=None, compare=False, repr=False)  # not one of the shipped matrices

    @property
    def by(self) -> str:
        """Who judged, for reports."""
        return f"matrix {self.release if self.release.startswith('rtx') else f'trt-{self.release}'}"

    @property
    def opsets(self) -> tuple[int, int] | None:
        """Lowest and highest opset the release was made for, None when not known."""
        return _matrix_of(self).opsets

    def supports(self, op: str, domain: str = "") -> bool:
        """Whether the target has the operator at all, whatever limits it puts on it (plugins not counted)."""
        return _key(op, domain) in _matrix_of(self).rows

    def refuses(self, op: str, domain: str = "") -> bool:
        """Whether the target is known to have no importer for it; False for what the matrix doesn't know."""
        return _key(op, domain) in _matrix_of(self).unsupported

    def takes_dtype(self, dtype: int) -> bool:
        """Whether tensors of this TensorProto.DataType may occur in a network at all."""
        return dtype not in _matrix_of(self).dtypes_refused

    def narrows(self, dtype: int) -> bool:
        """Whether the parser turns tensors of this TensorProto.DataType into a narrower one without an error."""
        return dtype in _matrix_of(self).dtypes_narrowed


# ---- targets ----


def targets() -> list[str]:
    """Names `target` takes: boards, JetPack releases, TensorRT releases."""
    data = _targets()
    releases = [f"trt-{r}" for r in data["releases"]]
    return [*data["boards"], *(f"jetpack-{v}" for v in data["jetpack"]), *releases, "rtx-1.7"]


@functools.cache
def target(name: str) -> Target:
    """The target of that name; a patch release ("trt-8.2.1") counts as its minor one, a .json is a matrix file.

    Raises TargetError for a name that stands for none.
    """
    if name.endswith(".json"):
        return _of_file(Path(name))
    data = _targets()
    wanted = name.strip().lower()
    wanted = data["aliases"].get(wanted, wanted)
    if wanted in data["boards"]:
        board = data["boards"][wanted]
        version = next(v for v, pack in reversed(data["jetpack"].items()) if wanted in pack["boards"])
        pack = data["jetpack"][version]
        label = f"{board['name']}, JetPack {version} (TensorRT {pack['release']})"
        return Target(wanted, pack["release"], label, wanted, version, {**board, **pack})
    kind, _, version = wanted.partition("-")
    if kind == "jetpack" and version in data["jetpack"]:
        pack = data["jetpack"][version]
        label = f"JetPack {version} (TensorRT {pack['release']})"
        return Target(wanted, pack["release"], label, "", version, pack)
    minor = ".".join(version.split(".")[:2])
    if kind == "trt" and minor in data["releases"] and all(p.isdigit() for p in version.split(".")):
        return Target(wanted, minor, f"TensorRT {version}")
    if kind == "rtx" and minor == "1.7":
        return Target(wanted, "rtx-1.7", f"TensorRT-RTX {version}")
    known = targets()
    close = _neighbours(wanted, data["releases"])
    close = close or difflib.get_close_matches(wanted, [*known, *data["aliases"]], 3, 0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    raise TargetError(f"no target '{name}': {hint}")


def of_data(data: Mapping[str, Any], name: str = "") -> Target:
    """A target that is judged by matrix data of the format of `data/matrix`, such as a probe gives."""
    release = str(data["release"])
    full = release if release.startswith("rtx") else f"trt-{release}"
    label = f"{data['product']} {data['version']}"
    return Target(name or full, release, label, own=_compiled(full, data))


def data_of(target: Target) -> Mapping[str, Any]:
    """The content of the matrix file a target is judged by."""
    return _matrix_of(target).data


def _of_file(path: Path) -> Target:
    try:
        return of_data(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TargetError(f"{path}: is no matrix file ({type(error).__name__}: {error})") from error


def _neighbours(wanted: str, releases: list[str]) -> list[str]:
    """For a TensorRT version the data lacks ("trt-8.3"), the releases next to it of the same major."""
    asked = re.fullmatch(r"trt-(\d+)\.(\d+)(\.\d+)*", wanted)
    if asked is None:
        return []
    minors = [int(m) for major, m in (r.split(".") for r in releases) if major == asked[1]]
    nearest = sorted(minors, key=lambda m: (abs(m - int(asked[2])), m))[:2]
    return [f"trt-{asked[1]}.{m}" for m in sorted(nearest)]


@functools.cache
def _targets() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((DATA / "targets.json").read_text(encoding="utf-8"))
    return data


# ---- judging ----


def judge(node: Node, target: Target) -> Verdict | None:
    """What the target does not take of this node; None when it takes it. Bodies are not looked into."""
    return _judge(node, _matrix_of(target), Facts())


def judge_graph(graph: Graph, target: Target, *, live_only: bool = False) -> Iterator[tuple[Node, Verdict]]:
    """The nodes of this scope, its bodies and the functions it calls that the target does not fully take.

    The branch that a constant condition never takes is left out, as the parser leaves it out. What nothing
    uses and what could be folded the parser does meet, and refuse: such verdicts say so in `moot`, and
    `live_only` drops them. Cost: linear in the nodes, beside the inference of types.
    """
    matrix = _matrix_of(target)
    facts = Facts()
    for scope in _met(graph, matrix):
        unused: set[Node] | None = None
        survey = matrix.survey(scope)
        for node in scope.nodes():
            verdict = _judge(node, matrix, facts, survey)
            if verdict is None or (verdict.effect is Effect.UNDECIDED and _in_function(scope)):
                continue  # no value in a function has a type before it is called: what hangs on types stays unsaid
            unused = _unused(scope) if unused is None else unused
            moot = "unused" if node in unused else "constant" if facts.folds(node) else ""
            if not moot:
                yield node, verdict
            elif not live_only:
                yield node, replace(verdict, moot=moot, reason=verdict.reason + _MOOT[moot])


def judge_model(graph: Graph, target: Target) -> Iterator[tuple[Where, Verdict]]:
    """All that the target does not fully take of a model: `judge_interface`, then `judge_graph`, by place."""
    yield from judge_interface(graph, target)
    yield from ((node.where(), verdict) for node, verdict in judge_graph(graph, target))


def judge_interface(graph: Graph, target: Target) -> Iterator[tuple[Where, Verdict]]:
    """What the parser refuses before it comes to the nodes: inputs and stored tensors that no node reads.

    It imports all of them, wanted or not. Those that a node reads are in that node's verdict. The place has "input"
    or "initializer" for an operator, and the tensor as its output.
    """
    matrix = _matrix_of(target)
    for scope in _met(graph, matrix):
        if scope.kind == "graph":
            for info in scope.proto.input:
                if scope.unused(info.name) and info.name not in scope.initializers:
                    reason = matrix.not_taken(info.type)
                    if reason:
                        yield _unread("input", info.name, scope, reason, matrix)
        for name, tensor in scope.initializers.items():
            if not scope.unused(name) or tensor.data_type in _HARMLESS_STORED:
                continue
            reason = matrix.not_taken(onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
            if reason:
                yield _unread("initializer", name, scope, reason, matrix)


def _unread(kind: str, name: str, scope: Graph, reason: tuple[str, str], matrix: _Matrix) -> tuple[Where, Verdict]:
    text, limit = reason
    found = matrix.verdict(Effect.REFUSED, f"{text}, even where no node reads them: remove the {kind} '{name}'", limit)
    return Where("", kind, outputs=(name,), graph=scope.path), replace(found, moot="unused")


_MOOT = {
    "unused": "; nothing uses its result, so removing it is enough",
    "constant": "; all its inputs are constant, so folding it is enough",
}


def _met(graph: Graph, matrix: _Matrix) -> Iterator[Graph]:
    """The scopes the parser walks: this one, live bodies, and functions that are called where it takes functions."""
    stack, called = [graph], set()
    while stack:
        scope = stack.pop()
        yield scope
        functions = scope.root.functions if matrix.functions else {}
        for node in scope.nodes() if functions else ():
            function = functions.get((node.domain, node.op))
            if function is not None and function not in called:
                called.add(function)
                stack.append(function)
        for node in [n for n in scope.nodes() if n.bodies]:
            taken = _branch_taken(node)
            stack.extend(b for name, b in node.bodies.items() if taken in ("", name))


def _branch_taken(node: Node) -> str:
    """Name of the only branch of an If that can run, "" when any body can."""
    if node.op != "If" or not node.graph.is_const(node.input(0)):
        return ""
    condition = values(node.graph, node.input(0))
    return "" if not condition else "then_branch" if condition[0] else "else_branch"


def _in_function(scope: Graph) -> bool:
    while scope.parent is not None:
        scope = scope.parent
    return scope.kind == "function"


def _unused(scope: Graph) -> set[Node]:
    """The nodes of a scope on which none of its outputs depends. Cost: linear."""
    if not scope.unread():  # what leads nowhere ends somewhere
        return {n for n in scope.nodes() if not n.proto.output}
    used: set[Node] = set()
    names = list(scope.output_names)
    while names:
        node = scope.producers.get(names.pop())
        if node is not None and node not in used:
            used.add(node)
            names.extend((*node.proto.input, *node.captured))
    return {n for n in scope.nodes() if n not in used}


def _judge(node: Node, matrix: _Matrix, facts: Facts, survey: _Survey | None = None) -> Verdict | None:
    """`survey` is of the node's scope; without one, all is looked at that it would show to be needless."""
    op, domain = node.op, node.domain
    functions = node.graph.root.functions
    if functions and (domain, op) in functions:
        if matrix.functions:
            return None
        return matrix.verdict(Effect.REFUSED, "a call of a model-local function is refused", "functions")
    row = matrix.row_at(op, domain, node.graph.opset(domain), survey.dtypes if survey else None)
    if row is None:
        return matrix.without_row(node)
    limits, known = row
    proto = node.proto
    verdicts = [] if survey and survey.ordinary(proto) else matrix.dtypes_and_ranks(node)
    for limit in limits:
        verdict = limit.check(node, facts, matrix)
        if verdict is not None:
            verdicts.append(verdict)
    if known is not None and known.less_than(proto):
        verdicts.extend(matrix.too_new(node, known))
    if not verdicts:
        return None
    verdicts.sort(key=lambda v: _SEVERITY.index(v.effect))
    worst, *others = verdicts
    return replace(worst, also=tuple(others)) if others else worst


def _key(op: str, domain: str) -> str:
    return op if domain in ("", "ai.onnx") else f"{domain}::{op}"


# ---- one release ----


@dataclass(frozen=True)
class _Limit:
    id: str
    effect: Effect
    text: str
    basis: str
    need: Check | None
    when: tuple[Check, ...]
    opset_min: int
    opset_max: int
    undecided: bool  # whether not knowing is worth a verdict
    about: frozenset[str | int]  # attributes and inputs it looks at
    dtypes: frozenset[int] | None  # it is kept where none of these occur, 0 for an unknown one; None: it hangs on more

    def check(self, node: Node, facts: Facts, matrix: _Matrix) -> Verdict | None:
        sure = True
        for condition in self.when:
            holds = condition(node, facts)[0]
            if holds is False:
                return None
            sure = sure and holds is True
        taken, found = self.need(node, facts) if self.need else (None, "")
        if taken:
            return None
        if taken is None or not sure:
            if not self.undecided:
                return None
            return matrix.undecided(self.effect, self.text, self.id, self.basis)
        reason = f"{self.text} (here: {found})" if found else self.text
        return matrix.verdict(self.effect, reason, self.id, self.basis)


@dataclass(frozen=True)
class _Known:
    """What a version of an operator has."""

    attributes: frozenset[str]
    inputs: int  # at most
    about: frozenset[str | int]  # what came later and limits look at

    def less_than(self, proto: onnx.NodeProto) -> bool:
        """Whether a node has attributes or inputs beyond it."""
        return len(proto.input) > self.inputs or not all(a.name in self.attributes for a in proto.attribute)


_Row = tuple[tuple[_Limit, ...], _Known | None]


@dataclass(frozen=True)
class _Survey:
    """The types of a scope's values, all together."""

    odd: frozenset[str]  # those whose type alone may be refused
    dtypes: frozenset[int]  # 0 among them when some are not known

    def ordinary(self, proto: onnx.NodeProto) -> bool:
        """Whether a node has to do with none that are odd."""
        return not self.odd or (self.odd.isdisjoint(proto.output) and self.odd.isdisjoint(proto.input))


@dataclass(frozen=True)
class _Matrix:
    release: str
    source: str
    opsets: tuple[int, int] | None
    rows: dict[str, tuple[_Limit, ...]]
    unsupported: frozenset[str]
    plugins: frozenset[str]
    functions: bool
    rank_max: int
    dtypes_refused: frozenset[int]
    dtypes_narrowed: frozenset[int]
    interface_only: frozenset[int]  # dtypes a network may have at its border but not inside
    border_ops: frozenset[str]  # operators that may stand there between
    constants_refused: frozenset[int]  # dtypes of which a constant may feed DequantizeLinear only
    data: Mapping[str, Any] = field(repr=False)
    rows_at: dict[tuple[str, str, int, frozenset[int] | None], _Row | None] = field(default_factory=dict)

    def verdict(self, effect: Effect, reason: str, limit: str, basis: str = "") -> Verdict:
        known = f" ({basis})" if basis else ""
        return Verdict(effect, reason, f"{self.release} {limit}{known}, {self.source}", limit)

    def undecided(self, at_worst: Effect, text: str, limit: str, basis: str) -> Verdict:
        found = self.verdict(Effect.UNDECIDED, f"not decided here: {text}", limit, basis)
        return replace(found, at_worst=at_worst)

    def without_row(self, node: Node) -> Verdict:
        op, domain = node.op, node.domain
        kind, _, version = self.release.partition("-")
        name = f"{'TensorRT-RTX' if kind == 'rtx' else 'TensorRT'} {version}"
        if op in self.plugins:
            reason = f"{op} is a plugin of TensorRT's own library: load that library before parsing"
            return self.verdict(Effect.PLUGIN, reason, "plugin")
        if _key(op, domain) in self.unsupported:
            return self.verdict(Effect.REFUSED, f"{name} has no importer for {op}", "no-importer")
        if domain == "":
            return self.verdict(Effect.UNKNOWN, f"the matrix of {name} has no row for {op}", "no-row")
        if op in self.rows:
            reason = f"the parser does not read the domain '{domain}': it takes this for the ONNX operator {op}"
            beyond = _beyond_onnx(node)
            if beyond:
                return self.verdict(Effect.WRONG, f"{reason}, which has no {beyond}", "domain")
            return self.verdict(Effect.UNDECIDED, reason, "domain")
        reason = f"{name} has no importer for {domain}::{op}, and its library no plugin of that name"
        return self.verdict(Effect.REFUSED, reason, "no-importer")

    def row_at(self, op: str, domain: str, opset: int, dtypes: frozenset[int] | None) -> _Row | None:
        """The limits of an operator at an opset, and what the release knows where it has grown; None without a row.

        Limits that are kept wherever there are no other `dtypes` than these are left out.
        """
        key = op, domain, opset, dtypes
        try:
            return self.rows_at[key]
        except KeyError:
            limits = self.rows.get(_key(op, domain))
            here = [x for x in limits or () if x.opset_min <= opset <= x.opset_max]
            known = self._known(op, domain, opset, frozenset().union(*(x.about for x in here)))
            awake = tuple(x for x in here if x.dtypes is None or dtypes is None or x.dtypes & dtypes)
            return self.rows_at.setdefault(key, None if limits is None else (awake, known))

    def _known(self, op: str, domain: str, opset: int, about: frozenset[str | int]) -> _Known | None:
        """What the release knows of an operator that has more in the model's version, None where there is no more."""
        if domain or not self.opsets or opset <= self.opsets[1]:
            return None
        known, now = schema(op, domain, self.opsets[1]), schema(op, domain, opset)
        if known is None or now is None or known.since_version >= now.since_version:
            return None
        before = frozenset(known.attributes)
        grown = known.max_input < now.max_input or not before.issuperset(now.attributes)
        return _Known(before, known.max_input, about) if grown else None

    def too_new(self, node: Node, known: _Known) -> Iterator[Verdict]:
        """Attributes and inputs that came with an opset newer than the release, and that no limit looks at."""
        assert self.opsets
        newest = self.opsets[1]
        now = schema(node.op, node.domain, node.opset)
        assert now  # `row_at` looked
        seen = known.attributes | known.about
        for name in [a.name for a in node.proto.attribute if a.name not in seen]:
            default = now.attributes[name].default_value if name in now.attributes else None
            if default is None or not default.type or node.attr(name) != attribute_value(default):
                yield self._newer(f"the attribute {name}", newest)
        for index, name in enumerate(node.proto.input):
            if name and index >= known.inputs and index not in known.about:
                yield self._newer(f"input {index} ('{name}')", newest)

    def _newer(self, what: str, newest: int) -> Verdict:
        text = f"{what} is newer than opset {newest}, the newest of this release: it may be ignored"
        return self.undecided(Effect.WRONG, text, "newer-opset", "inferred")

    def not_taken(self, kind: onnx.TypeProto) -> tuple[str, str] | None:
        """Why no tensor may be of this type, and the limit that says so; None when one may."""
        if not kind.HasField("tensor_type"):
            return "only tensors are taken, no sequences, optionals or maps", "no-tensor"
        dtype, rank = kind.tensor_type.elem_type, len(kind.tensor_type.shape.dim)
        if dtype in self.dtypes_refused:
            return f"{DTYPE[dtype]} tensors are refused", "dtype"
        if rank > self.rank_max:
            return f"tensors have at most {self.rank_max} dimensions, not {rank}", "rank"
        return None

    def survey(self, scope: Graph) -> _Survey:
        """Look at each value of a scope, once."""
        watched = self.dtypes_refused | self.interface_only | self.constants_refused
        odd: set[str] = set()
        dtypes: set[int] = set()
        for name, kind in scope.types():
            tensor = kind.tensor_type if kind is not None else _UNTYPED  # of what is no tensor: without a dtype, too
            dtype = tensor.elem_type
            dtypes.add(dtype)
            if not dtype or dtype in watched or len(tensor.shape.dim) > self.rank_max:
                odd.add(name)
        for name, stored in scope.initializers.items():
            dtypes.add(stored.data_type)
            if stored.data_type in watched or len(stored.dims) > self.rank_max:
                odd.add(name)
        return _Survey(frozenset(odd), frozenset(dtypes))

    @staticmethod
    def _data_stored(node: Node, name: str) -> bool:
        """Whether it is a stored first input, of an operator that must not have a quantized one."""
        return node.op not in _OWN_LIMITS and name in node.proto.input[:1] and node.graph.is_const(name)

    def dtypes_and_ranks(self, node: Node) -> list[Verdict]:
        """What holds for every operator: its outputs, and those inputs that no node makes."""
        graph = node.graph
        found: list[Verdict] = []
        made = [o for o in node.proto.output if o]
        for name in (*made, *(i for i in node.proto.input if i and graph.producer(i) is None)):
            kind = graph.type_of(name)
            if kind is None:
                continue
            if not kind.HasField("tensor_type"):
                reason = f"only tensors are taken, no sequences, optionals or maps ('{name}')"
                found.append(self.verdict(Effect.REFUSED, reason, "no-tensor"))
                continue
            dtype, rank = kind.tensor_type.elem_type, len(kind.tensor_type.shape.dim)
            if dtype in self.dtypes_refused:
                reason = f"{DTYPE[dtype]} tensors are refused ('{name}')"
                found.append(self.verdict(Effect.REFUSED, reason, "dtype"))
            elif dtype in self.interface_only and not _at_border(node, name, self.border_ops):
                reason = f"{DTYPE[dtype]} is only taken at the network's border, next to a Cast ('{name}')"
                found.append(self.verdict(Effect.REFUSED, reason, "dtype-inside"))
            elif dtype in self.constants_refused and self._data_stored(node, name):
                reason = f"a stored {DTYPE[dtype]} tensor may only feed DequantizeLinear: the build fails ('{name}')"
                found.append(self.verdict(Effect.BUILD_FAILS, reason, "quantized-constant", "probe"))
            if rank > self.rank_max:
                reason = f"tensors have at most {self.rank_max} dimensions ('{name}' has {rank})"
                found.append(self.verdict(Effect.REFUSED, reason, "rank"))
        return found


def _beyond_onnx(node: Node) -> str:
    """What a node of another domain asks for that ONNX's operator of its name does not know, "" for nothing."""
    known = schema(node.op, "", onnx.defs.onnx_opset_version())
    if known is None:
        return ""
    names = [a.name for a in node.proto.attribute if a.name not in known.attributes]
    return f"attribute {names[0]}" if names else "so many inputs" if len(node.proto.input) > known.max_input else ""


_UNTYPED = onnx.TypeProto.Tensor()
_OWN_LIMITS = ("QuantizeLinear", "DequantizeLinear", "Constant")


def _at_border(node: Node, name: str, ops: frozenset[str]) -> bool:
    graph = node.graph
    if node.op not in ops:
        return node.op in _OWN_LIMITS
    if name not in node.proto.output:
        return True
    return graph.kind == "graph" and graph.is_output(name) and not graph.uses(name)


def _matrix_of(target: Target) -> _Matrix:
    return target.own or _matrix(target.release)


@functools.cache
def _matrix(release: str) -> _Matrix:
    name = release if release.startswith("rtx") else f"trt-{release}"
    return _compiled(name, json.loads((DATA / "matrix" / f"{name}.json").read_text(encoding="utf-8")))


def _compiled(name: str, data: Mapping[str, Any]) -> _Matrix:
    shared = {key: _limit(value) for key, value in data["shared"].items()}
    rules = data["rules"]

    def limits(op: str, row: dict[str, Any]) -> tuple[_Limit, ...]:
        own = op.rsplit("::")[-1].lower()
        found = (shared[x] if isinstance(x, str) else _limit(x) for x in row.get("limits", ()))
        return tuple(replace(x, id=f"{own}/{x.id}") for x in found if x.effect is not _NOTHING)

    return _Matrix(
        release=name,
        source=_source(data["source"]),
        opsets=tuple(data["opset"]) if data["opset"] else None,
        rows={op: limits(op, row) for op, row in data["ops"].items()},
        unsupported=frozenset(data["unsupported"]),
        plugins=frozenset(rules["plugins"]),
        functions=rules["functions"],
        rank_max=rules["rank_max"],
        dtypes_refused=dtypes(rules["dtypes_refused"]),
        dtypes_narrowed=dtypes(list(rules["dtypes_narrowed"])),
        interface_only=dtypes(rules["dtypes_interface_only"]),
        border_ops=frozenset(rules.get("border_ops", ("Cast", "CastLike"))),
        constants_refused=dtypes(rules.get("constants_dequantized_only", [])),
        data=data,
    )


def _source(data: dict[str, Any]) -> str:
    if "repo" in data:
        return f"{data['repo']}@{data['commit'][:10]}"
    return f"{data['package']} {data['version']}"


_NOTHING = Effect.UNDECIDED  # what "info" maps to: kept in the data for readers, never a verdict


def _limit(data: dict[str, Any]) -> _Limit:
    need = data["need"]
    return _Limit(
        id=data["id"],
        effect=_EFFECTS.get(data["effect"], _NOTHING),
        text=data["text"],
        basis=data["basis"],
        need=check_of(need) if need else None,
        when=tuple(check_of(c) for c in data.get("when", ())),
        opset_min=data.get("opset_min", 0),
        opset_max=data.get("opset_max", 1 << 30),
        undecided=data.get("if_unknown", "undecided") == "undecided",
        about=frozenset(_about(need) if need else ()),
        dtypes=dtypes([*need["dtype_not_in"], "UNDEFINED"]) if need and "dtype_not_in" in need else None,
    )


def _about(need: dict[str, Any]) -> Iterator[str | int]:
    for key in ("attr", "input"):
        if key in need:
            yield from need[key] if isinstance(need[key], list) else [need[key]]
    if "split" in need:
        yield "num_outputs"
