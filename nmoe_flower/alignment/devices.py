"""Heterogeneous devices that come and go: named profiles, and how they change over rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ConfigError
from nmoe_flower.seeds import numpy_stream

__all__ = ["PROFILES", "Device", "Event", "World", "draw_devices"]


@dataclass(frozen=True, kw_only=True)
class Device:
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
    "server": Device(compute=5e12, memory=64e9, download=125e6, upload=125e6, latency=0.01),
    "laptop": Device(compute=5e11, memory=4e9, download=12e6, upload=4e6, latency=0.03),
    "phone": Device(
        compute=5e10, memory=1e9, download=6e6, upload=1.5e6, latency=0.05, availability=0.9
    ),
    "board": Device(compute=5e9, memory=256e6, download=2e6, upload=5e5, latency=0.1),
    "sensor": Device(
        compute=5e8, memory=32e6, download=2e5, upload=5e4, latency=0.2, availability=0.8
    ),
}


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
        seed: Of the availability.
    """

    def __init__(
        self, devices: Sequence[Device], *, events: Sequence[Event] = (), seed: int = 0
    ) -> None:
        self.devices = tuple(devices)
        self.events = tuple(sorted(events, key=lambda event: event.round))
        self.seed = seed

    def at(self, server_round: int) -> tuple[Device, ...]:
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


def draw_devices(names: Sequence[str], clients: int, *, seed: int = 0) -> tuple[Device, ...]:
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
