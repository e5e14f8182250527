"""The published runs: where each is, tables of what their files say."""

from functools import cache
from pathlib import Path

from nmoe_flower.begun import read_settings, run_folders

RESULTS = Path(__file__).parents[2] / "results"


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    rules = ["---"] * len(header)
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
