"""Exact conversions of Gaussian differential privacy: mu to (epsilon, delta) and back.

A release with noise ``noise_multiplier`` times its sensitivity is mu-GDP with mu = 1 /
noise_multiplier, and releases compose to mu_total = sqrt(sum mu_t^2) with no loss, chosen one after
another or all at once (Dong, Roth & Su 2022, "Gaussian differential privacy", Corollaries 1 and 2).
"""

import math

from nmoe_flower.errors import ConfigError

__all__ = ["check_delta", "check_epsilon", "delta_of", "epsilon_of", "mu_of"]

_BISECTIONS = 200  # more than a float has bits: the brackets close to neighbouring numbers


def delta_of(mu: float, epsilon: float) -> float:
    """Smallest delta for which mu-GDP implies (epsilon, delta)-DP.

    delta = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2) (Balle & Wang 2018, Theorem
    8), in logarithms so that nothing overflows.

    >>> round(delta_of(1.0, 0.0), 6)  # 2 Phi(1/2) - 1
    0.382925
    """
    if mu == 0:
        return 0.0
    first = _log_phi(-epsilon / mu + mu / 2)
    second = epsilon + _log_phi(-epsilon / mu - mu / 2)
    return -math.exp(first) * math.expm1(min(0.0, second - first))


def epsilon_of(mu: float, delta: float) -> float:
    """Smallest epsilon >= 0 for which mu-GDP implies (epsilon, delta)-DP.

    >>> round(epsilon_of(1.0, 1e-5), 3)
    4.377
    """
    check_delta(delta)
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(mu, high) > delta:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if delta_of(mu, middle) <= delta else (middle, high)
    return high


def mu_of(epsilon: float, delta: float) -> float:
    """Largest mu for which mu-GDP implies (epsilon, delta)-DP.

    >>> round(mu_of(8, 1e-5), 3)
    1.666
    """
    check_epsilon(epsilon)
    check_delta(delta)
    low, high = 0.0, 1.0
    while delta_of(high, epsilon) <= delta:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if delta_of(middle, epsilon) <= delta else (low, middle)
    return low


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is not a positive, finite number."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"epsilon must be positive and finite, got {epsilon}")


def check_delta(delta: float, num_examples: int | None = None) -> None:
    """Refuse a delta outside (0, 1), or one that allows a client to publish a sample outright.

    With delta >= 1/n a client may name one of its n samples in the clear and still be
    (epsilon, delta)-private, so such a promise is empty.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta must be in (0, 1), got {delta}")
    if num_examples is not None and delta * num_examples >= 1:
        raise ConfigError(
            f"delta must be below 1/{num_examples} for a client of {num_examples} samples, "
            f"got {delta}"
        )


def _log_phi(x: float) -> float:
    """Logarithm of the standard normal distribution function, accurate in both tails."""
    if x > 0:
        return math.log1p(-math.erfc(x / math.sqrt(2)) / 2)
    if x > -5:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    mills = 0.0  # continued fraction 1/(t + 1/(t + 2/(t + 3/(t + ...)))), t = -x
    for k in range(100, 0, -1):
        mills = k / (-x + mills)
    return -x * x / 2 - math.log(2 * math.pi) / 2 - math.log(-x + mills)
