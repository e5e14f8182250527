"""A world from a JSON trace: which device every client has, and when that changes.

::

    {"devices": [{"client": 0, "profile": "phone"}, {"client": 1, "profile": "board", "compute": 1e9}],
     "events": [{"round": 5, "client": 0, "online": false}, {"round": 9, "client": 1, "upload": 1e5}]}
"""  # noqa: E501

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nmoe_flower.alignment.devices import PROFILES, Device, Event, World
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import read_json

__all__ = ["read_trace"]

_QUANTITIES = frozenset(Device.__dataclass_fields__)


def read_trace(path: Path, clients: int, *, seed: int = 0) -> World:
    """Read a trace that names a device for each of ``clients``.

    Raises:
        ConfigError: The file is missing or malformed; the text names the entry and what is wrong.
    """
    content = read_json(path, what="the trace")
    if not isinstance(content, dict) or not set(content) <= {"devices", "events"}:
        raise ConfigError(f'the trace {path} must be {{"devices": [...], "events": [...]}}')
    found: dict[int, Device] = {}
    for entry in _entries(content, "devices"):
        client = _whole(entry, "client", clients - 1)
        if client in found:
            raise ConfigError(f"trace: client {client} has two devices")
        found[client] = _device(entry)
    if missing := sorted(set(range(clients)) - found.keys()):
        raise ConfigError(f"trace: client {missing[0]} of {clients} has no device")
    events = [_event(entry, clients) for entry in _entries(content, "events")]
    world = World([found[client] for client in range(clients)], events=events, seed=seed)
    for event in world.events:  # impossible quantities are found now, not in their round
        world.at(event.round)
    return world


def _entries(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    entries = content.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"trace: {name} must be a list of objects")
    return entries


def _device(entry: Mapping[str, Any]) -> Device:
    profile = entry.get("profile")
    values = _numbers(entry, {"client", "profile"})
    if isinstance(profile, str) and profile in PROFILES:
        return replace(PROFILES[profile], **values)
    if profile is not None:
        raise ConfigError(f"trace: profile {profile!r}; allowed: {', '.join(PROFILES)}")
    lacking = {"compute", "memory", "download", "upload"} - values.keys()
    if lacking:
        raise ConfigError(
            f"trace: client {entry['client']} has no profile and no {sorted(lacking)[0]}"
        )
    return Device(**values)


def _event(entry: Mapping[str, Any], clients: int) -> Event:
    online = entry.get("online")
    if online is not None and not isinstance(online, bool):
        raise ConfigError(f"trace: online is {online!r}; allowed: true or false")
    return Event(
        round=_whole(entry, "round"),
        client=_whole(entry, "client", clients - 1),
        changes=_numbers(entry, {"round", "client", "online"}),
        online=online,
    )


def _whole(entry: Mapping[str, Any], key: str, most: int | None = None) -> int:
    value = entry.get(key)
    high = most is not None and isinstance(value, int) and value > most
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or high:
        allowed = "0 or more" if most is None else f"0 to {most}"
        raise ConfigError(f"trace: {key} is {value!r} in {dict(entry)}; allowed: {allowed}")
    return value


def _numbers(entry: Mapping[str, Any], others: set[str]) -> dict[str, Any]:
    values = {key: value for key, value in entry.items() if key not in others}
    for key, value in values.items():
        if key not in _QUANTITIES:
            raise ConfigError(f"trace: {key!r} is unknown; allowed: {', '.join(_QUANTITIES)}")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"trace: {key} is {value!r}; allowed: a number")
    return values
