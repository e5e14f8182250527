"""Where the machines of a federation are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nmoe_flower.errors import ConfigError

__all__ = ["PEER_PORT", "RUNTIME_PORT", "SUPERLINK_PORT", "Place", "is_loopback", "places"]

SUPERLINK_PORT = 8000
PEER_PORT = 7600
RUNTIME_PORT = 9094  # of a SuperNode, for its own client processes; on loopback

_PLACE = re.compile(r"([0-9A-Za-z][0-9A-Za-z.-]{0,252})(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class Place:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, port: int) -> "Place":
        """Read ``host`` or ``host:port``.

        Raises:
            ConfigError: It is neither.

        >>> str(Place.parse("camera-1.local", port=7600))
        'camera-1.local:7600'
        """
        match = _PLACE.fullmatch(text)
        chosen = int(match[2] or port) if match else 0
        if match is None or not 0 < chosen < 1 << 16:
            raise ConfigError(f"host {text!r}; allowed: a name or an IPv4 address, or host:port")
        return cls(match[1], chosen)


def is_loopback(host: str) -> bool:
    """Whether the host is this machine to itself."""
    return host == "localhost" or host.startswith("127.")


def places(hosts: Sequence[str], nodes: int) -> tuple[Place, tuple[Place, ...]]:
    """The SuperLink's place, and those of the peers; several on one host get ports in a row.

    Args:
        hosts: Nothing for all on this machine; else the server's, then one per node.
        nodes: How many nodes.

    Raises:
        ConfigError: Not one host per machine, a host that is none, or a place taken twice.

    >>> [str(place) for place in places([], 2)[1]]
    ['127.0.0.1:7600', '127.0.0.1:7601']
    """
    given = list(hosts) or ["127.0.0.1"] * (nodes + 1)
    if len(given) != nodes + 1:
        raise ConfigError(
            f"{len(given)} hosts for a server and {nodes} nodes; allowed: {nodes + 1}, "
            "the server's first"
        )
    server = Place.parse(given[0], port=SUPERLINK_PORT)
    peers: list[Place] = []
    for text in given[1:]:
        before = sum(place.host == text for place in peers)
        peers.append(Place.parse(text, port=PEER_PORT + before))
    taken = [server, *peers]
    if twice := [place for place in peers if taken.count(place) > 1]:
        raise ConfigError(f"two programs cannot listen at {twice[0]}")
    return server, tuple(peers)
