"""Tables of what benchmarks measured, from the JSON that they wrote to ``results/benchmarks/``."""

import json
from collections.abc import Callable, Sequence
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
    head, rule, *body = markdown(list(header), rows)
    rule = f"| {' | '.join([':---'] * left + ['---:'] * (len(header) - left))} |"
    return "\n".join([head, rule, *body]) + "\n"


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
    rows = [
        [
            f"`{one['network']}`",
            f"{one['clients']:,}",
            f"{one['loop']:.2f}",
            f"{one['stacked']:.2f}",
            f"{one['gain']:.1f}",
        ]
        for one in found["paces"]
    ]
    return _table(("network", "clients", "ms in the loop", "ms stacked", "times faster"), rows)


def _systems(found: Any) -> str:
    rows = [
        [f"`{name}`", f"{1e3 * one['seconds'] / found.get('clients', 4):.1f}", f"{one['x']:.2f}"]
        for name, one in found["systems"].items()
    ]
    return _table(("system", "ms a client's round", "x bare"), rows)


def _adapters(found: Any) -> str:
    rows = [
        [part["what"], f"{part['ms']:,.1f}", f"{part['bare']:,.1f}", f"{part['ratio']:.2f}"]
        for part in found["parts"]
    ]
    return _table(("", "ms", "ms of a bare loop", "ratio"), rows)


def _sums(found: Any) -> str:
    rows = [
        [
            f"{found['dim']:,}",
            f"{found['clients']}",
            f"{found['images']:,}",
            f"{found['client_seconds']:.2f} s",
            f"{found['client_bytes'] / 1e6:.1f} MB",
            f"{found['server_seconds']:.2f} s",
        ]
    ]
    header = (
        "D",
        "clients",
        "images of each",
        "sums at a client",
        "which are",
        "all at the server",
    )
    return _table(header, rows, left=0)


def _text_peers(found: Any) -> str:
    rows = [
        [
            one["what"],
            one["asked"],
            *(f"{one[key]:,.1f}" for key in ("ms", "home_ms")),
            f"{one['x']:.2f}",
            *(f"{one[key]:,.0f}" for key in ("bytes_up", "bytes_down")),
        ]
        for one in found["ways"]
    ]
    header = ("", "sent", "ms", "ms at home", "home / asked", "bytes up", "bytes down")
    return _table(header, rows, left=2)


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
