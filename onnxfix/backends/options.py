"""The settings of an engine build: what they are, how they are written, and what the TensorRT at hand can take.

`read` makes them from the names used on the command line and under `build:` in a rule file, `unsupported` says before a
build what its TensorRT has no means for, and `arguments` and `finish` hand them to Polygraphy's CreateConfig.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from onnxfix.errors import RequestError

if TYPE_CHECKING:
    from onnxfix.backends.trt import About

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]

# Names of the memory pools, and TensorRT's own for them.
POOLS = {
    "workspace": "WORKSPACE",
    "dla_sram": "DLA_MANAGED_SRAM",
    "dla_local_dram": "DLA_LOCAL_DRAM",
    "dla_global_dram": "DLA_GLOBAL_DRAM",
    "tactic_dram": "TACTIC_DRAM",
    "tactic_shared_memory": "TACTIC_SHARED_MEMORY",
}
PRECISION_FLAGS = ("fp16", "bf16", "int8", "fp8")
# Under `build:` too, but no settings of TensorRT's: what they come to hangs on its release.
OF_THE_MODEL = frozenset({"precision", "calibrate", "preprocess", "calibrator", "calibration_cache"})
LEVELS = range(6)  # of the builder's optimisation
CALIBRATORS = {"entropy": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}


@dataclass(frozen=True)
class BuildOptions:
    """Settings of an engine build; those left alone are TensorRT's own.

    A profile maps inputs with dynamic axes to their (min, opt, max) shapes. Inputs no profile names get sizes from
    `dims` (symbol -> (min, opt, max); an axis without symbol is called "input[axis]"), or else one likely size.
    """

    compute_capability: str = ""  # "8.6", or several with commas: TensorRT-RTX builds for absent GPUs
    workspace_mib: int = 0  # 0 leaves it to TensorRT
    fp16: bool = False  # the precision flags are of TensorRT up to 10; elsewhere precision is written in the graph
    bf16: bool = False
    int8: bool = False
    fp8: bool = False
    tf32: bool = False  # TensorRT's own default is to allow it; here the numbers of FP32 come first
    strongly_typed: bool = False  # take the precision from the model; TensorRT-RTX and TensorRT 11 always do
    pools: Mapping[str, float] = field(default_factory=dict)  # other memory pools in MiB, by the names of POOLS
    dla_core: int | None = None
    gpu_fallback: bool = False  # what the DLA does not take runs on the GPU
    optimization_level: int | None = None  # 0 to 5
    sparse_weights: bool = False
    version_compatible: bool = False  # newer releases run the engine too
    hardware_compatible: bool = False  # GPUs from Ampere on run the engine, whichever of them built it
    timing_cache: str = ""  # a file, read where it is there, written after the build
    calibration: str = ""  # INT8 without Q/DQ: a folder of .npz files, a batch each
    calibration_cache: str = ""  # in TensorRT's own format; read where it is there, else written
    calibrator: str = "entropy"
    profiles: tuple[Profile, ...] = ()
    dims: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    seconds: float = 3600.0  # time limit

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities asked for, one by one."""
        return tuple(filter(None, (c.strip() for c in self.compute_capability.split(","))))

    @property
    def precision(self) -> tuple[str, ...]:
        """The precision flags that are set."""
        return tuple(name for name in PRECISION_FLAGS if getattr(self, name))

    def request(self) -> dict[str, Any]:
        """What the child process is sent."""
        return {**asdict(self), "capabilities": self.capabilities}


@dataclass(frozen=True)
class Abilities:
    """What a release offers for builds: the names it has for flags, memory pools, settings and kinds of networks."""

    flags: frozenset[str]  # of BuilderFlag
    pools: frozenset[str]  # of MemoryPoolType
    settings: frozenset[str]  # attributes of IBuilderConfig
    networks: frozenset[str]  # of NetworkDefinitionCreationFlag
    calibrators: frozenset[str]  # classes of implicit INT8 calibration
    dla_cores: int = 0
    gpu: str = ""  # compute capability of the GPU at hand, "" when there is none


# ---- from words ----


def read(settings: Mapping[str, Any], **further: Any) -> BuildOptions:
    """The options by their names under `build:`, which are those of the command line with _ for -.

    Raises RequestError for values that can't be meant.
    """
    given = {name: value for name, value in {**settings, **further}.items() if name not in OF_THE_MODEL}
    pools = {name: _mebibytes(name, size) for name, size in (given.pop("pool", None) or {}).items()}
    pooled = pools.pop("workspace", 0)
    if workspace := given.pop("workspace", pooled):
        given["workspace_mib"] = math.ceil(_mebibytes("workspace", workspace))
    if pools:
        given["pools"] = pools
    if "profile" in given:
        given["profiles"] = tuple(profile(text) for text in given.pop("profile"))
    return BuildOptions(**given)


def _mebibytes(name: str, size: Any) -> float:
    if name not in POOLS:
        raise RequestError(f"no memory pool called '{name}'; there are {', '.join(POOLS)}")
    try:
        number = float(size)
    except ValueError:
        number = 0.0
    if not 0 < number < 2**40:
        raise RequestError(f"memory pool {name}: '{size}' is no size; give MiB, e.g. 512 or 0.5")
    return number


def profile(text: str) -> Profile:
    """One profile from words: "x:1x3x224x224,4x3x224x224,8x3x224x224", further inputs after a ";".

    One shape stands for all three. Raises RequestError where that is not what the text is.
    """
    found: dict[str, tuple[Shape, Shape, Shape]] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, _, words = part.rpartition(":")  # names may hold a colon themselves
        shapes = [_shape(word) for word in words.split(",")]
        low, opt, high = shapes * 3 if len(shapes) == 1 else (*shapes, (), ())[:3]
        ordered = len(low) == len(opt) == len(high) and all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
        if not name or len(shapes) not in (1, 3) or not all(shapes) or not ordered:
            raise RequestError(
                f"profile '{part}': give an input, ':' and its smallest, usual and largest shape, "
                "e.g. x:1x3x224x224,4x3x224x224,8x3x224x224"
            )
        found[name] = (low, opt, high)
    if not found:
        raise RequestError("a profile without an input; give e.g. x:1x3x224x224,4x3x224x224,8x3x224x224")
    return found


def _shape(word: str) -> Shape:
    """Sizes of "1x3x224x224", () for anything else."""
    sizes = word.strip().lower().split("x")
    return tuple(map(int, sizes)) if all(s.isdecimal() and s.isascii() for s in sizes) else ()


def fitting(options: BuildOptions, inputs: Mapping[str, Sequence[int | str | None] | None]) -> None:
    """Raises RequestError for a profile whose inputs or shapes are not the model's.

    `inputs` are the model's with their shapes; an axis that is no number is dynamic, None is an unknown rank.
    """
    for asked in options.profiles:
        for name, shapes in asked.items():
            if name not in inputs:
                raise RequestError(f"profile: the model has no input '{name}'; it has {', '.join(inputs)}")
            shape = inputs[name]
            if shape is None:
                continue
            fixed = [(axis, size) for axis, size in enumerate(shape) if isinstance(size, int)]
            if any(len(s) != len(shape) or any(s[a] != n for a, n in fixed) for s in shapes):
                has = "x".join("?" if not isinstance(d, int) else str(d) for d in shape)
                raise RequestError(f"profile: input '{name}' is {has}; the shapes given don't fit it")


# ---- what the release at hand can take ----


def unsupported(about: About, can: Abilities, options: BuildOptions) -> str:
    """Why this TensorRT can't build so, in one sentence; "" when nothing speaks against it."""
    who = f"{about.flavour} {about.version}"
    if problem := _mistakes(options) or _precision(who, can, options) or _device(who, about, can, options):
        return problem
    for name in _needed(options):
        if name not in can.flags | can.pools | can.settings or (about.flavour == "tensorrt_rtx" and name in _NOT_RTX):
            what, _, instead = _WORDS[name].partition("; ")
            return f"{who} has no {what}: {instead or 'leave it out'}"
    return ""


def _mistakes(options: BuildOptions) -> str:
    """What no release takes."""
    for name in options.pools:
        if name not in POOLS:
            return f"no memory pool called '{name}'; there are {', '.join(POOLS)}"
    if options.optimization_level is not None and options.optimization_level not in LEVELS:
        return f"optimization level {options.optimization_level}: the levels are 0 to {LEVELS[-1]}"
    if options.gpu_fallback and options.dla_core is None:
        return "GPU fallback is for what a DLA core does not take: name the core too"
    if options.calibrator not in CALIBRATORS:
        return f"TensorRT calibrates by {' or '.join(CALIBRATORS)}, not by {options.calibrator}"
    if any(not re.fullmatch(r"\d+\.\d", c) for c in options.capabilities):
        return f"compute capability '{options.compute_capability}': give it like 8.6, several as 7.5,8.6"
    if options.strongly_typed and options.precision:
        return f"a strongly typed network takes its precision from the model, not from a {options.precision[0]} flag"
    return ""


def _precision(who: str, can: Abilities, options: BuildOptions) -> str:
    for name in options.precision:
        if name.upper() not in can.flags:
            typed = "FP16" not in can.flags  # a release of strongly typed networks only
            why = ", its networks are strongly typed: write the precision in the model" if typed else ""
            return f"{who} has no {name.upper()} flag{why}"
    if options.strongly_typed and "STRONGLY_TYPED" not in can.networks:
        return f"{who} has no strongly typed networks"
    calibrated = options.calibration or options.calibration_cache
    if calibrated and CALIBRATORS[options.calibrator] not in can.calibrators:
        return f"{who} does not calibrate: write INT8 in the model, as Q/DQ"
    return ""


def _device(who: str, about: About, can: Abilities, options: BuildOptions) -> str:
    if options.dla_core is not None:
        if options.dla_core not in range(can.dla_cores):
            if not can.dla_cores:
                return f"there is no DLA here that {who} could build for"
            return f"no DLA core {options.dla_core}: there are 0 to {can.dla_cores - 1}"
        if "FP16" in can.flags and not {"fp16", "int8"} & set(options.precision) and not options.strongly_typed:
            return "the DLA computes in FP16 and INT8 only: ask for one of them"
    for capability in options.capabilities:
        if about.capabilities and capability not in about.capabilities:
            known = ", ".join(about.capabilities)
            return f"{who} does not build for compute capability {capability}; it does for {known}"
        if not about.capabilities and can.gpu and capability != can.gpu:
            return f"{who} builds for the GPU at hand, which is of compute capability {can.gpu}, not {capability}"
    return ""


def _needed(options: BuildOptions) -> list[str]:
    """TensorRT's names for what the options ask for, beyond precision and device."""
    needed = [POOLS[name] for name in options.pools]
    wanted = {
        "SPARSE_WEIGHTS": options.sparse_weights,
        "VERSION_COMPATIBLE": options.version_compatible,
        "hardware_compatibility_level": options.hardware_compatible,
        "builder_optimization_level": options.optimization_level is not None,
        "create_timing_cache": options.timing_cache,
        "GPU_FALLBACK": options.gpu_fallback,
    }
    return needed + [name for name, asked in wanted.items() if asked]


# What each is in words, and what to do instead.
_WORDS = {
    **{own: f"memory pool {name}" for name, own in POOLS.items()},
    "SPARSE_WEIGHTS": "sparse weights",
    "VERSION_COMPATIBLE": "engines for other versions; build again with each",
    "hardware_compatibility_level": "engines for other hardware; build for each compute capability",
    "builder_optimization_level": "optimization levels",
    "create_timing_cache": "timing cache; it chooses kernels where the engine runs, and keeps them in a runtime cache",
    "GPU_FALLBACK": "GPU fallback",
}

# It has the names, but (as measured with 1.7.1) goes on with an error or a warning from a DLA pool and from a hardware
# level, ends a version-compatible build for want of a library, and calls what it does to a timing cache a no-op.
_NOT_RTX = frozenset(
    {
        "DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM", "VERSION_COMPATIBLE",
        "hardware_compatibility_level", "create_timing_cache",
    }
)  # fmt: skip


# ---- to Polygraphy and TensorRT ----


def arguments(trt: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """What Polygraphy's CreateConfig, or for TensorRT-RTX its CreateConfigRTX, is given.

    `trt` is the module, `options` what `BuildOptions.request` made. Profiles, calibrator and monitor are not among it.
    """
    given: dict[str, Any] = {}
    if hasattr(trt, "ComputeCapability"):
        given["compute_capabilities"] = [tuple(map(int, c.split("."))) for c in options["capabilities"]] or None
    else:
        given |= {name: options[name] for name in ("tf32", *PRECISION_FLAGS)}
    if options["dla_core"] is not None:
        given |= {"use_dla": True, "allow_gpu_fallback": options["gpu_fallback"]}
    limits = pool_limits(trt, options)
    if limits:
        given["memory_pool_limits"] = limits
    for name in ("sparse_weights", "version_compatible"):
        if options[name]:
            given[name] = True
    if options["hardware_compatible"]:
        given["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options["optimization_level"] is not None:
        given["builder_optimization_level"] = options["optimization_level"]
    if options["timing_cache"]:
        given["load_timing_cache"] = options["timing_cache"]
    return given


def pool_limits(trt: Any, options: Mapping[str, Any]) -> dict[Any, int]:
    """Bytes by TensorRT's own keys; none before 8.4, which had no pools."""
    if not hasattr(trt, "MemoryPoolType"):
        return {}
    pools = {**options["pools"], **({"workspace": options["workspace_mib"]} if options["workspace_mib"] else {})}
    return {getattr(trt.MemoryPoolType, POOLS[name]): int(mib * 2**20) for name, mib in pools.items()}


def finish(trt: Any, config: Any, options: Mapping[str, Any]) -> None:
    """Set on a builder configuration what Polygraphy has no word for."""
    if options["dla_core"] is not None:
        config.DLA_core = options["dla_core"]  # Polygraphy sets the first
    if options["workspace_mib"] and not hasattr(trt, "MemoryPoolType"):
        config.max_workspace_size = options["workspace_mib"] << 20
    if hasattr(trt, "ComputeCapability"):  # for TensorRT-RTX, Polygraphy leaves TF32 as it is: allowed
        (config.set_flag if options["tf32"] else config.clear_flag)(trt.BuilderFlag.TF32)
