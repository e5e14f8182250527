"""What seeds say together: a mean, its standard error, and whether a difference may be noise.

The spread over seeds is that of the sample, with n - 1 in the denominator; the standard error is
the spread by the square root of n. Intervals are those of Student's t, n - 1 degrees of freedom.
Seeds that all say the same, and not 0, say nothing of the noise: a few may agree by chance.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "differences", "estimate"]

LEVEL = 0.95
_SAME = 1e-12  # differences that are this small, by their values, are rounding


@dataclass(frozen=True)
class Estimate:
    """What n seeds say about one number.

    Attributes:
        mean: Mean over the seeds.
        se: Standard error of the mean; None of a single seed, which says nothing of the noise.
        n: How many seeds there are, at least 1.
    """

    mean: float
    se: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the interval that holds the true mean at 95 %; None without an estimate of it.

        >>> Estimate(0.5, 0.0, 2).interval is None, Estimate(0.0, 0.0, 2).interval
        (True, (0.0, 0.0))
        """
        if self.se is None or self.se <= _SAME < abs(self.mean):
            return None
        from scipy.special import stdtrit

        reach = float(stdtrit(self.n - 1, (1 + LEVEL) / 2)) * self.se
        return self.mean - reach, self.mean + reach

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval holds 0, so that a difference may be none; None without one."""
        if self.interval is None:
            return None
        low, high = self.interval
        return low <= _SAME and high >= -_SAME


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of one value per seed.

    >>> estimate([0.5, 0.75])
    Estimate(mean=0.625, se=0.125, n=2)
    >>> estimate([0.5])
    Estimate(mean=0.5, se=None, n=1)
    """
    n = len(values)
    if n == 1:
        return Estimate(float(values[0]), None, 1)
    return Estimate(statistics.fmean(values), statistics.stdev(values) / math.sqrt(n), n)


def differences(of: Mapping[int, float], against: Mapping[int, float]) -> dict[int, float]:
    """By seed, what ``of`` has more than ``against``, for the seeds that both have.

    >>> differences({0: 0.5, 1: 0.75}, {1: 0.25, 2: 0.5})
    {1: 0.5}
    """
    return {seed: of[seed] - against[seed] for seed in of if seed in against}
