"""TensorRT and TensorRT-RTX: one flavour, in one long-lived child process, driven through Polygraphy.

A child, because one process holds one flavour only, because starting TensorRT costs a second and a call
milliseconds, and because the parser can crash or hang on a bad model. Then the child is gone, that call raises
`DiedError` with what is known, and the next call starts a new child.

The memory limit is watched from here, on the child's resident size: an address-space limit (RLIMIT_AS) would also
count what CUDA's libraries only reserve, which is far more than they ever use.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfix.backends import HOW_TO_GET, BackendError, absent, child_environment
from onnxfix.backends.options import Abilities, unsupported
from onnxfix.backends.options import BuildOptions as BuildOptions
from onnxfix.errors import RequestError, UnavailableError

FLAVOURS = ("tensorrt", "tensorrt_rtx")  # in order of preference
FLAVOUR_VARIABLE = "ONNXFIX_TRT_FLAVOUR"
MEMORY_VARIABLE = "ONNXFIX_TRT_MEMORY_MIB"

Progress = Callable[[str, "float | None"], None]


class DiedError(BackendError):
    """The child crashed, hung or grew over its limit during a call."""


@dataclass(frozen=True)
class About:
    """The flavour in the child, in its own words."""

    flavour: str
    version: str
    polygraphy: str
    no_driver: str  # why engines can't run here, "" when they can
    capabilities: tuple[str, ...]  # compute capabilities it builds for, when it builds for absent GPUs at all

    def __str__(self) -> str:
        return f"{self.flavour} {self.version} through polygraphy {self.polygraphy}"


@dataclass(frozen=True)
class Refusal:
    """One error of the parser. `node` is an index in the main graph, -1 when no node is to blame.

    Inside bodies and functions that is the outermost node around it, and `stack` leads to the scope.
    """

    code: str
    desc: str
    node: int
    node_name: str = ""
    node_operator: str = ""
    func: str = ""
    file: str = ""
    line: int = -1
    stack: tuple[str, ...] = ()  # outer nodes and bodies, e.g. ("outer_if (If)", "body (then_branch)")
    said: tuple[str, ...] = ()  # what the logger said just before


@dataclass(frozen=True)
class Parsed:
    refusals: tuple[Refusal, ...]
    layers: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    refusals: tuple[Refusal, ...]
    bytes: int = 0
    seconds: float = 0.0
    layers: int = 0
    shapes: tuple[Mapping[str, Any], ...] = ()  # each profile: input -> [min, opt, max], dynamic inputs only
    warnings: tuple[str, ...] = ()
    layer_list: tuple[Mapping[str, Any], ...] = ()  # {name, type, dtypes, onnx: names of ONNX nodes}


@dataclass(frozen=True)
class Readback:
    stage: str  # the last thing that worked: file, runtime, header, engine or context
    detail: str  # why it went no further
    bindings: tuple[Mapping[str, Any], ...] = ()
    device_memory: int = 0  # bytes a context takes on the GPU
    gpu: str = ""  # compute capability of the first GPU here


class TensorRT:
    """One flavour in its child process. A context manager; the child starts with the first call.

    `flavour` defaults to ONNXFIX_TRT_FLAVOUR, else tensorrt where it can be imported, else tensorrt_rtx.
    All calls raise UnavailableError when that flavour can't be had, DiedError when the child dies or takes longer
    than `seconds`, and BackendError with TensorRT's own words when it fails otherwise.
    """

    def __init__(self, flavour: str | None = None, *, memory_mib: int | None = None) -> None:
        self._wanted = flavour or os.environ.get(FLAVOUR_VARIABLE) or ""
        if self._wanted not in ("", *FLAVOURS):
            raise RequestError(f"no such TensorRT flavour: {self._wanted}; use {' or '.join(FLAVOURS)}")
        self.memory_mib = memory_mib or memory_limit()
        self._child: Child | None = None
        self._about: About | None = None
        self._abilities: Abilities | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> TensorRT:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child. Another call starts a new one."""
        if self._child:
            self._child.end()
            self._child = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, None when there is none now."""
        return self._child.process.pid if self._child else None

    def about(self) -> About:
        """Which flavour it is. The first call imports TensorRT in the child: about a second."""
        if self._about is None:
            self._about = self._find()
        return self._about

    def _find(self) -> About:
        reasons = []
        for flavour in [self._wanted] if self._wanted else FLAVOURS:
            if why := absent(flavour) or absent("polygraphy"):
                reasons.append(f"{why}: {HOW_TO_GET['polygraphy' if 'polygraphy' in why else flavour]}")
                continue
            try:
                answer = self._ask(flavour, "about", 120.0)
            except BackendError as error:
                self.close()
                reasons.append(f"{flavour} is installed but does not start: {error}")
                continue
            return About(**{**answer, "capabilities": tuple(answer["capabilities"])})
        raise UnavailableError("; ".join(reasons))

    def abilities(self) -> Abilities:
        """What this release offers for builds, on this machine."""
        if self._abilities is None:
            answer = self._call("abilities", 120.0)
            held: dict[str, Any] = {
                name: frozenset(value) if isinstance(value, list) else value for name, value in answer.items()
            }
            self._abilities = Abilities(**held)
        return self._abilities

    def creators(self) -> frozenset[tuple[str, str, str]]:
        """(name, version, namespace) of every plugin that is registered, those of the user's libraries too."""
        return frozenset((name, version, space) for name, version, space in self._call("creators", 120.0)["creators"])

    def parse(self, path: str | Path, *, seconds: float = 600.0) -> Parsed:
        """Give the model at `path` to the parser; every refusal comes back."""
        answer = self._call("parse", seconds, path=_absolute(path))
        return Parsed(_refusals(answer), answer["layers"], _warnings(answer))

    def supports(self, op: str) -> bool:
        """Whether the parser says it has an importer for an op of the default domain."""
        return bool(self._call("supports", 60.0, op=op)["supported"])

    def build(
        self, path: str | Path, plan: str | Path, options: BuildOptions, progress: Progress | None = None
    ) -> Built:
        """Build an engine and write it to `plan`, whole or not at all. Nothing is built when the parser refuses.

        Raises RequestError for settings this flavour can't take.
        """
        if problem := unsupported(self.about(), self.abilities(), options):
            raise RequestError(problem)
        request = {"path": _absolute(path), "plan": _absolute(plan), "options": options.request()}
        answer = self._call("build", options.seconds, progress, **request)
        refusals = _refusals(answer)
        if refusals:
            return Built(refusals, warnings=_warnings(answer))
        figures = {name: answer[name] for name in ("bytes", "seconds", "layers")}
        shapes, layers = tuple(answer["shapes"]), tuple(answer["layer_list"])
        return Built((), **figures, shapes=shapes, warnings=_warnings(answer), layer_list=layers)

    def readback(self, plan: str | Path, *, trusted: bool = False, seconds: float = 600.0) -> Readback:
        """Load the engine at `plan` as far as this machine allows.

        `trusted` lets a version compatible plan run the runtime it carries, which is code.
        """
        answer = self._call("readback", seconds, plan=_absolute(plan), trusted=trusted)
        return Readback(**{**answer, "bindings": tuple(answer.get("bindings", ()))})

    # ---- the child ----

    def _call(self, do: str, seconds: float, progress: Progress | None = None, **request: Any) -> dict[str, Any]:
        flavour = self.about().flavour
        return self._ask(flavour, do, seconds, progress, **request)

    def _ask(
        self, flavour: str, do: str, seconds: float, progress: Progress | None = None, **request: Any
    ) -> dict[str, Any]:
        with self._lock:
            if self._child is None or self._child.process.poll() is not None:
                self.close()
                self._child = Child(flavour, self.memory_mib)
            try:
                return self._child.ask({"do": do, **request}, seconds, progress)
            except BaseException as error:
                if type(error) is not BackendError:  # anything but a plain answer leaves the pipe in doubt
                    self.close()
                raise


class Child:
    """A running worker and its pipes. `module` is what it runs, `who` what its death is told of."""

    def __init__(
        self, flavour: str, memory_mib: int, module: str = "onnxfix.backends.worker", who: str = "TensorRT"
    ) -> None:
        self.memory_mib = memory_mib
        self.who = who
        self.folder = Path(tempfile.mkdtemp(prefix="onnxfix-"))
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, flavour, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                env=child_environment(),
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        # A thread, since Windows can't wait for a pipe with a time limit. None marks the end.
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def ask(self, request: dict[str, Any], seconds: float, progress: Progress | None) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # a dead child shows in `_line`
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        deadline = time.monotonic() + seconds
        while True:
            answer = json.loads(self._line(request["do"], deadline, seconds))
            if "progress" in answer:
                if progress:
                    progress(*answer["progress"])
                continue
            if "error" in answer:
                raise BackendError(_failure(answer))
            result: dict[str, Any] = answer["result"]
            return result

    def _line(self, do: str, deadline: float, seconds: float) -> str:
        while True:
            try:
                line = self._lines.get(timeout=0.1)
            except queue.Empty:
                used = resident_mib(self.process.pid)
                if used > self.memory_mib:
                    self._died(f"took {used} MiB during {do}, over the limit of {self.memory_mib} MiB")
                if time.monotonic() > deadline:
                    self._died(f"did not finish {do} within {seconds:g} s")
                continue
            if line is None:
                self._died(f"crashed ({_signal(self.process.wait())}) during {do}")
            else:
                return line

    def _died(self, what: str) -> None:
        self.process.kill()
        self.process.wait()
        raise DiedError(f"{self.who} {what}{self._place()}{self._log()}")

    def _place(self) -> str:
        with contextlib.suppress(OSError):
            node = (self.folder / "node").read_text("utf-8", errors="replace").strip()
            return f", at node {node}" if node else ""
        return ""

    def _log(self) -> str:
        """The last line the child printed, where a failing library leaves its reason."""
        with contextlib.suppress(OSError):
            lines = (self.folder / "log").read_text("utf-8", errors="replace")[-2000:].split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            return f"; its last words: {last[:200]}" if last else ""
        return ""

    def end(self) -> None:
        """End the process and remove its scratch folder."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe
                pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def memory_limit() -> int:
    """MiB the child may hold: ONNXFIX_TRT_MEMORY_MIB, else three quarters of the machine's memory."""
    if given := os.environ.get(MEMORY_VARIABLE):
        if not given.isdecimal() or not int(given):
            raise RequestError(f"{MEMORY_VARIABLE}={given}: give a whole number of MiB")
        return int(given)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4 >> 20
    except (AttributeError, ValueError, OSError):
        return 1 << 30  # no such figure on this system, nor a way to watch the child


def resident_mib(pid: int) -> int:
    """Resident memory of a process in MiB, 0 where /proc does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def _signal(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _failure(answer: dict[str, Any]) -> str:
    """The reason of a failed call: TensorRT's own errors where it logged any, else the exception."""
    errors = [_one_line(text) for severity, text in answer["messages"] if severity != "warning"]
    reasons = [text for text in dict.fromkeys(errors) if "catchCudaError" not in text]
    return "; ".join(reasons[:3]) or _one_line(answer["error"]) or answer["kind"]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


# What the parser prints around every error, and CUDA's complaint that follows any error where there is no GPU.
# The binding warnings concern whoever runs the engine; they stand among the warnings.
_FRAME = ("While parsing node", "--- Begin node ---", "--- End node ---", "In function ", "catchCudaError", " binding.")


def _refusals(answer: dict[str, Any]) -> tuple[Refusal, ...]:
    """The refusals, each with what the logger said since the one before it."""
    said: list[tuple[str, ...]] = []
    since: list[str] = []
    for _severity, text in answer["messages"]:
        if "While parsing node number" in text:
            said.append(tuple(since))
            since = []
        elif not any(mark in text for mark in _FRAME):
            since.append(_one_line(text))
    refusals = []
    for position, refusal in enumerate(answer["refusals"]):
        refusal["stack"] = tuple(refusal.get("stack", ()))
        refusals.append(Refusal(**refusal, said=said[position] if position < len(said) else ()))
    return tuple(refusals)


def _warnings(answer: dict[str, Any]) -> tuple[str, ...]:
    texts = (_one_line(text) for severity, text in answer["messages"] if severity == "warning")
    return tuple(dict.fromkeys(texts))


_shared: TensorRT | None = None


def shared() -> TensorRT:
    """The one TensorRT of this process; its child ends with it, or at `close`."""
    global _shared
    if _shared is None:
        _shared = TensorRT()
        atexit.register(close)
    return _shared


def close() -> None:
    """End the shared child, if there is one."""
    global _shared
    if _shared is not None:
        _shared.close()
        _shared = None
