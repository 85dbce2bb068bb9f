"""A child process of ours that answers one request at a time; started with the first, and anew when one killed it.

The same pipes and limits as TensorRT's child (`onnxfix.backends.trt`, `onnxfix.backends.worker`).
"""

from __future__ import annotations

import threading
from typing import Any

from onnxfix.backends import BackendError, trt

START_SECONDS = 120.0


class Worker:
    """The child that runs `python -m MODULE`; `who` is what its death is told of. A context manager.

    What it serves must have a method `ready`, which takes the imports upon itself, so that no other request pays.
    """

    def __init__(self, module: str, who: str, *, memory_mib: int | None = None) -> None:
        self._module = module
        self._who = who
        self._memory_mib = memory_mib or trt.memory_limit()
        self._child: trt.Child | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None when there is none now."""
        return self._child.process.pid if self._child else None

    def close(self) -> None:
        """End the child. The next request starts a new one."""
        child, self._child = self._child, None
        if child:
            child.end()

    def ask(self, do: str, seconds: float, **request: Any) -> dict[str, Any]:
        """What its method `do` answers. Raises DiedError when the child dies, BackendError with its own words."""
        with self._lock:
            try:
                return self._running().ask({"do": do, **request}, seconds, None)
            except BaseException as error:
                if type(error) is not BackendError:  # anything but a plain answer leaves the pipe in doubt
                    self.close()
                raise

    def _running(self) -> trt.Child:
        if self._child is None or self._child.process.poll() is not None:
            self.close()
            self._child = trt.Child(self._module, self._memory_mib, self._module, self._who)
            self._child.ask({"do": "ready"}, START_SECONDS, None)
        return self._child
