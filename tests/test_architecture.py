"""Imports point one way, heavy packages stay behind their seam, and the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "onnxfix"

# From the ground up. A module uses only layers below its own; a folder counts as one module.
LAYERS = (
    ("errors",),
    ("report", "names", "page"),
    ("model",),
    ("graph", "skeleton"),
    ("shapes",),
    ("pattern", "limits"),
    ("rule", "emit", "freeze"),
    ("yamlrule",),
    ("catalog",),
    ("backends", "engine", "matrix"),
    ("folding", "boards", "plan", "calibration"),
    ("lowering", "verdict", "tables"),
    ("prove", "inspection", "record", "precision", "recorder"),
    ("activations", "sidebyside"),
    ("probe", "gating", "scaffold", "changeproof", "difference"),
    ("cutting",),
    ("trial",),
    ("judges",),
    ("reduce",),
    ("verify", "bench"),
    ("ruletest",),
    ("api",),
    ("replay", "build", "bundle"),
    ("render",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}

HEAVY = {"onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "onnx_graphsurgeon", "torch"}

# `onnxfix/__init__.py` only names the public things; `data` holds no code; `rules` is there when installed.
SOURCES = sorted(
    p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("__init__.py", "data", "rules")
)
RULES = sorted((ROOT / "rules").glob("*.py"))


def module_of(path: Path) -> str:
    """The layer's name for a file of the package: its stem, or the folder it lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module, `from a import b` as "a.b", with its line; also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def own(path: Path) -> Iterator[tuple[str, int]]:
    """The layers a file uses, without what `onnxfix/__init__.py` defines itself."""
    for name, line in imports(parse(path)):
        parts = name.split(".")
        if parts[0] == "onnxfix" and len(parts) > 1 and (parts[1] in HEIGHT or not parts[1].startswith("_")):
            yield parts[1], line


def show(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=show)
def test_imports_point_down(path: Path) -> None:
    module = module_of(path)
    assert module in HEIGHT, f"{module} has no place in LAYERS"
    for used, line in own(path):
        assert used == module or HEIGHT[used] < HEIGHT[module], f"line {line}: {module} must not use {used}"


@pytest.mark.parametrize("path", [*SOURCES, *RULES], ids=show)
def test_heavy_packages_stay_in_backends(path: Path) -> None:
    tree = parse(path)
    found = {(name, line) for name, line in imports(tree) if name.split(".")[0] in HEAVY}
    if path.is_relative_to(PACKAGE / "backends"):  # there, but on first use: inside a function
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        found -= {use for function in functions for use in imports(function)}
    assert not found or path.name == "worker.py"  # the worker is a process of its own


@pytest.mark.parametrize("path", RULES, ids=show)
def test_rules_use_what_rules_are_made_of(path: Path) -> None:
    """A rule reads and edits graphs; proving, showing and choosing rules is none of its business."""
    for used, line in own(path):
        assert HEIGHT[used] <= HEIGHT["lowering"], f"line {line}: a rule must not use {used}"
        assert used not in ("backends", "engine", "catalog"), f"line {line}: a rule must not use {used}"


def test_starting_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import onnxfix.cli; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    modules = done.stdout.split()
    roots = {m.split(".")[0] for m in modules}
    assert not roots & (HEAVY | {"onnx", "numpy", "rich", "google", "yaml", "jsonschema", "multiprocessing"})
    ours = {m.split(".")[1] for m in modules if m.startswith("onnxfix.")}
    assert ours == {"cli", "commands", "errors"}
    assert len(modules) < 80, "argparse, pathlib and what they need are some 40 modules"
