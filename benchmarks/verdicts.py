"""Static verdicts against the real parser: ours and trtcheck's, over the models of `fixtures/questions.py`.

    python benchmarks/verdicts.py                              ours alone
    python benchmarks/verdicts.py --trtcheck VENV/bin/trtcheck  both, side by side

The truth is TensorRT-RTX's parser and builder, installed here. Ours is asked for the same release by the matrix alone,
with the parser out of reach. trtcheck (1.1.0 was measured) is asked for TensorRT 10.3, the newest it knows, and runs as
a process of its own: `python -m venv VENV && VENV/bin/pip install trtcheck==1.1.0`.

Read the result with care: the models sit on edges, one question each, and count alike. It is no field accuracy. Exit
status 1 when a verdict of ours is wrong: a model we refuse that builds, or one we accept that the parser refuses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fixtures import questions  # noqa: E402
from onnxfix import inspection, matrix, prove, shapes, verdict  # noqa: E402
from onnxfix.backends.trt import BuildOptions  # noqa: E402
from onnxfix.model import load  # noqa: E402
from onnxfix.report import Status  # noqa: E402

TARGET = "rtx-1.7"
TAKES, NO_BUILD, REFUSES = "takes", "does not build", "refuses"


@dataclass(frozen=True)
class Row:
    name: str
    truth: str
    why: str
    ours: str
    theirs: str = ""  # trtcheck's verdict, "" when it was not asked


def truth(path: Path) -> tuple[str, str]:
    """What parser and builder say, and their reason."""
    parsed = prove.parse(path)
    if parsed.status is Status.NOT_RUN:
        raise SystemExit(f"the truth needs TensorRT-RTX: {parsed.detail}")
    if parsed.status is Status.FAILED:
        return REFUSES, parsed.detail
    with tempfile.TemporaryDirectory() as folder:
        built = prove.build(path, Path(folder, "plan"), BuildOptions())
    return (TAKES, "") if built.status is Status.PASSED else (NO_BUILD, built.detail)


def ours(path: Path) -> str:
    """refused, unverified or accepted, by the matrix alone."""
    found = inspection.findings(shapes.index(load(path)), matrix.target(TARGET))
    return verdict.by_matrix(found)


def theirs(program: str, path: Path) -> str:
    """blocked, unverified or likely, in trtcheck's words."""
    command = [program, str(path), "--target-trt", "10.3", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    try:
        return str(json.loads(done.stdout)["verdict"])
    except (ValueError, KeyError):
        return "fails"


def measure(trtcheck: str = "") -> list[Row]:
    """All questions, asked of everybody."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in questions.write(Path(folder)).items():
            said, why = truth(path)
            rows.append(Row(name, said, why, ours(path), theirs(trtcheck, path) if trtcheck else ""))
    return rows


def wrong(rows: list[Row]) -> list[Row]:
    """Where ours is plainly wrong: refused and it builds, or accepted and the parser refuses it."""
    pairs = {("refused", TAKES), ("accepted", REFUSES)}
    return [r for r in rows if (r.ours, r.truth) in pairs]


def table(rows: list[Row], column: str, words: tuple[str, ...]) -> str:
    """The confusion table of one checker."""
    counts = Counter((r.truth, getattr(r, column)) for r in rows)
    lines = [f"{'the parser':16}" + "".join(f"{w:>12}" for w in words)]
    for said in (REFUSES, NO_BUILD, TAKES):
        if any(r.truth == said for r in rows):
            lines.append(f"{said:16}" + "".join(f"{counts[said, w]:12}" for w in words))
    refused = [r for r in rows if getattr(r, column) == words[0]]
    right = sum(1 for r in refused if r.truth != TAKES)
    passed = sum(1 for r in rows if getattr(r, column) == words[2] and r.truth == REFUSES)
    bad = sum(1 for r in rows if r.truth == REFUSES)
    lines.append(f"'{words[0]}' right: {right} of {len(refused)}; '{words[2]}' of what is refused: {passed} of {bad}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--trtcheck", metavar="PROGRAM", default="", help="trtcheck's command, to ask it as well")
    parser.add_argument("--all", action="store_true", help="list every question, not only the differences")
    args = parser.parse_args()
    rows = measure(args.trtcheck)
    print(f"{len(rows)} questions\n\nonnxfix, matrix {TARGET} alone")
    print(table(rows, "ours", ("refused", "unverified", "accepted")))
    if args.trtcheck:
        print("\ntrtcheck, target 10.3")
        print(table(rows, "theirs", ("blocked", "unverified", "likely")))
    agree = {("refused", REFUSES), ("refused", NO_BUILD), ("accepted", TAKES)}
    listed = rows if args.all else [r for r in rows if (r.ours, r.truth) not in agree]
    if listed:
        print("\nall:" if args.all else "\nwhere the matrix and the parser differ:")
    for row in listed:
        said = f"ours {row.ours:11} trtcheck {row.theirs or '-':11}"
        print(f"  {row.name:28} {row.truth:15} {said} {row.why[:120]}".rstrip())
    return 1 if wrong(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
