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
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from onnxfix.backends.options import CALIBRATORS, arguments, finish

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

    def abilities(self) -> dict[str, Any]:
        trt = self.trt

        def members(enum: str) -> list[str]:
            return list(getattr(getattr(trt, enum, None), "__members__", ()))

        here = not no_driver()
        return {
            "flags": members("BuilderFlag"),
            "pools": members("MemoryPoolType"),
            "networks": members("NetworkDefinitionCreationFlag"),
            "settings": [name for name in dir(trt.IBuilderConfig) if not name.startswith("_")],
            "calibrators": [name for name in CALIBRATORS.values() if hasattr(trt, name)],
            # A builder of TensorRT itself can't even be made without a driver.
            "dla_cores": trt.Builder(self._logger()).num_DLA_cores if here else 0,
            "gpu": compute_capability() if here else "",
        }

    def creators(self) -> dict[str, Any]:
        self._load_plugins()
        self.trt.init_libnvinfer_plugins(self._logger(), "")
        registry = self.trt.get_plugin_registry()
        # The older list, which newer releases dropped, knows the older plugin interface only.
        found = registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list
        return {"creators": [[c.name, c.plugin_version, c.plugin_namespace] for c in found]}

    def parse(self, path: str) -> dict[str, Any]:
        parsed, refusals = self._parse(path)
        network = parsed[1]
        return {"refusals": refusals, "layers": network.num_layers, "messages": self.messages}

    def supports(self, op: str) -> dict[str, Any]:
        from polygraphy.backend.trt import create_network, get_trt_logger

        _builder, network = create_network()
        return {"supported": self.trt.OnnxParser(network, get_trt_logger()).supports_operator(op)}

    def build(self, path: str, plan: str, options: dict[str, Any]) -> dict[str, Any]:
        from polygraphy.backend.trt import engine_bytes_from_network

        compatible = options["version_compatible"] or options["hardware_compatible"]
        parsed, refusals = self._parse(path, strongly_typed=options["strongly_typed"], native_norm=compatible)
        if refusals:
            return {"refusals": refusals, "messages": self.messages}
        network = parsed[1]
        self.messages.clear()
        config, shapes = self._config(network, options)
        timings = {"save_timing_cache": options["timing_cache"]} if options["timing_cache"] else {}
        started = time.monotonic()
        engine = engine_bytes_from_network(parsed, config=config, **timings)
        seconds = time.monotonic() - started
        data = memoryview(engine)
        write_whole(Path(plan), data)
        return {
            "refusals": [],
            "bytes": data.nbytes,
            "seconds": round(seconds, 3),
            "layers": network.num_layers,
            "shapes": shapes,
            "layer_list": self._inspected(data) or parsed_layers(network),
            "messages": self.messages,
        }

    def readback(self, plan: str, trusted: bool = False) -> dict[str, Any]:
        """How far the plan gets: runtime, header, engine, context; with the reason it went no further.

        A version compatible plan may carry the runtime that loads it, which is code: only a `trusted` one may run it.
        """
        from polygraphy.backend.trt import engine_from_bytes, get_trt_logger

        self._load_plugins()
        data = Path(plan).read_bytes()
        runtime = self.trt.Runtime(get_trt_logger())
        if trusted and hasattr(runtime, "engine_host_code_allowed"):
            runtime.engine_host_code_allowed = True
        answer: dict[str, Any] = {"gpu": "" if no_driver() else compute_capability()}
        if not data:
            return {**answer, "stage": "runtime", "detail": "the file is empty"}
        if hasattr(runtime, "get_engine_validity"):
            _validity, diagnostics = runtime.get_engine_validity(data)
            flags = self.trt.EngineInvalidityDiagnostics.__members__
            faults = [n.lower().replace("_", " ") for n, bit in flags.items() if diagnostics & int(bit)]
            # The format is looked at first. Without a driver it then can't ask for the GPU, and names no fault.
            if faults:
                bad = {"malformed engine", "version mismatch"} & set(faults)
                return {**answer, "stage": "runtime" if bad else "header", "detail": ", ".join(faults)}
        self.messages.clear()
        engine = None
        with contextlib.suppress(Exception):  # PolygraphyException without details: the logger has them
            engine = engine_from_bytes(data, runtime)
        if engine is None:
            reason = self._first_error()
            # The plan's header and size are checked before the first call into CUDA.
            if (driver := no_driver()) and "cudaError" in reason:
                return {**answer, "stage": "header", "detail": driver}
            return {**answer, "stage": "runtime", "detail": reason}
        answer["device_memory"] = device_memory(engine)
        answer["bindings"] = [
            {
                "name": name,
                "mode": engine.get_tensor_mode(name).name.lower(),
                "dtype": str(engine.get_tensor_dtype(name)).split(".")[-1].lower(),
                "shape": list(engine.get_tensor_shape(name)),
            }
            for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
        ]
        if engine.create_execution_context() is None:
            reason = self._first_error()
            return {**answer, "stage": "engine", "detail": reason}
        return {**answer, "stage": "context", "detail": ""}

    # ---- parts ----

    def _logger(self) -> Any:
        from polygraphy.backend.trt import get_trt_logger

        return get_trt_logger()

    def _parse(
        self, path: str, *, strongly_typed: bool = False, native_norm: bool = False
    ) -> tuple[tuple[Any, Any, Any], list[dict[str, Any]]]:
        """The model on Polygraphy's network and logger. Its own loader raises without the parser's details.

        `native_norm` takes InstanceNormalization as a layer, not as a plugin, which a compatible engine can't hold.
        """
        from polygraphy.backend.trt import create_network

        self._load_plugins()
        builder, network = create_network(strongly_typed=strongly_typed)
        self.trt.init_libnvinfer_plugins(self._logger(), "")
        parser = self.trt.OnnxParser(network, self._logger())
        if native_norm:
            parser.set_flag(self.trt.OnnxParserFlag.NATIVE_INSTANCENORM)
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

    def _first_error(self) -> str:
        said = sorted(self.messages, key=lambda message: message[0] == "warning")  # stable: the first error leads
        return said[0][1] if said else "TensorRT gave no reason"

    def _last_words(self) -> str:
        errors = [text for severity, text in self.messages if severity != "warning"]
        return errors[-1] if errors else "the parser gave no reason"

    def _config(self, network: Any, options: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
        """Polygraphy's maker of the builder configuration, and the shapes of the profiles in words."""
        from polygraphy.backend.trt import CreateConfig, PostprocessConfig

        trt = self.trt
        profiles, shapes = self._profiles(network, options)
        settings = {"profiles": profiles, **arguments(trt, options)}
        if hasattr(trt, "IProgressMonitor"):
            settings["progress_monitor"] = self._monitor()
        batches = Batches(Path(options["calibration"])) if options["calibration"] else None
        if batches or options["calibration_cache"]:
            settings["calibrator"] = self._calibrator(batches, options)
        if self.flavour == "tensorrt_rtx":
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX as CreateConfig

        def rest(builder: Any, network: Any, config: Any) -> None:
            finish(trt, config, options)
            if batches:
                config.set_calibration_profile(batches.profile(network).to_trt(builder, network))

        return PostprocessConfig(CreateConfig(**settings), rest), shapes

    def _calibrator(self, batches: Batches | None, options: dict[str, Any]) -> Any:
        """TensorRT asks it for batches only when the cache holds nothing."""
        from polygraphy.backend.trt import Calibrator

        base = getattr(self.trt, CALIBRATORS[options["calibrator"]])
        return Calibrator(batches or [], cache=options["calibration_cache"] or None, BaseClass=base)

    def _inspected(self, plan: memoryview) -> list[dict[str, Any]]:
        """The engine's own layers, fused as they are; none where the engine can't be loaded."""
        from polygraphy.backend.trt import engine_from_bytes

        if no_driver():
            return []
        heard = list(self.messages)
        try:
            inspector = engine_from_bytes(bytes(plan)).create_engine_inspector()
            return engine_layers(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))
        except Exception:  # an engine for another GPU: what was parsed is known all the same
            return []
        finally:
            self.messages = heard  # whether it loads is asked by reading it back

    def _profiles(self, network: Any, options: dict[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
        """Optimisation profiles for inputs with dynamic axes, and the shapes in words: name -> [min, opt, max]."""
        from polygraphy.backend.trt import Profile

        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        given = options["profiles"] or [{}]
        # Of an input that is a shape itself, the profile holds values; Polygraphy fills in those of the others.
        valued = {name for wanted in given for name in wanted}
        dynamic = [t for t in inputs if -1 in tuple(t.shape) or (t.is_shape_tensor and t.name in valued)]
        if not dynamic:
            return [Profile()], []
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


class Batches:
    """Calibration data: a folder of .npz files (arrays in the order of `names`), one at a time in memory."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npz"))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._read, self.paths)

    def profile(self, network: Any) -> Any:
        """The profile that calibration runs at: the shapes of the first batch."""
        from polygraphy.backend.trt import Profile

        profile, first = Profile(), self._read(self.paths[0])
        for tensor in (network.get_input(i) for i in range(network.num_inputs)):
            profile.add(tensor.name, *[first[tensor.name].shape] * 3)
        return profile

    def _read(self, path: Path) -> dict[str, Any]:
        import numpy as np

        with np.load(path) as arrays:
            return {str(name): arrays[f"arr_{i}"] for i, name in enumerate(arrays["names"])}


def parsed_layers(network: Any) -> list[dict[str, Any]]:
    """The layers that the parser made, each with the ONNX nodes it is of."""
    return [parsed_layer(network.get_layer(i)) for i in range(network.num_layers)]


def parsed_layer(layer: Any) -> dict[str, Any]:
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    # Before 8.6 there is no metadata; the layer is then called what the node is.
    onnx = onnx_nodes(layer.metadata) if hasattr(layer, "metadata") else [layer.name]
    dtypes = [t.dtype.name.lower() for t in outputs if t is not None]
    return {"name": layer.name, "type": layer.type.name.lower(), "dtypes": dtypes, "onnx": onnx}


def engine_layers(text: str) -> list[dict[str, Any]]:
    """The layers of an engine from its inspector's JSON. Built with names only, that is all there is of a layer."""
    layers = [item if isinstance(item, dict) else {"Name": item} for item in json.loads(text)["Layers"]]
    return [
        {
            "name": layer["Name"],
            "type": layer.get("LayerType", "").lower(),
            "dtypes": [output.get("Format/Datatype", "") for output in layer.get("Outputs", ())],
            # Before 8.6 there is no metadata; fused layers are then called as their nodes are, joined.
            "onnx": onnx_nodes(layer["Metadata"]) if "Metadata" in layer else layer["Name"].split(" + "),
        }
        for layer in layers
    ]


def onnx_nodes(metadata: str) -> list[str]:
    """The ONNX nodes a layer is of: its metadata lists them as "[ONNX Layer: name]", one after the other."""
    return list(dict.fromkeys(re.findall(r"\[ONNX Layer: (.*?)\](?=$|\s|\[|\x1e|\x1f|,)", metadata)))


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


def _cuda() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def compute_capability() -> str:
    """That of the first GPU, e.g. "8.7"; there must be a driver. The two attributes are 75 and 76 of CUDA's list."""
    value, numbers = ctypes.c_int(0), []
    for attribute in (75, 76):
        _cuda().cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
        numbers.append(str(value.value))
    return ".".join(numbers)


def no_driver() -> str:
    """Why no CUDA device can be used, "" when one can."""
    try:
        cuda = _cuda()
    except OSError:
        return "no NVIDIA driver"
    if status := cuda.cuInit(0):
        return f"the NVIDIA driver does not start (CUDA error {status})"
    count = ctypes.c_int(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return "" if count.value else "no NVIDIA GPU"


def device_memory(engine: Any) -> int:
    """Bytes an execution context of the engine takes on the GPU for what lies between its layers."""
    name = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size"
    return int(getattr(engine, name))


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
