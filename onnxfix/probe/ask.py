"""Models to the parser at hand, outcomes back. A crash or a hang is an outcome too."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxfix.backends.trt import DiedError, Refusal, TensorRT

SECONDS = 60.0  # for one small model; a parser that takes longer hangs
_WORDS = 300  # characters of a parser's reason that are kept

Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class Outcome:
    """What a parser made of a model."""

    taken: bool
    op: str = ""  # of the node it blames, "" when none
    code: str = ""  # its own, or "CRASH"
    words: str = ""  # its reason, on one line

    @property
    def no_importer(self) -> bool:
        """Whether it was refused because there is no importer (and no plugin) for the operator."""
        return "checkFallbackPluginImporter" in self.words or "Plugin not found" in self.words


def ask(parser: TensorRT, model: ModelProto, folder: Path, seconds: float = SECONDS) -> Outcome:
    """Give a model to the parser, through a file in `folder`."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        refusals = parser.parse(path, seconds=seconds).refusals
    except DiedError as error:
        return Outcome(False, code="CRASH", words=" ".join(str(error).split())[:_WORDS])
    return Outcome(True) if not refusals else outcome(refusals[0])


def outcome(refusal: Refusal) -> Outcome:
    """The outcome a refusal stands for."""
    words = " ".join((refusal.desc, *refusal.said, refusal.func)).split()
    return Outcome(False, refusal.node_operator, refusal.code, " ".join(words)[:_WORDS])


def ask_all(
    parser: TensorRT, models: list[tuple[str, ModelProto]], progress: Progress | None = None
) -> dict[str, Outcome]:
    """Name -> outcome of every model."""
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
        for number, (name, model) in enumerate(models):
            if progress:
                progress("asking TensorRT's parser", number, len(models))
            outcomes[name] = ask(parser, model, Path(folder))
    return outcomes
