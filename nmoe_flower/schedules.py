"""Learning rates over rounds or steps; plain Python, so that a server needs no torch for them."""

import math
from collections.abc import Callable
from typing import Literal

__all__ = ["schedule"]


def schedule(
    kind: Literal["triangular", "cosine", "constant"],
    *,
    peak: float,
    steps: int,
    warmup: float = 0.0,
) -> Callable[[int], float]:
    """The learning rate of step 1, 2, ... ``steps``.

    A linear rise over the first ``warmup`` share of the steps, then a straight line (triangular)
    or a half cosine down to zero just after the last step, or no fall at all (constant).

    >>> rate = schedule("triangular", peak=1.0, steps=4)
    >>> [rate(step) for step in (1, 2, 3, 4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    rise = int(warmup * steps)

    def rate(step: int) -> float:
        if step <= rise:
            return peak * step / (rise + 1)
        if kind == "constant":
            return peak
        done = min(1.0, (step - 1 - rise) / max(1, steps - rise))
        if kind == "triangular":
            return peak * (1.0 - done)
        return peak * 0.5 * (1.0 + math.cos(math.pi * done))

    return rate
