"""The repository stays small: whoever clones it gets code and numbers, not logs."""

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.published

ROOT = Path(__file__).parents[1]
MOST_BYTES = 9_990_000


def test_the_tracked_files_stay_small() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0")[:-1]}
    largest = sorted(sizes, key=sizes.__getitem__)[-5:]
    assert sum(sizes.values()) < MOST_BYTES, largest


def test_rounds_are_kept_where_a_page_shows_or_links_how_a_run_went() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    kept = [path.relative_to(ROOT) for path in ROOT.glob("results/*/*/seed-*/rounds.jsonl")]
    for path in kept:
        shows = [path, path.parents[2] / "alignment.webp"]
        shows += [path.parent / "figures" / f"{name}.webp" for name in ("rounds", "representation")]
        assert any(f"{shown.as_posix()})" in text for shown in shows), path
    assert kept


def test_every_published_figure_is_on_a_page() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    figures = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "results").rglob("*")
        if path.suffix in (".png", ".webp")
    ]
    assert [name for name in figures if f"{name})" not in text] == []
    assert figures


def test_who_reads_what_is_published_is_run_after_publishing() -> None:
    """By ``scripts/test -m published``: such tests fail where a study gains a run."""
    reads = re.compile(r'(parents\[\d\]|ROOT) / "results[/"]|ROOT\.glob\("results/|import RESULTS')
    tests = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    found = {path for path, text in tests.items() if reads.search(text)}
    assert Path(__file__) in found
    marked = {path for path in found if "\npytestmark = pytest.mark.published" in tests[path]}
    assert found - marked == set()
