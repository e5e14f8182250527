"""The published runs: where each is, tables of what their files say."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from nmoe_flower.begun import read_settings, run_folders

RESULTS = Path(__file__).parents[2] / "results"


def markdown(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int | None = None
) -> list[str]:
    """The lines of a table.

    Args:
        header: A heading for each column.
        rows: As many cells each.
        left: How many columns are set to the left, where the others are set to the right; None
            leaves all to the reader's program.
    """
    rules = ["---"] * len(header)
    if left is not None:
        rules = [":---" if column < left else "---:" for column in range(len(header))]
    return [f"| {' | '.join(cells)} |" for cells in (header, rules, *rows)]


def place(name: str) -> Path:
    """The folder of a published run, ``results/<study>/<variant>/seed-N``, or of a table.

    Args:
        name: The run's own name (``run.name``), or ``<study>`` if that holds a ``table.txt``.
    """
    study = RESULTS / name
    return study if (study / "table.txt").is_file() else _places()[name]


@cache
def _places() -> dict[str, Path]:
    return {read_settings(folder)["run"]["name"]: folder for folder in run_folders(RESULTS)}
