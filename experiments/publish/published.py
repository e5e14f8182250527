"""The published runs: where each is, what its files say, tables of that."""

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from nmoe_flower.report import read_results

RESULTS = Path(__file__).parents[2] / "results"


def read(folder: Path, file: str = "results.json") -> dict[str, Any]:
    """What a file of a run folder holds."""
    if file == "results.json":
        return read_results(folder / file)
    content: dict[str, Any] = json.loads((folder / file).read_text(encoding="utf-8"))
    return content


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
    found = {}
    for path in sorted(RESULTS.glob("*/*/seed-*/config.toml")):
        found[tomllib.loads(path.read_text(encoding="utf-8"))["run"]["name"]] = path.parent
    return found
