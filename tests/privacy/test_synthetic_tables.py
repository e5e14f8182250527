"""Tables that are computed and not measured are what scripts/synthetic-tables computes now."""

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What scripts/synthetic-tables defines."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return runpy.run_path(str(ROOT / "scripts" / "synthetic-tables"))


@pytest.mark.parametrize("name", ["privacy-accountants", "privacy-multipliers", "privacy-steps"])
def test_the_stored_table_is_what_the_script_computes(name: str, script: dict[str, Any]) -> None:
    stored = ROOT / "results" / name / "table.txt"
    assert script["text"](name) == stored.read_text(encoding="utf-8")


def test_every_table_is_stored_and_has_its_place_on_a_page(script: dict[str, Any]) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*/*.md")]
    for name in script["TABLES"]:
        assert (ROOT / "results" / name / "table.txt").is_file()
        assert sum(f"<!-- run {name} -->" in page for page in pages) == 1, name
