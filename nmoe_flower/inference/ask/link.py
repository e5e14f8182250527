"""What the router has for each peer: its channel, its health, and the way back after a failure."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import NamedTuple

import numpy as np

from nmoe_flower.errors import WireError
from nmoe_flower.inference.ask.breaker import Breaker
from nmoe_flower.inference.ask.channel import Channel, PackedQuery
from nmoe_flower.inference.ask.query import Floats
from nmoe_flower.inference.ask.record import ANSWERED
from nmoe_flower.inference.protocol import PeerEntry
from nmoe_flower.inference.telemetry import log_event

__all__ = ["Health", "Link", "RequestResult"]

_WEIGHT = 0.2

_log = logging.getLogger(__name__)


class Health:
    """Learnt from every request. Not for several threads.

    Attributes:
        breaker: Decides whether the peer is asked.
        latency_ms: Exponential moving mean of the milliseconds to an answer; None before the first.
        failure: Exponential moving share of requests that failed, 0..1.
        answered: Requests answered well.
        failures: Requests that failed, by a word for the reason.

    >>> health = Health(Breaker())
    >>> health.succeeded(10.0)
    >>> health.succeeded(20.0)
    >>> health.latency_ms, health.penalty(120.0)
    (12.0, 0.1)
    """

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.latency_ms: float | None = None
        self.failure = 0.0
        self.answered = 0
        self.failures: Counter[str] = Counter()

    def succeeded(self, ms: float) -> None:
        """A request was answered well after ``ms`` milliseconds."""
        self.answered += 1
        self.failure -= _WEIGHT * self.failure
        self.took(ms)
        self.breaker.succeeded()

    def failed(self, reason: str) -> None:
        """A request failed; ``reason`` is one word."""
        self.failures[reason] += 1
        self.failure += _WEIGHT * (1 - self.failure)
        self.breaker.failed()

    def took(self, ms: float) -> None:
        """An answer, or a wait in vain, took ``ms`` milliseconds."""
        before = ms if self.latency_ms is None else self.latency_ms
        self.latency_ms = before + _WEIGHT * (ms - before)

    def penalty(self, deadline_ms: float) -> float:
        """How unwell it is, 0..1: 1 if it is not asked, else its failures or its slowness.

        Slowness is the part of the deadline that its answers take.
        """
        if not self.breaker.closed:
            return 1.0
        return max(self.failure, min(1.0, (self.latency_ms or 0.0) / deadline_ms))


class RequestResult(NamedTuple):
    """What came of one request.

    Attributes:
        logits: The answer, [n, C]; None if the peer failed.
        outcome: "answered", or one word on what went wrong.
        ms: Milliseconds from the request until then.
        bytes_down: Size of the message that came back, in bytes.
    """

    logits: Floats | None
    outcome: str
    ms: float
    bytes_down: int = 0


class Link:
    """One peer. All methods belong to one event loop.

    When the breaker opens, a task of the link's own asks for the answer to one latent of zeros
    until the peer gives a right one: no query has to find out that it is back.

    Args:
        peer: The entry of the peer in the list.
        channel: The connection to the peer.
        health: What is known of the peer.
        shape: (D, C), the lengths of a latent and of its logits.
        deadline: Seconds that one request may take.
    """

    def __init__(
        self,
        peer: PeerEntry,
        channel: Channel,
        health: Health,
        *,
        shape: tuple[int, int],
        deadline: float,
    ) -> None:
        self.peer = peer
        self.channel = channel
        self.health = health
        self._shape = shape
        self._deadline = deadline
        self._recovery: asyncio.Task[None] | None = None

    @property
    def open_to_requests(self) -> bool:
        """Whether the breaker lets requests through."""
        return self.health.breaker.closed

    async def ask(self, question: PackedQuery) -> RequestResult:
        """Ask, and learn from how it goes. Whatever the peer does, this raises nothing."""
        result, text = await self._try(question)
        if result.logits is not None:
            self.health.succeeded(result.ms)
        elif result.outcome != "closed":
            self._failed(result, text)
        return result

    async def close(self) -> None:
        """Stop asking and probing."""
        if self._recovery is not None:
            self._recovery.cancel()
        await self.channel.close()

    async def _try(self, question: PackedQuery) -> tuple[RequestResult, str]:
        started = time.perf_counter()
        try:
            answer = await self.channel.predict(
                question, num_classes=self._shape[1], timeout=self._deadline
            )
        except WireError as error:
            return RequestResult(None, error.reason, _since(started)), str(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return RequestResult(None, "closed", _since(started)), "the channel was closed"
        except Exception as error:
            _log.exception("asking %s failed", self.peer.name)
            return RequestResult(None, "internal", _since(started)), str(error)
        return RequestResult(answer.logits, ANSWERED, _since(started), answer.bytes_down), ""

    def _failed(self, result: RequestResult, text: str) -> None:
        if result.outcome == "deadline":
            self.health.took(result.ms)
        self.health.failed(result.outcome)
        times = self.health.failures[result.outcome]
        if times & (times - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: a flood is not written down
            self._tell(logging.WARNING, "peer-failed", result.outcome, text, times=times)
        if not self.open_to_requests and self._recovery is None:
            self._tell(logging.WARNING, "peer-not-asked", result.outcome, text)
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        breaker = self.health.breaker
        question = self.channel.pack(np.zeros((1, self._shape[0]), np.float32))
        while not breaker.closed:
            await asyncio.sleep(breaker.probe_in())
            if not breaker.begin_probe():
                continue
            with contextlib.suppress(OSError, RuntimeError):  # of an old connection
                await self.channel.renew()
            result, _ = await self._try(question)
            if result.logits is None:
                breaker.probe_failed()
            else:
                breaker.probe_succeeded()
        self._recovery = None
        self._tell(logging.INFO, "peer-back", ANSWERED, "")

    def _tell(self, level: int, event: str, reason: str, text: str, **facts: int) -> None:
        who = {"peer": self.peer.name, "partition": self.peer.partition}
        log_event(_log, level, event, **who, reason=reason, detail=text, **facts)


def _since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
