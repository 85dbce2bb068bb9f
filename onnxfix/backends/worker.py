"""The child process that holds TensorRT: JSON lines in, JSON lines out. Started by `onnxfix.backends.trt`.

    python -m onnxfix.backends.worker FLAVOUR FOLDER

FOLDER is the parent's scratch folder: its file `node` gets the node the parser is at, so that a crash can be laid
at its door. A request is {"do": name, ...}; its answer is {"result": {...}}, or {"error": text, "kind": exception,
"messages": [...]}, with {"progress": [text, fraction]} lines before it. One request runs at a time. End of input
ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

AT_NODE = ("Static check for parsing node: ", "Parsing node: ")
MESSAGES_KEPT = 400


class Session:
    """TensorRT as Polygraphy sees it, and what it had to say since the last request."""

    def __init__(self, flavour: str, folder: Path, send: Callable[[dict[str, Any]], None]) -> None:
        # Polygraphy reads its switch when it is imported.
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if flavour == "tensorrt_rtx" else "0"
        import polygraphy
        from polygraphy import config
        from polygraphy.backend.trt import util
        from polygraphy.logger import G_LOGGER
        from polygraphy.mod.trt_importer import tensorrt_module_and_version_string

        wanted = tensorrt_module_and_version_string().split(">")[0]
        if wanted != flavour or (flavour == "tensorrt_rtx") != config.USE_TENSORRT_RTX:
            raise ImportError(f"polygraphy {polygraphy.__version__} knows no switch for {flavour}")
        # An ImportError here is an answer; Polygraphy would raise it later, and in other words.
        trt: Any = importlib.import_module(flavour)
        self.trt = trt
        self.flavour = flavour
        self.polygraphy = polygraphy.__version__
        self.messages: list[tuple[str, str]] = []  # (severity, text)
        self.send = send
        self.plugins = [p for p in os.environ.get("ONNXFIX_TRT_PLUGINS", "").split(os.pathsep) if p]
        self._node = (folder / "node").open("wb", buffering=0)
        session = self

        class Log(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                session.heard(severity, message)

        # TensorRT keeps the first logger it is given for the life of the process. Polygraphy's own prints, and
        # drops repeated warnings; this one stands in its slot and collects instead.
        util.TRT_LOGGER = Log()
        G_LOGGER.module_severity = G_LOGGER.CRITICAL + 1

    def heard(self, severity: Any, message: str) -> None:
        levels = self.trt.ILogger.Severity
        if severity in (levels.INTERNAL_ERROR, levels.ERROR, levels.WARNING):
            if len(self.messages) < MESSAGES_KEPT:
                self.messages.append((severity.name.lower(), message))
        elif message.startswith(AT_NODE):
            self.at(message.split(": ", 1)[1])

    def at(self, node: str) -> None:
        """Leave word for the parent where the parser is; "" when it is at no node."""
        self._node.seek(0)
        self._node.write(node.encode()[:200].ljust(200))

    # ---- requests ----

    def about(self) -> dict[str, Any]:
        capabilities = getattr(self.trt, "ComputeCapability", None)
        names = [n for n in capabilities.__members__ if n.startswith("SM")] if capabilities else []
        return {
            "flavour": self.flavour,
            "version": self.trt.__version__,
            "polygraphy": self.polygraphy,
            "no_driver": no_driver(),
            "capabilities": [f"{n[2:-1]}.{n[-1]}" for n in names],
        }

    def parse(self, path: str) -> dict[str, Any]:
        parsed, refusals = self._parse(path)
        network = parsed[1]
        return {"refusals": refusals, "layers": network.num_layers, "messages": self.messages}

    def supports(self, op: str) -> dict[str, Any]:
        from polygraphy.backend.trt import create_network, get_trt_logger

        _builder, network = create_network()
        return {"supported": self.trt.OnnxParser(network, get_trt_logger()).supports_operator(op)}

    def build(self, path: str, plan: str, options: dict[str, Any]) -> dict[str, Any]:
        from polygraphy.backend.trt import CreateConfig, PostprocessConfig, engine_bytes_from_network

        parsed, refusals = self._parse(path)
        if refusals:
            return {"refusals": refusals, "messages": self.messages}
        network = parsed[1]
        self.messages.clear()
        profiles, shapes = self._profiles(network, options)
        settings: dict[str, Any] = {"profiles": profiles}
        if options["workspace_mib"]:
            settings["memory_pool_limits"] = {self.trt.MemoryPoolType.WORKSPACE: options["workspace_mib"] << 20}
        if options["fp16"]:
            settings["fp16"] = True
        if hasattr(self.trt, "IProgressMonitor"):
            settings["progress_monitor"] = self._monitor()
        config: Any = CreateConfig(**settings)
        capability = options["compute_capability"]
        if capability and hasattr(self.trt, "ComputeCapability"):
            level = getattr(self.trt.ComputeCapability, "SM" + capability.replace(".", ""))

            def aim(builder: Any, network: Any, config: Any) -> None:
                config.num_compute_capabilities = 1
                config.set_compute_capability(level, 0)

            config = PostprocessConfig(config, aim)
        started = time.monotonic()
        engine = engine_bytes_from_network(parsed, config=config)
        seconds = time.monotonic() - started
        data = memoryview(engine)
        write_whole(Path(plan), data)
        return {
            "refusals": [],
            "bytes": data.nbytes,
            "seconds": round(seconds, 3),
            "layers": network.num_layers,
            "shapes": shapes,
            "messages": self.messages,
        }

    def readback(self, plan: str) -> dict[str, Any]:
        """How far the plan gets: file, runtime, header, engine, context; with the reason it went no further."""
        from polygraphy.backend.trt import engine_from_bytes, get_trt_logger

        self._load_plugins()
        data = Path(plan).read_bytes()
        runtime = self.trt.Runtime(get_trt_logger())
        if not data:
            return {"stage": "runtime", "detail": "the file is empty"}
        driver = no_driver()
        if hasattr(runtime, "get_engine_validity"):
            _validity, diagnostics = runtime.get_engine_validity(data)
            flags = self.trt.EngineInvalidityDiagnostics.__members__
            faults = [n.lower().replace("_", " ") for n, bit in flags.items() if diagnostics & int(bit)]
            # The format is looked at first. Without a driver it then can't ask for the GPU, and names no fault.
            if faults:
                bad = {"malformed engine", "version mismatch"} & set(faults)
                return {"stage": "runtime" if bad else "header", "detail": ", ".join(faults)}
        self.messages.clear()
        engine = None
        with contextlib.suppress(Exception):  # PolygraphyException without details: the logger has them
            engine = engine_from_bytes(data)
        if engine is None:
            reason = next((m for _s, m in self.messages), "TensorRT gave no reason")
            # The plan's header and size are checked before the first call into CUDA.
            if driver and "cudaError" in reason:
                return {"stage": "header", "detail": driver}
            return {"stage": "runtime", "detail": reason}
        bindings = [
            {
                "name": name,
                "mode": engine.get_tensor_mode(name).name.lower(),
                "dtype": str(engine.get_tensor_dtype(name)).split(".")[-1].lower(),
                "shape": list(engine.get_tensor_shape(name)),
            }
            for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
        ]
        if engine.create_execution_context() is None:
            reason = next((m for _s, m in self.messages), "TensorRT gave no reason")
            return {"stage": "engine", "detail": reason, "bindings": bindings}
        return {"stage": "context", "detail": "", "bindings": bindings}

    # ---- parts ----

    def _parse(self, path: str) -> tuple[tuple[Any, Any, Any], list[dict[str, Any]]]:
        """The model on Polygraphy's network and logger. Its own loader raises without the parser's details."""
        from polygraphy.backend.trt import create_network, get_trt_logger

        self._load_plugins()
        builder, network = create_network()
        self.trt.init_libnvinfer_plugins(get_trt_logger(), "")
        parser = self.trt.OnnxParser(network, get_trt_logger())
        # From the path, not from bytes, so that external data is found.
        accepted = parser.parse_from_file(path)
        self.at("")
        refusals = [self._refusal(parser.get_error(i)) for i in range(parser.num_errors)]
        if not accepted and not refusals:
            refusals = [{"code": "", "desc": self._last_words(), "node": -1}]
        return (builder, network, parser), refusals

    def _load_plugins(self) -> None:
        """Load the libraries of the user's plugins, once. Raises RuntimeError for one that can't be."""
        from polygraphy.backend.trt import LoadPlugins

        for library in self.plugins:
            try:
                LoadPlugins(plugins=[library])()
            except Exception as error:  # whatever the library does while it is loaded
                raise RuntimeError(f"the library of plugins cannot be loaded: {error}") from None
        self.plugins = []

    def _refusal(self, error: Any) -> dict[str, Any]:
        def read(name: str, default: Any) -> Any:
            # Old parsers know fewer of them.
            return getattr(error, name)() if hasattr(error, name) else default

        return {
            "code": error.code().name,
            "desc": error.desc(),
            "node": error.node(),
            "node_name": read("node_name", ""),
            "node_operator": read("node_operator", ""),
            "func": error.func(),
            "file": error.file(),
            "line": error.line(),
            "stack": list(read("local_function_stack", [])),
        }

    def _last_words(self) -> str:
        errors = [text for severity, text in self.messages if severity != "warning"]
        return errors[-1] if errors else "the parser gave no reason"

    def _profiles(self, network: Any, options: dict[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
        """Optimisation profiles for inputs with dynamic axes, and the shapes in words: name -> [min, opt, max]."""
        from polygraphy.backend.trt import Profile

        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        dynamic = [t for t in inputs if -1 in tuple(t.shape)]
        if not dynamic:
            return [Profile()], []
        given = options["profiles"] or [{}]
        profiles, words = [], []
        for wanted in given:
            profile, shapes = Profile(), {}
            for tensor in dynamic:
                shapes[tensor.name] = wanted.get(tensor.name) or default_shapes(tensor, options["dims"])
                profile.add(tensor.name, *map(tuple, shapes[tensor.name]))
            profiles.append(profile)
            words.append(shapes)
        return profiles, words

    def _monitor(self) -> Any:
        trt: Any = self.trt
        send = self.send

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            """Phases nest: a phase is worth one step of its parent."""

            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)
                # phase -> its start and width in the whole, and its number of steps
                self.open: dict[str, tuple[float, float, int]] = {}
                self.at: dict[str, float] = {}
                self.sent = 0.0

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                start, width = 0.0, 1.0
                if parent in self.open:
                    _start, outer, count = self.open[parent]
                    start, width = self.at[parent], outer / max(count, 1)
                self.open[phase] = (start, width, steps)
                self.at[phase] = start
                self.tell(phase, start)

            def step_complete(self, phase: str, step: int) -> bool:
                if phase in self.open:
                    start, width, steps = self.open[phase]
                    self.at[phase] = start + width * min(step + 1, steps) / max(steps, 1)
                    self.tell(phase, self.at[phase])
                return True

            def phase_finish(self, phase: str) -> None:
                self.open.pop(phase, None)
                self.at.pop(phase, None)

            def tell(self, phase: str, fraction: float) -> None:
                if time.monotonic() - self.sent > 0.1:
                    self.sent = time.monotonic()
                    send({"progress": [phase, round(min(fraction, 1.0), 3)]})

        return Monitor()


def default_shapes(tensor: Any, dims: dict[str, list[int]]) -> list[list[int]]:
    """[min, opt, max] of an input without a profile: sizes from `dims` by symbol, else one fixed, likely size."""
    shape = list(tensor.shape)
    shapes: list[list[int]] = [[], [], []]
    for axis, dim in enumerate(shape):
        name = tensor.get_dimension_name(axis) if hasattr(tensor, "get_dimension_name") else None
        likely = 1 if axis == 0 else 16 if len(shape) != 4 else 3 if axis == 1 else 224
        size = [dim] * 3 if dim != -1 else dims.get(name or f"{tensor.name}[{axis}]", [likely] * 3)
        for bound, value in zip(shapes, size, strict=True):
            bound.append(value)
    return shapes


def no_driver() -> str:
    """Why no CUDA device can be used, "" when one can."""
    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return "no NVIDIA driver"
    if status := cuda.cuInit(0):
        return f"the NVIDIA driver does not start (CUDA error {status})"
    count = ctypes.c_int(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return "" if count.value else "no NVIDIA GPU"


def write_whole(path: Path, data: memoryview) -> None:
    """Write beside `path` and rename: the plan appears whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


Make = Callable[[str, Path, Callable[[dict[str, Any]], None]], Any]  # (flavour, folder, send) -> session


def serve(make: Make, flavour: str, folder: Path, requests: TextIO, answers: TextIO) -> None:
    """Answer until end of input, by the methods of the session that `make` returns at the first request."""
    lock = threading.Lock()
    pending: queue.Queue[str] = queue.Queue()

    def send(answer: dict[str, Any]) -> None:
        with lock:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

    def read() -> None:
        for line in requests:
            pending.put(line)
        # The parent closed the pipe or is dead: stop at once, even in the middle of an hour's build.
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    session: Any = None
    while True:
        request = json.loads(pending.get())
        try:
            if session is None:
                session = make(flavour, folder, send)
            session.messages.clear()
            do = getattr(session, request.pop("do"))
            send({"result": do(**request)})
        except Exception as error:
            messages = session.messages if session else []
            send({"error": str(error), "kind": type(error).__name__, "messages": messages})


def main(make: Make = Session) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # TensorRT and its libraries print as they like: their output goes to the log, never between the answers.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    serve(make, sys.argv[1], Path(sys.argv[2]), requests, answers)


if __name__ == "__main__":
    main()
