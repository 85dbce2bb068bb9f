"""What `plan check` and `plan show` have to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxfix.backends.planfile import PRODUCTS
from onnxfix.plan import Described, Sidecar
from onnxfix.render.layout import Block, Entries, Entry, Facts, Table
from onnxfix.render.text import plural, size
from onnxfix.report import Report, Status

LAYERS = 20


def checked(found: Report) -> Iterator[Block]:
    """All of a check."""
    yield Facts([("plan", found.model), ("for", found.target), ("verdict", found.verdict), ("judged", found.judged)])
    yield Entries("checks", [Entry(c.status.value, f"{c.name}: {c.detail}") for c in found.checks])


def why(found: Report) -> str:
    """The one line that says why it can't load; a fault of the file itself names the file already."""
    failed = next(c for c in found.checks if c.status is Status.FAILED)
    return failed.detail if failed.name == "file" else f"{found.model}: {failed.detail}"


def described(found: Described, verbose: bool = False) -> Iterator[Block]:
    """The header, and the sidecar where there is one."""
    header, sidecar = found.header, found.sidecar
    facts = [("plan", f"{found.plan} ({size(header.bytes)})"), ("made by", str(header))]
    gpus = header.capabilities or (sidecar.capabilities if sidecar else ())
    facts.append(
        ("made for", f"compute capability {', '.join(gpus)}" if gpus else "GPUs that its header does not name")
    )
    if sidecar:
        facts += [(name, value) for name, value in _facts(sidecar) if value]
    yield Facts([*facts, *(("note", note) for note in found.notes)])
    if sidecar:
        yield from _tables(sidecar, verbose)


def _facts(sidecar: Sidecar) -> Iterator[tuple[str, str]]:
    yield "model", sidecar.model
    yield "model sha256", sidecar.model_sha256
    yield "plan sha256", sidecar.plan_sha256
    yield "by", f"onnxfix {sidecar.onnxfix}, {PRODUCTS.get(sidecar.flavour, sidecar.flavour)} {sidecar.version}"
    yield "on", sidecar.platform + (f", CUDA {sidecar.cuda}" if sidecar.cuda else "")
    yield "precision", sidecar.precision
    yield "memory pools", ", ".join(f"{name} {mib:g} MiB" for name, mib in sidecar.pools.items())
    yield "settings", ", ".join(f"{name} {_word(value)}" for name, value in sidecar.settings.items())
    yield "calibration", sidecar.calibration_sha256
    yield "plugins", ", ".join(" ".join(filter(None, plugin.values())) for plugin in sidecar.plugins)


def _word(value: Any) -> str:
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"


def _tables(sidecar: Sidecar, verbose: bool) -> Iterator[Block]:
    if sidecar.rules:
        yield Table("rules", ("rule", "sha256"), list(sidecar.rules.items()))
    if sidecar.bindings:
        rows = [_row(b, "name", "mode", "dtype", "shape") for b in sidecar.bindings]
        yield Table("inputs and outputs", ("name", "mode", "dtype", "shape"), rows)
    if sidecar.profiles:
        rows = [
            (str(number), name, *map(_shape, shapes))
            for number, profile in enumerate(sidecar.profiles)
            for name, shapes in profile.items()
        ]
        yield Table("profiles", ("profile", "input", "min", "opt", "max"), rows, frozenset({0}))
    if sidecar.layers:
        shown = sidecar.layers if verbose else sidecar.layers[:LAYERS]
        more = f"; {len(sidecar.layers) - LAYERS} more with -v" if len(shown) < len(sidecar.layers) else ""
        rows = [_row(layer, "name", "type", "dtypes", "onnx") for layer in shown]
        yield Table(f"{plural(len(sidecar.layers), 'layer')}{more}", ("layer", "type", "dtypes", "ONNX nodes"), rows)


def _row(entry: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    values = [entry.get(key, "") for key in keys]
    return tuple(_shape(v) if key == "shape" else _listed(v) for key, v in zip(keys, values, strict=True))


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _shape(dims: Sequence[int] | None) -> str:
    return "unknown rank" if dims is None else "x".join("?" if d == -1 else str(d) for d in dims) or "scalar"
