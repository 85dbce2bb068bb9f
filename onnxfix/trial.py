"""A child process for trials in ONNX Runtime: what crashes, hangs or eats memory there is an outcome, not the end.

As a program, `python -m onnxfix.trial`, this is that child (see `onnxfix.backends.workers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfix import catalog, engine, matrix, prove, shapes, skeleton
from onnxfix.backends import BackendError, feeds, need, ort, reference, worker, workers
from onnxfix.cutting import write_inlined
from onnxfix.model import load
from onnxfix.report import Check, Safety, to_dict

INPUTS = "inputs.json"  # what the last comparison was made on
SIZES_TRIED = 3  # sizes of dynamic axes at which a model must fail, each, to count as failing


class Worker(workers.Worker):
    """The child. Raises UnavailableError without ONNX Runtime or Polygraphy."""

    def __init__(self, *, memory_mib: int | None = None) -> None:
        need("onnxruntime", "polygraphy")
        super().__init__("onnxfix.trial", "ONNX Runtime", memory_mib=memory_mib)


class Trials:
    """What the child can do. Every answer is plain JSON."""

    def __init__(self, _flavour: str, _folder: Path, _send: Callable[[dict[str, Any]], None]) -> None:
        self.messages: list[tuple[str, str]] = []
        self.whole: dict[str, tuple[ort.Session, set[str]]] = {}

    def ready(self) -> dict[str, Any]:
        """Import what the others need."""
        return {"channels": ort.channel_block()}

    def run(self, path: str) -> dict[str, Any]:
        """Whether ONNX Runtime loads and runs the model: {"stage": "" | "load" | "run", "reason": text}."""
        try:
            runner = ort.Runner(Path(path))
        except BackendError as error:
            return {"stage": "load", "reason": str(error)}
        if feeds.unfillable(runner.inputs):
            return {"stage": "", "reason": ""}
        reason = ""
        with runner:
            for tried, sizes in enumerate(feeds.sizes(feeds.axes(runner.inputs), {})):
                if tried == SIZES_TRIED:
                    break
                draw = next(iter(feeds.draws(runner.inputs, sizes)))
                try:
                    runner.run(feeds.seeded(runner.inputs, draw, 0))
                except BackendError as error:
                    reason = reason or str(error)
                else:
                    return {"stage": "", "reason": ""}
        return {"stage": "run", "reason": reason}

    def parity(self, path: str, against: str, safety: str, **request: Any) -> Any:
        """The parity of two files, as a Check's dict; see `_parity`."""
        return to_dict(self._parity(path, against, Safety(safety), {}, **request))

    def _parity(
        self,
        path: str,
        after: str,
        safety: Safety,
        tolerances: Mapping[str, float],
        folder: str,
        given: dict[str, str] | None,
        budget: float,
    ) -> Check:
        """On what `given` makes of their inputs, which is left in the folder as INPUTS, or on drawn ones."""
        inputs = Path(folder, INPUTS) if given else None
        if given and inputs:
            feeds.write(inputs, self._inputs(Path(path), **given))
        return prove.parity(
            Path(path), Path(after), safety=safety, tolerances=tolerances, inputs=inputs, seconds=budget
        )

    def _inputs(self, path: Path, model: str, samples: str) -> list[feeds.Feeds]:
        """Inputs of the part of a model at `path`: the values they are in the whole `model`, run on these samples.

        What is no value of the main graph is drawn.
        """
        wanted = [reference.tensor(v) for v in load(path).proto.graph.input]
        whole, names = self._whole(model)
        found = []
        for sample in feeds.read(Path(samples), whole.inputs):
            inner = [t.name for t in wanted if t.name in names and t.name not in sample]
            known = {**sample, **whole.run(sample, inner)}
            drawn = feeds.filled([t for t in wanted if t.name not in known])
            found.append({t.name: _corner({**drawn, **known}[t.name], t.shape) for t in wanted})
        return found

    def _whole(self, model: str) -> tuple[ort.Session, set[str]]:
        """A session that hands out every value of the main graph, and their names."""
        if model not in self.whole:
            light = skeleton.load(Path(model))
            outputs = {v.name for v in light.proto.graph.output}
            made = [o for n in light.proto.graph.node for o in n.output if o]
            light.proto.graph.output.extend(onnx.ValueInfoProto(name=o) for o in made if o not in outputs)
            session = ort.Session(light.proto.SerializeToString(), light.directory, exact=True)
            self.whole[model] = session, set(made)
        return self.whole[model]

    def rules(self, path: str, rules: str, target: str, folder: str, **request: Any) -> Any:
        """The parity of a model and of what a rule file makes of it, as a Check's dict."""
        model = load(path)
        ruleset = catalog.load_set(rules)
        goal = matrix.target(target or ruleset.target or "rtx-1.7")
        graph = shapes.index(model)
        judge = lambda node: matrix.judge(node, goal)  # noqa: E731
        done = engine.run(graph, ruleset.rules, goal, judge, allow=ruleset.allow, options=ruleset.options)
        worst = max((c.safety for c in done.changes), key=lambda s: s.rank, default=Safety.EXACT)
        after = Path(folder, "after.onnx")
        if not write_inlined(model.proto, model, after):
            raise BackendError("the model is too large for trials")
        check = self._parity(path, str(after), worst, ruleset.tolerances, folder=folder, **request)
        return {**to_dict(check), "rules": [c.rule for c in done.changes]}


def _corner(array: np.ndarray, shape: Sequence[int | str]) -> np.ndarray:
    """So much of the array as an input of this shape takes: the search makes axes smaller, too."""
    if array.ndim != len(shape):
        return array
    return array[tuple(slice(0, d if isinstance(d, int) else None) for d in shape)]


if __name__ == "__main__":
    worker.main(Trials)
