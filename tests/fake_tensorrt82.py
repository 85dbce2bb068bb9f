# ruff: noqa
"""A stand-in for the Python package of TensorRT 8.2, as JetPack 4.6.1 has it.

Its surface is that of NVIDIA's documentation of the release (TensorRT 8.2.3 archive, Python API: Core, Graph, Int8,
Parser): a name that 8.2 has not raises AttributeError, be it read or written, as its C++ classes do; one that 8.2 has and
nobody here needed raises NotImplementedError. It never was beside a real 8.2.

A "plan" is a note of the model's path and of the settings. To run it, ONNX Runtime computes the model where it is
installed; elsewhere (Python 3.6) FAKE_TENSORRT_STORED names a folder with outputs that were computed before.
FAKE_TENSORRT_FAULT makes a step fail: parse, build, plan, context, run, late, wrong, crash, killed.
Python 3.6, numpy.
"""

import ctypes
import hashlib
import json
import os
import signal

import fake_cudart
import numpy as np

__version__ = "8.2.1.8"
MAGIC = b"fake-plan-"
fake_cudart.install()


def fault(name):
    return os.environ.get("FAKE_TENSORRT_FAULT") == name


def documented(names):
    """A class with these public names and no others."""

    def decorate(cls):
        surface = frozenset(names.split())
        own = {n for n in vars(cls) if not n.startswith("_")}
        assert own <= surface, "%s is not documented: %s" % (cls.__name__, sorted(own - surface))

        def missing(self, name):
            if name in surface:
                raise NotImplementedError("%s.%s" % (cls.__name__, name))
            raise AttributeError("'tensorrt.%s' object has no attribute '%s'" % (cls.__name__, name))

        def write(self, name, value):
            if not name.startswith("_") and name not in surface:
                raise AttributeError("'tensorrt.%s' object has no attribute '%s'" % (cls.__name__, name))
            object.__setattr__(self, name, value)

        cls.__getattr__, cls.__setattr__ = missing, write
        cls.surface_ = surface
        return cls

    return decorate


def enum(name, members):
    """A pybind11 enumeration: members print as Name.MEMBER and turn into integers."""

    class Member(int):
        def __str__(self):
            return "%s.%s" % (name, self._name)

        __repr__ = __str__
        __hash__ = int.__hash__

        def __eq__(self, other):
            return type(self) is type(other) and int(self) == int(other)

        def __ne__(self, other):
            return not self == other

    found = {}
    for value, member in enumerate(members.split()):
        found[member] = Member(value)
        found[member]._name = member
    return type(name, (), found)


DataType = enum("DataType", "FLOAT HALF INT8 INT32 BOOL")
DeviceType = enum("DeviceType", "GPU DLA")
BuilderFlag = enum(
    "BuilderFlag",
    "FP16 INT8 DEBUG GPU_FALLBACK STRICT_TYPES REFIT DISABLE_TIMING_CACHE TF32 SPARSE_WEIGHTS SAFETY_SCOPE "
    "OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS DIRECT_IO REJECT_EMPTY_ALGORITHMS",
)
NetworkDefinitionCreationFlag = enum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH EXPLICIT_PRECISION")
ErrorCode = enum(
    "ErrorCode",
    "SUCCESS INTERNAL_ERROR MEM_ALLOC_FAILED MODEL_DESERIALIZE_FAILED INVALID_VALUE INVALID_GRAPH INVALID_NODE "
    "UNSUPPORTED_GRAPH UNSUPPORTED_NODE",
)
KINDS = {
    "float32": DataType.FLOAT,
    "float64": DataType.FLOAT,
    "float16": DataType.HALF,
    "int8": DataType.INT8,
    "int32": DataType.INT32,
    "int64": DataType.INT32,
    "bool": DataType.BOOL,
}  # as its ONNX parser narrows
NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "BOOL": np.bool_,
    "INT64": np.int64,
    "UINT8": np.uint8,
}


def kind_of(dtype):
    return str(KINDS[dtype]).split(".")[-1]


@documented("log INTERNAL_ERROR ERROR WARNING INFO VERBOSE Severity")
class ILogger:
    Severity = enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def __init__(self):
        pass


def subclassable(cls):
    """What Python may derive from takes further attributes, as pybind11 has it."""
    cls.__setattr__ = object.__setattr__
    return cls


subclassable(ILogger)


def say(logger, severity, text):
    logger.log(getattr(ILogger.Severity, severity), text)


@documented("get_algorithm get_batch get_batch_size read_calibration_cache write_calibration_cache")
class IInt8EntropyCalibrator2:
    def __init__(self):
        pass


@documented("get_algorithm get_batch get_batch_size read_calibration_cache write_calibration_cache")
class IInt8MinMaxCalibrator:
    def __init__(self):
        pass


subclassable(IInt8EntropyCalibrator2)
subclassable(IInt8MinMaxCalibrator)


@documented("name plugin_version field_names plugin_namespace create_plugin deserialize_plugin")
class IPluginCreator:
    def __init__(self, name, version):
        self.name, self.plugin_version = name, version


@documented("plugin_creator_list register_creator deregister_creator get_plugin_creator error_recorder")
class IPluginRegistry:
    plugin_creator_list = [IPluginCreator("BatchedNMS_TRT", "1")]


def init_libnvinfer_plugins(logger, namespace):
    return True


def get_plugin_registry():
    return IPluginRegistry()


@documented("nbytes dtype")
class IHostMemory(bytearray):  # readable through the buffer protocol, as the original
    pass


@documented("serialize combine reset")
class ITimingCache:
    def serialize(self):
        return IHostMemory(b"fake timings")


@documented(
    "max_workspace_size min_timing_iterations avg_timing_iterations int8_calibrator engine_capability flags "
    "default_device_type DLA_core profile_stream num_optimization_profiles profiling_verbosity algorithm_selector "
    "quantization_flags clear_flag set_flag get_flag reset add_optimization_profile set_calibration_profile "
    "get_calibration_profile set_device_type get_device_type is_device_type_set reset_device_type can_run_on_DLA "
    "set_tactic_sources get_tactic_sources create_timing_cache set_timing_cache get_timing_cache "
    "clear_quantization_flag set_quantization_flag get_quantization_flag"
)
class IBuilderConfig:
    def __init__(self):
        self._flags = {"TF32"}
        self._profiles = []
        self._cache = None
        self.int8_calibrator = None
        self.max_workspace_size = 0  # its default, with which many layers find no way to run

    def _name(self, flag):
        if not isinstance(flag, type(BuilderFlag.FP16)):
            raise TypeError("set_flag(): incompatible function arguments")
        return str(flag).split(".")[-1]

    def set_flag(self, flag):
        self._flags.add(self._name(flag))

    def clear_flag(self, flag):
        self._flags.discard(self._name(flag))

    def get_flag(self, flag):
        return self._name(flag) in self._flags

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_calibration_profile(self, profile):
        return isinstance(profile, IOptimizationProfile)

    def create_timing_cache(self, data):
        return ITimingCache() if data in (b"", b"fake timings") else None

    def set_timing_cache(self, cache, ignore_mismatch):
        assert isinstance(cache, ITimingCache)
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache


@documented("set_shape get_shape set_shape_input get_shape_input extra_memory_target")
class IOptimizationProfile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        assert len(min) == len(opt) == len(max)
        if not all(a <= b <= c for a, b, c in zip(min, opt, max)):
            raise ValueError("set_shape: not min <= opt <= max")
        self._shapes[input] = [list(min), list(opt), list(max)]


@documented(
    "name num_layers num_inputs num_outputs has_implicit_batch_dimension has_explicit_precision error_recorder add_input "
    "get_input get_output get_layer mark_output unmark_output remove_tensor"
)
class INetworkDefinition:
    def __init__(self, flags):
        self._explicit = bool(flags & 1 << int(NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
        self._model = None
        self._weights = False  # the parser owns them

    @property
    def num_layers(self):
        return len(self._model["nodes"]) if self._model else 0


@documented("code desc file line func node")
class ParserError:
    def code(self):
        return ErrorCode.UNSUPPORTED_NODE

    def desc(self):
        return 'Assertion failed: (mode != "cubic") && "Cubic is not supported"\n'

    def file(self):
        return "ModelImporter.cpp"

    def line(self):
        return 773

    def func(self):
        return "parseGraph"

    def node(self):
        return 1


@documented(
    "num_errors parse parse_with_weight_descriptors parse_from_file supports_model supports_operator get_error "
    "clear_errors get_refit_map"
)
class OnnxParser:
    def __init__(self, network, logger):
        assert isinstance(logger, ILogger)
        self._network, self._logger, self._errors = network, logger, []

    def __del__(self):
        self._network._weights = False

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]

    def parse_from_file(self, model):
        if not self._network._explicit:
            raise RuntimeError("This version of the ONNX parser only supports networks with an explicit batch")
        if not os.path.isfile(model):
            say(self._logger, "ERROR", "Could not open file " + model)
            return False
        if fault("parse"):
            say(self._logger, "ERROR", "While parsing node number 1 [Resize]:")
            self._errors.append(ParserError())
            return False
        self._network._model = describe(model)
        self._network._weights = True
        say(self._logger, "WARNING", "Your ONNX model has been generated with INT64 weights")
        return True


def describe(model):
    """Inputs, outputs and nodes of a model: {path, inputs: [{name, dtype, shape}], outputs, nodes}."""
    stored = os.environ.get("FAKE_TENSORRT_STORED")
    if stored:
        with open(os.path.join(stored, "model.json")) as file:
            return dict(json.load(file), path=model)
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    words = {"float": "float32", "double": "float64"}
    kinds = [
        [(t.name, t.type[7:-1], list(t.shape)) for t in ts] for ts in (session.get_inputs(), session.get_outputs())
    ]
    inputs, outputs = (
        [{"name": n, "dtype": words.get(k, k), "shape": [d if isinstance(d, int) else -1 for d in s]} for n, k, s in ts]
        for ts in kinds
    )
    nodes = [node.op_type for node in onnx.load(model, load_external_data=False).graph.node]
    return {"path": model, "inputs": inputs, "outputs": outputs, "nodes": nodes}


@documented(
    "max_batch_size platform_has_tf32 platform_has_fast_fp16 platform_has_fast_int8 max_DLA_batch_size num_DLA_cores "
    "error_recorder gpu_allocator create_network create_optimization_profile create_builder_config build_engine "
    "build_serialized_network is_network_supported reset"
)
class Builder:
    platform_has_fast_fp16 = True
    num_DLA_cores = 0

    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self._logger = logger

    def create_network(self, flags=0):
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        if fault("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault("build"):
            say(self._logger, "ERROR", "10: Could not find any implementation for node Conv_3, out of memory")
            return None
        if not config.max_workspace_size:
            say(self._logger, "ERROR", "10: Could not find any implementation for node Conv_0: no workspace")
            return None
        return serialize(self._logger, network, config, config.max_workspace_size)


def serialize(logger, network, config, workspace):
    """The plan, or None with a message, as the builder decides."""
    model = network._model
    assert network._weights, "the parser is gone, and the weights with it"
    dynamic = [t["name"] for t in model["inputs"] if -1 in t["shape"]]
    profile = config._profiles[0]._shapes if config._profiles else {}
    lacking = [name for name in dynamic if name not in profile]
    if lacking:
        say(
            logger,
            "ERROR",
            "4: [network.cpp::validate] Network has dynamic or shape inputs, but no profile: " + lacking[0],
        )
        return None
    scales = calibrate(model, config, profile) if config.int8_calibrator else 0
    if "INT8" in config._flags and not scales and "QuantizeLinear" not in model["nodes"]:
        say(logger, "ERROR", "Calibration failure occurred with no scaling factors detected")
        return None
    note = {
        "model": model,
        "profile": profile,
        "flags": sorted(config._flags),
        "workspace": workspace,
        "scales": scales,
    }
    return IHostMemory(MAGIC + __version__.encode() + b"\n" + json.dumps(note, sort_keys=True).encode())


def calibrate(model, config, profile):
    """How many scales the calibrator's cache has, or how many batches it gave when it has none."""
    calibrator = config.int8_calibrator
    cache = calibrator.read_calibration_cache()
    if cache:
        head, _, rest = bytes(cache).decode().partition("\n")
        assert head.startswith("TRT-"), head
        return len([line for line in rest.split("\n") if len(bytes.fromhex(line.rpartition(": ")[2])) == 4])
    names, batches = [t["name"] for t in model["inputs"]], 0
    assert calibrator.get_batch_size() >= 1
    while True:
        addresses = calibrator.get_batch(names)
        if addresses is None:
            break
        assert len(addresses) == len(names) and all(isinstance(a, int) and a for a in addresses)
        batches += 1
    if batches:
        calibrator.write_calibration_cache(b"TRT-8201-EntropyCalibration2\nx: 3c010a14\n")
    return batches


@documented("error_recorder gpu_allocator DLA_core num_DLA_cores deserialize_cuda_engine")
class Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        note = read_plan(self._logger, bytes(serialized_engine), __version__)
        return ICudaEngine(self._logger, note) if note else None


def read_plan(logger, data, release):
    head, _, rest = data.partition(b"\n")
    if not head.startswith(MAGIC) or fault("plan"):
        say(
            logger,
            "ERROR",
            "1: [stdArchiveReader.cpp::StdArchiveReader] Error Code 1: Serialization (magic tag does not match)",
        )
        return None
    if head != MAGIC + release.encode():
        say(logger, "ERROR", "1: Error Code 1: Serialization (Version tag does not match)")
        return None
    return json.loads(rest.decode())


def tensors_of(note):
    """Inputs, then outputs, as TensorRT numbers them."""
    model = note["model"]
    return [dict(t, input=True) for t in model["inputs"]] + [dict(t, input=False) for t in model["outputs"]]


@documented(
    "num_bindings max_batch_size has_implicit_batch_dimension num_layers max_workspace_size device_memory_size refittable "
    "name num_optimization_profiles engine_capability error_recorder tactic_sources profiling_verbosity get_binding_name "
    "get_binding_index binding_is_input get_binding_shape get_binding_dtype serialize create_execution_context "
    "get_location create_execution_context_without_device_memory get_profile_shape get_profile_shape_input "
    "is_shape_binding is_execution_binding get_binding_bytes_per_component get_binding_components_per_element "
    "get_binding_format get_binding_format_desc get_binding_vectorized_dim create_engine_inspector"
)
class ICudaEngine:
    num_optimization_profiles = 1
    device_memory_size = 1 << 20

    def __init__(self, logger, note):
        self._logger, self._note = logger, note
        self._tensors = tensors_of(note)

    @property
    def num_bindings(self):
        return len(self._tensors)

    def get_binding_name(self, index):
        return self._tensors[index]["name"]

    def binding_is_input(self, index):
        return self._tensors[index]["input"]

    def is_shape_binding(self, index):
        return False

    def get_binding_dtype(self, index):
        return KINDS[self._tensors[index]["dtype"]]

    def get_binding_shape(self, index):
        return tuple(self._tensors[index]["shape"])

    def create_execution_context(self):
        return None if fault("context") else IExecutionContext(self)


@documented(
    "debug_sync profiler engine name device_memory active_optimization_profile all_binding_shapes_specified "
    "all_shape_inputs_specified error_recorder enqueue_emits_profile execute execute_async execute_v2 execute_async_v2 "
    "get_strides set_binding_shape get_binding_shape set_shape_input get_shape set_optimization_profile_async "
    "report_to_profiler"
)
class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._shapes = engine, {}

    def set_binding_shape(self, binding, shape):
        return accept_shape(self._engine, self._shapes, self._engine._tensors[binding]["name"], shape)

    def get_binding_shape(self, binding):
        return shape_now(self._engine, self._shapes, self._engine._tensors[binding])

    def execute_async_v2(self, bindings, stream_handle, input_consumed=None):
        tensors = self._engine._tensors
        assert len(bindings) == len(tensors) and all(isinstance(a, int) for a in bindings)
        return execute(self._engine, self._shapes, dict(zip([t["name"] for t in tensors], bindings)))


def accept_shape(engine, shapes, name, shape):
    """Within the profile for a dynamic input, the input's own for another."""
    tensor = next(t for t in engine._tensors if t["name"] == name)
    low, _, high = engine._note["profile"].get(name, [tensor["shape"]] * 3)
    fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high))
    if fits:
        shapes[name] = tuple(shape)
    return fits


def shape_now(engine, shapes, tensor):
    """As it is once the inputs have theirs: found by running the model, which is what shape inference comes to."""
    if tensor["input"]:
        return shapes.get(tensor["name"], tuple(tensor["shape"]))
    if -1 not in tensor["shape"]:
        return tuple(tensor["shape"])
    zeros = {t["name"]: np.zeros(shapes.get(t["name"], t["shape"]), t["dtype"]) for t in engine._tensors if t["input"]}
    return compute(engine._note, zeros, by_shape=True)[tensor["name"]].shape


def execute(engine, shapes, addresses):
    """Read the inputs at their addresses, compute, write the outputs at theirs."""
    tensors = engine._tensors
    _runs.append(len(_runs))
    if fault("run") or (fault("late") and len(_runs) > 3) or any(t["input"] and -1 in shape_now(engine, shapes, t) for t in tensors):
        return False
    feeds = {}
    for tensor in tensors:
        if tensor["input"]:
            dtype, shape = np.dtype(NUMPY[kind_of(tensor["dtype"])]), shape_now(engine, shapes, tensor)
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            data = ctypes.string_at(addresses[tensor["name"]], size)
            feeds[tensor["name"]] = np.frombuffer(data, dtype).reshape(shape).astype(tensor["dtype"])
    for name, array in compute(engine._note, feeds).items():
        kind = kind_of(next(t["dtype"] for t in tensors if t["name"] == name))
        if "FP16" in engine._note["flags"] and array.dtype.kind == "f":
            array = array.astype(np.float16)
        if fault("wrong") and array.dtype.kind == "f":
            array = array + 1
        data = np.ascontiguousarray(array.astype(NUMPY[kind])).tobytes()
        ctypes.memmove(addresses[name], data, len(data))
    return True


_sessions = {}
_runs = []


def compute(note, feeds, by_shape=False):
    """Outputs by name, by ONNX Runtime or as they were stored."""
    names = [t["name"] for t in note["model"]["outputs"]]
    stored = os.environ.get("FAKE_TENSORRT_STORED")
    if stored:
        with np.load(os.path.join(stored, key_of(feeds, by_shape) + ".npz")) as archive:
            return {name: archive[name] for name in names}
    import onnxruntime

    path = note["model"]["path"]
    if path not in _sessions:
        onnxruntime.set_default_logger_severity(4)
        _sessions[path] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(names, _sessions[path].run(names, feeds)))


def key_of(feeds, by_shape):
    """Under which outputs are stored: the inputs' values, or for shapes alone their sizes."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        array = feeds[name]
        digest.update(("%s %s" % (name, array.shape)).encode())
        if not by_shape:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
