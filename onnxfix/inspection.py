"""What a model is, as its file says, and what a target refuses of it, node by node.

Without a target only the protobuf is walked: nothing is inferred, no weight is read. With one, types are
inferred once, the matrix judges every node, and the rules that look after a refused node are asked whether
they would act.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto

from onnxfix import boards, freeze, matrix, shapes, verdict
from onnxfix.errors import ModelError, RuleError, Skip
from onnxfix.graph import Graph, Node
from onnxfix.model import Model, external_field, external_path, is_external, nbytes, one_line
from onnxfix.report import Finding, Safety, Skipped, Where
from onnxfix.rule import REWRITABLE, Context, Rule

LARGEST = 10  # stored tensors listed by name

Dim = int | str | None


@dataclass(frozen=True)
class Value:
    """An input or output of the graph. `shape` is None when no rank is declared; an unnamed axis is None."""

    name: str
    dtype: str  # as in TensorProto.DataType, e.g. "FLOAT"; "sequence(FLOAT)" and the like for other kinds
    shape: tuple[Dim, ...] | None
    dynamic: tuple[int, ...] = ()  # positions of the axes without a fixed size
    initialized: bool = False  # an input with a default: an initializer of its name
    doc: str = ""


@dataclass(frozen=True)
class Stored:
    """A tensor stored in the model: an initializer, or a node's attribute."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    scope: str = ""  # path of the graph it belongs to, "" for the main one
    file: str = ""  # where its data lies, "" when in the model itself


@dataclass(frozen=True)
class Amount:
    """How many tensors of one dtype, and their bytes."""

    dtype: str
    count: int
    bytes: int


@dataclass(frozen=True)
class ExternalFile:
    """A file that holds data of the model. It is looked for, never opened."""

    location: str  # as the model says it, relative to the model's folder
    tensors: int
    bytes: int  # that the model's tensors take of it
    problem: str = ""  # "" when all is there


@dataclass(frozen=True)
class OpCount:
    """Nodes of one operator. `depths[d]` are those in scopes d levels deep; function bodies start at 1."""

    domain: str
    op: str
    count: int
    depths: tuple[int, ...]


@dataclass(frozen=True)
class Scope:
    """The main graph (path ""), a body of an If, Loop or Scan, or a function."""

    path: str
    kind: str  # "graph", "body" or "function"
    depth: int
    nodes: int
    initializers: int


@dataclass(frozen=True)
class Function:
    """A function the model brings along; its nodes are counted with the others."""

    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    opsets: dict[str, int]
    nodes: int
    calls: int
    doc: str = ""


@dataclass(frozen=True)
class Inspection:
    """All that `onnxfix inspect` has to say. The fields from `target` on need a target."""

    model: str
    bytes: int  # of the protobuf, external data not counted
    sha256: str
    ir_version: int
    opsets: dict[str, int]
    producer: str
    producer_version: str
    domain: str
    model_version: int
    doc: str
    metadata: dict[str, str]
    graph: str
    graph_doc: str
    graph_metadata: dict[str, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: int  # in all scopes
    ops: tuple[OpCount, ...]
    scopes: tuple[Scope, ...]
    functions: tuple[Function, ...]
    initializers: tuple[Amount, ...]  # by dtype, the most bytes first; those of bodies included
    in_nodes: tuple[Amount, ...]  # tensors that are attributes of nodes, mostly of Constant
    largest: tuple[Stored, ...]
    external: tuple[ExternalFile, ...]
    training: int = 0  # training_info entries
    target: str = ""
    verdict: str = ""  # "refused", "unverified" (some node could not be decided) or "accepted"
    findings: tuple[Finding, ...] = ()
    skipped: tuple[Skipped, ...] = ()  # rules that look after a refused node, and why they can't help it
    graph_rules: tuple[str, ...] = ()  # rules that look at the graph as a whole, and would act
    rules: dict[str, Safety] = field(default_factory=dict)  # safety of the rules named above
    notes: tuple[str, ...] = ()
    dla: boards.Split | None = None  # when asked for: which nodes the board's DLA would take

    @property
    def refused(self) -> int:
        """Number of nodes the target refuses; plugins and undecided limits are not counted."""
        return sum(1 for f in self.findings if f.effect in REWRITABLE)


def inspect_model(
    model: Model,
    target: matrix.Target | None = None,
    rules: Iterable[Rule] = (),
    *,
    precision: str = "",
    dla: bool = False,
) -> Inspection:
    """Describe `model`, and with `target` what it refuses and which of `rules` would help.

    `precision` is one the engine shall have, such as "int8": what the target's board cannot do is a finding. `dla`
    asks for the split between DLA and GPU. Cost: two walks over the nodes; with a target also one shape inference and
    the judging of each node. Raises ModelError for a damaged model, RuleError for a rule that fails, RequestError for
    a precision that does not exist, or a DLA asked of a target without board.
    """
    proto = model.proto
    survey = _Survey(model.directory)
    survey.graph(proto.graph, "", "graph", 0)
    for function in proto.functions:
        survey.nodes(function.node, f"function {function.domain}::{function.name}", "function", 1, 0)
    ops = survey.op_counts()
    about: dict[str, Any] = {}
    if target is not None:
        graph = shapes.index(model)
        judged = _judge_graph(graph, target, rules)
        stored = sum(sum(sizes) for sizes in (*survey.initializers.values(), *survey.in_nodes.values()))
        judged.findings += boards.board_findings(target, precision=precision, model_bytes=stored)
        about = {
            "target": target.label,
            "verdict": verdict.by_matrix(judged.findings),
            "findings": tuple(judged.findings),
            "skipped": tuple(judged.skipped),
            "graph_rules": tuple(judged.graph_rules),
            "rules": judged.safety,
            "notes": (*_opset_notes(model, target), *freeze.advice(graph, _helpless(judged.findings), judged.skipped)),
            "dla": boards.dla_split(graph, target) if dla else None,
        }
    return Inspection(
        model=str(model.path or ""),
        bytes=proto.ByteSize(),
        sha256=model.sha256,
        ir_version=proto.ir_version,
        opsets=dict(model.opsets),
        producer=proto.producer_name,
        producer_version=proto.producer_version,
        domain=proto.domain,
        model_version=proto.model_version,
        doc=proto.doc_string,
        metadata={p.key: p.value for p in proto.metadata_props},
        graph=proto.graph.name,
        graph_doc=proto.graph.doc_string,
        graph_metadata={p.key: p.value for p in getattr(proto.graph, "metadata_props", ())},
        inputs=tuple(_value(v, survey.main_names) for v in proto.graph.input),
        outputs=tuple(_value(v, frozenset()) for v in proto.graph.output),
        nodes=sum(s.nodes for s in survey.scopes),
        ops=ops,
        scopes=tuple(survey.scopes),
        functions=tuple(_function(f, ops) for f in proto.functions),
        initializers=_amounts(survey.initializers),
        in_nodes=_amounts(survey.in_nodes),
        largest=survey.largest(),
        external=survey.external_files(),
        training=len(proto.training_info),
        **about,
    )


# ---- what the file says ----


# (bytes, minus the order of finding, tensor, path of its scope, the node whose attribute it is)
_Item = tuple[int, int, TensorProto, str, "onnx.NodeProto | None"]


class _Survey:
    """Counts gathered in one walk over all scopes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.scopes: list[Scope] = []
        self.initializers: dict[int, list[int]] = defaultdict(list)  # dtype -> bytes of each
        self.in_nodes: dict[int, list[int]] = defaultdict(list)
        self.main_names: frozenset[str] = frozenset()
        self._ops: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        self._top: list[_Item] = []  # a heap of the largest tensors
        self._order = itertools.count()  # settles ties in the heap: the first one met stays ahead
        self._external: dict[str, list[TensorProto]] = defaultdict(list)

    def graph(self, proto: onnx.GraphProto, path: str, kind: str, depth: int) -> None:
        for tensor in proto.initializer:
            self._stored(tensor, self.initializers, path)
        for sparse in proto.sparse_initializer:
            self._stored(sparse.values, self.initializers, path)
            self._stored(sparse.indices, self.initializers, path)
        if kind == "graph":
            self.main_names = frozenset(t.name for t in proto.initializer)
        self.nodes(proto.node, path, kind, depth, len(proto.initializer) + len(proto.sparse_initializer))

    def nodes(self, nodes: Any, path: str, kind: str, depth: int, initializers: int) -> None:
        self.scopes.append(Scope(path, kind, depth, len(nodes), initializers))
        for (domain, op), count in Counter((n.domain, n.op_type) for n in nodes).items():
            self._ops["" if domain == "ai.onnx" else domain, op][depth] += count
        for position, node in enumerate(nodes):
            for attribute in node.attribute:
                if attribute.type in _PLAIN:
                    continue
                if attribute.HasField("t"):
                    self._stored(attribute.t, self.in_nodes, path, node)
                for tensor in attribute.tensors:
                    self._stored(tensor, self.in_nodes, path, node)
                bodies = [(attribute.name, attribute.g)] if attribute.HasField("g") else []
                bodies += [(f"{attribute.name}[{i}]", g) for i, g in enumerate(attribute.graphs)]
                for name, body in bodies:
                    label = node.name or (node.output[0] if node.output else f"#{position}")
                    self.graph(body, "/".join(p for p in (path, label, name) if p), "body", depth + 1)

    def _stored(
        self, tensor: TensorProto, into: dict[int, list[int]], path: str, node: onnx.NodeProto | None = None
    ) -> None:
        size = nbytes(tensor)
        into[tensor.data_type].append(size)
        if tensor.data_location == TensorProto.EXTERNAL:
            self._external[external_field(tensor, "location")].append(tensor)
        item = (size, -next(self._order), tensor, path, node)
        if len(self._top) < LARGEST:
            heapq.heappush(self._top, item)
        elif size > self._top[0][0]:
            heapq.heapreplace(self._top, item)

    def op_counts(self) -> tuple[OpCount, ...]:
        """The most frequent first."""
        counts = [
            OpCount(domain, op, sum(by.values()), tuple(by[d] for d in range(max(by) + 1)))
            for (domain, op), by in self._ops.items()
        ]
        return tuple(sorted(counts, key=lambda c: (-c.count, c.domain, c.op)))

    def largest(self) -> tuple[Stored, ...]:
        found = sorted(self._top, key=lambda item: item[:2], reverse=True)
        return tuple(_describe(*item) for item in found)

    def external_files(self) -> tuple[ExternalFile, ...]:
        return tuple(_external_file(place, found, self.directory) for place, found in self._external.items())


_PLAIN = frozenset(
    {
        AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.FLOATS,
        AttributeProto.INTS, AttributeProto.STRINGS, AttributeProto.TYPE_PROTO,
    }
)  # fmt: skip



def _describe(size: int, _: int, tensor: TensorProto, path: str, node: onnx.NodeProto | None) -> Stored:
    name = tensor.name
    if node is not None:
        name = (node.output[0] if node.output else "") or node.name or name
    file = external_field(tensor, "location") if is_external(tensor) else ""
    return Stored(name, _dtype(tensor.data_type), tuple(tensor.dims), size, path, file)


def _amounts(by_dtype: Mapping[int, list[int]]) -> tuple[Amount, ...]:
    amounts = [Amount(_dtype(dtype), len(sizes), sum(sizes)) for dtype, sizes in by_dtype.items()]
    return tuple(sorted(amounts, key=lambda a: (-a.bytes, a.dtype)))


def _external_file(location: str, tensors: list[TensorProto], directory: Path) -> ExternalFile:
    ranges = [_range(t) for t in tensors]
    taken = sum(length for _, length in ranges)
    return ExternalFile(location, len(tensors), taken, _problem(location, tensors[0], ranges, directory))


def _range(tensor: TensorProto) -> tuple[int, int]:
    """Offset and length of a tensor's data in its file; what is damaged counts as left out."""
    offset, length = (external_field(tensor, key) for key in ("offset", "length"))
    return int(offset) if offset.isdecimal() else 0, int(length) if length.isdecimal() else nbytes(tensor)


def _problem(location: str, tensor: TensorProto, ranges: list[tuple[int, int]], directory: Path) -> str:
    try:
        path = external_path(tensor, directory)
        size = path.stat().st_size if path.is_file() else -1
    except ModelError:
        return "outside the model's folder: refused, and not looked at"
    except (OSError, ValueError):  # a name too long, or with a NUL
        size = -1
    if size < 0:
        return "missing"
    needed = max(offset + length for offset, length in ranges)
    return f"too short: {size} bytes of {needed}" if size < needed else ""


@functools.cache
def _dtype(number: int) -> str:
    try:
        return str(TensorProto.DataType.Name(number))  # type: ignore[arg-type]
    except ValueError:
        return f"dtype {number}"


def _value(info: onnx.ValueInfoProto, initialized: frozenset[str]) -> Value:
    kind = info.type
    shape = _shape(kind.tensor_type) if kind.HasField("tensor_type") else None
    dynamic = tuple(i for i, d in enumerate(shape or ()) if not isinstance(d, int))
    return Value(info.name, _type(kind), shape, dynamic, info.name in initialized, info.doc_string)


def _shape(tensor: Any) -> tuple[Dim, ...] | None:
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)


def _type(kind: onnx.TypeProto) -> str:
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return _dtype(kind.tensor_type.elem_type)
    if which == "sparse_tensor_type":
        return f"sparse({_dtype(kind.sparse_tensor_type.elem_type)})"
    if which == "sequence_type":
        return f"sequence({_type(kind.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({_type(kind.optional_type.elem_type)})"
    if which == "map_type":
        return f"map({_dtype(kind.map_type.key_type)}, {_type(kind.map_type.value_type)})"
    return which or "untyped"


def _function(function: onnx.FunctionProto, ops: Iterable[OpCount]) -> Function:
    return Function(
        domain=function.domain,
        name=function.name,
        inputs=tuple(function.input),
        outputs=tuple(function.output),
        attributes=(*function.attribute, *(a.name for a in function.attribute_proto)),
        opsets={o.domain: o.version for o in function.opset_import},
        nodes=len(function.node),
        calls=next((c.count for c in ops if (c.domain, c.op) == (function.domain, function.name)), 0),
        doc=function.doc_string,
    )


# ---- what the target refuses ----


def findings(
    graph: Graph,
    target: matrix.Target,
    rules: Iterable[Rule] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Finding]:
    """What `target` does not take of the graph, its bodies and functions, with the rules that would help.

    Raises RuleError for a rule that fails.
    """
    yield from _judge_graph(graph, target, rules, options).findings


@dataclass
class _Judged:
    findings: list[Finding] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    graph_rules: list[str] = field(default_factory=list)
    safety: dict[str, Safety] = field(default_factory=dict)


def _judge_graph(
    graph: Graph,
    target: matrix.Target,
    rules: Iterable[Rule],
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> _Judged:
    verdicts = dict(matrix.judge_graph(graph, target))
    context = Context(target, verdicts.get, options or {})
    by_op: dict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        for op in rule.ops:
            by_op[op].append(rule)
    judged = _Judged()
    for node, found in verdicts.items():
        key = f"{node.domain}::{node.op}" if node.domain else node.op
        helpers = []
        for rule in (*by_op.get(key, ()), *by_op.get("*", ())):
            if rule.when == "refused" and found.effect not in REWRITABLE:
                continue
            if _would_act(rule, node, node.where(), context, judged):
                helpers.append(rule.id)
        judged.findings.append(
            Finding(node.where(), found.effect, found.reason, target.by, found.evidence, tuple(helpers), found.limit)
        )
    for where, found in matrix.judge_interface(graph, target):
        judged.findings.append(
            Finding(where, found.effect, found.reason, target.by, found.evidence, limit=found.limit)
        )
    for rule in by_op.get("<graph>", ()) if judged.findings else ():
        places = [(s, Where("", "graph", graph=s.path)) for s in graph.scopes()]
        if any([_would_act(rule, scope, where, context, judged) for scope, where in places]):
            judged.graph_rules.append(rule.id)
    return judged


def _would_act(rule: Rule, subject: Node | Graph, where: Where, context: Context, judged: _Judged) -> bool:
    try:
        found = rule.match(subject, context)
    except Skip as skip:
        judged.skipped.append(Skipped(rule.id, where, str(skip)))
        judged.safety[rule.id] = rule.safety
        return False
    except Exception as error:
        raise RuleError(
            f"rule '{rule.id}' failed at {where}: {type(error).__name__}: {one_line(error)}"
        ) from error
    if found is None:
        return False
    judged.safety[rule.id] = rule.safety
    return True


def _helpless(found: Iterable[Finding]) -> list[Finding]:
    """Findings that no rule would help."""
    return [f for f in found if not f.rules]


def _opset_notes(model: Model, target: matrix.Target) -> Iterator[str]:
    if target.opsets is None or not model.opset():
        return
    low, high = target.opsets
    if model.opset() > high:
        yield (
            f"opset {model.opset()} is newer than the newest that {target.label} knows ({high}): "
            "what its operators gained since may be ignored without a word"
        )
    elif model.opset() < low:
        yield f"opset {model.opset()} is older than the oldest that {target.label} was made for ({low})"
