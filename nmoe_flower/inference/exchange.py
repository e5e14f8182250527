"""The network side of one query: send in parallel, take what comes, hedge, stop in time."""

import asyncio
import time
from collections.abc import Iterable

from nmoe_flower.inference.call import Call, Request
from nmoe_flower.inference.link import Reply
from nmoe_flower.inference.links import Links
from nmoe_flower.inference.plan import Floats
from nmoe_flower.inference.record import UNFINISHED, Sent

__all__ = ["Exchange"]


class Exchange:
    """Carries out queries over the links of a router. Belongs to their event loop.

    Args:
        links: Whom to ask.
        deadline: Seconds that a query may take.
        hedge_after: Seconds after which the next best is asked besides; None: never.
    """

    def __init__(self, links: Links, *, deadline: float, hedge_after: float | None) -> None:
        self._links = links
        self._deadline = deadline
        self._hedge_after = hedge_after
        self._late: set[asyncio.Task[Reply]] = set()

    async def run(self, call: Call, latents: Floats, started: float) -> list[Sent]:
        """Ask until the call is settled or its deadline has come.

        Requests that are not needed any more go on to their own deadline: from how they end the
        router learns who is slow.

        Args:
            call: What to ask, and where the answers go.
            latents: [B, D].
            started: When the query began, by ``time.perf_counter``.

        Returns:
            Every request, in the order in which they ended.
        """
        until = started + self._deadline
        hedge = float("inf") if self._hedge_after is None else started + self._hedge_after
        pending: dict[asyncio.Task[Reply], tuple[Request, float]] = {}
        requests = call.begin()
        sent = [self._skipped(expert, rows) for expert, rows in call.skipped.items()]
        self._send(requests, latents, pending)
        while pending and not call.settled:
            wait = min(until, hedge) - time.perf_counter()
            await asyncio.wait(pending, timeout=max(0.0, wait), return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in pending if task.done()]:
                request, _ = pending.pop(task)
                reply = task.result()
                sent.append(self._sent(request, reply))
                if reply.logits is None:
                    self._send(call.failed(request), latents, pending)
                else:
                    call.answered(request, reply.logits)
            now = time.perf_counter()
            if now >= until:
                break
            if now >= hedge:
                hedge = float("inf")
                self._send(call.hedge(), latents, pending)
        now = time.perf_counter()
        for task, (request, begun) in pending.items():
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            sent.append(self._sent(request, Reply(None, UNFINISHED, 1000 * (now - begun))))
        return sent

    def _send(
        self,
        requests: Iterable[Request],
        latents: Floats,
        pending: dict[asyncio.Task[Reply], tuple[Request, float]],
    ) -> None:
        for request in requests:
            link = self._links.get(request.expert)
            assert link is not None, "a call asks only whom the links call available"
            task = asyncio.create_task(link.ask(latents[request.rows]))
            pending[task] = request, time.perf_counter()

    def _sent(self, request: Request, reply: Reply) -> Sent:
        return Sent(
            self._name(request.expert),
            request.expert,
            request.why,
            len(request.rows),
            reply.outcome,
            reply.ms,
            reply.bytes_up,
            reply.bytes_down,
        )

    def _skipped(self, expert: int, rows: int) -> Sent:
        outcome = "unknown" if self._links.get(expert) is None else "open"
        return Sent(self._name(expert), expert, "chosen", rows, outcome)

    def _name(self, expert: int) -> str:
        link = self._links.get(expert)
        return "" if link is None else link.peer.name
