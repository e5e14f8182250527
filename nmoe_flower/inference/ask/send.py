"""The network side of one query: send in parallel, take what comes, hedge, stop in time."""

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

from nmoe_flower.inference.ask.link import RequestResult
from nmoe_flower.inference.ask.links import Links
from nmoe_flower.inference.ask.query import Call, ExpertRequest, Floats
from nmoe_flower.inference.ask.record import UNFINISHED, Sent

__all__ = ["QuerySending"]


class QuerySending:
    """Carries out queries over the links of a router. Belongs to their event loop.

    Args:
        links: The peers that can be asked.
        deadline: Seconds that a query may take.
        hedge_after: Seconds after which the next-best expert is asked besides; None: never.
    """

    def __init__(self, links: Links, *, deadline: float, hedge_after: float | None) -> None:
        self._links = links
        self._deadline = deadline
        self._hedge_after = hedge_after
        self._late: set[asyncio.Task[RequestResult]] = set()

    async def run(self, call: Call, latents: Floats, started: float) -> list[Sent]:
        """Ask until the call is settled or its deadline has come.

        Requests that are not needed any more go on to their own deadline: from how they end the
        router learns who is slow.

        Args:
            call: Says what to ask, and takes the answers.
            latents: What is asked about, [B, D].
            started: When the query began, in seconds of ``time.perf_counter``.

        Returns:
            Every request, in the order in which they ended.
        """
        until = started + self._deadline
        hedge = float("inf") if self._hedge_after is None else started + self._hedge_after
        pending: dict[asyncio.Task[RequestResult], _OnItsWay] = {}
        requests = call.begin()
        sent = [self._skipped(expert, rows) for expert, rows in call.skipped.items()]
        self._send(requests, latents, pending)
        while pending and not call.settled:
            wait = min(until, hedge) - time.perf_counter()
            await asyncio.wait(pending, timeout=max(0.0, wait), return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in pending if task.done()]:
                way = pending.pop(task)
                result = task.result()
                sent.append(way.ended(result))
                if result.logits is None:
                    self._send(call.failed(way.request), latents, pending)
                else:
                    call.answered(way.request, result.logits)
            now = time.perf_counter()
            if now >= until:
                break
            if now >= hedge:
                hedge = float("inf")
                self._send(call.hedge(), latents, pending)
        now = time.perf_counter()
        for task, way in pending.items():
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            sent.append(way.ended(RequestResult(None, UNFINISHED, 1000 * (now - way.begun))))
        return sent

    def _send(
        self,
        requests: Iterable[ExpertRequest],
        latents: Floats,
        pending: dict[asyncio.Task[RequestResult], "_OnItsWay"],
    ) -> None:
        for request in requests:
            link = self._links.get(request.expert)
            assert link is not None, "a call asks only whom the links call available"
            question = link.channel.pack(latents[request.rows])
            begun = time.perf_counter()
            task = asyncio.create_task(link.ask(question))
            pending[task] = _OnItsWay(request, link.peer.name, len(question.data), begun)

    def _skipped(self, expert: int, rows: int) -> Sent:
        link = self._links.get(expert)
        if link is None:
            return Sent("", expert, "chosen", rows, "unknown")
        return Sent(link.peer.name, expert, "chosen", rows, "open")


class _OnItsWay(NamedTuple):
    """A request that was sent, and when."""

    request: ExpertRequest
    peer: str
    size: int
    begun: float

    def ended(self, result: RequestResult) -> Sent:
        return Sent(
            self.peer,
            self.request.expert,
            self.request.why,
            len(self.request.rows),
            result.outcome,
            result.ms,
            self.size,
            result.bytes_down,
        )
