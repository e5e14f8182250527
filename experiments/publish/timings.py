"""Tables of what benchmarks measured, from the JSON that they wrote to ``results/benchmarks/``."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.growth import Growth, StageCost, page_tables
from experiments.publish.published import RESULTS, markdown

__all__ = ["TABLES", "timings"]

Rows = list[list[str]]


def timings(name: str) -> str:
    """The table of ``results/benchmarks/NAME.json``, in Markdown.

    Args:
        name: A key of ``TABLES``, or that and ``-`` and on what it was measured.
    """
    path = RESULTS / "benchmarks" / f"{name}.json"
    return TABLES[name.partition("-")[0]](json.loads(path.read_text(encoding="utf-8")))


def _table(header: Sequence[str], rows: Rows, left: int = 1) -> str:
    """A table whose first columns are set to the left, the others to the right."""
    return "\n".join(markdown(header, rows, left=left)) + "\n"


def _filled(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]], left: int = 1) -> str:
    """A table from the format of each column, by its heading."""
    cells = [[form.format_map(row) for form in columns.values()] for row in rows]
    return _table(tuple(columns), cells, left)


def _competitors(found: Any) -> str:
    rows = [
        [
            row["kind"],
            row["runner"],
            f"{row['start_seconds']:.1f} s",
            f"{row['round_seconds']:.4f}",
            f"{row['ratio']:.2f}",
            f"{row['cpu_ratio']:.2f}",
            f"{row['memory'] / 1e9:.2f} GB",
        ]
        for row in found["medians"]
        if row["runner"] != "bare"
    ]
    header = ("kind", "runner", "to round 1", "seconds per round", "x bare", "x cpu", "memory")
    return _table(header, rows, left=2)


def _growth(found: Any) -> str:
    runs = [
        Growth(**{**one, "stages": {name: StageCost(**c) for name, c in one["stages"].items()}})
        for one in found["runs"]
    ]
    return page_tables(runs) + "\n"


def _stack(found: Any) -> str:
    columns = {
        "network": "`{network}`",
        "clients": "{clients:,}",
        "ms in the loop": "{loop:.2f}",
        "ms stacked": "{stacked:.2f}",
        "times faster": "{gain:.1f}",
    }
    return _filled(columns, found["paces"])


def _systems(found: Any) -> str:
    rows = [
        [f"`{name}`", f"{1e3 * one['seconds'] / found.get('clients', 4):.1f}", f"{one['x']:.2f}"]
        for name, one in found["systems"].items()
    ]
    return _table(("system", "ms a client's round", "x bare"), rows)


def _adapters(found: Any) -> str:
    columns = {
        "": "{what}",
        "ms": "{ms:,.1f}",
        "ms of a bare loop": "{bare:,.1f}",
        "ratio": "{ratio:.2f}",
    }
    return _filled(columns, found["parts"])


def _sums(found: Any) -> str:
    columns = {
        "D": "{dim:,}",
        "clients": "{clients}",
        "images of each": "{images:,}",
        "sums at a client": "{client_seconds:.2f} s",
        "which are": "{megabytes:.1f} MB",
        "all at the server": "{server_seconds:.2f} s",
    }
    return _filled(columns, [found | {"megabytes": found["client_bytes"] / 1e6}], left=0)


def _text_peers(found: Any) -> str:
    columns = {
        "": "{what}",
        "sent": "{asked}",
        "ms": "{ms:,.1f}",
        "ms at home": "{home_ms:,.1f}",
        "home / asked": "{x:.2f}",
        "bytes up": "{bytes_up:,.0f}",
        "bytes down": "{bytes_down:,.0f}",
    }
    return _filled(columns, found["ways"], left=2)


TABLES: dict[str, Callable[[Any], str]] = {
    "adapters": _adapters,
    "competitors": _competitors,
    "growth": _growth,
    "stack": _stack,
    "sums": _sums,
    "systems": _systems,
    "text_peers": _text_peers,
}
"""By benchmark, from its figures to a table."""
