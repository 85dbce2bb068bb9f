"""Inputs of a bundle and the outputs they must give: at which sizes, on which model, in which files."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix import calibration, prove, shapes
from onnxfix.backends import BackendError, feeds, ort, reference
from onnxfix.backends.images import Preprocessing
from onnxfix.backends.options import BuildOptions, fitting
from onnxfix.errors import RefusedError, RequestError, UnavailableError
from onnxfix.model import Model, one_line
from onnxfix.report import Report, Safety, Status

FAINT = 1e-3  # below this an output of probabilities or pixels says "none"


def axes(model: Model) -> dict[str, tuple[int | str, ...]]:
    """The inputs with their shapes; a dynamic axis is its symbol, or "input[axis]" without one (or with -1 for one)."""
    graph = shapes.index(model)
    found = {}
    for value in model.proto.graph.input:
        if value.name not in graph.initializers:
            shape = graph.shape(value.name) or ()
            found[value.name] = tuple(
                d if isinstance(d, str) or (d is not None and d >= 0) else f"{value.name}[{i}]"
                for i, d in enumerate(shape)
            )
    return found


def sizes(model: Model, options: BuildOptions, how: Preprocessing | None) -> dict[str, tuple[int, int, int]]:
    """(min, opt, max) by dynamic axis: of the first profile, of the sizes asked for, of the images stated."""
    inputs = axes(model)
    fitting(options, inputs)
    found = _image_sizes(inputs, how)
    for name, (low, opt, high) in (options.profiles[0] if options.profiles else {}).items():
        for axis, bounds in zip(inputs[name], zip(low, opt, high, strict=True), strict=True):
            if isinstance(axis, str):
                found[axis] = bounds
    known = {axis for shape in inputs.values() for axis in shape if isinstance(axis, str)}
    for axis, sizes in options.dims.items():
        if axis not in known:
            raise RequestError(f"no dynamic axis called '{axis}'; there are {', '.join(sorted(known)) or 'none'}")
        found[axis] = sizes
    return found


def _image_sizes(
    inputs: Mapping[str, tuple[int | str, ...]], how: Preprocessing | None
) -> dict[str, tuple[int, int, int]]:
    """The dynamic axes that are height and width of an image, where the preprocessing states its size."""
    taking = [s for n, s in inputs.items() if (n == how.input if how and how.input else len(s) == 4)]
    if how is None or how.size is None or len(taking) != 1:
        return {}
    spatial = taking[0][-2:] if how.layout == "nchw" else taking[0][-3:-1]
    return {axis: (n, n, n) for axis, n in zip(spatial, how.size, strict=True) if isinstance(axis, str)}


def draw(
    source: Path,
    final: Path,
    report: Report,
    inputs: str | os.PathLike[str] | None,
    preprocessing: Preprocessing | None,
    frozen: Mapping[str, Any],
    dims: Mapping[str, tuple[int, int, int]],
) -> list[feeds.Feeds]:
    """Some inputs on which the final model gives the original's numbers. Raises RefusedError when it does not."""
    kept: list[feeds.Feeds] = []
    worst = max((c.safety for c in report.changes), key=lambda s: s.rank, default=Safety.EXACT)
    ranges = any(low != high for low, _, high in dims.values())  # then one sample at each of opt, min and max
    check = prove.parity(
        source,
        final,
        safety=worst,
        inputs=Path(inputs) if inputs is not None else None,
        seeds=(0,) if ranges else (0, 1, 2),
        frozen=frozen,
        dims=dims or None,
        preprocessing=preprocessing,
        samples_to=kept,
    )
    if check.status is Status.FAILED:
        raise RefusedError(f"the model of the bundle gives other numbers than {source}: {check.detail}")
    if not kept:
        raise UnavailableError(f"no golden outputs can be made: {check.detail}")
    return kept


def golden(
    source: Path, samples: Sequence[feeds.Feeds], frozen: Mapping[str, Any], wanted: Collection[str]
) -> list[dict[str, np.ndarray]]:
    """Outputs of the original model that the final one has too.

    By ONNX Runtime, or where it lacks an operator by ONNX's reference evaluator.
    """
    try:
        runner: Any = ort.Runner(source)
    except ort.UnsupportedError:
        runner = reference.Runner(source)
    dtypes = {t.name: t.dtype for t in runner.inputs}
    constant = {name: value for name, value in frozen.items() if name in dtypes}

    def outputs(sample: feeds.Feeds) -> dict[str, np.ndarray]:
        given = {name: feeds.cast(array, dtypes[name]) for name, array in sample.items()}
        found = runner.run({**given, **constant})
        return {name: np.asarray(value) for name, value in found.items() if name in wanted}

    try:
        with runner:
            return [outputs(sample) for sample in samples]
    except BackendError as error:
        raise UnavailableError(f"no golden outputs can be made: {one_line(error)}") from None


def faint(golden: Sequence[Mapping[str, np.ndarray]]) -> Iterator[str]:
    """A note on each output that is nowhere far from zero, as drawn inputs may leave a detector's scores."""
    for name in golden[0]:
        values = np.concatenate([np.abs(outputs[name].reshape(-1)) for outputs in golden])
        if values.dtype.kind == "f" and 0 < (largest := float(values.max(initial=0.0))) < FAINT:
            yield (
                f"output {name} is at most {largest:.2g} on these samples, where a relative error says little: "
                f"give inputs of your own, or --metric {name}=absolute:{FAINT:g}"
            )


def write(
    folder: Path, final: Model, samples: Sequence[feeds.Feeds], golden: Sequence[Mapping[str, np.ndarray]]
) -> None:  # fmt: skip
    inputs = axes(final)
    for position, (sample, outputs) in enumerate(zip(samples, golden, strict=True)):
        place = folder / "samples" / str(position)
        place.mkdir(parents=True)
        _write_npz(place / "inputs.npz", {name: array for name, array in sample.items() if name in inputs})
        _write_npz(place / "outputs.npz", outputs)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As numpy.savez, but any name goes, and the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            held = io.BytesIO()
            np.lib.format.write_array(held, np.ascontiguousarray(array).reshape(array.shape), version=(1, 0))
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, held.getvalue())


def profiles(
    model: Model,
    options: BuildOptions,
    asked: Mapping[str, tuple[int, int, int]],
    samples: Sequence[feeds.Feeds],
) -> list[dict[str, Any]]:
    """[{input: [min, opt, max]}]: as asked for, and where nothing was, the sizes of the samples."""
    dynamic = {name: shape for name, shape in axes(model).items() if any(isinstance(d, str) for d in shape)}
    if not dynamic:
        return []
    profile = {}
    for name, shape in dynamic.items():
        seen = [sample[name].shape for sample in samples]
        bounds = [
            (d, d, d) if isinstance(d, int) else asked.get(d, (min(s), s[0], max(s)))
            for d, s in zip(shape, zip(*seen, strict=True), strict=True)
        ]
        profile[name] = [list(sizes) for sizes in zip(*bounds, strict=True)]
    further = [{name: [list(s) for s in sizes] for name, sizes in p.items()} for p in options.profiles[1:]]
    return [profile, *({**profile, **p} for p in further)]


def ship(folder: Path, model: Path, data: calibration.Data, ship: int) -> tuple[list[str], int]:
    """Write the first samples of the data, and return their files and the size of a batch."""
    files, batch = [], 1
    with ort.Runner(model) as runner:
        for position, sample in enumerate(calibration.samples(data, runner)):
            batch = next((array.shape[0] for array in sample.values() if array.ndim), 1)
            if position >= ship:
                break
            (folder / "calibration").mkdir(exist_ok=True)
            files.append(f"calibration/{position:04d}.npz")
            _write_npz(folder / files[-1], sample)
    return files, batch
