"""Jobs in child processes that may die: what crashes or hangs costs one job, and its result says so."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any


class Died:
    """What became of a job whose process ended, in words."""

    def __init__(self, how: str) -> None:
        self.how = how


_READY = "ready"  # a child's first words
_STARTING = 60.0  # seconds that its imports may take on a busy machine


class _Child:
    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=False)
        self.process.start()
        theirs.close()
        self.job: Any = None
        self.grace = _STARTING
        self.since = 0.0

    def give(self, job: Any) -> None:
        self.job, self.since = job, time.monotonic()
        self.pipe.send(job)

    def answer(self, spoke: bool, seconds: float) -> Any:
        """The job's result, or Died; None while there is none. A job's time begins when its child can begin."""
        if not spoke:
            late = time.monotonic() - self.since > seconds + self.grace
            if late:
                self.process.kill()
            return Died(f"not done within {seconds:g} s") if late else None
        try:
            result = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return Died(f"the process ended with {self.process.exitcode}")
        if self.grace and result == _READY:
            self.grace, self.since = 0.0, time.monotonic()
            return None
        return result

    def end(self) -> None:
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Body of a child. The tools print what nobody asked for: their output goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    pipe.send(_READY)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(work(job))


def run(work: Callable[[Any], Any], jobs: Sequence[Any], count: int, seconds: float) -> Iterator[tuple[Any, Any]]:
    """(job, `work(job)`) for all jobs, in the order they end; Died for one whose child died or took over `seconds`.

    `work` and the jobs must pickle; exceptions are `work`'s own business, and None is no result. `count` children at a
    time.
    """
    waiting = list(reversed(jobs))
    children = [_Child(work) for _ in range(min(count, len(jobs)))]
    try:
        for child in children:
            child.give(waiting.pop())
        while children:
            ready = wait([c.pipe for c in children], timeout=1.0)
            for place, child in enumerate(list(children)):
                result = child.answer(child.pipe in ready, seconds)
                if result is None:
                    continue
                yield child.job, result
                child.job = None
                if isinstance(result, Died) and waiting:
                    child.end()
                    children[place] = child = _Child(work)
                if waiting:
                    child.give(waiting.pop())
            for child in [c for c in children if c.job is None]:
                children.remove(child)
                child.end()
    finally:
        for child in children:
            child.process.kill()
            child.end()
