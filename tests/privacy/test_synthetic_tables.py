"""Tables that are computed and not measured are what is computed now."""

from pathlib import Path

import pytest

from experiments.publish import synthetic

pytestmark = pytest.mark.published

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["privacy-accountants", "privacy-multipliers", "privacy-steps"])
def test_the_stored_table_is_what_the_script_computes(name: str) -> None:
    stored = ROOT / "results" / name / "table.txt"
    assert synthetic.text(name) == stored.read_text(encoding="utf-8")


def test_every_table_is_stored_and_has_its_place_on_a_page() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*/*.md")]
    for name in synthetic.TABLES:
        assert (ROOT / "results" / name / "table.txt").is_file()
        assert sum(f"<!-- run {name} -->" in page for page in pages) == 1, name
