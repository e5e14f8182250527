"""All peers of one router: the links, kept in step with the newest signed list."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import WireError
from nmoe_flower.inference.ask.link import Link
from nmoe_flower.inference.protocol import PeerEntry, PeerList, newest_list, verify_list
from nmoe_flower.inference.telemetry import log_event

__all__ = ["Links", "PeerState"]

_log = logging.getLogger(__name__)
_ASKED_AT_ONCE = 8
_HARMLESS = ("no-list", "unavailable", "deadline", "closed")


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a router knows of a peer.

    Attributes:
        peer: The entry of the peer in the list.
        breaker: "closed" (the peer is asked), "open" or "half-open" (it is not).
        latency_ms: Moving mean of the milliseconds to an answer; None before the first.
        failure: Moving share of requests that failed, 0..1.
        answered: Requests answered well.
        failures: Requests that failed, by a word for the reason.
    """

    peer: PeerEntry
    breaker: str
    latency_ms: float | None
    failure: float
    answered: int
    failures: dict[str, int]


class Links:
    """The links of a router. All methods but the readings belong to one event loop.

    A list is checked when it is taken over. If it expires in use it stays in use: peers that are
    known are better than none.

    Args:
        peers: The list to begin with; with an authority it must be signed and valid.
        own: The id of the router's own expert: nobody is asked for it.
        connect: Makes the link to a peer.
        extractor_version: The router's; peers that state another one are not asked. Empty: all are.
        authority_pem: Certificate of the authority whose signatures count, PEM. Empty: no list of
            another peer is believed.
        on_change: Called with every newer list, in a thread of its own.
        now: Gives the time in seconds since 1970.

    Attributes:
        peers: The list that holds.

    Raises:
        WireError: The list is not signed, not valid or has expired.
    """

    def __init__(
        self,
        peers: PeerList,
        *,
        own: int,
        connect: Callable[[PeerEntry], Link],
        extractor_version: str = "",
        authority_pem: bytes = b"",
        on_change: Callable[[PeerList], None] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._own = own
        self._connect = connect
        self._extractor_version = extractor_version
        self._authority_pem = authority_pem
        self._on_change = on_change
        self._now = now
        self._links: dict[int, Link] = {}
        self._turn = 0
        self._telling = asyncio.Lock()
        self.peers = self._checked(peers)
        self._follow(self.peers)

    @property
    def can_verify(self) -> bool:
        """Whether signatures can be checked."""
        return bool(self._authority_pem)

    def get(self, expert: int) -> Link | None:
        """The link to the peer with this expert."""
        return self._links.get(expert)

    def available(self) -> list[int]:
        """The experts that may be asked now."""
        return [expert for expert, link in self._links.items() if link.open_to_requests]

    def breakers(self) -> dict[str, str]:
        """The state of each peer's breaker by name; may be called from any thread."""
        return {link.peer.name: link.health.breaker.state for link in self._links.values()}

    def penalties(self, num_experts: int, deadline_ms: float) -> npt.NDArray[np.float64]:
        """How unwell each expert is, [E]: 1 for those nobody has, 0 for the own."""
        penalties = np.ones(num_experts)
        for expert, link in self._links.items():
            if expert < num_experts:
                penalties[expert] = link.health.penalty(deadline_ms)
        if self._own < num_experts:
            penalties[self._own] = 0.0
        return penalties

    async def states(self) -> list[PeerState]:
        """What is known of each peer, by partition."""
        return [
            PeerState(
                link.peer,
                link.health.breaker.state,
                link.health.latency_ms,
                link.health.failure,
                link.health.answered,
                dict(link.health.failures),
            )
            for _, link in sorted(self._links.items())
        ]

    async def update(self, offered: PeerList) -> bool:
        """Take over a list if it is newer and somebody who may do so signed it.

        Peers that stay keep their connection and what was learnt of them.

        Returns:
            Whether it was newer.

        Raises:
            WireError: The list is not signed, not valid, has expired, or is older.
        """
        held = newest_list(self.peers, self._checked(offered))
        if held is self.peers:
            return False
        self.peers = held
        gone = self._follow(held)
        await asyncio.gather(*(link.close() for link in gone))
        log_event(_log, logging.INFO, "peers-changed", serial=held.serial, peers=len(held.peers))
        await self._pass_on()
        return True

    async def _pass_on(self) -> None:
        """Tell of the list that holds; the last one told is always the newest."""
        if self._on_change is not None:
            async with self._telling:
                try:
                    await asyncio.to_thread(self._on_change, self.peers)
                except Exception:
                    _log.exception("the newer list holds, but could not be passed on")

    async def refresh(self, *, timeout: float, most: int = _ASKED_AT_ONCE) -> bool:
        """Ask some peers at once for their lists, and take over each that is newer.

        Args:
            timeout: Seconds that the peers have for an answer.
            most: How many peers to ask; the next time begins with the next ones.

        Returns:
            Whether a newer list was found.
        """
        links = [link for _, link in sorted(self._links.items())]
        first, count = self._turn, min(most, len(links))
        self._turn += count
        asked = [links[(first + place) % len(links)] for place in range(count)]
        return any(await asyncio.gather(*(self._learn(link, timeout) for link in asked)))

    async def _learn(self, link: Link, timeout: float) -> bool:
        """Take over the list of a peer, if it is newer; whether it was."""
        try:
            return await self.update(await link.channel.peers(timeout=timeout))
        except WireError as error:
            link.health.failures[error.reason] += 1
            facts = {"peer": link.peer.name, "reason": error.reason, "detail": str(error)}
            level = logging.DEBUG if error.reason in _HARMLESS else logging.WARNING
            log_event(_log, level, "list-refused", **facts)
            return False

    async def keep_fresh(self, seconds: float, *, timeout: float) -> None:
        """Ask a few peers for a newer list every so often, for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.refresh(timeout=timeout)
            except Exception:
                _log.exception("looking for a newer list of peers failed")

    async def close(self) -> None:
        """Close every link."""
        links, self._links = self._links, {}
        await asyncio.gather(*(link.close() for link in links.values()))

    def _checked(self, peers: PeerList) -> PeerList:
        if self._authority_pem:
            return verify_list(peers, self._authority_pem, now=self._now())
        return peers

    def _follow(self, peers: PeerList) -> list[Link]:
        """Make the links what the list says.

        Returns:
            Links that are of no use any more.
        """
        links = {}
        for entry in peers.peers:
            before = self._links.get(entry.partition)
            if entry.partition == self._own or not self._fits(entry):
                continue
            same = before is not None and before.peer == entry
            links[entry.partition] = before if same and before else self._connect(entry)
        gone = [link for expert, link in self._links.items() if links.get(expert) is not link]
        self._links = links
        return gone

    def _fits(self, entry: PeerEntry) -> bool:
        mine, theirs = self._extractor_version, entry.extractor_version
        if mine and theirs and mine != theirs:
            facts = {"peer": entry.name, "partition": entry.partition}
            detail = f"its extractor is {theirs}, ours {mine}"
            log_event(_log, logging.WARNING, "peer-left-out", **facts, detail=detail)
            return False
        return True
