"""A plan on its own: read back in a fresh process, described in a file beside it, and judged before it is loaded.

A plan belongs to one version of TensorRT and one kind of GPU, and says so in an error of TensorRT's at best. `check`
says it in words beforehand: from the plan's header (`backends/planfile.py`), from its sidecar, and, where TensorRT is
installed, from TensorRT itself, in a child process.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from onnxfix import __version__, matrix
from onnxfix.backends import BackendError, planfile
from onnxfix.backends.planfile import PRODUCTS, Header, PlanError
from onnxfix.backends.trt import About, Readback, TensorRT
from onnxfix.errors import RequestError, UnavailableError
from onnxfix.model import file_sha256, load, one_line, write_atomic
from onnxfix.report import Check, Report, Status, from_dict, to_dict

SCHEMA = 1
OWN = f"onnxfix {__version__}"


# ---- the sidecar ----


@dataclass(frozen=True)
class Sidecar:
    """What a plan was made of and for. `write_sidecar` fills in what the plan itself and this machine tell."""

    plan: str = ""  # file name
    plan_sha256: str = ""
    plan_bytes: int = 0
    model: str = ""  # path as it was given
    model_sha256: str = ""
    onnxfix: str = ""  # version
    rules: Mapping[str, str] = field(default_factory=dict)  # rule file and rules -> sha256
    flavour: str = ""  # tensorrt, tensorrt_rtx
    version: str = ""  # of the builder
    capabilities: tuple[str, ...] = ()  # compute capabilities of the GPUs it is for
    precision: str = ""  # "fp32", "fp16", …
    profiles: tuple[Mapping[str, Any], ...] = ()  # each: input -> [min, opt, max]
    pools: Mapping[str, float] = field(default_factory=dict)  # memory pools in MiB
    settings: Mapping[str, Any] = field(default_factory=dict)  # further build settings that are not TensorRT's own
    calibration_sha256: str = ""
    bindings: tuple[Mapping[str, Any], ...] = ()  # each: name, mode (input, output), dtype, shape
    layers: tuple[Mapping[str, Any], ...] = ()  # each: name, type, dtypes, onnx (names of nodes)
    plugins: tuple[Mapping[str, str], ...] = ()  # each: name, version, library
    platform: str = ""  # "linux/x86_64"
    cuda: str = ""
    schema: int = SCHEMA


def sidecar_path(plan: Path) -> Path:
    return plan.with_name(f"{plan.name}.json")


def write_sidecar(plan: Path, sidecar: Sidecar) -> Path:
    """Describe the plan in model.plan.json beside it, whole or not at all.

    Raises RequestError when the plan is none, or when nothing can be written there.
    """
    header = planfile.read(plan)
    here: dict[str, Any] = {
        "plan": plan.name, "plan_sha256": file_sha256(plan), "plan_bytes": header.bytes, "onnxfix": __version__,
        "platform": _platform(), "flavour": header.flavour, "version": header.version,
        "capabilities": header.capabilities, "cuda": header.cuda,
    }  # fmt: skip
    known = {name: value for name, value in here.items() if value and not getattr(sidecar, name)}
    write_atomic(sidecar_path(plan), f"{json.dumps(to_dict(replace(sidecar, **known)), indent=2)}\n")
    return sidecar_path(plan)


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar at `path`, which is a plan's or its own.

    Raises RequestError when there is none, and for what is no sidecar or one of a newer onnxfix.
    """
    import jsonschema

    path = path if path.suffix == ".json" else sidecar_path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file; onnxfix build writes it beside the plan") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: no sidecar of a plan: {one_line(error)}") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise RequestError(f"{path}: written by a newer onnxfix (schema {schema}, here {SCHEMA}); update it")
    rules = json.loads((matrix.DATA / "plan.schema.json").read_text(encoding="utf-8"))
    fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(rules).iter_errors(data))
    if fault:
        raise RequestError(f"{path}: no sidecar of a plan: {fault.json_path}: {one_line(fault.message)}")
    sidecar = from_dict(Sidecar, data)
    assert isinstance(sidecar, Sidecar)
    return sidecar


@dataclass(frozen=True)
class Described:
    """A plan's header, and its sidecar where there is one."""

    plan: str
    header: Header
    sidecar: Sidecar | None
    notes: tuple[str, ...]


def describe(plan: Path) -> Described:
    """What is known of the plan without loading it. Raises RequestError for what is none."""
    header = planfile.read(plan)
    sidecar, beside = _beside(plan, file_sha256(plan))
    notes = () if beside.status is Status.PASSED else (beside.detail,)
    return Described(str(plan), header, None if notes else sidecar, notes)


def _platform() -> str:
    return f"{sys.platform}/{platform.machine().lower()}"


# ---- read back ----


def readback(plan: Path, model: Path | None = None, *, trusted: bool = False, seconds: float = 600.0) -> Check:
    """Deserialise the plan in a fresh process, as far as this machine allows, and compare its bindings with the model.

    PASSED needs an execution context; a machine that can't get so far gives NOT_RUN, a bad plan FAILED. `trusted` lets
    a version compatible plan run the runtime it carries.
    """
    try:
        header = planfile.read(plan)
    except RequestError as error:
        return Check("readback", Status.FAILED, OWN, str(error))
    return _readback(header, _ask(header, plan, seconds, trusted=trusted), plan, model)


@dataclass(frozen=True)
class _Answer:
    """Of the TensorRT that is installed."""

    about: About | None = None
    back: Readback | None = None
    creators: frozenset[tuple[str, str, str]] = frozenset()  # name, version and namespace of each plugin
    absent: str = ""  # why there is none
    fault: str = ""  # how its process ended


def _ask(header: Header, plan: Path, seconds: float, *, trusted: bool = False, plugins: bool = False) -> _Answer:
    """What the TensorRT here makes of the plan, and, when asked for, which plugins it has."""
    about = None
    with TensorRT(header.flavour) as tensorrt:
        try:
            about = tensorrt.about()
            back = tensorrt.readback(plan, trusted=trusted, seconds=seconds)
            return _Answer(about, back, tensorrt.creators() if plugins else frozenset())
        except UnavailableError as error:
            return _Answer(absent=str(error))
        except BackendError as error:
            return _Answer(about, fault=str(error))


def _readback(header: Header, answer: _Answer, plan: Path, model: Path | None) -> Check:
    about, back = answer.about, answer.back
    if about is None:
        detail = f"a whole plan of {header}; it could not be deserialised here: {answer.absent or answer.fault}"
        return Check("readback", Status.NOT_RUN, PRODUCTS[header.flavour], detail)
    by = str(about)
    if back is None:
        return Check("readback", Status.FAILED, by, f"{answer.fault} ({plan.name})")
    figures = {"stage": back.stage, "bindings": [dict(b) for b in back.bindings], "device_memory": back.device_memory}
    if header.flavour == "tensorrt_rtx":  # it loads its own version alone, but without a driver it does not look
        version = _version(header, Sidecar(), _here(answer))
        if version.status is Status.FAILED:
            return Check("readback", Status.FAILED, by, version.detail, figures)
    if model and (unlike := list(_unlike(plan, header, back.bindings, model))):
        return Check("readback", Status.FAILED, by, "; ".join(unlike), {**figures, "differences": unlike})
    if back.stage == "context":
        same = f", and it has the inputs and outputs of {model.name}" if model else ""
        memory = f"; a context takes {back.device_memory / 1e6:.1f} MB of device memory"
        return Check("readback", Status.PASSED, by, f"deserialised, with an execution context{same}{memory}", figures)
    if back.stage == "header":
        named = f", and it names the inputs and outputs of {model.name}" if model and header.names[1] else ""
        why = in_words(back.detail)
        detail = f"the plan's header and size are valid{named}; it could not be deserialised here: {why}"
        return Check("readback", Status.NOT_RUN, by, detail, figures)
    fault = "it gives no execution context" if back.stage == "engine" else "the plan can't be read"
    return Check("readback", Status.FAILED, by, f"{fault}: {in_words(back.detail)}", figures)


def bindings(model: Path) -> tuple[dict[str, Any], ...]:
    """Inputs and outputs of an ONNX model as TensorRT words them: name, mode (input, output), dtype, and shape with -1
    for dynamic axes, None for an unknown rank.

    Raises ModelError.
    """
    graph = load(model).proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    values = [("input", v) for v in graph.input if v.name not in stored] + [("output", v) for v in graph.output]
    return tuple(
        {"name": v.name, "mode": mode, "dtype": _dtype(v), "shape": _shape(v)}
        for mode, v in values
        if v.type.HasField("tensor_type")
    )


# TensorRT's names of element types, where they are not ONNX's.
_DTYPES = {
    "float16": "half", "bfloat16": "bf16", "double": "float", "float8e4m3fn": "fp8", "float4e2m1": "fp4",
}  # fmt: skip


def _dtype(value: onnx.ValueInfoProto) -> str:
    name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return _DTYPES.get(name, name)


def _shape(value: onnx.ValueInfoProto) -> list[int] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]


def _unlike(plan: Path, header: Header, known: Sequence[Mapping[str, Any]], model: Path) -> Iterator[str]:
    """What the plan has otherwise than the model; where its bindings are not known, only names are compared."""
    wanted = {b["name"]: b for b in bindings(model)}
    found = {b["name"]: b for b in known}
    missing = [n for n in wanted if n not in found] if found else planfile.names(plan, header, list(wanted))
    yield from (f"the plan has no '{name}', an input or output of {model.name}" for name in missing)
    for name, binding in found.items():
        if name in wanted:
            yield from _unlike_binding(wanted[name], binding)
        else:
            yield f"the plan's {binding['mode']} '{name}' is none of {model.name}"


def _unlike_binding(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    name, dtype, shape = wanted["name"], wanted["dtype"], wanted["shape"]
    narrowed = (dtype, found["dtype"]) == ("int64", "int32")  # as TensorRT does before 10
    if found["dtype"] != dtype and not narrowed:
        yield f"'{name}' is {dtype} in the model and {found['dtype']} in the plan"
    if shape is None:
        return
    if len(shape) != len(found["shape"]) or any(w not in (-1, f) for w, f in zip(shape, found["shape"], strict=True)):
        model, plan = ("x".join("?" if d == -1 else str(d) for d in dims) for dims in (shape, found["shape"]))
        yield f"'{name}' is {model} in the model and {plan} in the plan"


# TensorRT's errors on loading a plan, as its releases from 5 to 11 word them, and what they mean.
_ERRORS = (
    (r"library version (\S+) got ([\d.]*\d)", "made by TensorRT {1}, and this is {0}: build it again here"),
    (r"compute (\S+) got compute ([\d.]*\d)", "made for compute capability {1}, and this GPU has {0}: build it again"),
    (
        r"Current Version: (\d+), Serialized Engine Version: (\d+)",
        "made by another version of TensorRT (its format is {1}, the one here {0}): build it again here",
    ),
    (
        r"magic ?[tT]ag|Magic tag",
        "no plan, or one of another version, flavour or operating system: build it again here",
    ),
    (r"header\.size|Size specified in header", "cut short or damaged: copy or build it again"),
    (r"[Pp]lugin\W+(\w+)\W+version", "it needs the plugin {0}: give its library with --plugins"),
    (r"IPluginCreator not found", "it needs a plugin that is not here: give its library with --plugins"),
    (r"version mismatch", "made by another version: build it again here"),
    (r"unsupported cc", "made for other GPUs: build it again for this one"),
    (r"old cuda (driver|runtime)", "it needs a newer CUDA {0} than the one here"),
    (r"insufficient gpu memory", "it needs more memory than this GPU has"),
    (r"malformed engine", "damaged, or no plan of this TensorRT: copy or build it again"),
)


def in_words(error: str) -> str:
    """What an error of TensorRT's on loading a plan means, and the error; the error alone where it is a new one."""
    for pattern, words in _ERRORS:
        if found := re.search(pattern, error):
            return f"{words.format(*found.groups())} ({one_line(error)})"
    return one_line(error)


# ---- check ----


@dataclass(frozen=True)
class _Place:
    """Where a plan is to run: this machine or a target. "" is what is not known."""

    name: str
    flavour: str
    version: str
    gpu: str  # compute capability
    platform: str
    unknown: str = ""  # why something is not known

    @property
    def tensorrt(self) -> str:
        return f"{PRODUCTS[self.flavour]} {self.version}"


def check(
    plan: Path, target: str = "", *, compute_capability: str = "", model: Path | None = None, seconds: float = 600.0
) -> Report:
    """Whether anything speaks against loading the plan on `target`, or else here, where TensorRT judges too.

    `compute_capability` is that of the GPU it is to run on, for a machine or target without a known one; with `model`,
    inputs and outputs are compared with that one's. The checks are file, sidecar, version, gpu, platform, plugins,
    bindings and readback; one that knows nothing is NOT_RUN with the reason. The verdict is "refused" when one failed,
    "proved" when TensorRT loaded the plan, else "unverified".

    Raises RequestError when there is no such file or capability, ModelError and TargetError.
    """
    if not re.fullmatch(r"(\d+\.\d)?", compute_capability):
        raise RequestError(f"compute capability '{compute_capability}': give it like 8.6")
    aimed = matrix.target(target) if target else None
    report = Report("plan check", str(plan), aimed.label if aimed else "this machine", "refused", __version__)
    try:
        header = planfile.read(plan)
    except PlanError as error:
        return _judged(report, [Check("file", Status.FAILED, OWN, str(error))])
    sha256 = file_sha256(plan)
    sidecar, beside = _beside(plan, sha256)
    answer = _Answer() if aimed else _ask(header, plan, seconds, plugins=bool(sidecar.plugins))
    place = _there(aimed) if aimed else _here(answer)
    if compute_capability:
        place = replace(place, gpu=compute_capability)
    checks = [
        Check("file", Status.PASSED, OWN, f"a whole plan of {header}, {header.bytes:,} bytes"),
        beside,
        _version(header, sidecar, place),
        _gpu(header, sidecar, place),
        *_platform_check(header, sidecar, place),
        *_plugins(sidecar, answer),
        *([_bindings(plan, header, sidecar, answer, model)] if model else []),
    ]
    if not aimed and not any(c.status is Status.FAILED for c in checks):
        checks.append(_readback(header, answer, plan, None))
    return _judged(replace(report, model_sha256=sha256), checks)


def _judged(report: Report, checks: list[Check]) -> Report:
    failed = [c for c in checks if c.status is Status.FAILED]
    open_ = [c for c in checks if c.status is Status.NOT_RUN]
    if failed:
        return replace(report, verdict="refused", judged=failed[0].detail, checks=tuple(checks))
    verdict = "proved" if checks[-1].name == "readback" and checks[-1].status is Status.PASSED else "unverified"
    left = f"; not looked at: {', '.join(c.name for c in open_)}" if open_ else ""
    return replace(report, verdict=verdict, judged=f"nothing speaks against it{left}", checks=tuple(checks))


def _here(answer: _Answer) -> _Place:
    about, back = answer.about, answer.back
    if about is None:
        return _Place("this machine", "", "", "", _platform(), answer.absent or answer.fault)
    gpu = back.gpu if back else ""
    return _Place("this machine", about.flavour, about.version, gpu, _platform(), about.no_driver or answer.fault)


def _there(target: matrix.Target) -> _Place:
    """Of a target the TensorRT is known, of a board the GPU too."""
    release = target.release.removeprefix("rtx-")
    flavour = "tensorrt" if release == target.release else "tensorrt_rtx"
    version, gpu = target.facts.get("tensorrt", release), target.facts.get("compute_capability", "")
    system = "linux/aarch64" if target.jetpack else ""
    name = target.facts.get("name", "the target")
    return _Place(name, flavour, version, gpu, system, "it is no board; give --compute-capability")


def _beside(plan: Path, sha256: str) -> tuple[Sidecar, Check]:
    path = sidecar_path(plan)
    if not path.exists():
        detail = f"no {path.name} beside it: the model and settings it was made of are not known"
        return Sidecar(), Check("sidecar", Status.NOT_RUN, OWN, detail)
    try:
        sidecar = read_sidecar(path)
    except RequestError as error:
        return Sidecar(), Check("sidecar", Status.FAILED, OWN, str(error))
    if sidecar.plan_sha256 != sha256:
        detail = f"{path.name} describes another plan: this one was changed or damaged; copy or build both again"
        return Sidecar(), Check("sidecar", Status.FAILED, OWN, detail)
    return sidecar, Check("sidecar", Status.PASSED, OWN, f"{path.name} describes this plan, of {sidecar.model}")


def _version(header: Header, sidecar: Sidecar, place: _Place) -> Check:
    """The version that made the plan against the one that is to load it."""

    def check(status: Status, detail: str) -> Check:
        return Check("version", status, OWN, detail)

    if not place.flavour:
        return check(Status.NOT_RUN, f"made by {header}; {place.name} has none to compare with: {place.unknown}")
    if header.flavour != place.flavour:
        return check(
            Status.FAILED, f"made by {header}, and {place.name} has {place.tensorrt}: build it again with that"
        )
    version = header.version or sidecar.version
    if not version and _order(place.version, "8.6") >= 0:
        return check(Status.FAILED, f"made by {header}, and {place.name} has {place.version}: build it again with that")
    if not version:
        return check(Status.NOT_RUN, f"made by {header}, but its header does not say by which version")
    order = _order(version, place.version)
    made = f"made by {PRODUCTS[header.flavour]} {version}"
    if order == 0:
        return check(Status.PASSED, f"{made}, which {place.name} has")
    if order < 0 and sidecar.settings.get("version_compatible"):
        return check(Status.PASSED, f"{made} for later versions too, and {place.name} has {place.version}")
    age = "older" if order < 0 else "newer"
    return check(
        Status.FAILED,
        f"{made}, {age} than the {place.version} that {place.name} has, and a plan loads in the version that made it: "
        f"build it again with {place.version}",
    )


def _order(version: str, other: str) -> int:
    """-1, 0 or 1: an older, the same or a newer version, by the numbers that both have."""
    pairs = zip(map(int, re.findall(r"\d+", version)), map(int, re.findall(r"\d+", other)), strict=False)
    return next((1 if a > b else -1 for a, b in pairs if a != b), 0)


def _gpu(header: Header, sidecar: Sidecar, place: _Place) -> Check:
    made_for = header.capabilities or sidecar.capabilities
    if not made_for:
        return Check("gpu", Status.NOT_RUN, OWN, "neither its header nor a sidecar says which GPUs it was made for")
    made = f"made for compute capability {', '.join(made_for)}"
    if not place.gpu:
        return Check("gpu", Status.NOT_RUN, OWN, f"{made}; the GPU of {place.name} is not known: {place.unknown}")
    has = f"and {place.name} has {place.gpu}"
    if place.gpu in made_for:
        return Check("gpu", Status.PASSED, OWN, f"{made}, {has}")
    if sidecar.settings.get("hardware_compatible") and all(_order(c, "8.0") >= 0 for c in (*made_for, place.gpu)):
        return Check("gpu", Status.PASSED, OWN, f"{made} and all from 8.0 on, {has}")
    return Check("gpu", Status.FAILED, OWN, f"{made}, {has}: build it again for {place.gpu}")


def _platform_check(header: Header, sidecar: Sidecar, place: _Place) -> Iterator[Check]:
    """Of TensorRT, a plan belongs to one operating system and processor; TensorRT-RTX's are for any."""
    if header.flavour == "tensorrt_rtx" or not (sidecar.platform and place.platform):
        return
    if sidecar.platform == place.platform:
        yield Check("platform", Status.PASSED, OWN, f"made on {sidecar.platform}, which {place.name} is")
    else:
        detail = f"made on {sidecar.platform}, and {place.name} is {place.platform}: build it there"
        yield Check("platform", Status.FAILED, OWN, detail)


def _plugins(sidecar: Sidecar, answer: _Answer) -> Iterator[Check]:
    """Whether TensorRT has the plugins here; of another machine nothing is known."""
    if not sidecar.plugins:
        return
    words = {
        (p["name"], p.get("version", "")): " ".join(filter(None, (p["name"], p.get("version"), _of(p))))
        for p in sidecar.plugins
    }
    there = {(name, version) for name, version, _space in answer.creators}
    missing = ", ".join(text for plugin, text in words.items() if plugin not in there)
    needs = f"it needs the plugin{'s' * (len(words) > 1)} {', '.join(words.values())}"
    if answer.back is None:
        yield Check("plugins", Status.NOT_RUN, OWN, f"{needs}; no TensorRT was asked for them")
    elif missing:
        detail = f"it needs the plugin {missing}, which TensorRT does not have here: give the library with --plugins"
        yield Check("plugins", Status.FAILED, OWN, detail)
    else:
        yield Check("plugins", Status.PASSED, OWN, f"{needs}, which TensorRT has here")


def _bindings(plan: Path, header: Header, sidecar: Sidecar, answer: _Answer, model: Path) -> Check:
    """The plan's inputs and outputs, as TensorRT or the sidecar knows them, or at least their names."""
    loaded = answer.back.bindings if answer.back else ()
    unlike = list(_unlike(plan, header, loaded or sidecar.bindings, model))
    if unlike:
        return Check("bindings", Status.FAILED, OWN, "; ".join(unlike), {"differences": unlike})
    if loaded or sidecar.bindings:
        return Check("bindings", Status.PASSED, OWN, f"it has the inputs and outputs of {model.name}")
    if header.names[1]:
        return Check("bindings", Status.PASSED, OWN, f"it names the inputs and outputs of {model.name}")
    return Check("bindings", Status.NOT_RUN, OWN, "its inputs and outputs are known once it is loaded, or by a sidecar")


def _of(plugin: Mapping[str, str]) -> str:
    return f"of {plugin['library']}" if plugin.get("library") else ""
