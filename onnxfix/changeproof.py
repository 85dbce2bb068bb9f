"""Each Change proved on its own: what it took away against what it put there, on the original's real activations.

The original is run once (`onnxfix.activations`), and all the small graphs before and after side by side in one session
that computes what they say and nothing else (`onnxfix.sidebyside`). So the cost is a run of the original plus twice
that of the nodes that were rewritten.

A value that the original has is taken from the original, also where an earlier Change makes it now: a wrong Change
can't make a later one look wrong. Only values that earlier Changes brought in are taken from what these made.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.activations import Activations
from onnxfix.backends import BackendError, ort, reference, version
from onnxfix.backends.compare import Compared, compare
from onnxfix.errors import ModelError, UnavailableError
from onnxfix.model import Model
from onnxfix.prove import TOLERANCES
from onnxfix.recorder import Recorded, operators
from onnxfix.recorder import Recorder as Recorder
from onnxfix.report import Change, Check, Safety, Status
from onnxfix.sidebyside import MissingError, Part, combined

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
# Up to here all seeds are used, beyond it the first alone: nodes of the model, bytes the changes read and make.
THOROUGH_NODES, THOROUGH_BYTES = 1000, 16 << 20
BATCH_BYTES = 512 << 20  # of values held at a time

Values = Mapping[int, Mapping[str, Any]]  # of the original, by name, for each sample


@dataclass(frozen=True)
class Proof:
    """What is known of one Change. Errors are relative to the largest magnitude of the value before."""

    change: Change
    verdict: str  # "equal", "within", "differs", "not run", or "lossy": measured, with nothing to judge it by
    detail: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    value: str = ""  # the value with the largest error

    def figures(self) -> dict[str, Any]:
        return {
            "change": self.change.id,
            "rule": self.change.rule,
            "where": str(self.change.where),
            "verdict": self.verdict,
            "value": self.value,
            "max_abs": self.max_abs,
            "max_rel": self.max_rel,
            "detail": self.detail,
        }


# ---- proving ----


def prove(
    original: Callable[[], Model],
    recorder: Recorder,
    *,
    inputs: Path | None = None,
    frozen: Mapping[str, Any] | None = None,
    tolerances: Mapping[str, float] | None = None,
    seconds: float = 300.0,
) -> list[Proof]:
    """Judge every recorded Change, in order.

    `original` gives the model that the rules saw, in memory of its own. `inputs` is an .npz or a Polygraphy .json;
    without it inputs are drawn. The tolerances are the parity's: by grade, as `tolerances` states or its own. After
    `seconds` what has not been looked at is "not run".

    Raises RequestError when `inputs` is no usable file.
    """
    if not recorder.recorded:
        return []
    try:
        return _Proving(original(), recorder.recorded, inputs, frozen or {}, tolerances or {}, seconds).all()
    except (BackendError, UnavailableError, ModelError) as error:
        return [Proof(r.change, "not run", str(error)) for r in recorder.recorded]


class _Proving:
    def __init__(
        self,
        model: Model,
        recorded: Sequence[Recorded],
        inputs: Path | None,
        frozen: Mapping[str, Any],
        tolerances: Mapping[str, float],
        seconds: float,
    ) -> None:
        self.model = model
        self.recorded = recorded
        self.tolerances = tolerances
        self.deadline = time.monotonic() + seconds
        small = sum(r.nbytes for r in recorded) <= THOROUGH_BYTES
        thorough = small and len(model.proto.graph.node) <= THOROUGH_NODES
        self.original = Activations(model, inputs, frozen, thorough=thorough, deadline=self.deadline)
        self.makers = self._makers()
        self.made: dict[tuple[int, str, int], Any] = {}  # (change, value, sample) that a later batch reads
        self.proofs: dict[int, Proof] = {}

    def _makers(self) -> list[dict[str, int]]:
        """For each change the earlier changes that make what it reads and the original has not."""
        latest: dict[str, int] = {}
        result = []
        changed: set[str] = set()  # values that no longer mean what they do in the original
        for position, record in enumerate(self.recorded):
            names = {*record.before.reads, *record.after.reads, *(n for c in record.claims for n in c)}
            gone = (n for n in names if n in latest and (n in changed or not self.original.has(n)))
            result.append({n: latest[n] for n in gone})
            latest.update((n, position) for n in record.after.made)
            changed |= record.after.made.difference(new for old, new in record.claims if old == new)
        return result

    def all(self) -> list[Proof]:
        for position, record in enumerate(self.recorded):
            if why := self._unprovable(position, record):
                self.proofs[position] = Proof(record.change, "not run", why)
        for batch in self._batches():
            self._prove(batch)
        self._excuse()
        return [self.proofs[p] for p in range(len(self.recorded))]

    def _excuse(self) -> None:
        """Take back the verdict on changes that put the value of a wrong one in place of the original's."""
        doubtful: set[int] = set()
        for position, record in enumerate(self.recorded):
            proof = self.proofs[position]
            if proof.verdict != "differs":
                continue
            one = {*record.before.reads, *(old for old, _ in record.claims)}
            other = {*record.after.reads, *(new for _, new in record.claims)}
            source = {self.makers[position].get(name, -1) for name in one ^ other} & doubtful
            doubtful.add(position)
            if source:
                rests = f"it rests on {self.recorded[min(source)].change.where}, changed before, which is wrong"
                self.proofs[position] = Proof(record.change, "not run", rests)

    def _unprovable(self, position: int, record: Recorded) -> str:
        nodes = (*record.before.nodes, *record.after.nodes)
        drawn = [op for n in nodes for _, op in operators(n) if op in RANDOM]
        if drawn:
            return f"{drawn[0]} draws other numbers on every run"
        for name in (*record.before.reads, *record.after.reads):
            if name not in self.makers[position] and not self.original.has(name):
                return f"'{name}', which it reads, is no value of the original"
        return ""

    def _batches(self) -> list[list[int]]:
        """Changes that are proved together, in the order in which the original makes what they read."""
        depths: list[int] = []
        for position in range(len(self.recorded)):
            read = (self.original.makers.get(name, -1) for name in self._captured(position))
            after = (depths[maker] for maker in self.makers[position].values())
            depths.append(max((*read, *after), default=-1))
        batches: list[list[int]] = []
        held = 0
        for position in sorted(set(range(len(depths))) - self.proofs.keys(), key=lambda p: (depths[p], p)):
            size = self.recorded[position].nbytes + self.recorded[position].weights
            if not batches or held + size > BATCH_BYTES:
                batches.append([])
                held = 0
            batches[-1].append(position)
            held += size
        return batches

    def _captured(self, position: int) -> set[str]:
        """What the proof of a change needs of the original."""
        return {name for side in "ba" for name in self._part(position, side).captured()}

    def _part(self, position: int, side: str) -> Part:
        return Part(self.recorded[position], position, side, self.makers[position])

    # ---- a batch ----

    def _prove(self, batch: Sequence[int]) -> None:
        wanted = {name for p in batch for name in self._captured(p)}
        later = {name for p in self._open(batch) for name in self._captured(p)}
        try:
            if time.monotonic() > self.deadline:
                raise BackendError("the time for proofs was over")
            values = self.original.values(sorted(wanted), later)
        except BackendError as error:
            self.proofs.update((p, Proof(self.recorded[p].change, "not run", str(error))) for p in batch)
        else:
            self._prove_on(batch, values)

    def _open(self, batch: Sequence[int]) -> list[int]:
        """The changes that are still to be proved after these."""
        return sorted(set(range(len(self.recorded))) - self.proofs.keys() - set(batch))

    def _prove_on(self, batch: Sequence[int], values: Values) -> None:
        """Prove these changes; where they fail to run together, in halves, to find the one at fault."""
        try:
            compared = self._run(batch, values, self._session)
        except BackendError as error:
            if len(batch) == 1:
                self.proofs[batch[0]] = self._alone(batch[0], values, error)
                return
            middle = len(batch) // 2
            self._prove_on(batch[:middle], values)
            self._prove_on(batch[middle:], values)
            return
        for p in batch:
            self.proofs[p] = self._judge(self.recorded[p], compared[p])

    def _session(self, model: bytes) -> Any:
        return ort.Session(model, self.model.directory, exact=True)

    def _alone(self, position: int, values: Values, error: BackendError) -> Proof:
        """Why a change can't be run: no fault of its own unless what was there before it does run."""
        record, make = self.recorded[position], self._session
        if isinstance(error, MissingError):
            return Proof(record.change, "not run", str(error))
        if self.original.slow or isinstance(error, ort.UnsupportedError):
            make = reference.Session
            try:
                return self._judge(record, self._run([position], values, make)[position])
            except BackendError as second:
                if not self.original.slow:
                    return Proof(record.change, "not run", f"ONNX Runtime: {error}; {second}")
                error = second
        try:
            self._run([position], values, make, sides="b")
        except BackendError as first:
            return Proof(record.change, "not run", str(first))
        return Proof(record.change, "differs", f"what it put there does not run: {error}", math.inf, math.inf)

    def _run(
        self, batch: Sequence[int], values: Values, make: Callable[[bytes], Any], sides: str = "ba"
    ) -> dict[int, list[tuple[str, Compared]]]:
        """Compare the claims of these changes, on every sample: those that need nothing of each other at a time."""
        groups = self._groups(batch)
        with ThreadPoolExecutor(len(groups)) as pool:  # a session of its own each, since these use one thread
            done = pool.map(lambda group: self._run_together(group, batch, values, make, sides), groups)
            return {position: compared for result in done for position, compared in result.items()}

    def _groups(self, batch: Sequence[int]) -> list[list[int]]:
        """A part of the batch for each processor; changes that read what others of the batch make are in theirs."""
        last: dict[int, int] = {}  # a change -> a later one that reads of it, or itself

        def end(position: int) -> int:
            while last[position] != position:
                last[position] = position = last[last[position]]
            return position

        for position in sorted(batch):
            last[position] = position
            for maker in self.makers[position].values():
                if maker in last:
                    last[end(maker)] = position
        chains: dict[int, list[int]] = defaultdict(list)
        for position in sorted(batch):
            chains[end(position)].append(position)
        large = sum(self.recorded[p].nbytes for p in batch) > THOROUGH_BYTES
        groups: list[list[int]] = [[] for _ in range(os.cpu_count() or 1 if large else 1)]
        loads = [0] * len(groups)
        for chain in chains.values():
            least = loads.index(min(loads))
            groups[least] += chain
            loads[least] += sum(self.recorded[p].nbytes for p in chain)
        return [sorted(group) for group in groups if group]

    def _run_together(
        self, group: Sequence[int], batch: Sequence[int], values: Values, make: Callable[[bytes], Any], sides: str
    ) -> dict[int, list[tuple[str, Compared]]]:
        parts = [self._part(p, s) for p in group for s in sides]
        later = {(m, n) for p in self._open(batch) for n, m in self.makers[p].items()}
        models = combined(self.model.proto.ir_version, parts, later)
        compared: dict[int, list[tuple[str, Compared]]] = {p: [] for p in group}
        sessions: dict[tuple[Any, ...], Any] = {}
        for number, known in values.items():
            made: dict[str, Any] = {}
            for index, model in enumerate(models):
                fed = model.feeds(known, made, self.made, number)
                key = (index, *(getattr(value, "shape", None) for value in fed.values()))
                if key not in sessions:
                    sessions[key] = make(model.data(fed))
                made.update(sessions[key].run(fed, model.outputs))
            for p in group:
                self._keep(p, later, made, number)
                if sides == "ba":
                    compared[p] += self._compare(p, known, made, number)
        return compared

    def _keep(self, position: int, later: set[tuple[int, str]], made: Mapping[str, Any], number: int) -> None:
        for maker, name in later:
            if maker == position and f"a{position}/{name}" in made:
                self.made[position, name, number] = made[f"a{position}/{name}"]

    def _compare(
        self, position: int, values: Mapping[str, Any], made: Mapping[str, Any], number: int
    ) -> Iterator[tuple[str, Compared]]:
        record = self.recorded[position]
        for old, new in record.claims:
            one = self._value(position, "b", old, values, made, number)
            other = self._value(position, "a", new, values, made, number)
            if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
                for a, b in zip(one, other, strict=True):
                    yield old, _compare(old, a, b, self._allowed(record.change.safety, a))
            else:
                yield old, _compare(old, one, other, self._allowed(record.change.safety, one))

    def _value(
        self, position: int, side: str, name: str, values: Mapping[str, Any], made: Mapping[str, Any], number: int
    ) -> Any:
        """A value as one side of a change has it."""
        record = self.recorded[position]
        part = record.before if side == "b" else record.after
        if name in part.made:
            return made[f"{side}{position}/{name}"]
        if name in record.stored:
            return self.model.array(record.stored[name])
        maker = self.makers[position].get(name)
        if maker is not None:
            if (key := f"a{maker}/{name}") in made:
                return made[key]
            if (maker, name, number) not in self.made:
                raise MissingError(name)
            return self.made[maker, name, number]
        return values[name]

    def _allowed(self, safety: Safety, reference: Any) -> float:
        own = TOLERANCES.get(safety, math.inf)
        stated = self.tolerances.get(safety.value, own)
        half = isinstance(reference, np.ndarray) and reference.dtype == np.float16
        if half and safety is Safety.CLOSE and stated == own:
            return float(np.finfo(np.float16).eps)  # one unit in the last place
        return stated

    def _judge(self, record: Recorded, compared: Sequence[tuple[str, Compared]]) -> Proof:
        change = record.change
        if not record.claims:
            return Proof(change, "equal", "no value that is used depends on it")
        if not compared:
            return Proof(change, "not run", "the original ran on no input tried")
        for name, c in compared:
            if c.verdict == "kind":
                return Proof(change, "not run", f"'{name}' is no tensor")
            if c.verdict in ("shape", "finite"):
                return Proof(change, "differs", f"'{name}': {c.note}", math.inf, math.inf, name)
        name, worst = max(compared, key=lambda pair: (pair[1].verdict == "beyond", pair[1].relative))
        size = f"{worst.relative:.3g} of its largest magnitude {worst.magnitude:.3g}"
        error = f"'{name}' differs by {worst.max_abs:.3g}, {size}"
        if worst.verdict == "equal":
            return Proof(change, "equal", "equal, bit for bit")
        verdict = "within" if worst.verdict == "within" else "differs"
        if change.safety is Safety.LOSSY and Safety.LOSSY.value not in self.tolerances:
            verdict = "lossy"
        return Proof(change, verdict, error, worst.max_abs, worst.relative, name)


def _compare(name: str, before: Any, after: Any, tolerance: float) -> Compared:
    """As the parity's `compare`, which takes some ten times as long over values that agree."""
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray) or before.shape != after.shape:
        return compare(name, before, after, tolerance)
    if np.array_equal(before, after):
        return Compared("equal", before.size, before.size)
    if before.dtype.kind == after.dtype.kind == "f":
        reference = before.astype(np.float64)
        with np.errstate(all="ignore"):
            error, magnitude = float(np.abs(reference - after).max()), float(np.abs(reference).max())
        if error <= tolerance * magnitude < math.inf:  # false where NaN or infinity take part
            return Compared("within", before.size, before.size, error, magnitude)
    return compare(name, before, after, tolerance)


# ---- the check ----


def check(proofs: Sequence[Proof], undone: Sequence[Proof] = ()) -> Check:
    """The proofs as a Check called `changes`: passed when every change that stayed was proved on its own."""
    by = f"onnxruntime {version('onnxruntime')}"
    figures = {"changes": [p.figures() for p in proofs], "undone": [p.figures() for p in undone]}
    wrong = [p for p in proofs if p.verdict == "differs"]
    missing = [p for p in proofs if p.verdict == "not run"]
    took_back = f"; undone: {_listed(undone, numbers=False)}" if undone else ""
    if wrong:
        detail = f"{_listed(wrong)}{took_back}"
        return Check("changes", Status.FAILED, by, detail, figures)
    if missing:
        detail = f"{len(proofs) - len(missing)} of {len(proofs)} changes proved; not {_listed(missing)}{took_back}"
        return Check("changes", Status.NOT_RUN, by, detail, figures)
    equal = sum(p.verdict == "equal" for p in proofs)
    changes = "1 change" if len(proofs) == 1 else f"{len(proofs)} changes"
    detail = f"{changes} proved one by one, {equal} bit for bit" if proofs else "no change to prove"
    return Check("changes", Status.PASSED, by, f"{detail}{took_back}", figures)


def _listed(proofs: Sequence[Proof], numbers: bool = True) -> str:
    first = proofs[0]
    # What was undone has no number in the report.
    what = f"change {first.change.id} ({first.change.rule} at {first.change.where})"
    more = f" and {len(proofs) - 1} more" if len(proofs) > 1 else ""
    return f"{what if numbers else f'{first.change.rule} at {first.change.where}'}: {first.detail}{more}"
