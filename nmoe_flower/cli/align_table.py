"""The files of ``nmoe align``: who can hold how much, and how well every expert suits them."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nmoe_flower.errors import DataError
from nmoe_flower.files import read_json, read_text
from nmoe_flower.plurals import how_many

__all__ = ["AlignTable", "read_align_table", "read_experts"]

_MOST_COUNT = (1 << 31) - 1
_MOST_NUMBER = 1e100  # squares of it are finite
_MOST_EXPERTS, _MOST_CLIENTS = 1 << 16, 1 << 22
_BOUNDS = ("expert", "usage", "lo", "hi")
_OBJECT = (
    'allowed: {"clients": [{"client", "capacity", "fitness": {expert: number}}], '
    '"experts": [{"expert", "usage", "lo", "hi"}]}'
)


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


class _Row(NamedTuple):
    """Cells by column, and where they stand: ``line 3``, ``clients[1]``."""

    place: str
    cells: Mapping[str, Any]


def read_align_table(path: Path) -> AlignTable:
    """Read clients, capacities and fitness from CSV or, by its ending, from JSON.

    Raises:
        DataError: The file cannot be read, or says something twice; the line, client or expert
            is named.
    """
    return _read_json(path) if path.suffix.lower() == ".json" else _read_csv(path)


def read_experts(path: Path, table: AlignTable) -> None:
    """Add usage and bounds of experts from a CSV file.

    Raises:
        DataError: The file has something else, as for `read_align_table`.
    """
    head, rows = _rows(path, ("expert",))
    if unknown := [name for name in head if name not in _BOUNDS]:
        raise DataError(f"{path}: the column {unknown[0]!r}; allowed: {', '.join(_BOUNDS)}")
    _add_experts(path, table, rows)


def _read_csv(path: Path) -> AlignTable:
    head, rows = _rows(path, ("client", "capacity"))
    table = AlignTable(experts=[name for name in head if name not in ("client", "capacity")])
    clients = []
    for place, cells in rows:
        fitness = {name: cells[name] for name in table.experts if cells[name]}
        clients.append(_Row(place, {**cells, "fitness": fitness}))
    _add_clients(path, table, clients)
    return table


def _rows(path: Path, required: Sequence[str]) -> tuple[list[str], list[_Row]]:
    """The header and the rows of a CSV file; cells without the space around them."""
    text = io.StringIO(read_text(path, raises=DataError), newline=None)
    reader = csv.reader(text, strict=True)
    rows = []
    try:
        head = [name.strip() for name in next(reader, [])]
        _check_head(path, head, required)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            place = f"line {reader.line_num}"
            if len(cells) != len(head):
                raise DataError(
                    f"{path}, {place}: {how_many(len(cells), 'cell')}, not {len(head)} as in line 1"
                )
            rows.append(_Row(place, dict(zip(head, map(str.strip, cells), strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    return head, rows


def _check_head(path: Path, head: Sequence[str], required: Sequence[str]) -> None:
    if missing := [name for name in required if name not in head]:
        raise DataError(f"{path}: no column {missing[0]!r}; columns: {', '.join(head) or 'none'}")
    _once(path, "the column", [(name, f"column {at} of line 1") for at, name in enumerate(head, 1)])


def _read_json(path: Path) -> AlignTable:
    content = read_json(path, raises=DataError)
    if not isinstance(content, dict) or set(content) != {"clients", "experts"}:
        raise DataError(f"{path}: {_kind(content)}; {_OBJECT}")
    experts = _objects(path, content, "experts", ("expert",), _BOUNDS)
    names = ("client", "capacity", "fitness")
    clients = _objects(path, content, "clients", names, names)
    table = AlignTable(experts=[str(row.cells["expert"]) for row in experts])
    _add_experts(path, table, experts)
    for place, cells in clients:
        if not isinstance(cells["fitness"], dict):
            raise DataError(f"{path}, {place}: fitness is {cells['fitness']!r:.40}; {_OBJECT}")
    _add_clients(path, table, clients)
    return table


def _objects(
    path: Path, content: Mapping[str, Any], key: str, needed: Sequence[str], allowed: Sequence[str]
) -> list[_Row]:
    if not isinstance(content[key], list):
        raise DataError(f"{path}: {key} is {content[key]!r:.40}; {_OBJECT}")
    rows = [_Row(f"{key}[{at}]", cells) for at, cells in enumerate(content[key])]
    for place, cells in rows:
        fits = isinstance(cells, dict) and set(needed) <= set(cells) <= set(allowed)
        if not fits:
            raise DataError(f"{path}, {place}: {_kind(cells)}; {_OBJECT}")
    return rows


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, value)) or 'nothing in it'}"
    return f"{value!r:.40}"


def _add_clients(path: Path, table: AlignTable, rows: Sequence[_Row]) -> None:
    if not table.experts or not rows:
        raise DataError(
            f"{path}: {how_many(len(rows), 'client')} and {how_many(len(table.experts), 'expert')}"
        )
    if len(table.experts) > _MOST_EXPERTS or len(rows) > _MOST_CLIENTS:
        raise DataError(
            f"{path}: {how_many(len(rows), 'client')} and "
            f"{how_many(len(table.experts), 'expert')}; allowed: up to "
            f"{_MOST_CLIENTS} and {_MOST_EXPERTS}"
        )
    _once(path, "the client", [(row.cells["client"], row.place) for row in rows])
    known = set(table.experts)
    for _, cells in rows:
        name, fitness = str(cells["client"]), cells["fitness"]
        where = f"{path}: client {name!r}"
        if strange := [expert for expert in fitness if expert not in known]:
            raise DataError(f"{where}: fitness for {strange[0]!r}, which is not among the experts")
        table.clients.append(name)
        table.capacity.append(_count(f"{where}: capacity", cells["capacity"]))
        table.fitness.append(
            [
                _number(f"{where}: fitness for {expert}", fitness[expert])
                if fitness.get(expert) is not None
                else math.nan
                for expert in table.experts
            ]
        )


def _add_experts(path: Path, table: AlignTable, rows: Sequence[_Row]) -> None:
    _once(path, "the expert", [(row.cells["expert"], row.place) for row in rows])
    known = set(table.experts)
    for place, cells in rows:
        name = str(cells["expert"])
        if name not in known:
            some = ", ".join(table.experts[:20])
            raise DataError(f"{path}, {place}: expert {name!r} has no fitness; known: {some}")
        where = f"{path}: expert {name!r}"
        given = {key: value for key, value in cells.items() if value not in ("", None)}
        if "usage" in given:
            table.usage[name] = _number(f"{where}: usage", given["usage"])
            if table.usage[name] < 0:
                raise DataError(f"{where}: usage is {given['usage']}; allowed: 0 or more")
        for key, bounds in (("lo", table.lo), ("hi", table.hi)):
            if key in given:
                bounds[name] = _count(f"{where}: {key}", given[key])


def _once(path: Path, what: str, named: Sequence[tuple[Any, str]]) -> None:
    """Refuse a name that is none, or that stands in two places."""
    places: dict[str, str] = {}
    for name, place in named:
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            raise DataError(f"{path}, {place}: {what} is {name!r:.40}; allowed: a name")
        if str(name) in places:
            raise DataError(
                f"{path}: {what} {str(name)!r} is listed twice: {places[str(name)]} and {place}"
            )
        places[str(name)] = place


def _finite(text: Any) -> float:
    """The number that stands there; NaN if it is none."""
    try:
        return math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _number(where: str, text: Any) -> float:
    value = _finite(text)
    if not abs(value) <= _MOST_NUMBER:
        raise DataError(f"{where} is {text!r:.40}; allowed: a number, up to {_MOST_NUMBER:g}")
    return value


def _count(where: str, text: Any) -> int:
    value = _finite(text)
    if not 0 <= value <= _MOST_COUNT or value != int(value):
        raise DataError(f"{where} is {text!r:.40}; allowed: a whole number in 0..{_MOST_COUNT}")
    return int(value)
