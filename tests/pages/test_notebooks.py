"""The notebooks run from top to bottom, as they stand in git: without outputs, without warnings."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import notebooks as tool  # noqa: E402

NOTEBOOKS = {path.stem: path for path in tool.notebooks()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(
    name: str, warm_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = NOTEBOOKS[name].read_bytes()
    tool.page(tool.executed(NOTEBOOKS[name], tmp_path), tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    pictures = list((tmp_path / "page_files").glob("*.png"))
    assert len(pictures) == 2
    assert all(f"page_files/{path.name}" in text for path in pictures)
    assert "together they say 8" in text
    assert NOTEBOOKS[name].read_bytes() == before


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_git_keeps_no_outputs(name: str) -> None:
    assert tool.stripped(tool.read(NOTEBOOKS[name]))


def test_an_output_is_found() -> None:
    notebook = tool.read(NOTEBOOKS["first-steps"])
    notebook.cells[1]["execution_count"] = 1
    assert not tool.stripped(notebook)


def test_the_first_code_says_how_to_install() -> None:
    code = next(c for c in tool.read(NOTEBOOKS["first-steps"]).cells if c["cell_type"] == "code")
    assert "# %pip install" in code["source"]
    assert "nmoe-flower[report] @ git+https://" in code["source"]  # on no index


@pytest.mark.parametrize(
    ("source", "told"),
    [("raise ValueError('no')", "ValueError: no"), ("warnings.warn('old')", "UserWarning: old")],
)
def test_what_fails_is_told(source: str, told: str, tmp_path: Path) -> None:
    import nbformat
    from nbclient.exceptions import CellExecutionError

    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "bad.ipynb")
    with pytest.raises(CellExecutionError, match=told):
        tool.executed(tmp_path / "bad.ipynb", tmp_path)
