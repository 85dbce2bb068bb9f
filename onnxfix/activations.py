"""The values of a model that the proofs of its changes start from: captured while it runs, once, in pieces.

Asked for in the order in which the nodes make them, they cost one run of the model, whatever the number of questions,
and memory for what one question asks for and what later nodes still read.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ValueInfoProto, helper

from onnxfix import shapes
from onnxfix.backends import BackendError, feeds, ort, reference
from onnxfix.graph import Graph
from onnxfix.model import Model
from onnxfix.recorder import ordered, reads

SEEDS = (1, 0, 2, 3, 4, 5)  # the first draws from [-1, 1]: both signs
# The dtypes that can be handed from one piece to the next.
CARRIED = frozenset(np.dtype(name) for name in ort.DTYPES.values())


class Activations:
    """A model on a few inputs. `inputs` is an .npz or a Polygraphy .json; without it they are drawn, with all of SEEDS
    or, unless `thorough`, with the first alone. `frozen` are values that inputs always have.

    ONNX Runtime runs it, as fast as it can; ONNX's reference evaluator where that lacks an operator (`slow`).
    """

    def __init__(
        self, model: Model, inputs: Path | None, frozen: Mapping[str, Any], *, thorough: bool, deadline: float
    ) -> None:
        self.model = model
        self.slow = False
        graph = model.proto.graph
        self.constants = {t.name: t for t in graph.initializer}
        self.tensors = [reference.tensor(v) for v in graph.input if v.name not in self.constants]
        self.nodes = ordered(graph.node)
        self.makers = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        self._last = {name: i for i, n in enumerate(self.nodes) for name in reads(n)}  # the last node that reads it
        self._inputs, self._frozen = inputs, frozen
        self._seeds = SEEDS if thorough else SEEDS[:1]
        self._deadline = deadline
        self._held: dict[int, dict[str, Any]] = {}  # what is known, for each sample
        self._ran = 0  # nodes in front of this one need not run again

    def has(self, name: str) -> bool:
        return name in self.makers or name in self.constants or any(t.name == name for t in self.tensors)

    def values(self, names: Sequence[str], later: set[str]) -> dict[int, dict[str, Any]]:
        """These values for each sample, by its number; `later` are those that will still be asked for.

        A sample that the model does not take is left out, from then on. Raises BackendError when it takes none.
        """
        self._held = self._held or dict(enumerate(self._with_fallback(self._samples)))
        known = next(iter(self._held.values()))
        missing = [n for n in names if n in self.makers and n not in known]
        if missing:
            end = 1 + max(self.makers[n] for n in missing)
            self._with_fallback(lambda: self._advance(end, {*missing}, later))
        stored = {n: self.model.array(self.constants[n]) for n in names if n in self.constants}
        found = {i: {**{n: held[n] for n in names if n in held}, **stored} for i, held in self._held.items()}
        for held in self._held.values():
            for name in held.keys() & self.makers.keys():
                if name not in later and self._last.get(name, -1) < self._ran:
                    del held[name]
        return found

    def _with_fallback(self, action: Callable[[], Any]) -> Any:
        """With ONNX Runtime, or from its first failure on that is a lack of its own with the reference evaluator."""
        try:
            return action()
        except ort.UnsupportedError:
            if self.slow:
                raise
            self.slow = True
            return action()

    def _session(self, data: bytes) -> Any:
        return reference.Session(data) if self.slow else ort.Session(data, self.model.directory, exact=False)

    # ---- pieces ----

    def _advance(self, end: int, wanted: set[str], later: set[str]) -> None:
        """Run the nodes up to `end`, and keep what is wanted of them and what goes on from there."""
        piece = self.nodes[self._ran : end]
        made = {o for n in piece for o in n.output if o}
        onward = {n for n in made if n in later or (later and self._last.get(n, -1) >= end)}
        cut = all(map(self._is_carried, onward))  # or else the next piece begins where this one did
        if not cut:
            onward = set()
        outputs = sorted(wanted | onward)
        fed = [n for n in dict.fromkeys(r for node in piece for r in reads(node)) if n not in made]
        session = self._session(self._piece(self._ran, end, fed, outputs))
        fed = [n for n in fed if n not in self.constants]
        for number, held in list(self._held.items()):
            try:
                held.update(session.run({n: held[n] for n in fed}, outputs))
            except ort.UnsupportedError:
                raise
            except BackendError:
                # An index out of range, perhaps: a sample that the original does not take proves nothing.
                if len(self._held) == 1:
                    raise
                del self._held[number]
        if cut:
            self._ran = end

    def _piece(self, start: int, end: int, fed: Sequence[str], outputs: Sequence[str]) -> bytes:
        source = self.model.proto
        proto = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
        proto.functions.extend(source.functions)
        graph = proto.graph
        graph.name = "piece"
        graph.node.extend(self.nodes[start:end])
        graph.initializer.extend(self.constants[n] for n in fed if n in self.constants)
        graph.sparse_initializer.extend(source.graph.sparse_initializer)
        declared = {v.name: v for v in source.graph.input}
        for name in fed:
            if name in declared:
                graph.input.append(declared[name])
            elif name in self.makers:
                graph.input.add(name=name).type.CopyFrom(self._type(name))
        graph.output.extend(ValueInfoProto(name=name) for name in outputs)
        return bytes(proto.SerializeToString())

    def _type(self, name: str) -> onnx.TypeProto:
        arrays = [held[name] for held in self._held.values()]
        dtype = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
        alike = all(a.shape == arrays[0].shape for a in arrays)
        return helper.make_tensor_type_proto(dtype, arrays[0].shape if alike else [None] * arrays[0].ndim)

    def _is_carried(self, name: str) -> bool:
        """Whether a value can leave one piece and enter another: a tensor of a dtype that NumPy knows."""
        kind = self._graph.type_of(name)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.elem_type:
            return False
        return helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type) in CARRIED

    @functools.cached_property
    def _graph(self) -> Graph:
        return shapes.index(self.model)

    # ---- samples ----

    def _samples(self) -> list[feeds.Feeds]:
        fed = [t for t in self.tensors if t.name not in self._frozen]
        frozen = {n: v for n, v in self._frozen.items() if any(t.name == n for t in self.tensors)}
        if self._inputs is not None:
            found = feeds.read(self._inputs, fed)
        elif reason := feeds.unfillable(fed):
            raise BackendError(f"{reason}: give inputs with --inputs")
        else:
            found = self._drawn(fed, frozen)
        return [{**sample, **frozen} for sample in found]

    def _drawn(self, fed: Sequence[feeds.Tensor], frozen: Mapping[str, Any]) -> list[feeds.Feeds]:
        """Seeded inputs at the first size at which the model runs, in turn with a second one."""
        parts = feeds.axes(fed)
        if not parts and len(draws := list(feeds.draws(fed, {}))) == 1:  # nothing to try: the run itself will tell
            return [feeds.seeded(fed, draws[0], seed) for seed in self._seeds]
        session = self._session(bytes(self.model.proto.SerializeToString()))
        output = [self.model.proto.graph.output[0].name]
        failing: list[str] = []

        def working(sizes: Iterator[feeds.Sizes]) -> list[feeds.Draw]:
            most = 1 if len(self._seeds) == 1 else None
            return feeds.working(
                lambda sample: session.run({**sample, **frozen}, output), fed, sizes, SEEDS[0], failing, late, most
            )

        def late() -> bool:
            return bool(failing) and time.monotonic() > self._deadline

        ways = working(feeds.sizes(parts, {}))
        if not ways:
            reason = failing[0] if failing else "none was to be had"
            raise BackendError(f"the original runs on no input tried: {reason}; give some with --inputs")
        # What is right at one size may be wrong at another, as where an axis of 1 is broadcast.
        others = working(feeds.other_sizes(dict(ways[0].sizes), parts, {})) if parts else []
        turns = [ways, others] if others else [ways]
        samples = max(len(self._seeds), len(turns))
        # Several ways, e.g. several sample rates, are taken in turn too, to see more of the model's branches.
        return [
            feeds.seeded(fed, some[i // len(turns) % len(some)], SEEDS[i % len(SEEDS)])
            for i, some in enumerate(itertools.islice(itertools.cycle(turns), samples))
        ]
