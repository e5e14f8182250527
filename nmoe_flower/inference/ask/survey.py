"""How the peers of a list are, as they say themselves."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Self

from nmoe_flower.certificates import Identity
from nmoe_flower.errors import WireError
from nmoe_flower.inference.ask.channel import PeerChannel
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.inference.protocol import PeerEntry, PeerList
from nmoe_flower.inference.settings import check_seconds

__all__ = ["PeerStatus", "Survey"]

SERVING = "serving"


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer at one moment.

    Attributes:
        name: The name in the peer's certificate.
        partition: The id of the peer's expert.
        address: Where the list says it is, ``host:port``.
        health: "serving", "not serving", or one word on why it could not be asked.
        detail: What the error said; empty without one.
        ms: Milliseconds for a question and its answer, on an open connection.
        expert_version: The version of its expert; empty if it could not be asked, as the next two.
        gate_version: The version of its gate.
        extractor_version: The version of the extractor whose latents it takes.
        queue: Latents that wait at the peer.
        served: Requests it has answered since it started.
        share: The peer's part of all answers of the peers that could be asked, 0..1.
    """

    name: str
    partition: int
    address: str
    health: str
    detail: str = ""
    ms: float | None = None
    expert_version: str = ""
    gate_version: str = ""
    extractor_version: str = ""
    queue: int | None = None
    served: int | None = None
    share: float | None = None


class Survey:
    """Looks at the peers of a list, over connections that stay open in between.

    Args:
        peers: The list of the peers to look at.
        identity: Certificate and key of who looks; None: without encryption.
        timeout: Seconds that each peer has for an answer.

    Raises:
        ConfigError: The timeout is not a positive number.
    """

    def __init__(self, peers: PeerList, identity: Identity | None, *, timeout: float = 2.0) -> None:
        check_seconds(timeout=timeout)
        self._timeout = timeout
        self._channels = {peer: PeerChannel(peer, identity) for peer in peers.peers}
        self._loop = LoopThread("nmoe-survey")

    def take(self) -> list[PeerStatus]:
        """Ask all peers at once how they are; by partition."""
        return self._loop.submit(self._take()).result()

    def close(self) -> None:
        """Close all connections."""
        self._loop.submit(self._close()).result()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _take(self) -> list[PeerStatus]:
        found = await asyncio.gather(*(self._ask(*item) for item in self._channels.items()))
        return with_shares(found)

    async def _ask(self, peer: PeerEntry, channel: PeerChannel) -> PeerStatus:
        who = (peer.name, peer.partition, peer.address)
        try:
            serving = await channel.serving(timeout=self._timeout)
            started = time.perf_counter()
            said = await channel.describe(timeout=self._timeout)
            ms = 1000 * (time.perf_counter() - started)
        except WireError as error:
            await channel.renew()
            return PeerStatus(*who, error.reason, str(error))
        return PeerStatus(
            *who,
            health=SERVING if serving else "not serving",
            ms=round(ms, 3),
            expert_version=said.expert_version,
            gate_version=said.gate_version,
            extractor_version=said.extractor_version,
            queue=said.queue,
            served=said.served,
        )

    async def _close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))


def with_shares(found: list[PeerStatus]) -> list[PeerStatus]:
    """Fill in each peer's part of all answers; without any answers yet there are no parts.

    >>> a, b = PeerStatus("a", 0, "h:1", "serving", served=3), PeerStatus("b", 1, "h:2", "closed")
    >>> [one.share for one in with_shares([a, b])]
    [1.0, None]
    """
    total = sum(one.served or 0 for one in found)
    return [
        replace(one, share=one.served / total) if one.served is not None and total else one
        for one in found
    ]
