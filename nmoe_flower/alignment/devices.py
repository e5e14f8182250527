"""Simulated devices that come and go: profiles, how they change over rounds, and their clock.

A world may come from a JSON trace, which names the device of every client and when that changes::

    {"devices": [{"client": 0, "profile": "phone"}, {"client": 1, "profile": "board", "compute": 1e9}],
     "events": [{"round": 5, "client": 0, "online": false}, {"round": 9, "client": 1, "upload": 1e5}]}
"""  # noqa: E501

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ConfigError
from nmoe_flower.files import read_json
from nmoe_flower.seeds import numpy_stream

__all__ = [
    "PROFILES",
    "Clock",
    "DeviceProfile",
    "Event",
    "World",
    "draw_devices",
    "read_trace",
    "seconds_of",
]


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """What a client computes with.

    Attributes:
        compute: FLOP/s it reaches in training.
        memory: Bytes it can give to training.
        download: Bytes/s from the server.
        upload: Bytes/s to the server.
        latency: Seconds every round costs.
        availability: Chance to be online in a round.

    Raises:
        ConfigError: A quantity is negative or not finite, or speeds are 0.
    """

    compute: float
    memory: float
    download: float
    upload: float
    latency: float = 0.0
    availability: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = np.nextafter(0, 1) if name in ("compute", "download", "upload") else 0.0
            most = 1.0 if name == "availability" else np.finfo(float).max
            if not least <= value <= most:
                allowed = "0 to 1" if name == "availability" else "finite, 0 or more, speeds above"
                raise ConfigError(f"{name} of a device is {value}; allowed: {allowed}")


PROFILES = {
    "server": DeviceProfile(compute=5e12, memory=64e9, download=125e6, upload=125e6, latency=0.01),
    "laptop": DeviceProfile(compute=5e11, memory=4e9, download=12e6, upload=4e6, latency=0.03),
    "phone": DeviceProfile(
        compute=5e10, memory=1e9, download=6e6, upload=1.5e6, latency=0.05, availability=0.9
    ),
    "board": DeviceProfile(compute=5e9, memory=256e6, download=2e6, upload=5e5, latency=0.1),
    "sensor": DeviceProfile(
        compute=5e8, memory=32e6, download=2e5, upload=5e4, latency=0.2, availability=0.8
    ),
}


_QUANTITIES = frozenset(DeviceProfile.__dataclass_fields__)


@dataclass(frozen=True)
class Event:
    """From ``round`` on, a client is other: quantities by name, or on- and offline."""

    round: int
    client: int
    changes: dict[str, float]
    online: bool | None = None


class World:
    """Devices over the rounds: the same question always has the same answer.

    Args:
        devices: One per client.
        events: What changes; applied in order of their rounds.
        seed: Seed of who is online in a round.
    """

    def __init__(
        self, devices: Sequence[DeviceProfile], *, events: Sequence[Event] = (), seed: int = 0
    ) -> None:
        self.devices = tuple(devices)
        self.events = tuple(sorted(events, key=lambda event: event.round))
        self.seed = seed

    def at(self, server_round: int) -> tuple[DeviceProfile, ...]:
        """The devices as they are in a round."""
        found = list(self.devices)
        for event in self.events:
            if event.round <= server_round:
                changes: dict[str, Any] = event.changes
                found[event.client] = replace(found[event.client], **changes)
        return tuple(found)

    def online(self, server_round: int) -> npt.NDArray[np.bool_]:
        """Who can be reached in a round, bool [clients]; a trace goes before chance."""
        chances = np.array([device.availability for device in self.at(server_round)])
        drawn = numpy_stream(self.seed, "online", server_round).random(len(chances)) < chances
        for event in self.events:
            if event.online is not None and event.round <= server_round:
                drawn[event.client] = event.online
        return np.asarray(drawn)


def draw_devices(names: Sequence[str], clients: int, *, seed: int = 0) -> tuple[DeviceProfile, ...]:
    """Draw a profile of ``names`` for every client.

    Raises:
        ConfigError: A profile is unknown.

    >>> [device.memory for device in draw_devices(["board"], 2)]
    [256000000.0, 256000000.0]
    """
    for name in names:
        if name not in PROFILES:
            raise ConfigError(f"device profile {name!r} is unknown; allowed: {', '.join(PROFILES)}")
    rng = numpy_stream(seed, "devices")
    return tuple(PROFILES[names[i]] for i in rng.integers(len(names), size=clients))


def seconds_of(device: DeviceProfile, *, flops: float, bytes_down: float, bytes_up: float) -> float:
    """Seconds a device needs for a round: latency, download, training, upload.

    >>> board = DeviceProfile(compute=1e9, memory=1e9, download=2e6, upload=1e6, latency=0.5)
    >>> seconds_of(board, flops=1e9, bytes_down=1e6, bytes_up=1e6)
    3.0
    """
    return (
        device.latency
        + bytes_down / device.download
        + flops / device.compute
        + bytes_up / device.upload
    )


class Clock:
    """Simulated time: a round lasts until its last client, or until the deadline.

    Args:
        deadline: Seconds after which the server waits no longer.
    """

    def __init__(self, deadline: float = np.inf) -> None:
        self.deadline = deadline
        self.elapsed = 0.0

    def is_late(self, seconds: float) -> bool:
        """Whether a client came after the deadline."""
        return seconds > self.deadline

    def advance(self, seconds: Mapping[int, float]) -> float:
        """End a round whose clients took ``seconds``; returns how long it lasted.

        >>> clock = Clock(deadline=10)
        >>> clock.advance({0: 3.0, 1: 12.0}), clock.elapsed
        (10, 10.0)
        """
        lasted = min(max(seconds.values(), default=0.0), self.deadline)
        self.elapsed += lasted
        return lasted


def read_trace(path: Path, clients: int, *, seed: int = 0) -> World:
    """Read a trace that names a device for each of ``clients``.

    Raises:
        ConfigError: The file is missing or malformed; the text names the entry and what is wrong.
    """
    content = read_json(path, what="the trace")
    if not isinstance(content, dict) or not set(content) <= {"devices", "events"}:
        raise ConfigError(f'the trace {path} must be {{"devices": [...], "events": [...]}}')
    found: dict[int, DeviceProfile] = {}
    for entry in _entries(content, "devices"):
        client = _whole(entry, "client", clients - 1)
        if client in found:
            raise ConfigError(f"trace: client {client} has two devices")
        found[client] = _device(entry)
    if missing := sorted(set(range(clients)) - found.keys()):
        raise ConfigError(f"trace: client {missing[0]} of {clients} has no device")
    events = [_event(entry, clients) for entry in _entries(content, "events")]
    world = World([found[client] for client in range(clients)], events=events, seed=seed)
    if world.events:  # impossible quantities are found now, not in their round
        world.at(world.events[-1].round)
    return world


def _entries(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    entries = content.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"trace: {name} must be a list of objects")
    return entries


def _device(entry: Mapping[str, Any]) -> DeviceProfile:
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
    return DeviceProfile(**values)


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
