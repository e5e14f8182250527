"""What is known of a peer: how fast it answers, how often it fails, whether to ask it at all."""

from collections import Counter

from nmoe_flower.inference.ask.breaker import Breaker

__all__ = ["Health"]

_WEIGHT = 0.2


class Health:
    """Learnt from every request. Not for several threads.

    Attributes:
        breaker: Whether it is asked.
        latency_ms: Exponential moving mean of the time to an answer; None before the first.
        failure: Exponential moving share of requests that failed, in 0..1.
        answered: Requests answered well.
        failures: Requests that failed, by reason.

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
