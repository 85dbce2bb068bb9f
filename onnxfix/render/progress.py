"""What a long run is at: a bar on standard error when that is a terminal, otherwise nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, "int | None"], None]  # (stage, done, of how many or None)

STAGES = {
    "gate": "judging the models",
    "rules": "rewriting",
    "structure": "checking the structure",
    "parse": "asking TensorRT's parser",
    "parity": "comparing the numbers",
    "bisect": "comparing inner values",
    "reduce": "trying smaller models",
    "calibrate": "measuring inner values",
    "build": "building the engine",
    "readback": "reading the engine back",
    "load": "loading the models",
    "bench": "measuring",
}


@contextlib.contextmanager
def shown(wanted: bool = True) -> Iterator[Progress | None]:
    """A callback that drives the bar, None where there is nobody to see it. The bar is gone afterwards."""
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    words = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), words, BarColumn(), TimeElapsedColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    current, task = "", TaskID(0)

    def advance(stage: str, done: int, total: int | None) -> None:
        nonlocal current, task
        if stage != current:
            if current:
                bar.remove_task(task)
            current, task = stage, bar.add_task(STAGES.get(stage, stage), total=total)
        bar.update(task, completed=done if total else 0, total=total)

    with bar:
        yield advance
