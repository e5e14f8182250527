"""A circuit breaker: stop asking whoever fails, and find out when it is well again.

After M. Nygard, "Release It!" (2007), chapter 5. Closed: requests pass. Open: none does, for a
while that doubles each time until the peer is well for good. Half open: one probe is on its way.
"""

import time
from collections.abc import Callable
from typing import Literal

from nmoe_flower.errors import ConfigError

__all__ = ["Breaker", "BreakerState"]

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """Counts what one peer does. Not for several threads.

    Args:
        failures: Failures in a row that open it, 1 or more.
        cooldown: Seconds from the opening to the first probe, above 0.
        longest: Seconds up to which the cooldown doubles, ``cooldown`` or more.
        clock: Gives the time in seconds; it never runs back.

    Raises:
        ConfigError: A number is out of range.

    >>> now = [0.0]
    >>> breaker = Breaker(failures=1, cooldown=5.0, clock=lambda: now[0])
    >>> breaker.failed()
    >>> breaker.state, breaker.probe_in()
    ('open', 5.0)
    >>> now[0] = 5.0
    >>> breaker.begin_probe(), breaker.state
    (True, 'half-open')
    >>> breaker.probe_succeeded()
    >>> breaker.state
    'closed'
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        cooldown: float = 0.5,
        longest: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 1 or not 0 < cooldown <= longest:
            raise ConfigError(
                f"a breaker of {failures} failures and a cooldown of {cooldown} to {longest} s; "
                "allowed: 1 or more failures, 0 < cooldown <= longest"
            )
        self._limit = failures
        self._shortest = cooldown
        self._longest = longest
        self._clock = clock
        self._state: BreakerState = "closed"
        self._cooldown = self._next = cooldown
        self._failures = 0
        self._successes = 0
        self._opened = 0.0

    @property
    def state(self) -> BreakerState:
        """What it lets through: all, nothing, or one probe."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether ordinary requests may pass."""
        return self._state == "closed"

    def succeeded(self) -> None:
        """An ordinary request was answered well.

        One that was sent before the breaker opened does not close it: that is the probe's business.
        """
        if self._state == "closed":
            self._failures = 0
            self._successes += 1
            if self._successes >= self._limit:  # it has recovered for good
                self._next = self._shortest

    def failed(self) -> None:
        """An ordinary request was answered wrongly, too late or not at all."""
        if self._state == "closed":
            self._successes = 0
            self._failures += 1
            if self._failures >= self._limit:
                self._open()

    def probe_in(self) -> float:
        """Seconds until a probe is due; infinite if none is."""
        if self._state != "open":
            return float("inf")
        return max(0.0, self._opened + self._cooldown - self._clock())

    def begin_probe(self) -> bool:
        """Let one probe through, if one is due."""
        if self.probe_in() > 0:
            return False
        self._state = "half-open"
        return True

    def probe_succeeded(self) -> None:
        """The probe was answered well: close."""
        if self._state == "half-open":
            self._state = "closed"
            self._failures = self._successes = 0

    def probe_failed(self) -> None:
        """The probe failed: open again, for longer."""
        if self._state == "half-open":
            self._open()

    def _open(self) -> None:
        self._state = "open"
        self._opened = self._clock()
        self._cooldown, self._next = self._next, min(self._longest, 2 * self._next)
