"""Where the machines of a federation are."""

from collections.abc import Sequence

from nmoe_flower.addresses import MAX_PORT, Address
from nmoe_flower.errors import ConfigError
from nmoe_flower.plurals import how_many

__all__ = [
    "PEER_PORT",
    "RUNTIME_PORT",
    "SUPERLINK_PORT",
    "listening",
    "peer_places",
    "places",
    "runtime_ports",
]

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
        hosts: Empty for all on this machine; else the server's host, then one per node.
        nodes: How many nodes there are.

    Raises:
        ConfigError: Not one host per machine, a host that is none, or a place taken twice.

    >>> [str(place) for place in places([], 2)[1]]
    ['127.0.0.1:7600', '127.0.0.1:7601']
    """
    given = list(hosts) or ["127.0.0.1"] * (nodes + 1)
    if len(given) != nodes + 1:
        raise ConfigError(
            f"{how_many(len(given), 'host')} for a server and {how_many(nodes, 'node')}; allowed: "
            f"{nodes + 1}, "
            "the server's first"
        )
    server = _found_at(Address.parse(given[0], port=SUPERLINK_PORT))
    return server, peer_places(given[1:], taken=[server])


def peer_places(hosts: Sequence[str], *, taken: Sequence[Address]) -> tuple[Address, ...]:
    """Where nodes answer their peers. Hosts without a port get the next one of their host.

    Args:
        hosts: The nodes' hosts, ``host`` or ``host:port``.
        taken: Where other programs of the federation listen already.

    Raises:
        ConfigError: A host that is none, or a place taken twice.
    """
    found: list[Address] = []
    known, following = {_socket(place) for place in taken}, dict[str, int]()
    for text in hosts:
        place = _found_at(Address.parse(text, port=_NONE, any_port=True))
        if place.port == _NONE:
            port = following.get(_machine(place), PEER_PORT)
            while (_machine(place), port) in known and port < MAX_PORT:
                port += 1
            following[_machine(place)] = port + 1
            place = Address(place.host, port)
        if _socket(place) in known:
            raise ConfigError(f"two programs cannot listen at {place}")
        known.add(_socket(place))
        found.append(place)
    return tuple(found)


def runtime_ports(
    server: Address, peers: Sequence[Address], wanted: Sequence[int] = ()
) -> tuple[int, ...]:
    """A port for each node's own client processes; no two programs of a machine share one.

    Args:
        server: Where the SuperLink listens.
        peers: Where each node answers its peers.
        wanted: Ports for the first of the nodes; who comes later, or wants a port that is taken,
            gets the next one that is free on its machine.

    >>> here = Address("127.0.0.1", 7600)
    >>> runtime_ports(here, [here, Address("localhost", 9095), Address("cam", 7600)], [9095])
    (9096, 9094, 9094)
    """
    taken = {_socket(place) for place in (server, *peers)}
    found = []
    for place, port in zip(peers, [*wanted, *[_NONE] * len(peers)], strict=False):
        chosen = port or RUNTIME_PORT
        while (_machine(place), chosen) in taken and chosen < MAX_PORT:
            chosen += 1
        taken.add((_machine(place), chosen))
        found.append(chosen)
    return tuple(found)


def _machine(place: Address) -> str:
    """The host; all names that this machine has for itself are one."""
    return "localhost" if place.is_loopback else place.host


def _socket(place: Address) -> tuple[str, int]:
    return _machine(place), place.port


def _found_at(place: Address) -> Address:
    """The same place, if others can find a machine there.

    Raises:
        ConfigError: It is for listening, or for many machines at once.
    """
    if not place.is_one_machine:
        raise ConfigError(f"no machine is found at {place.host}; allowed: a machine's own address")
    return place
