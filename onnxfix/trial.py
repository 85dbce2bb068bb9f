"""A child process for trials in ONNX Runtime: what crashes, hangs or eats memory there is an outcome, not the end.

The same pipes and limits as TensorRT's child (`onnxfix.backends.worker`). As a program, `python -m onnxfix.trial`,
it is that child.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxfix import catalog, engine, matrix, prove, shapes
from onnxfix.backends import HOW_TO_GET, BackendError, absent, feeds, ort, trt, worker
from onnxfix.errors import UnavailableError
from onnxfix.model import load
from onnxfix.report import Safety, to_dict

SIZES_TRIED = 3  # sizes of dynamic axes at which a model must fail, each, to count as failing


class Worker:
    """The child, started with the first call and again after one that killed it. A context manager."""

    def __init__(self, *, memory_mib: int | None = None) -> None:
        for module in ("onnxruntime", "polygraphy"):
            if why := absent(module):
                raise UnavailableError(f"{why}: {HOW_TO_GET[module]}")
        self._memory_mib = memory_mib or trt.memory_limit()
        self._child: trt.Child | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._child:
            self._child.end()
            self._child = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, None when there is none now."""
        return self._child.process.pid if self._child else None

    def ask(self, do: str, seconds: float, **request: Any) -> dict[str, Any]:
        """One of the methods of `Trials`. Raises DiedError when the child dies, BackendError with its own words."""
        if self._child is None or self._child.process.poll() is not None:
            self.__exit__()
            self._child = trt.Child("onnxruntime", self._memory_mib, "onnxfix.trial", "ONNX Runtime")
            self._child.ask({"do": "ready"}, 120.0, None)  # not at the expense of the first trial
        try:
            return self._child.ask({"do": do, **request}, seconds, None)
        except BaseException as error:
            if type(error) is not BackendError:
                self.__exit__()
            raise


class Trials:
    """What the child can do. Every answer is plain JSON."""

    def __init__(self, _flavour: str, _folder: Path, _send: Callable[[dict[str, Any]], None]) -> None:
        self.messages: list[tuple[str, str]] = []

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

    def parity(self, path: str, against: str, safety: str, budget: float) -> Any:
        """The parity of two files, as a Check's dict."""
        return to_dict(prove.parity(Path(path), Path(against), safety=Safety(safety), seconds=budget))

    def rules(self, path: str, rules: str, target: str, budget: float) -> Any:
        """The parity of a model and of what a rule file makes of it, as a Check's dict."""
        model = load(path)
        ruleset = catalog.load_set(rules)
        goal = matrix.target(target or ruleset.target or "rtx-1.7")
        graph = shapes.index(model)
        judge = lambda node: matrix.judge(node, goal)  # noqa: E731
        done = engine.run(graph, ruleset.rules, goal, judge, allow=ruleset.allow, options=ruleset.options)
        worst = max((c.safety for c in done.changes), key=lambda s: s.rank, default=Safety.EXACT)
        handle, after = tempfile.mkstemp(suffix=".onnx", dir=Path(path).parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(model.proto.SerializeToString())
            check = prove.parity(
                Path(path), Path(after), safety=worst, tolerances=ruleset.tolerances, seconds=budget
            )
            return {**to_dict(check), "rules": [c.rule for c in done.changes]}
        finally:
            with contextlib.suppress(OSError):
                os.unlink(after)


if __name__ == "__main__":
    worker.main(Trials)
