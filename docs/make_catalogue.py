"""Write docs/rules.md, the catalogue of rules, from the rules themselves: `python docs/make_catalogue.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from onnxfix import catalog

PATH = Path(__file__).parent / "rules.md"


def text() -> str:
    rows = [
        f"| [{rule.id}](../rules/{rule.id}.md) | {', '.join(rule.ops)} | {rule.safety.value} | {rule.when} "
        f"| {rule.summary} |"
        for rule in catalog.load_folder(catalog.shipped()).values()
    ]
    head = [
        "# The rules",
        "",
        "Made by `python docs/make_catalogue.py` from the rules and their pages; a test keeps it so.",
        "",
        "| rule | looks at | safety | acts | what it does |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
    sys.exit(0)
