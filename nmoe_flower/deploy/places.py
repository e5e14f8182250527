"""Where the machines of a federation are."""

from collections.abc import Sequence

from nmoe_flower.addresses import MAX_PORT, Address
from nmoe_flower.errors import ConfigError

__all__ = ["PEER_PORT", "RUNTIME_PORT", "SUPERLINK_PORT", "listening", "peer_places", "places"]

SUPERLINK_PORT = 8000
PEER_PORT = 7600
RUNTIME_PORT = 9094  # of a SuperNode, for its own client processes; on loopback

_NONE = 0


def listening(place: Address) -> Address:
    """Where a program listens that others find at ``place``: everywhere, unless it is local.

    >>> str(listening(Address("camera-1.local", 7600))), str(listening(Address("::2", 7600)))
    ('0.0.0.0:7600', '[::]:7600')
    """
    if place.is_loopback:
        return place
    return Address("::" if place.is_ipv6 else "0.0.0.0", place.port)


def places(hosts: Sequence[str], nodes: int) -> tuple[Address, tuple[Address, ...]]:
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
    server = Address.parse(given[0], port=SUPERLINK_PORT)
    return server, peer_places(given[1:], taken=[server])


def peer_places(hosts: Sequence[str], *, taken: Sequence[Address]) -> tuple[Address, ...]:
    """Where nodes answer their peers. Hosts without a port get the next one of their host.

    Args:
        hosts: One per node.
        taken: Where other programs of the federation listen already.

    Raises:
        ConfigError: A host that is none, or a place taken twice.
    """
    found: list[Address] = []
    known, following = set(taken), dict.fromkeys((place.host for place in taken), PEER_PORT)
    for text in hosts:
        place = Address.parse(text, port=_NONE, any_port=True)
        if place.port == _NONE:
            port = following.get(place.host, PEER_PORT)
            while Address(place.host, port) in known and port < MAX_PORT:
                port += 1
            following[place.host] = port + 1
            place = Address(place.host, port)
        if place in known:
            raise ConfigError(f"two programs cannot listen at {place}")
        known.add(place)
        found.append(place)
    return tuple(found)
