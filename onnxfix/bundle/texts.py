"""The texts of a bundle: the script, the commands that do the same, a README, and the checksums of all."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxfix.bundle import board
from onnxfix.model import file_sha256

SCRIPT = "run_board.py"
TRTEXEC_POOLS = {
    "WORKSPACE": "workspace", "DLA_MANAGED_SRAM": "dlaSRAM", "DLA_LOCAL_DRAM": "dlaLocalDRAM",
    "DLA_GLOBAL_DRAM": "dlaGlobalDRAM", "TACTIC_SHARED_MEMORY": "tacticSharedMem",
}  # fmt: skip


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Script, manifest, commands, README, and last the checksums of all."""
    shutil.copyfile(board.__file__, folder / SCRIPT)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
    (folder / "run.sh").write_text(_run_sh(manifest), encoding="utf-8")
    (folder / "run.sh").chmod(0o755)
    (folder / "README.md").write_text(_readme(manifest, folder), encoding="utf-8")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def trtexec(manifest: Mapping[str, Any]) -> list[str]:
    """The arguments with which trtexec of the target's release builds the same engine, and times it."""
    settings, release = manifest["build"], tuple(int(p) for p in manifest["target"]["release"].split("."))
    words = [f"--onnx={manifest['model']['file']}", "--saveEngine=model.trtexec.plan"]
    names = {"FP16": "--fp16", "INT8": "--int8", "BF16": "--bf16", "FP8": "--fp8", "GPU_FALLBACK": "--allowGPUFallback",
             "SPARSE_WEIGHTS": "--sparsity=enable", "VERSION_COMPATIBLE": "--versionCompatible"}  # fmt: skip
    words += [names[flag] for flag in settings["flags"] if flag in names]
    words += ["--noTF32"] * ("TF32" not in settings["flags"])
    words += ["--stronglyTyped"] * settings["strongly_typed"]
    pools = settings["pools_mib"]
    if pools and release < (8, 4):
        words.append(f"--workspace={pools['WORKSPACE']}")
    elif known := [f"{TRTEXEC_POOLS[name]}:{mib}" for name, mib in pools.items() if name in TRTEXEC_POOLS]:
        words.append(f"--memPoolSize={','.join(known)}")
    if settings["dla_core"] is not None:
        words.append(f"--useDLACore={settings['dla_core']}")
    if settings["optimization_level"] is not None:
        words.append(f"--builderOptimizationLevel={settings['optimization_level']}")
    if settings["calibration"]:
        words.append(f"--calib={settings['calibration']['cache']}")
    if settings["profiles"]:
        first = settings["profiles"][0]
        for position, name in enumerate(("minShapes", "optShapes", "maxShapes")):
            sizes = ",".join(f"{n}:{'x'.join(map(str, s[position]))}" for n, s in sorted(first.items()))
            words.append(f"--{name}={sizes}")
    return [*words, f"--timingCacheFile={settings['timing_cache']}"]


def _run_sh(manifest: Mapping[str, Any]) -> str:
    command = " \\\n        ".join(shlex.quote(word) for word in trtexec(manifest))
    return f"""#!/bin/sh
# sh run.sh           build, read back, run, compare, time: result.json
# sh run.sh trtexec   the same engine by NVIDIA's own trtexec, as a cross-check: model.trtexec.plan, and its times
set -eu
cd "$(dirname "$0")"
if [ "${{1:-}}" = trtexec ]; then
    exec "${{TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}}" \\
        {command}
fi
exec python3 {SCRIPT} "$@"
"""


def _readme(manifest: Mapping[str, Any], folder: Path) -> str:
    model, target, settings = manifest["model"], manifest["target"], manifest["build"]
    extra = "- `nvinfer.txt`: for DeepStream; read its comments\n" if (folder / "nvinfer.txt").is_file() else ""
    if settings["calibration"]:
        extra += f"- `{settings['calibration']['cache']}`: the INT8 scales\n"
    flags = ", ".join(settings["flags"]) or "FP32"
    notes = "".join(f"- {note}\n" for note in manifest["notes"]) or "- none\n"
    return f"""# {model["original"]} for {target["label"]}

Made by onnxfix {manifest["onnxfix"]}. Verdict before any board has seen it: {manifest["verdict"]}
({manifest["judged"]}).

    sudo nvpmodel -m 0 && sudo jetson_clocks    # the same clocks for every measurement
    python3 {SCRIPT}

builds the engine ({flags}) from `model.onnx` (opset {model["opset"]}, IR version {model["ir_version"]}), reads it back
in a fresh process, runs it on the samples, compares with the golden outputs, times it, and writes `result.json`. It
needs Python 3.6, numpy and TensorRT's Python package, as JetPack brings them; nothing is installed. The script has
been tried with stand-ins for TensorRT, and on no board yet.
`python3 {SCRIPT} --help` shows its options. When memory is short: close the desktop, add swap, or `--workspace 256`.

Carry `result.json` back:

    onnxfix bundle read result.json

- `samples/`: inputs, and the outputs of the original model by ONNX Runtime
- `run.sh trtexec`: the same engine by NVIDIA's tool
- `manifest.json`: settings, hashes, tolerances; `SHA256SUMS`: what the script checks first
{extra}
Notes:

{notes}"""
