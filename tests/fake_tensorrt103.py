# ruff: noqa
"""A stand-in for the Python package of TensorRT 10.3, as JetPack 6.1 has it, for the script of a bundle.

Its surface is that of NVIDIA's documentation of the release, where what 8.2 had and 10 removed is gone: bindings by
index, max_workspace_size, build_engine. How it computes is `fake_tensorrt82`, which stands for the rest.
"""

import fake_tensorrt82 as older
from fake_tensorrt82 import (  # noqa: F401  the same in both releases
    DeviceType,
    IHostMemory,
    IInt8EntropyCalibrator2,
    IInt8MinMaxCalibrator,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    documented,
    enum,
    get_plugin_registry,
    init_libnvinfer_plugins,
)

__version__ = "10.3.0"

DataType = enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4")
BuilderFlag = enum(
    "BuilderFlag",
    "FP16 BF16 INT8 DEBUG GPU_FALLBACK REFIT DISABLE_TIMING_CACHE TF32 SPARSE_WEIGHTS SAFETY_SCOPE "
    "OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS DIRECT_IO REJECT_EMPTY_ALGORITHMS VERSION_COMPATIBLE "
    "EXCLUDE_LEAN_RUNTIME FP8 ERROR_ON_TIMING_CACHE_MISS DISABLE_COMPILATION_CACHE WEIGHTLESS STRIP_PLAN "
    "REFIT_IDENTICAL WEIGHT_STREAMING INT4 REFIT_INDIVIDUAL",
)
NetworkDefinitionCreationFlag = enum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH STRONGLY_TYPED")
MemoryPoolType = enum(
    "MemoryPoolType",
    "WORKSPACE DLA_MANAGED_SRAM DLA_LOCAL_DRAM DLA_GLOBAL_DRAM TACTIC_DRAM TACTIC_SHARED_MEMORY",
)
TensorIOMode = enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = enum("TensorLocation", "DEVICE HOST")

older.KINDS = {
    "float32": DataType.FLOAT, "float64": DataType.FLOAT, "float16": DataType.HALF, "int8": DataType.INT8,
    "uint8": DataType.UINT8, "int32": DataType.INT32, "int64": DataType.INT64, "bool": DataType.BOOL,
}  # fmt: skip
older.BuilderFlag, older.__version__ = BuilderFlag, __version__


@documented("code desc file line func node node_name node_operator local_function_stack local_function_stack_size")
class ParserError(older.ParserError):
    def node_name(self):
        return ""

    def node_operator(self):
        return "Resize"


older.ParserError = ParserError


@documented(
    "num_errors parse parse_with_weight_descriptors parse_from_file supports_model supports_model_v2 supports_operator "
    "get_error clear_errors set_flag get_flag clear_flag flags get_used_vc_plugin_libraries num_subgraphs "
    "is_subgraph_supported get_subgraph_nodes"
)
class OnnxParser(older.OnnxParser):
    pass


@documented(
    "avg_timing_iterations int8_calibrator engine_capability flags default_device_type DLA_core profile_stream "
    "num_optimization_profiles profiling_verbosity algorithm_selector builder_optimization_level max_num_tactics "
    "hardware_compatibility_level max_aux_streams plugins_to_serialize progress_monitor runtime_platform quantization_flags "
    "set_memory_pool_limit get_memory_pool_limit clear_flag set_flag get_flag reset add_optimization_profile "
    "set_calibration_profile get_calibration_profile set_device_type get_device_type is_device_type_set "
    "reset_device_type can_run_on_DLA set_tactic_sources get_tactic_sources create_timing_cache set_timing_cache "
    "get_timing_cache set_preview_feature get_preview_feature clear_quantization_flag set_quantization_flag "
    "get_quantization_flag"
)
class IBuilderConfig:
    builder_optimization_level = 3

    def __init__(self):
        self._flags, self._profiles, self._cache, self._pools = {"TF32"}, [], None, {}
        self.int8_calibrator = None

    _name = older.IBuilderConfig._name
    set_flag = older.IBuilderConfig.set_flag
    clear_flag = older.IBuilderConfig.clear_flag
    get_flag = older.IBuilderConfig.get_flag
    add_optimization_profile = older.IBuilderConfig.add_optimization_profile
    set_calibration_profile = older.IBuilderConfig.set_calibration_profile
    create_timing_cache = older.IBuilderConfig.create_timing_cache
    set_timing_cache = older.IBuilderConfig.set_timing_cache
    get_timing_cache = older.IBuilderConfig.get_timing_cache

    def set_memory_pool_limit(self, pool, pool_size):
        self._pools[str(pool).split(".")[-1]] = pool_size


@documented(
    "platform_has_tf32 platform_has_fast_fp16 platform_has_fast_int8 max_DLA_batch_size num_DLA_cores error_recorder "
    "gpu_allocator max_threads logger create_network create_optimization_profile create_builder_config "
    "build_serialized_network is_network_supported reset get_plugin_registry"
)
class Builder:
    num_DLA_cores = 2

    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self._logger = logger

    create_network = older.Builder.create_network
    create_optimization_profile = older.Builder.create_optimization_profile

    def create_builder_config(self):
        return IBuilderConfig()

    def build_serialized_network(self, network, config):
        return older.serialize(self._logger, network, config, config._pools.get("WORKSPACE", 0))


@documented(
    "error_recorder gpu_allocator DLA_core num_DLA_cores logger max_threads temporary_directory tempfile_control_flags "
    "engine_host_code_allowed deserialize_cuda_engine get_plugin_registry load_runtime"
)
class Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        note = older.read_plan(self._logger, bytes(serialized_engine), __version__)
        return ICudaEngine(self._logger, note) if note else None


@documented(
    "num_io_tensors num_layers device_memory_size device_memory_size_v2 refittable name num_optimization_profiles "
    "engine_capability error_recorder tactic_sources profiling_verbosity hardware_compatibility_level num_aux_streams "
    "streamable_weights_size weight_streaming_budget_v2 weight_streaming_scratch_memory_size get_tensor_name "
    "get_tensor_mode get_tensor_location get_tensor_shape get_tensor_dtype get_tensor_format get_tensor_format_desc "
    "get_tensor_bytes_per_component get_tensor_components_per_element get_tensor_vectorized_dim "
    "get_tensor_profile_shape get_tensor_profile_values is_shape_inference_io is_debug_tensor serialize "
    "serialize_with_config create_serialization_config create_execution_context "
    "create_execution_context_without_device_memory create_engine_inspector get_device_memory_size_for_profile_v2"
)
class ICudaEngine:
    num_optimization_profiles = 1
    device_memory_size = 1 << 20

    def __init__(self, logger, note):
        self._logger, self._note = logger, note
        self._tensors = older.tensors_of(note)

    def _of(self, name):
        return next(t for t in self._tensors if t["name"] == name)

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    def get_tensor_name(self, index):
        return self._tensors[index]["name"]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if self._of(name)["input"] else TensorIOMode.OUTPUT

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE

    def get_tensor_dtype(self, name):
        return older.KINDS[self._of(name)["dtype"]]

    def get_tensor_shape(self, name):
        return tuple(self._of(name)["shape"])

    def create_execution_context(self):
        return IExecutionContext(self)


@documented(
    "debug_sync profiler engine name device_memory active_optimization_profile all_binding_shapes_specified "
    "all_shape_inputs_specified error_recorder enqueue_emits_profile persistent_cache_limit nvtx_verbosity "
    "temporary_allocator execute_v2 execute_async_v3 get_tensor_strides set_input_shape get_tensor_shape "
    "set_tensor_address get_tensor_address set_output_allocator get_output_allocator get_max_output_size infer_shapes "
    "set_input_consumed_event get_input_consumed_event set_optimization_profile_async report_to_profiler "
    "set_aux_streams set_all_tensors_debug_state set_debug_listener get_debug_listener set_tensor_debug_state "
    "get_debug_state set_device_memory update_device_memory_size_for_shapes"
)
class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._shapes, self._addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        return older.accept_shape(self._engine, self._shapes, name, shape)

    def get_tensor_shape(self, name):
        return older.shape_now(self._engine, self._shapes, self._engine._of(name))

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        assert set(self._addresses) == {t["name"] for t in self._engine._tensors}
        return older.execute(self._engine, self._shapes, self._addresses)
