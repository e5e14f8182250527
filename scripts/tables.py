"""What the scripts that tabulate results share."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def read(folder: Path, file: str = "results.json") -> dict[str, Any]:
    """What a file of a run folder holds."""
    content: dict[str, Any] = json.loads((folder / file).read_text(encoding="utf-8"))
    return content


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    rules = ["---"] * len(header)
    return [f"| {' | '.join(cells)} |" for cells in (header, rules, *rows)]
