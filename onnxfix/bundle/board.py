# ruff: noqa
# mypy: ignore-errors
"""Builds the engine of a bundle on this machine, reads it back, runs it, compares its numbers, times it.

    python3 run_board.py

It needs Python 3.6 or newer, numpy, and TensorRT 8.0 to 10 with its Python package, as JetPack installs them; the CUDA
runtime is called through ctypes. What it found is written to result.json; carry that back:

    onnxfix bundle read result.json

Building and running happen in a child process each: the plan is read back by a process that never saw the model, and
when the kernel kills one of them for its memory, that is told and not the end.

Exit status: 0 fine; 1 the engine can't be built, read back or run here, or its numbers are wrong; 2 the request or the
bundle is wrong; 3 something needed is not installed.
"""

import argparse
import ctypes
import ctypes.util
import datetime
import glob
import hashlib
import importlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
FORMAT = 1  # of manifest.json and result.json
FINE, FAILED, WRONG, MISSING = 0, 1, 2, 3
MIB = 1 << 20
MESSAGES = 100  # of TensorRT's that are kept
STAGES = (("build", ("parse", "build")), ("run", ("readback", "parity", "bench")))


class WrongError(Exception):
    """The request or the bundle is wrong."""


class MissingError(Exception):
    """Something this needs is not installed."""


class Stop(Exception):
    """The check that is under way failed, and nothing after it can run."""

    def __init__(self, detail, figures=None, findings=()):
        Exception.__init__(self, detail)
        self.figures, self.findings = figures, findings


def check(name, status, detail, figures=None, findings=()):
    """One proof and its outcome; status is passed, failed or not run."""
    return {
        "name": name,
        "status": status,
        "detail": " ".join(detail.split()),
        "figures": figures or {},
        "findings": list(findings),
    }


def main():
    sys.stdout, sys.stderr = printable(sys.stdout), printable(sys.stderr)
    args = arguments()
    try:
        if args.stage:
            return stage(args)
        return orchestrate(args)
    except WrongError as error:
        return end(WRONG, "error", error)
    except MissingError as error:
        return end(MISSING, "missing", error)
    except KeyboardInterrupt:
        return end(130, "interrupted", "stopped; no result was written")


def printable(stream):
    """The stream for any text, also where the locale knows ASCII only."""
    return io.TextIOWrapper(stream.buffer, stream.encoding, errors="backslashreplace", line_buffering=True)


def end(status, word, text):
    sys.stderr.write("run_board: %s: %s\n" % (word, " ".join(str(text).split())))
    return status


def arguments():
    parser = argparse.ArgumentParser(description="Build, read back, run, compare and time the engine of a bundle.")
    parser.add_argument("--output", default="result.json", metavar="FILE", help="the result (default: result.json)")
    parser.add_argument("--plan", default="model.plan", metavar="FILE", help="the engine (default: model.plan)")
    parser.add_argument("--use-plan", action="store_true", help="don't build: run the engine that is there")
    parser.add_argument("--workspace", type=int, metavar="MIB", help="builder workspace instead of the bundle's")
    parser.add_argument("--plugins", action="append", default=[], metavar="LIB", help="a plugin library to load")
    parser.add_argument("--warm-up", type=int, default=10, metavar="N", help="runs before timing (default: 10)")
    parser.add_argument("--iterations", type=int, default=100, metavar="N", help="timed runs at least (default: 100)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time them at least so long (default: 3)")
    parser.add_argument("--limit", type=float, default=7200.0, metavar="S", help="seconds for a stage (default: 7200)")
    parser.add_argument("--module", default="tensorrt", help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=[name for name, _ in STAGES], help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.warm_up < 0 or args.iterations < 1 or args.seconds < 0 or (args.workspace or 0) < 0:
        parser.error("--warm-up, --seconds and --workspace can't be negative, --iterations is 1 or more")
    return args


# ---- the parent: checksums, one child after the other, the result ----


def orchestrate(args):
    manifest = read_manifest()
    verify_checksums(manifest)
    folder = os.path.dirname(os.path.abspath(args.output))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise WrongError("%s: cannot be written: no such folder, or no permission in it" % args.output)
    if args.use_plan and not os.path.isfile(args.plan):
        raise WrongError("%s: no such file; leave out --use-plan to build it" % args.plan)
    result = {
        "format": FORMAT,
        "manifest": manifest,
        "about": machine(),
        "date": datetime.date.today().isoformat(),
        "checks": [],
        "messages": [],
    }
    missing = ""
    for name, proofs in STAGES:
        if name == "build" and args.use_plan:
            continue
        answer = run_stage(args, name)
        result["about"].update(answer.get("about", {}))
        result["messages"] += answer.get("messages", [])
        done = answer.get("checks", [])
        missing = missing or answer.get("missing", "")
        if answer.get("death"):
            at = proofs[min(len(done), len(proofs) - 1)]
            done.append(check(at, "failed", answer["death"]))
        result["checks"] += done
        for one in done:
            print("%-9s %-8s %s" % (one["name"], one["status"], one["detail"]))
        if missing or any(one["status"] == "failed" for one in done):
            break
    present = {one["name"] for one in result["checks"]}
    for _, proofs in STAGES:
        for name in proofs:
            if name not in present and not (args.use_plan and name in STAGES[0][1]):
                result["checks"].append(check(name, "not run", missing or "something before it failed"))
    write_json(args.output, result)
    print("%s: carry it back and give it to `onnxfix bundle read`" % args.output)
    if missing:
        raise MissingError(missing)
    failed = [one for one in result["checks"] if one["status"] == "failed"]
    return end(FAILED, "failed", "%s: %s" % (failed[0]["name"], failed[0]["detail"])) if failed else FINE


def read_manifest():
    path = os.path.join(HERE, "manifest.json")
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        known = manifest["format"]
    except IOError:
        raise WrongError("%s: no such file; run the script inside the bundle it came with" % path)
    except (ValueError, KeyError, TypeError):
        raise WrongError("%s: is damaged; copy the bundle again" % path)
    if known != FORMAT:
        raise WrongError("%s: has format %s, this script knows %d; copy the whole bundle again" % (path, known, FORMAT))
    return manifest


def verify_checksums(manifest):
    """Every file of the bundle against SHA256SUMS. Stops at the first that differs."""
    path = os.path.join(HERE, "SHA256SUMS")
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\n").partition("  ") for line in file if line.strip()]
    except IOError:
        raise WrongError("%s: no such file; copy the bundle again" % path)
    named = {name for _, _, name in lines}
    if manifest["model"]["file"] not in named or "manifest.json" not in named:
        raise WrongError("%s: is damaged; copy the bundle again" % path)
    for wanted, _, name in lines:
        file = os.path.join(HERE, name)
        if not os.path.isfile(file):
            raise WrongError("%s: is missing; copy the bundle again" % file)
        if sha256(file) != wanted:
            raise WrongError("%s: differs from SHA256SUMS; copy the bundle again" % file)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(MIB), b""):
            digest.update(block)
    return digest.hexdigest()


def run_stage(args, name):
    """What the child of a stage answered; "death" says how it ended when it gave no whole answer."""
    handle, path = tempfile.mkstemp(prefix="run_board-")
    os.close(handle)
    command = [sys.executable, os.path.abspath(__file__), "--stage", name, "--answer", path]
    command += ["--plan", args.plan, "--module", args.module, "--seconds", str(args.seconds)]
    command += ["--warm-up", str(args.warm_up), "--iterations", str(args.iterations)]
    if args.workspace is not None:
        command += ["--workspace", str(args.workspace)]
    for library in args.plugins:
        command += ["--plugins", library]
    try:
        child = subprocess.Popen(command)
        try:
            status = child.wait(args.limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        with open(path, encoding="utf-8") as file:
            text = file.read()
        answer = json.loads(text) if text else {}
    finally:
        os.unlink(path)
    if not answer.get("done"):
        answer["death"] = death(name, status, args.limit)
    return answer


def death(name, status, limit):
    if status is None:
        return "took longer than %g s to %s; --limit gives it more time" % (limit, name)
    if status == -9:
        return (
            "the process was killed, as the kernel does when memory runs out: close the desktop, add swap, "
            "or give the builder less with --workspace"
        )
    if status < 0:
        return "TensorRT crashed with signal %d" % -status
    return "the process ended with status %d; see what it printed above" % status


def write_json(path, value):
    """Whole or not at all."""
    draft = path + ".part"
    try:
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
        os.replace(draft, path)
    except (IOError, OSError) as error:
        raise WrongError("%s: cannot be written: %s" % (path, error.strerror))


def machine():
    """What this machine is, as far as its files tell."""
    facts = {"python": platform.python_version(), "machine": platform.machine()}
    model = text_of("/proc/device-tree/model").strip("\0\n ")
    release = text_of("/etc/nv_tegra_release").split("\n")[0].strip("# ")
    facts.update({key: value for key, value in (("board", model), ("l4t", release)) if value})
    try:
        said = subprocess.check_output(["nvpmodel", "-q"], stderr=subprocess.DEVNULL, timeout=10)
        facts["power_mode"] = " ".join(said.decode("utf-8", "replace").split())[:200]
    except (OSError, subprocess.SubprocessError):
        pass
    return facts


def text_of(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except (IOError, OSError):
        return ""


# ---- a child: one stage ----


def stage(args):
    """Run one stage and write what came of it to `args.answer`, after each check, so that a crash loses nothing."""
    answer = {"checks": [], "about": {}, "messages": [], "done": False}

    def tell(one=None):
        if one is not None:
            answer["checks"].append(one)
        with open(args.answer, "w", encoding="utf-8") as file:
            json.dump(answer, file)

    log = None
    try:
        manifest = read_manifest()
        trt = load_tensorrt(args.module)
        numpy = load("numpy", "apt install python3-numpy")
        log = make_log(trt)
        answer["messages"] = log.messages
        answer["about"] = {"tensorrt": trt.__version__, "numpy": numpy.__version__}
        load_plugins(trt, log, args.plugins)
        (build if args.stage == "build" else run)(args, manifest, trt, numpy, log, answer["about"], tell)
    except Stop as stop:
        tell(check(under_way(args, answer), "failed", str(stop), stop.figures, stop.findings))
    except MissingError as error:
        answer["missing"] = str(error)
    except Exception as error:
        if os.environ.get("ONNXFIX_DEBUG"):
            raise
        words = "%s: %s" % (type(error).__name__, error)
        tell(check(under_way(args, answer), "failed", words + said(log)))
    answer["done"] = True
    tell()
    return FINE


def under_way(args, answer):
    """The proof a stage is at: the first that has no outcome yet."""
    return dict(STAGES)[args.stage][len(answer["checks"])]


def load(name, how):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError("%s can't be imported by %s (%s): %s" % (name, sys.executable, error, how))


def load_tensorrt(name):
    trt = load(name, "JetPack brings it (apt install python3-libnvinfer); run the python3 of the system")
    version = getattr(trt, "__version__", "")
    major = int(version.split(".")[0]) if version[:1].isdigit() else 0
    if not 8 <= major <= 10:
        raise MissingError("%s %s: this script is made for TensorRT 8.0 to 10" % (name, version or "without version"))
    return trt


def make_log(trt):
    """TensorRT's messages, kept: [severity, text] each."""

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.messages = []

        def log(self, severity, text):
            word = str(severity).split(".")[-1].lower()
            if word in ("internal_error", "error", "warning") and len(self.messages) < MESSAGES:
                message = [word, " ".join(text.split())[:500]]
                if message not in self.messages:
                    self.messages.append(message)

    return Log()


def said(log):
    """The errors TensorRT logged, to stand behind a reason."""
    errors = [text for word, text in (log.messages if log else ()) if word != "warning"]
    return "; TensorRT said: %s" % "; ".join(errors[-3:]) if errors else ""


def load_plugins(trt, log, libraries):
    for library in libraries:
        try:
            ctypes.CDLL(os.path.abspath(library), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise MissingError("the plugin library can't be loaded: %s" % error)
    trt.init_libnvinfer_plugins(log, "")


# ---- build ----


def build(args, manifest, trt, numpy, log, about, tell):
    settings = manifest["build"]
    builder = trt.Builder(log)
    require_plugins(trt, manifest)
    network = builder.create_network(network_flags(trt, settings))
    parser = parse(trt, network, log, os.path.join(HERE, manifest["model"]["file"]), tell)
    config = builder.create_builder_config()
    calibrator = configure(args, settings, trt, numpy, builder, config)
    started = time.time()
    plan = builder.build_serialized_network(network, config)
    seconds = time.time() - started
    del parser, calibrator  # they hold weights and scales, and had to outlive the build
    if plan is None:
        hint = "; less memory may do: --workspace 256" if "memory" in said(log).lower() else ""
        raise Stop("the builder gave no engine" + said(log) + hint)
    try:
        write_binary(args.plan, plan)
    except (IOError, OSError) as error:
        raise Stop("%s: cannot be written: %s" % (args.plan, error.strerror))
    save_timings(settings, config)
    size = os.path.getsize(args.plan)
    figures = {"bytes": size, "seconds": round(seconds, 3), "layers": network.num_layers, "sha256": sha256(args.plan)}
    figures["flags"] = settings["flags"]
    tell(check("build", "passed", "serialised %d bytes in %.1f s" % (size, seconds), figures))


def network_flags(trt, settings):
    known = trt.NetworkDefinitionCreationFlag
    flags = 0
    if hasattr(known, "EXPLICIT_BATCH"):
        flags |= 1 << int(known.EXPLICIT_BATCH)
    if settings["strongly_typed"]:
        if not hasattr(known, "STRONGLY_TYPED"):
            raise Stop("TensorRT %s has no strongly typed networks" % trt.__version__)
        flags |= 1 << int(known.STRONGLY_TYPED)
    return flags


def require_plugins(trt, manifest):
    """The creators of the model's plugin nodes, by name and version, before the parser stumbles over them."""
    if not manifest["plugins"]:
        return
    registry = trt.get_plugin_registry()
    known = list(registry.plugin_creator_list) + list(getattr(registry, "all_creators", ()))  # the latter from 10 on
    creators = {(c.name, c.plugin_version) for c in known}
    for plugin in manifest["plugins"]:
        if (plugin["name"], plugin["version"]) not in creators:
            raise Stop(
                "no plugin %s version %s is registered; give its library with --plugins"
                % (plugin["name"], plugin["version"]),
            )


def parse(trt, network, log, path, tell):
    """The parser, which owns weights of the network and must live as long as it."""
    parser = trt.OnnxParser(network, log)
    taken = parser.parse_from_file(path)
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not taken or errors:
        findings = [refusal(error) for error in errors]
        first = findings[0]["reason"] if findings else "the parser gave no reason" + said(log)
        more = " and %d more" % (len(findings) - 1) if len(findings) > 1 else ""
        raise Stop("the parser refuses the model: %s%s" % (first, more), findings=findings)
    figures = {"layers": network.num_layers}
    tell(check("parse", "passed", "the parser takes the model: %d layers" % network.num_layers, figures))
    return parser


def refusal(error):
    """One error of the parser. `node` is its index among the nodes of the main graph."""
    return {
        "node": error.node(),
        "op": error.node_operator() if hasattr(error, "node_operator") else "",
        "code": str(error.code()).split(".")[-1],
        "reason": " ".join(error.desc().split())[:500],
        "where": "%s in %s:%d" % (error.func(), error.file(), error.line()),
    }


def configure(args, settings, trt, numpy, builder, config):
    """Apply the settings of the bundle. Returns the calibrator, which must outlive the build, None without one."""
    for name in settings["flags"]:
        config.set_flag(flag(trt, name))
    if "TF32" not in settings["flags"] and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on unless cleared; the golden outputs are true FP32
    pools = dict(settings["pools_mib"])
    if args.workspace is not None:
        pools["WORKSPACE"] = args.workspace
    for name, mib in sorted(pools.items()):
        limit_pool(trt, config, name, mib)
    if settings["dla_core"] is not None:
        if builder.num_DLA_cores <= settings["dla_core"]:
            raise Stop(
                "this machine has %d DLA cores; core %d was asked for" % (builder.num_DLA_cores, settings["dla_core"])
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = settings["dla_core"]
    if settings["optimization_level"] is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise Stop("TensorRT %s has no optimisation levels" % trt.__version__)
        config.builder_optimization_level = settings["optimization_level"]
    first = None
    for shapes in settings["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in sorted(shapes.items()):
            profile.set_shape(name, tuple(low), tuple(best), tuple(high))
        config.add_optimization_profile(profile)
        first = first or profile
    load_timings(settings, config)
    if "INT8" not in settings["flags"] or not settings["calibration"]:
        return None
    calibrator = make_calibrator(trt, numpy, settings["calibration"])
    config.int8_calibrator = calibrator
    if first is not None:
        config.set_calibration_profile(first)
    return calibrator


def flag(trt, name):
    if not hasattr(trt.BuilderFlag, name):
        raise Stop("TensorRT %s has no builder flag %s" % (trt.__version__, name))
    return getattr(trt.BuilderFlag, name)


def limit_pool(trt, config, name, mib):
    """Memory pools came in 8.4; before, there is a workspace only."""
    if hasattr(config, "set_memory_pool_limit"):
        if not hasattr(trt.MemoryPoolType, name):
            raise Stop("TensorRT %s has no memory pool %s" % (trt.__version__, name))
        config.set_memory_pool_limit(getattr(trt.MemoryPoolType, name), int(mib * MIB))
    elif name == "WORKSPACE":
        config.max_workspace_size = int(mib * MIB)
    else:
        raise Stop("TensorRT %s has no memory pool %s" % (trt.__version__, name))


def load_timings(settings, config):
    if settings["timing_cache"]:
        path = os.path.join(HERE, settings["timing_cache"])
        data = b""
        if os.path.isfile(path):
            with open(path, "rb") as file:
                data = file.read()
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):  # of another TensorRT or board: begin anew
            config.set_timing_cache(config.create_timing_cache(b""), False)


def save_timings(settings, config):
    """So that the next build on this board is quicker. A read-only bundle is no reason to fail."""
    if settings["timing_cache"]:
        try:
            write_binary(os.path.join(HERE, settings["timing_cache"]), config.get_timing_cache().serialize())
        except (IOError, OSError):
            pass


def write_binary(path, data):
    with open(path + ".part", "wb") as file:
        file.write(data)
    os.replace(path + ".part", path)


def make_calibrator(trt, numpy, settings):
    """INT8 scales: from the bundle's cache where it has one, else measured by TensorRT on the bundle's data."""
    kinds = {"entropy": trt.IInt8EntropyCalibrator2, "minmax": trt.IInt8MinMaxCalibrator}
    base = kinds[settings["algorithm"]]

    class Calibrator(base):
        def __init__(self):
            base.__init__(self)
            self.files = list(settings["data"])
            self.cuda = Cuda() if self.files else None
            self.buffers = {}

        def get_batch_size(self):
            return settings["batch"]

        def get_batch(self, names, *_):
            if not self.files:
                return None
            with numpy.load(os.path.join(HERE, self.files.pop(0)), allow_pickle=False) as archive:
                arrays = [numpy.ascontiguousarray(single(numpy, archive[name])) for name in names]
            for name, array in zip(names, arrays):
                if name not in self.buffers:
                    self.buffers[name] = self.cuda.allocate(array.nbytes)
                self.cuda.to_device(self.buffers[name], array)
            return [self.buffers[name] for name in names]

        def read_calibration_cache(self):
            if not settings["cache"]:
                return None
            with open(os.path.join(HERE, settings["cache"]), "rb") as file:
                return file.read()

        def write_calibration_cache(self, cache):
            if not settings["cache"]:  # never over the bundle's own
                write_binary(os.path.join(HERE, "calibration.board.cache"), cache)

    return Calibrator()


def single(numpy, array):
    """As TensorRT takes inputs: no FP64, and INT32 in INT64's place."""
    narrow = {"float64": numpy.float32, "int64": numpy.int32}.get(array.dtype.name)
    return array if narrow is None else array.astype(narrow)


# ---- read back, run, compare, time ----


def run(args, manifest, trt, numpy, log, about, tell):
    cuda = Cuda()
    about.update(cuda.facts())
    free_before, total = cuda.memory()
    started = time.time()
    runtime, engine = deserialize(args, manifest, trt, log)
    seconds = time.time() - started
    context = engine.create_execution_context()
    if context is None:
        raise Stop("the engine gives no execution context" + said(log) + memory_words(cuda))
    free_after, _ = cuda.memory()
    io = (Tensors if hasattr(engine, "num_io_tensors") else Bindings)(trt, numpy, cuda, engine, context)
    figures = {
        "stage": "context",
        "seconds": round(seconds, 3),
        "plan_bytes": os.path.getsize(args.plan),
        "plan_sha256": sha256(args.plan),
        "device_memory": int(getattr(engine, "device_memory_size", 0)),
        "memory": {"total": total, "free_before": free_before, "free_after": free_after},
        "bindings": [
            {"name": n, "input": n in io.inputs, "dtype": io.dtypes[n], "shape": io.shapes[n]} for n in io.names
        ],
    }
    missing = [t["name"] for t in manifest["inputs"] + manifest["outputs"] if t["name"] not in io.names]
    other = [n for n in io.inputs if n not in {t["name"] for t in manifest["inputs"]}]
    if missing or other:
        words = "is not in the engine" if missing else "is an input of the engine and not of the model"
        raise Stop("%s %s" % ((missing or other)[0], words), figures=figures)
    detail = "deserialised in a fresh process in %.1f s, with an execution context" % seconds
    tell(check("readback", "passed", detail, figures))
    samples = [read_sample(numpy, sample) for sample in manifest["samples"]]
    tell(parity(manifest, numpy, io, samples))
    tell(bench(args, numpy, cuda, io, samples[0][0]))
    del io, context, engine, runtime  # in this order


def deserialize(args, manifest, trt, log):
    """(runtime, engine); the runtime must outlive the engine."""
    try:
        with open(args.plan, "rb") as file:
            data = file.read()
    except (IOError, OSError) as error:
        raise Stop("%s: cannot be read: %s" % (args.plan, error.strerror))
    if not data:
        raise Stop("%s: the file is empty" % args.plan)
    runtime = trt.Runtime(log)
    if manifest["build"]["dla_core"] is not None:
        runtime.DLA_core = manifest["build"]["dla_core"]
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        hint = "a plan loads on the GPU and with the TensorRT that made it: build it here"
        raise Stop("TensorRT %s can't read %s: %s%s" % (trt.__version__, args.plan, hint, said(log)))
    return runtime, engine


def read_sample(numpy, sample):
    """(inputs, golden outputs) by name."""
    arrays = []
    for key in ("inputs", "outputs"):
        with numpy.load(os.path.join(HERE, sample[key]), allow_pickle=False) as archive:
            arrays.append({name: archive[name] for name in archive.files})
    return arrays[0], arrays[1]


class InOut:
    """The tensors of an engine by name, with their memory on the device.

    Subclasses speak the two APIs of TensorRT: bindings by index (up to 8.4, gone in 10) and tensors by name (from 8.5).
    """

    NUMPY = {
        "FLOAT": "float32",
        "HALF": "float16",
        "INT8": "int8",
        "INT32": "int32",
        "INT64": "int64",
        "UINT8": "uint8",
        "BOOL": "bool",
    }

    def __init__(self, trt, numpy, cuda, engine, context):
        self.numpy, self.cuda, self.engine, self.context = numpy, cuda, engine, context
        self.stream = cuda.stream()
        self.device = {}  # name -> (address, bytes)
        self.host = {}
        self.inputs = []
        self.names = []
        self.dtypes = {}
        self.shapes = {}
        self.describe(trt)

    def add(self, name, is_input, dtype, shape):
        word = str(dtype).split(".")[-1]
        if word not in self.NUMPY:
            raise Stop("%s is %s, which numpy has no type for" % (name, word))
        self.names.append(name)
        self.dtypes[name] = self.NUMPY[word]
        self.shapes[name] = [int(d) for d in shape]
        if is_input:
            self.inputs.append(name)

    def prepare(self, feeds):
        """Shapes and memory for these inputs."""
        for name in self.inputs:
            self.host[name] = self.fitting(name, feeds[name])
            if not self.set_shape(name, self.host[name].shape):
                raise Stop(
                    "the engine does not take %s of shape %s" % (name, "x".join(map(str, self.host[name].shape)))
                )
        for name in self.names:
            if name not in self.inputs:
                shape = self.shape_now(name)
                if min(shape, default=0) < 0:
                    raise Stop("the size of output %s is known only while it runs; that is not handled" % name)
                self.host[name] = self.numpy.empty(shape, self.dtypes[name])
            self.place(name, max(1, self.host[name].nbytes))

    def fitting(self, name, array):
        """The input in the engine's dtype. INT64 becomes INT32 up to TensorRT 9."""
        cast = self.numpy.ascontiguousarray(array.astype(self.dtypes[name])).reshape(array.shape)
        if array.dtype.kind in "iu" and not self.numpy.array_equal(cast.astype(array.dtype), array):
            raise Stop("input %s has values that %s can't hold" % (name, self.dtypes[name]))
        return cast

    def place(self, name, size):
        if self.device.get(name, (0, 0))[1] < size:
            if name in self.device:
                self.cuda.free(self.device[name][0])
            self.device[name] = self.cuda.allocate(size), size

    def upload(self):
        for name in self.inputs:
            self.cuda.to_device(self.device[name][0], self.host[name], self.stream)

    def download(self):
        for name in self.names:
            if name not in self.inputs:
                self.cuda.to_host(self.host[name], self.device[name][0], self.stream)

    def infer(self, feeds):
        """Outputs by name."""
        self.prepare(feeds)
        self.upload()
        self.execute()
        self.download()
        self.cuda.wait(self.stream)
        return {name: self.host[name].copy() for name in self.names if name not in self.inputs}


class Bindings(InOut):
    def describe(self, trt):
        engine = self.engine
        count = engine.num_bindings // max(
            1, engine.num_optimization_profiles
        )  # each profile has its own; use the first
        for index in range(count):
            name, is_input = engine.get_binding_name(index), engine.binding_is_input(index)
            if is_input and engine.is_shape_binding(index):
                raise Stop("input %s is a shape tensor; make it constant: onnxfix bundle --freeze" % name)
            self.add(name, is_input, engine.get_binding_dtype(index), engine.get_binding_shape(index))
        self.unused = engine.num_bindings - count

    def set_shape(self, name, shape):
        return self.context.set_binding_shape(self.names.index(name), shape)

    def shape_now(self, name):
        return tuple(self.context.get_binding_shape(self.names.index(name)))

    def execute(self):
        addresses = [self.device[name][0] for name in self.names] + [0] * self.unused
        if not self.context.execute_async_v2(addresses, self.stream):
            raise Stop("TensorRT can't run the engine")


class Tensors(InOut):
    def describe(self, trt):
        engine = self.engine
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            if is_input and engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise Stop("input %s is a shape tensor; make it constant: onnxfix bundle --freeze" % name)
            self.add(name, is_input, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))

    def set_shape(self, name, shape):
        return self.context.set_input_shape(name, shape)

    def shape_now(self, name):
        return tuple(self.context.get_tensor_shape(name))

    def execute(self):
        for name in self.names:
            self.context.set_tensor_address(name, self.device[name][0])
        if not self.context.execute_async_v3(self.stream):
            raise Stop("TensorRT can't run the engine")


def parity(manifest, numpy, io, samples):
    """The engine's outputs against the golden ones, by the bundle's tolerances or metrics."""
    figures, unjudged, wrong = {}, False, []
    for feeds, golden in samples:
        outputs = io.infer(feeds)
        for name, before in sorted(golden.items()):
            tolerance, metric = judge_of(manifest["judge"], name)
            found = compare(numpy, before, outputs[name], tolerance, metric)
            unjudged = unjudged or (tolerance is None and metric is None)
            figures.setdefault(name, []).append(found)
            if found["verdict"] not in ("equal", "within"):
                wrong.append((name, found))
    worst = max((f["relative"] for found in figures.values() for f in found), default=0.0)
    summary = {"samples": len(samples), "outputs": {name: found for name, found in figures.items()}}
    over = "over %d sample%s" % (len(samples), "" if len(samples) == 1 else "s")
    if not figures:
        return check("parity", "not run", "ran %s; the bundle has no golden outputs of this engine" % over, summary)
    if wrong:
        name, found = wrong[0]
        why = found["note"] or "differs by %.3g of its largest magnitude %.3g" % (found["relative"], found["magnitude"])
        return check("parity", "failed", "output %s: %s" % (name, why), summary)
    if all(f["verdict"] == "equal" for found in figures.values() for f in found):
        return check("parity", "passed", "equal in every value %s" % over, summary)
    words = "largest error %.2g of the output's largest magnitude %s" % (worst, over)
    notes = sorted({"%s: %s" % (n, f["note"]) for n, found in figures.items() for f in found if f["note"]})
    words = "; ".join([words] + notes)
    if unjudged:
        return check("parity", "not run", "measured, not judged, for no tolerance is stated: %s" % words, summary)
    return check("parity", "passed", words, summary)


def judge_of(judges, name):
    """(tolerance relative to the largest magnitude, metric) of an output; "" stands for all that are not named."""
    metric = judges["metrics"].get(name)
    if metric is None and name not in judges["tolerances"]:
        metric = judges["metrics"].get("")
    return judges["tolerances"].get(name, judges["tolerances"].get("")), metric


ERRORS = ("absolute", "relative")  # metrics that pass when small


def compare(np, before, after, tolerance, metric):
    """One output against its golden values, as onnxfix compares: integers must be equal, numbers may differ by
    `tolerance` of the largest magnitude, NaN and infinity must stand where they stood; a metric judges instead."""
    found = {
        "verdict": "equal",
        "elements": int(before.size),
        "max_abs": 0.0,
        "magnitude": 0.0,
        "relative": 0.0,
        "low": 0.0,
        "high": 0.0,
        "cosine": None,
        "score": None,
        "note": "",
    }
    if before.shape != after.shape:
        found.update(verdict="shape", note="%s, expected %s" % (list(after.shape), list(before.shape)))
        return found
    whole = before.dtype.kind in "biu" and after.dtype.kind in "biu"
    common = np.int64 if whole else np.float64
    reference, got = before.astype(common), after.astype(common)
    odd = ~np.isfinite(reference) | ~np.isfinite(got)
    if not same(np, reference[odd], got[odd]):
        counts = int((~np.isfinite(got)).sum()), int((~np.isfinite(reference)).sum())
        found.update(verdict="finite", note="%d NaN or infinite values, %d expected" % counts)
        return found
    numbers, others = reference[~odd], got[~odd]
    if not numbers.size:
        return found
    error, magnitude = float(np.abs(numbers - others).max()), float(np.abs(numbers).max())
    found.update(
        max_abs=error,
        magnitude=magnitude,
        relative=error / magnitude if magnitude else error,
        low=float(numbers.min()),
        high=float(numbers.max()),
        cosine=cosine(np, numbers, others),
    )
    if metric is not None:
        value = score(np, metric, *((before, after) if not odd.any() else (numbers, others)))
        passed = value <= metric["limit"] if metric["name"] in ERRORS else value >= metric["limit"]
        found.update(score=value, note="%s of %.6g, limit %g" % (metric["name"], value, metric["limit"]))
    elif before.dtype.kind != "f":
        passed = error == 0
    else:
        passed = tolerance is None or error <= tolerance * magnitude
    found["verdict"] = "equal" if error == 0 else "within" if passed else "beyond"
    return found


def same(np, one, other):
    """Equal, NaN counted as equal to NaN (numpy.array_equal learnt that in 1.19)."""
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    return bool(((one == other) | (np.isnan(one) & np.isnan(other))).all())


def cosine(np, one, other):
    one, other = one.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.dot(one, other)) / norms if norms else None


def score(np, metric, before, after):
    """The measure of `onnxfix.backends.metrics`, in numpy of 2017."""
    if metric["name"] in ERRORS:
        gap = float(np.abs(before.astype(np.float64) - after.astype(np.float64)).max()) if before.size else 0.0
        magnitude = float(np.abs(before.astype(np.float64)).max()) if before.size else 0.0
        return gap / magnitude if metric["name"] == "relative" and magnitude else gap
    if metric["name"] == "cosine":
        found = cosine(np, before, after)
        return found if found is not None else float(not before.any() and not after.any())
    return top(np, before, after, metric["k"]) if metric["name"] == "top" else iou(np, before, after)


def top(np, before, after, k):
    if not before.ndim or not before.size:
        return float(np.array_equal(before, after))
    axis = 1 if before.ndim >= 4 else before.ndim - 1
    rows = [np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in (before, after)]
    k = min(k, rows[0].shape[1])
    best = [np.argsort(-a.astype(np.float64), axis=1, kind="mergesort")[:, :k] for a in rows]  # stable
    return float((best[0][:, :, None] == best[1][:, None, :]).any(axis=2).mean())


def iou(np, before, after):
    one, other = labels(np, before, before), labels(np, after, before)
    scores = []
    for label in np.union1d(one, other):
        mine, theirs = one == label, other == label
        scores.append(float((mine & theirs).sum()) / float((mine | theirs).sum()))
    return float(np.mean(scores)) if scores else 1.0


def labels(np, array, reference):
    if array.dtype.kind in "biu":
        return array
    if array.ndim >= 3 and array.shape[1] > 1:
        return array.argmax(axis=1)
    within = reference.size and reference.min() >= 0 and reference.max() <= 1
    return array > (0.5 if within else 0.0)


def bench(args, numpy, cuda, io, feeds):
    """Milliseconds of single runs: `latency` with the copies to and from the device, `compute` without."""
    io.prepare(feeds)
    first, last = cuda.event(), cuda.event()

    def once():
        started = time.perf_counter()
        io.upload()
        cuda.record(first, io.stream)
        io.execute()
        cuda.record(last, io.stream)
        io.download()
        cuda.wait(io.stream)
        return 1000.0 * (time.perf_counter() - started), cuda.milliseconds(first, last)

    for _ in range(args.warm_up):
        once()
    times, free = [], cuda.memory()[0]
    started = time.perf_counter()
    while len(times) < args.iterations or time.perf_counter() - started < args.seconds:
        times.append(once())
        if len(times) % 100 == 0:
            free = min(free, cuda.memory()[0])
    batch = int(io.host[io.inputs[0]].shape[0]) if io.inputs and io.host[io.inputs[0]].ndim else 1
    figures = {"iterations": len(times), "warm_up": args.warm_up, "batch": batch, "free_while_running": free}
    for key, values in zip(("latency", "compute"), zip(*times)):
        points = numpy.percentile(values, [50, 90, 99])
        figures[key + "_ms"] = {
            "mean": float(numpy.mean(values)),
            "min": float(min(values)),
            "max": float(max(values)),
            "p50": float(points[0]),
            "p90": float(points[1]),
            "p99": float(points[2]),
        }
    figures["fps"] = 1000.0 * batch / max(figures["latency_ms"]["mean"], 1e-9)
    detail = "%.2f ms at the median, 99 %% within %.2f ms, %.1f frames per second" % (
        figures["latency_ms"]["p50"],
        figures["latency_ms"]["p99"],
        figures["fps"],
    )
    return check("bench", "passed", detail, figures)


# ---- the CUDA runtime ----


class Cuda:
    """The few calls of libcudart that this needs. Addresses and streams are plain integers."""

    OUT_OF_MEMORY = 2
    TO_DEVICE, TO_HOST = 1, 2

    def __init__(self):
        self.library = self.find()
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        integer, number = ctypes.c_int, ctypes.c_float
        out = ctypes.POINTER
        for name, kinds in (
            ("cudaMalloc", [out(pointer), size]),
            ("cudaFree", [pointer]),
            ("cudaMemcpyAsync", [pointer, pointer, size, integer, pointer]),
            ("cudaMemGetInfo", [out(size), out(size)]),
            ("cudaStreamCreate", [out(pointer)]),
            ("cudaStreamSynchronize", [pointer]),
            ("cudaEventCreate", [out(pointer)]),
            ("cudaEventRecord", [pointer, pointer]),
            ("cudaEventElapsedTime", [out(number), pointer, pointer]),
            ("cudaRuntimeGetVersion", [out(integer)]),
            ("cudaDriverGetVersion", [out(integer)]),
            ("cudaDeviceGetAttribute", [out(integer), integer, integer]),
        ):
            function = getattr(self.library, name)
            function.argtypes, function.restype = kinds, integer
        self.library.cudaGetErrorString.argtypes = [integer]
        self.library.cudaGetErrorString.restype = ctypes.c_char_p

    @staticmethod
    def find():
        places = [ctypes.util.find_library("cudart"), "libcudart.so"]
        places += sorted(glob.glob("/usr/local/cuda*/lib64/libcudart.so*"), key=len)
        places += ["libcudart.so.%s" % v for v in ("10.2", "11.0", "12", "13")]
        for place in filter(None, places):
            try:
                return ctypes.CDLL(place)
            except OSError:
                continue
        raise MissingError("no libcudart is found; JetPack installs it, or put its folder into LD_LIBRARY_PATH")

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code:
            words = self.library.cudaGetErrorString(code).decode("utf-8", "replace")
            raise CudaError(name, code, words)

    def new(self, name, kind, *arguments):
        """The value that a call returns through its first argument."""
        value = kind()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def allocate(self, size):
        try:
            return self.new("cudaMalloc", ctypes.c_void_p, size)
        except CudaError as error:
            if error.code != self.OUT_OF_MEMORY:
                raise
            raise CudaError(
                "cudaMalloc", error.code, "out of memory: %.1f MiB wanted%s" % (size / MIB, memory_words(self))
            )

    def free(self, address):
        self.call("cudaFree", address)

    def to_device(self, address, array, stream=0):
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, self.TO_DEVICE, stream)
        if not stream:
            self.wait(stream)

    def to_host(self, array, address, stream=0):
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, self.TO_HOST, stream)

    def stream(self):
        return self.new("cudaStreamCreate", ctypes.c_void_p)

    def wait(self, stream):
        self.call("cudaStreamSynchronize", stream)

    def event(self):
        return self.new("cudaEventCreate", ctypes.c_void_p)

    def record(self, event, stream):
        self.call("cudaEventRecord", event, stream)

    def milliseconds(self, first, last):
        return self.new("cudaEventElapsedTime", ctypes.c_float, first, last)

    def memory(self):
        """(free, total) bytes; on a Jetson the memory of GPU and CPU is the same."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def facts(self):
        major, minor = (self.new("cudaDeviceGetAttribute", ctypes.c_int, which, 0) for which in (75, 76))
        return {
            "cuda_runtime": version_words(self.new("cudaRuntimeGetVersion", ctypes.c_int)),
            "cuda_driver": version_words(self.new("cudaDriverGetVersion", ctypes.c_int)),
            "compute_capability": "%d.%d" % (major, minor),
        }


class CudaError(Stop):
    def __init__(self, name, code, words):
        Stop.__init__(self, "%s: %s (%d)" % (name, words, code))
        self.code = code


def memory_words(cuda):
    try:
        return ", %.1f MiB free of %.1f" % tuple(n / MIB for n in cuda.memory())
    except CudaError:
        return ""


def version_words(number):
    return "%d.%d" % (number // 1000, number % 1000 // 10)


if __name__ == "__main__":
    sys.exit(main())
