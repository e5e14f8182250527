"""The files of ``nmoe align``: who can hold how much, and how well every expert suits them."""

import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmoe_flower.errors import DataError, NMoEError

__all__ = ["AlignTable", "read_experts", "read_table"]


@dataclass
class AlignTable:
    """What the files say; lists follow the order of the clients, maps are by expert."""

    clients: list[str] = field(default_factory=list)
    capacity: list[int] = field(default_factory=list)
    experts: list[str] = field(default_factory=list)
    fitness: list[list[float]] = field(default_factory=list)  # NaN: not allowed
    usage: dict[str, float] = field(default_factory=dict)
    lo: dict[str, int] = field(default_factory=dict)
    hi: dict[str, int] = field(default_factory=dict)


def read_table(path: Path) -> AlignTable:
    """Read clients, capacities and fitness from CSV or, by its ending, from JSON.

    Raises:
        DataError: The file cannot be read; the line, client or expert is named.
    """
    return _read_json(path) if path.suffix == ".json" else _read_csv(path)


def _load(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _number(where: str, text: Any) -> float:
    try:
        value = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where} is {text!r}; allowed: a finite number")
    return value


def _count(where: str, text: Any) -> int:
    value = _number(where, text)
    if value < 0 or value != int(value):
        raise DataError(f"{where} is {text!r}; allowed: a whole number, 0 or more")
    return int(value)


def _rows(path: Path, required: tuple[str, ...]) -> tuple[list[str], list[dict[str, str]]]:
    reader = csv.reader(io.StringIO(_load(path)))
    head = [name.strip() for name in next(reader, [])]
    if missing := [name for name in required if name not in head]:
        raise DataError(f"{path}: no column {missing[0]!r}; columns: {', '.join(head) or 'none'}")
    if len(set(head)) < len(head) or "" in head:
        raise DataError(f"{path}: a column has no name of its own: {', '.join(head)}")
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(head):
            raise DataError(
                f"{path}, line {reader.line_num}: {len(cells)} cells, not {len(head)} as in line 1"
            )
        rows.append(dict(zip(head, (cell.strip() for cell in cells), strict=True)))
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    return head, rows


def _read_csv(path: Path) -> AlignTable:
    head, rows = _rows(path, ("client", "capacity"))
    table = AlignTable(experts=[name for name in head if name not in ("client", "capacity")])
    for row in rows:
        fitness = {name: row[name] for name in table.experts if row[name]}
        _add_client(path, table, row["client"], row["capacity"], fitness)
    return _checked(path, table)


def _read_json(path: Path) -> AlignTable:
    try:
        content = json.loads(_load(path))
        clients, experts = content["clients"], content["experts"]
        table = AlignTable(experts=[str(one["expert"]) for one in experts])
        for one in experts:
            _add_expert(path, table, dict(one))
        for one in clients:
            _add_client(path, table, one["client"], one["capacity"], dict(one["fitness"]))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, NMoEError):
            raise
        raise DataError(
            f"{path}: {type(error).__name__} {error}; allowed: "
            '{"clients": [{"client", "capacity", "fitness": {expert: number}}], '
            '"experts": [{"expert", "usage", "lo", "hi"}]}'
        ) from error
    return _checked(path, table)


def _add_client(path: Path, table: AlignTable, name: Any, capacity: Any, fitness: Any) -> None:
    where = f"{path}: client {name!r}"
    for expert in fitness:
        if expert not in table.experts:
            raise DataError(f"{where}: fitness for {expert!r}, which is not among the experts")
    table.clients.append(str(name))
    table.capacity.append(_count(f"{where}: capacity", capacity))
    table.fitness.append(
        [
            _number(f"{where}: fitness for {expert}", fitness[expert])
            if fitness.get(expert) is not None
            else math.nan
            for expert in table.experts
        ]
    )


def read_experts(path: Path, table: AlignTable) -> None:
    """Add usage and bounds of experts from a CSV file.

    Raises:
        DataError: As for `read_table`.
    """
    for row in _rows(path, ("expert",))[1]:
        _add_expert(path, table, {key: value for key, value in row.items() if value})


def _add_expert(path: Path, table: AlignTable, row: dict[str, Any]) -> None:
    name = str(row.get("expert", ""))
    if name not in table.experts:
        raise DataError(f"{path}: expert {name!r} has no fitness; known: {table.experts}")
    if unknown := sorted(set(row) - {"expert", "usage", "lo", "hi"}):
        raise DataError(f"{path}: {unknown[0]!r} is unknown; allowed: expert, usage, lo, hi")
    where = f"{path}: expert {name!r}"
    if "usage" in row:
        table.usage[name] = _number(f"{where}: usage", row["usage"])
        if table.usage[name] < 0:
            raise DataError(f"{where}: usage is {row['usage']}; allowed: 0 or more")
    for key, bounds in (("lo", table.lo), ("hi", table.hi)):
        if key in row:
            bounds[name] = _count(f"{where}: {key}", row[key])


def _checked(path: Path, table: AlignTable) -> AlignTable:
    if not table.experts or not table.clients:
        raise DataError(f"{path}: {len(table.clients)} clients and {len(table.experts)} experts")
    if len(set(table.experts)) < len(table.experts):
        raise DataError(f"{path}: an expert is listed twice: {', '.join(table.experts)}")
    return table
