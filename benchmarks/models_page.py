"""The results of `benchmarks.models` in Markdown, and their place in docs/models.md."""

from __future__ import annotations

import collections
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Stages = Mapping[str, Line]  # of one model, by name of the stage
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")
TARGETS = {"trt-8.2": "8.2", "trt-8.5": "8.5", "trt-10.3": "10.3"}
CAPABILITIES = ("7.5", "8.6")
KINDS = ("fp16", "int8")
NAMED = 12  # models that are named with a reason
# What differs from model to model in a reason: names of nodes and files, counts, errors; and TensorRT's source places.
NOISE = (
    (r"^(.*?Myelin \()?\[[\w.]+:\d+: \w+\] (.*?)(\. In \w+ at .*|$)", r"\2"),
    (r" \([\w.\-]+\.onnx\)|\S+\.onnx:? ?", ""),
    (r"'[^']*'", "…"),
    (r"(Name: |\()/\S+", r"\1…"),
    (r"^\d+ (?=\w+: )", ""),
    (r"output \S+ differs by [\d.e-]+, [\d.e-]+ of its largest magnitude [\d.e-]+", "an output differs"),
)
HEAD = ("model", "nodes", "RTX", *TARGETS.values(), "engines", "FP16", "FP16 engines", "INT8", "INT8 engines", "time")


def text(lines: Sequence[Line]) -> str:
    """A summary, a row for each model, further groups of models, and what is missing and why."""
    models: dict[tuple[str, str, str], dict[str, Line]] = {}
    for line in lines:
        models.setdefault((line["also"], line["form"], line["model"]), {})[line["stage"]] = line
    names = _names(model for _, _, model in models)
    plain = {names[model]: stages for (also, form, model), stages in sorted(models.items()) if not also and not form}
    others = {f"{names[model]} ({form})" if form else names[model]: stages
              for (also, form, model), stages in sorted(models.items()) if also or form}  # fmt: skip
    blocks = [
        [f"- {sentence}" for sentence in _summary(list(plain.values()))],
        _table(HEAD, [_row(name, stages) for name, stages in plain.items()]),
        _groups(lines),
        ["What is missing, and of which models:"],
        _missing({**plain, **others}),
        [f"Measured with {', '.join(sorted({line['by'] for line in lines}))}: the version, and a hash of its sources."],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def write(page: Path, made: str) -> None:
    """Put `made` between the marks of the page."""
    before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f"{before}{MARKS[0]}\n\n{made}\n\n{MARKS[1]}{after}", encoding="utf-8")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in cells]


def _names(models: Iterable[str]) -> dict[str, str]:
    """Package and file; with the folder between them where there are two of that name."""
    parts = {model: model.split("/") for model in models}
    short = {model: f"{p[0]}/{p[-1]}" for model, p in parts.items()}
    often = collections.Counter(short.values())
    return {model: name if often[name] == 1 else "/".join((parts[model][0], *parts[model][-2:]))
            for model, name in short.items()}  # fmt: skip


# ---- the cells ----


def _row(name: str, stages: Stages) -> tuple[str, ...]:
    apply, matrix = stages.get("apply", {}), stages.get("matrix", {})
    return (
        name + (" (constant)" if apply.get("constant") else ""),
        str(apply.get("nodes", "")),
        _judged(apply),
        *(_judged(matrix.get(target, {})) for target in TARGETS),
        _built(stages.get("build", {})),
        *(cell(stages.get(kind, {})) for kind in KINDS for cell in (_accuracy, _built)),
        _slowest(stages.get("speed", {})),
    )


def _judged(figures: Line) -> str:
    """As it is, after how many changes, or what remains."""
    before, after, count = figures.get("before"), figures.get("after"), figures.get("changes", 0)
    if not before:
        return "failed" if figures else ""
    if after != "taken":
        return after
    words = ["takes" if before == "taken" else f"takes after {count}"]
    words += ["by plugins"] if figures.get("plugins") else []
    words += [] if _proved(figures) else ["unproved"]
    return ", ".join(words)


def _proved(figures: Line) -> bool:
    return bool(figures.get("proved", True))  # where nothing was changed there is nothing to prove


def _built(figures: Line) -> str:
    return ", ".join(_capabilities(figures)) or ("no" if figures else "")


def _capabilities(figures: Line) -> list[str]:
    """Those an engine was built for."""
    return [c for c in CAPABILITIES if figures.get(c, {}).get("build") == "passed"]


def _accuracy(figures: Line) -> str:
    if not (outputs := figures.get("outputs")):
        return "no" if figures else ""
    cosines = [o["cosine"] for o in outputs.values() if o.get("cosine") is not None]
    classes = [o["top1"] for o in outputs.values() if "top1" in o]
    words = [_digit(max(o["max_rel"] for o in outputs.values()))]
    words += [f"cosine {min(cosines):.4f}"] if cosines and min(cosines) < 0.99995 else []
    words += [f"top-1 {min(classes):.0%}"] if classes else []
    return ", ".join(words)


def _digit(value: float) -> str:
    return f"{float(value):.1g}"


def _slowest(figures: Line) -> str:
    """Of the rewritten models, the one that takes longest in ONNX Runtime, over the original."""
    ratios = figures.get("ratios", {})
    if not ratios:
        return ""
    target = max(ratios, key=lambda t: float(ratios[t][0]))
    median, low, high = ratios[target]
    return f"{median:.2f} ({low:.2f} to {high:.2f}, {target})"


# ---- sentences ----


def _summary(models: Sequence[Stages]) -> Iterator[str]:
    of = {stage: [m[stage] for m in models if stage in m] for stage in ("apply", "matrix", "build", *KINDS)}
    taken = sum(f.get("before") == "taken" for f in of["apply"])
    fixed = sum(f.get("after") == "taken" and _proved(f) for f in of["apply"])
    yield f"{len(models)} models. TensorRT-RTX's parser takes {taken} as they are, {fixed} after `rtx.yml`, proved."
    for target, name in TARGETS.items():
        yield f"TensorRT {name}, by the matrix: {_by_matrix([f.get(target, {}) for f in of['matrix']])}."
    plans = [f[c].get("stage", "") for m in models for f in m.values() for c in _capabilities(f)]
    reached = " or ".join(f"the {stage} ({n})" for stage, n in collections.Counter(plans).items())
    yield f"Engines built: {_engines(of['build'])}."
    yield f"All {len(plans)} plans of this table were read back, as far as {reached}."
    for kind in KINDS:
        errors = [max(o["max_rel"] for o in f["outputs"].values()) for f in of[kind] if f.get("outputs")]
        parsed = sum(f.get("parse") == "taken" for f in of[kind])
        middle = f"; the middle one of the largest errors is {_digit(statistics.median(errors))}" if errors else ""
        yield f"{kind.upper()}: {len(errors)} converted, {parsed} parsed, built {_engines(of[kind])}{middle}."


def _by_matrix(found: Sequence[Line]) -> str:
    before, after = (sum(f.get(when) == "taken" for f in found) for when in ("before", "after"))
    proved = sum(f.get("after") == "taken" and _proved(f) for f in found)
    undecided = sum(f.get("after") == "undecided" for f in found)
    return f"{before} taken as they are, {after} after `jetson.yml`, {proved} of them proved; {undecided} undecided"


def _engines(found: Sequence[Line]) -> str:
    return ", ".join(f"{sum(c in _capabilities(f) for f in found)} for {c}" for c in CAPABILITIES)


def _missing(models: Mapping[str, Stages]) -> list[str]:
    """What did not work: each reason once, where it was met, and with which models."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for name, stages in models.items():
        for place, reason in _reasons(stages):
            places, names = found.setdefault(reason, ({}, {}))
            places[place] = names[name] = None
    return [f"- {why} ({', '.join(places)}; {_some(list(names))})" for why, (places, names) in sorted(found.items())]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _reasons(stages: Stages) -> Iterator[tuple[str, str]]:
    for stage, figures in stages.items():
        if figures.get("why"):
            yield stage, _short(figures["why"])
        for name in (*TARGETS, *CAPABILITIES):
            inner = figures.get(name, {})
            if why := inner.get("left") or inner.get("why"):
                yield f"{stage} {TARGETS.get(name, name)}", _short(why)


def _short(why: str) -> str:
    for pattern, short in NOISE:
        why = re.sub(pattern, short, why)
    return (why if len(why) < 240 else f"{why[:240]}…").replace("|", "/")


def _groups(lines: Sequence[Line]) -> list[str]:
    """Models in groups: those found in further folders, and the forms that ONNX Runtime's tools give to models."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line["form"] or line["also"]:
            groups.setdefault((line["also"], line["form"]), []).append(line)
    rows = []
    for (also, form), found in sorted(groups.items()):
        judges = {"TensorRT-RTX": [f for f in found if f["stage"] == "apply" and "before" in f]}
        judges |= {f"TensorRT {name}": [f[t] for f in found if t in f] for t, name in TARGETS.items()}
        rows += [
            (form or "as exported", also or "packages", judge, *_counts(judged))
            for judge, judged in judges.items()
            if judged
        ]
    head = ("form", "models of", "judge", "models", "refused as they are", "of these taken, proved", "undecided",
            "taken as they are", "of these unproved after")  # fmt: skip
    return _table(head, rows) if rows else []


def _counts(found: Sequence[Line]) -> list[str]:
    refused = [f for f in found if f["before"] not in ("taken", "undecided")]
    kept = [f for f in found if f["before"] == "taken"]
    rescued = sum(f["after"] == "taken" and _proved(f) for f in refused)
    undecided = sum(f["after"] == "undecided" for f in found)
    worse = sum(f["after"] != "taken" or not _proved(f) for f in kept)
    return [str(n) for n in (len(found), len(refused), rescued, undecided, len(kept), worse)]
