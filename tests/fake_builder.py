"""A stand-in for the Python package of TensorRT 10.3: the documented names that Polygraphy and onnxfix's worker use.

It parses no operators and builds nothing. What reaches the builder configuration is written into the "plan", as JSON
behind a plan's header, so that a test can read it there. Imported in the worker it plays a Jetson: compute capability
8.7, two DLA cores. `tests/test_build.py` lays it in a folder of its own under the name `tensorrt`.

Source of the names: NVIDIA's Python API reference for TensorRT 10.3.
"""

from __future__ import annotations

import enum
import json
import os
import struct
import sys

__version__ = "10.3.0"

worker = sys.modules["__main__"]
worker.no_driver = lambda: os.environ.get("FAKE_NO_DRIVER", "")
worker.compute_capability = lambda: "8.7"


class _Enum(enum.IntEnum):
    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def _enum(name: str, *members: str) -> type[_Enum]:
    return _Enum(name, {member: number for number, member in enumerate(members)})


BuilderFlag = _enum(
    "BuilderFlag", "FP16", "BF16", "INT8", "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32",
    "SPARSE_WEIGHTS", "SAFETY_SCOPE", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO",
    "REJECT_EMPTY_ALGORITHMS", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "FP8", "STRIP_PLAN", "WEIGHT_STREAMING",
)  # fmt: skip
MemoryPoolType = _enum(
    "MemoryPoolType", "WORKSPACE", "DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM", "TACTIC_DRAM",
    "TACTIC_SHARED_MEMORY",
)  # fmt: skip
NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED")
HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS")
OnnxParserFlag = _enum("OnnxParserFlag", "NATIVE_INSTANCENORM")
ProfilingVerbosity = _enum("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED")
DeviceType = _enum("DeviceType", "GPU", "DLA")
LayerType = _enum("LayerType", "CONVOLUTION", "QUANTIZE", "DEQUANTIZE")
LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE", "JSON")
TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
DataType = _enum("DataType", "FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64")


float32, float16, int8, int32 = DataType.FLOAT, DataType.HALF, DataType.INT8, DataType.INT32


class ILogger:
    Severity = _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


class IProgressMonitor:
    pass


class _Calibrator:
    pass


class IInt8EntropyCalibrator2(_Calibrator):
    pass


class IInt8MinMaxCalibrator(_Calibrator):
    pass


class IInt8LegacyCalibrator(_Calibrator):
    pass


class IInt8Calibrator(_Calibrator):
    pass


class _Creator:
    name, plugin_version, plugin_namespace = "EfficientNMS_TRT", "1", ""


class _Registry:
    all_creators = (_Creator,)


def get_plugin_registry() -> _Registry:
    return _Registry()


def init_libnvinfer_plugins(_logger: object, _namespace: str) -> bool:
    return True


class _Tensor:
    is_shape_tensor = False

    dtype = DataType.FLOAT

    def __init__(self, name: str, shape: tuple[int, ...], symbols: tuple[str, ...] = ()) -> None:
        self.name, self.shape, self.symbols = name, shape, symbols

    def get_dimension_name(self, axis: int) -> str:
        return self.symbols[axis]


class _Layer:
    type, num_outputs, precision_is_set = LayerType.CONVOLUTION, 1, False

    def __init__(self, node: str, output: str) -> None:
        self.name, self.metadata, self.output = node, f"[ONNX Layer: {node}]", output

    def get_output(self, _index: int) -> _Tensor:
        return _Tensor(self.output, (1,))


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.inputs: list[_Tensor] = []
        self.outputs: list[_Tensor] = []
        self.layers: list[_Layer] = []

    num_inputs = property(lambda self: len(self.inputs))
    num_layers = property(lambda self: len(self.layers))
    num_outputs = property(lambda self: len(self.outputs))

    def get_flag(self, flag: int) -> bool:
        return bool(self.flags >> flag & 1)

    def get_input(self, index: int) -> _Tensor:
        return self.inputs[index]

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]

    def __getitem__(self, index: int) -> _Layer:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)


class OnnxParser:
    num_errors = 0

    def __init__(self, network: INetworkDefinition, _logger: object) -> None:
        self.network = network

    def set_flag(self, flag: OnnxParserFlag) -> None:
        self.network.parser_flag = flag.name

    def supports_operator(self, op: str) -> bool:
        return op in ("Conv", "Relu", "QuantizeLinear", "DequantizeLinear")

    def parse_from_file(self, path: str) -> bool:
        import onnx

        graph = onnx.load(path).graph
        for values, into in ((graph.input, self.network.inputs), (graph.output, self.network.outputs)):
            for value in values:
                dims = value.type.tensor_type.shape.dim
                into.append(
                    _Tensor(value.name, tuple(d.dim_value or -1 for d in dims), tuple(d.dim_param for d in dims))
                )
        self.network.layers += [_Layer(node.name, node.output[0]) for node in graph.node]
        return True


class IOptimizationProfile(dict):
    def set_shape(self, name: str, low: tuple, opt: tuple, high: tuple) -> None:
        self[name] = [list(low), list(opt), list(high)]

    get_shape = dict.__getitem__


class _TimingCache(bytearray):
    def __bool__(self) -> bool:
        return True

    def serialize(self) -> memoryview:
        return memoryview(b"timings")

    def combine(self, _other: object, ignore_mismatch: bool) -> bool:
        return True


class IBuilderConfig:
    """Keeps what is set. The attributes with values here are those that have a default."""

    DLA_core, default_device_type, builder_optimization_level = -1, DeviceType.GPU, 3
    hardware_compatibility_level = HardwareCompatibilityLevel.NONE
    int8_calibrator = progress_monitor = profiling_verbosity = None

    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.pools: dict[str, int] = {}
        self.profiles: list[IOptimizationProfile] = []
        self.timing = b""
        self.calibration: IOptimizationProfile | None = None

    num_optimization_profiles = property(lambda self: len(self.profiles))

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag.name)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag.name in self.flags

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.pools[pool.name] = size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self.pools.get(pool.name, 0)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_calibration_profile(self, profile: IOptimizationProfile) -> bool:
        self.calibration = profile
        return True

    def get_calibration_profile(self) -> IOptimizationProfile | None:
        return self.calibration

    def create_timing_cache(self, data: bytes) -> _TimingCache:
        return _TimingCache(data)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        self.timing = bytes(cache)
        return True

    def get_timing_cache(self) -> _TimingCache:
        return _TimingCache(self.timing)


class Builder:
    num_DLA_cores = 2

    def __init__(self, _logger: object) -> None:
        pass

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes:
        told = {
            "flags": sorted(config.flags),
            "pools": config.pools,
            "profiles": config.profiles,
            "dla": [config.default_device_type.name, config.DLA_core],
            "level": config.builder_optimization_level,
            "hardware": config.hardware_compatibility_level.name,
            "timing": config.timing.decode(),
            "strongly_typed": network.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED),
            "parser": getattr(network, "parser_flag", ""),
            "calibration": _calibrate(config, [t.name for t in network.inputs]),
            "inputs": [[t.name, list(t.shape)] for t in network.inputs],
            "outputs": [[t.name, list(t.shape)] for t in network.outputs],
            "layers": [[layer.name, layer.metadata] for layer in network.layers],
        }
        body = json.dumps(told).encode()
        return struct.pack("<4sIQQ4B36x", b"ftrt", 0, 1, 64 + len(body), 10, 3, 0, 26) + body


def _calibrate(config: IBuilderConfig, inputs: list[str]) -> dict[str, object] | None:
    """As TensorRT does: the cache, else batch after batch, then the cache is written."""
    from polygraphy.backend.trt import util

    calibrator = config.int8_calibrator
    if calibrator is None:
        return None
    if (cache := calibrator.read_calibration_cache()) is not None:
        return {"cache": cache.decode()}
    seen = []
    util._get_array_on_gpu = lambda array, name, _buffers: seen.append([name, array.tolist()]) or 1
    while calibrator.get_batch(inputs) is not None:
        pass
    calibrator.write_calibration_cache(memoryview(b"TRT-100300-EntropyCalibration2\n"))
    bases = [base.__name__ for base in type(calibrator).__mro__ if base.__name__.startswith("IInt8")]
    return {"seen": seen, "base": bases[0], "profile": config.calibration}


class Runtime:
    def __init__(self, _logger: object) -> None:
        pass

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine:
        return ICudaEngine(json.loads(bytes(data)[64:]))


class ICudaEngine:
    device_memory_size_v2 = device_memory_size = 1 << 20

    def __init__(self, told: dict) -> None:
        self.told = told
        self.tensors = [
            *((*t, TensorIOMode.INPUT) for t in told["inputs"]),
            *((*t, TensorIOMode.OUTPUT) for t in told["outputs"]),
        ]

    num_io_tensors = property(lambda self: len(self.tensors))

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index][0]

    def _tensor(self, name: str) -> tuple:
        return next(t for t in self.tensors if t[0] == name)

    def get_tensor_shape(self, name: str) -> list[int]:
        return self._tensor(name)[1]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensor(name)[2]

    def get_tensor_dtype(self, _name: str) -> DataType:
        return DataType.FLOAT

    def create_execution_context(self) -> object:
        return object()

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self.told)


class EngineInspector:
    """Tells of one fused layer, whose metadata lists all nodes behind one another, a record separator between."""

    def __init__(self, told: dict) -> None:
        self.told = told

    def get_engine_information(self, _format: LayerInformationFormat) -> str:
        names, metadata = zip(*self.told["layers"], strict=True)
        outputs = [{"Name": "y", "Format/Datatype": "Half"}]
        layer = {
            "Name": " + ".join(names),
            "LayerType": "CaskConvolution",
            "Metadata": "\x1e".join(metadata),
            "Outputs": outputs,
        }
        return json.dumps({"Layers": [layer], "Bindings": []})
