"""Who may be asked about text, in which order, and how each of them fares."""

import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from nmoe_flower.certificates import Identity
from nmoe_flower.inference.ask.breaker import Breaker
from nmoe_flower.inference.ask.channel import PeerChannel
from nmoe_flower.inference.bundle import OF_ALL
from nmoe_flower.inference.protocol import PeerList, verify_list

__all__ = ["HERE", "Source", "TextPeers", "sources", "who_holds"]

HERE = -1  # stands for this device among ids of peers
_TOLD = ("busy", "refused", "version")  # by a peer whose connection is well


class Source(NamedTuple):
    """Where an answer may come from.

    Attributes:
        expert: Device whose adapter answers; `OF_ALL`: the adapter of all devices.
        peer: Partition of the device that is asked; `HERE`: this one.
    """

    expert: int
    peer: int


def sources(
    ranking: Sequence[int],
    *,
    holders: Sequence[Sequence[int]],
    held: Collection[int],
    own: int,
    usable: Callable[[int], bool],
    fallbacks: int,
) -> list[Source]:
    """Whom to ask, one after the other: holders of the best expert, then of the next best ones.

    At last the adapter of all devices answers here, or this device's own. What is held here needs
    nobody, so that nothing comes after it.

    Args:
        ranking: Ids of the experts, best first.
        holders: Devices that hold each expert, its own first.
        held: Experts whose adapters are here.
        own: This device.
        usable: Whether a peer may be asked now.
        fallbacks: How many next-best experts are asked.

    >>> sources([2, 0], holders=[[0], [1], [2, 1]], held={0}, own=0, usable=lambda _: True,
    ...         fallbacks=1)
    [Source(expert=2, peer=2), Source(expert=2, peer=1), Source(expert=0, peer=-1)]
    """
    found: list[Source] = []
    for expert in ranking[: 1 + fallbacks]:
        found += who_holds(expert, holders=holders, held=held, own=own, usable=usable)
        if found and found[-1].peer == HERE:
            return found
    return [*found, Source(OF_ALL if OF_ALL in held else own, HERE)]


def who_holds(
    expert: int,
    *,
    holders: Sequence[Sequence[int]],
    held: Collection[int],
    own: int,
    usable: Callable[[int], bool],
) -> list[Source]:
    """Where an expert can be asked: here if it is here, else at its holders that are usable.

    Args:
        expert: Device whose adapter is meant.
        holders: Devices that hold each expert, its own first.
        held: Experts whose adapters are here.
        own: This device.
        usable: Whether a peer may be asked now.
    """
    if expert in held:
        return [Source(expert, HERE)]
    return [Source(expert, peer) for peer in holders[expert] if peer != own and usable(peer)]


class TextPeers:
    """The connections to all peers; belongs to one event loop.

    Args:
        peers: The list of who is where.
        identity: This device's certificate and key; None: no encryption.
        extractor_version: Peers with another backbone are not asked.
        make_breaker: Makes the breaker of a peer.

    Attributes:
        peers: The list of who is where.

    Raises:
        WireError: With an identity: the list is not signed, not valid or has expired.
    """

    def __init__(
        self,
        peers: PeerList,
        identity: Identity | None,
        *,
        extractor_version: str,
        make_breaker: Callable[[], Breaker] = Breaker,
    ) -> None:
        if identity is not None:
            verify_list(peers, identity.authority_pem, now=time.time())
        self.peers = peers
        self._entries = {
            partition: entry
            for partition, entry in peers.by_partition.items()
            if entry.extractor_version in ("", extractor_version)
        }
        self._identity = identity
        self._breakers = {partition: make_breaker() for partition in self._entries}
        self._channels: dict[int, PeerChannel] = {}

    def usable(self, peer: int) -> bool:
        """Whether a peer is in the list, and has not just failed.

        Args:
            peer: Partition of the peer.
        """
        breaker = self._breakers.get(peer)
        return breaker is not None and (breaker.closed or breaker.probe_in() == 0)

    def channel(self, peer: int) -> PeerChannel:
        """The connection to a usable peer, which is made if it is missing.

        Args:
            peer: Partition of the peer.
        """
        self._breakers[peer].begin_probe()
        if peer not in self._channels:
            self._channels[peer] = PeerChannel(self._entries[peer], self._identity)
        return self._channels[peer]

    def name(self, peer: int) -> str:
        """What a peer is called; this device is ``self``.

        Args:
            peer: Partition of the peer, or `HERE`.
        """
        return "self" if peer == HERE else self._entries[peer].name

    def well(self, peer: int) -> None:
        """A peer has answered.

        Args:
            peer: Partition of the peer.
        """
        self._breakers[peer].probe_succeeded()
        self._breakers[peer].succeeded()

    async def ill(self, peer: int, reason: str) -> None:
        """A peer has not answered: a new connection is tried next time, unless it said why itself.

        Args:
            peer: Partition of the peer.
            reason: One word on what went wrong.
        """
        self._breakers[peer].probe_failed()
        self._breakers[peer].failed()
        if reason not in _TOLD:
            await self._channels[peer].renew()

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels.values():
            await channel.close()
