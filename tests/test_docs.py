"""What the documents say is true: the catalogue is current, links lead somewhere, names are right."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from onnxfix import catalog

ROOT = Path(__file__).parent.parent
PAGES = [p for p in ROOT.rglob("*.md") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]


def test_the_catalogue_is_current() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_catalogue.py"))["text"]()
    assert (ROOT / "docs" / "rules.md").read_text() == made, "run: python docs/make_catalogue.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not re.match(r"[a-z]+:", link):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_a_rules_page() -> None:
    rules = catalog.load_folder(catalog.shipped())
    pages = {p.stem for p in catalog.shipped().glob("*.md")}
    assert pages == set(rules)
