"""Which devices hold the adapter of which expert, so that one stands in where another is gone."""

import csv
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from nmoe_flower.errors import ConfigError
from nmoe_flower.files import parse_json, read_text

__all__ = ["read_holders", "ring_holders"]

_COLUMNS = ["client", "expert"]


def ring_holders(num_clients: int, replicas: int) -> list[list[int]]:
    """Devices that hold each expert: its own, then the next ones in a ring.

    Every device holds as many as every other.

    Args:
        num_clients: E, devices and experts.
        replicas: How many devices hold each, 1..E.

    Raises:
        ConfigError: ``replicas`` is out of range.

    >>> ring_holders(3, 2)
    [[0, 1], [1, 2], [2, 0]]
    """
    if not 1 <= replicas <= num_clients:
        raise ConfigError(
            f"{replicas} replicas of each adapter; allowed: 1 to {num_clients}, the devices"
        )
    return [[(e + step) % num_clients for step in range(replicas)] for e in range(num_clients)]


def read_holders(path: Path, num_clients: int) -> list[list[int]]:
    """Devices that hold each expert: its own, then those of an assignment by `nmoe align`.

    Args:
        path: CSV with a row ``client,expert`` for each device that holds another's adapter, or
            JSON with ``assignment``; devices and experts are numbers of clients.
        num_clients: E, devices and experts.

    Raises:
        ConfigError: It cannot be read, or names a device that is not there, or one twice.
    """
    text = read_text(path, what="the assignment")
    pairs = _of_json(text, path) if path.suffix.lower() == ".json" else _of_csv(text, path)
    found = [[expert] for expert in range(num_clients)]
    seen = set()
    for where, client, expert in pairs:
        device, held = (_number(one, where, num_clients) for one in (client, expert))
        if (device, held) in seen:
            raise ConfigError(f"{where}: device {device} holds expert {held} twice")
        seen.add((device, held))
        if device != held:
            found[held].append(device)
    return found


def _of_csv(text: str, path: Path) -> Iterator[tuple[str, str, str]]:
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        first = [cell.strip() for cell in next(reader, [])]
        if first != _COLUMNS:
            raise ConfigError(
                f"{path}: the columns are {','.join(first)!r}; allowed: {','.join(_COLUMNS)}"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(_COLUMNS):
                raise ConfigError(f"{where}: {len(row)} cells; allowed: {len(_COLUMNS)}")
            yield where, row[0], row[1]
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: {error}") from None


def _of_json(text: str, path: Path) -> Iterator[tuple[str, str, str]]:
    value: Any = parse_json(text, str(path))
    told = value.get("assignment") if isinstance(value, Mapping) else None
    if not isinstance(told, Mapping):
        raise ConfigError(
            f'{path} has no assignment; allowed: {{"assignment": {{"0": ["1"]}}}}, as nmoe align '
            "writes it"
        )
    for client, experts in told.items():
        where = f"{path}, assignment of {client}"
        if not isinstance(experts, list):
            raise ConfigError(f"{where}: {experts!r}; allowed: a list of experts")
        for expert in experts:
            yield where, client, str(expert)


def _number(told: str, where: str, num_clients: int) -> int:
    """A device's number."""
    cell = told.strip()
    if not (cell.isascii() and cell.isdigit() and len(cell) < 10 and int(cell) < num_clients):
        raise ConfigError(
            f"{where}: {told[:40]!r}; allowed: a client of the run, 0 to {num_clients - 1}"
        )
    return int(cell)
