"""Run the notebooks of docs/ and turn them into pages."""

import base64
import warnings
from pathlib import Path
from typing import Any

__all__ = ["executed", "notebooks", "page", "stripped"]

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEFORE = """
%colors nocolor
import warnings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", "'click", DeprecationWarning)  # as for the tests
warnings.filterwarnings("ignore", "GitWildMatchPattern", DeprecationWarning)
"""
AFTER = "warnings.simplefilter('ignore')"  # what the kernel says when it ends


def notebooks() -> list[Path]:
    """Every notebook of docs/."""
    return sorted((DOCS / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    """A notebook, as a reader gets it."""
    import nbformat

    return nbformat.read(path, as_version=4)


def executed(path: Path, folder: Path) -> Any:
    """A notebook with its outputs; warnings are errors.

    Args:
        path: The notebook.
        folder: Where it runs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed; the text has its traceback.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = read(path)
    cells = notebook.cells
    frame = [nbformat.v4.new_code_cell(source) for source in (BEFORE, AFTER)]
    notebook.cells = [frame[0], *cells, frame[1]]
    client = NotebookClient(
        notebook,
        extra_arguments=["--log-level=ERROR"],  # the kernel's own; it listens on loopback only
        resources={"metadata": {"path": str(folder)}},
        timeout=600,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the programs that run notebooks, not of ours
        client.execute()
    notebook.cells = cells
    return notebook


def page(notebook: Any, target: Path) -> None:
    """Write a notebook as a page of the site, its pictures beside it.

    Args:
        notebook: With outputs or without.
        target: The Markdown file.
    """
    parts = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        said = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        if said.strip():
            parts.append(f"```text\n{said.rstrip()}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                continue
            picture = output.get("data", {}).get("image/png")
            if picture is not None:
                path = target.parent / f"{target.stem}_files" / f"{number}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(base64.b64decode(picture))
                parts.append(f"![What the code above draws]({path.relative_to(target.parent)})")
            else:
                parts.append(f"```text\n{output['data']['text/plain'].rstrip()}\n```")
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def stripped(notebook: Any) -> bool:
    """Whether a notebook is as git keeps it: nothing in it that changes when it is run."""
    return all(
        not cell.get("outputs") and cell.get("execution_count") is None and not cell["metadata"]
        for cell in notebook.cells
    )
