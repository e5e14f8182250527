"""What DP-SGD steps cost: Opacus's accountants on the steps a client really took.

A step is the Poisson-subsampled Gaussian mechanism: every sample joins with probability
``sample_rate``, on its own; gradients are clipped to norm C; the noise on their sum is
``noise_multiplier`` times C. Opacus assumes exactly that, and neighbours that differ by one sample
added or removed. Replacing a sample is a removal and an addition; what that costs is
computed too ("replace-one").

Budgets are kept with Renyi differential privacy ("rdp"), an upper bound that adds up exactly;
"prv" (Gopi et al. 2021) is sharper and slower.
"""

import importlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from nmoe_flower.errors import ConfigError
from nmoe_flower.installation import install_hint
from nmoe_flower.privacy.gdp import check_delta, check_epsilon
from nmoe_flower.privacy.mechanism import Adjacency, check_noise

__all__ = [
    "StepHistory",
    "WeightsCost",
    "noise_multiplier_for_steps",
    "steps_epsilon",
]

StepHistory = Iterable[tuple[float, float, int]]
"""(noise multiplier, sample rate, number of steps), in any order."""

_PLANNING_ORDERS = (1.2, 1.5, 1.7, 2.5, 3.5, *range(2, 11), *range(12, 64))
"""Some of Opacus's own, few of them fractions: those are slow."""

_REPLACING_ORDERS = (1.25, *(a / 2 for a in range(3, 64)))
_SMALLEST_NOISE, _LARGEST_NOISE = 0.1, 1e4
_NARROW = 1e-4  # relative width at which the search for a noise multiplier stops


@dataclass(frozen=True)
class WeightsCost:
    """What DP-SGD has cost one client so far.

    Attributes:
        steps: Steps paid for.
        epsilon: Epsilon for one sample added or removed.
        replaced: Epsilon for one sample replaced by another, at the same delta.
    """

    steps: int
    epsilon: float
    replaced: float


def steps_epsilon(
    history: StepHistory,
    delta: float,
    *,
    adjacency: Adjacency = "add-remove",
    method: Literal["rdp", "prv"] = "rdp",
) -> float:
    """Epsilon of DP-SGD steps; no steps cost 0.

    Raises:
        ConfigError: A number is out of range, "prv" is asked for under "replace-one", or Opacus is
            not installed.
    """
    check_delta(delta)
    steps = _checked(history)
    if method not in ("rdp", "prv") or (method, adjacency) == ("prv", "replace-one"):
        raise ConfigError(
            f"method must be rdp, or prv under add-remove, got {method!r} under {adjacency}"
        )
    if not steps:
        return 0.0
    if adjacency == "replace-one":
        return _replaced_epsilon(steps, delta)
    accountants = _opacus("accountants")
    if method == "rdp":
        orders = tuple(accountants.RDPAccountant.DEFAULT_ALPHAS)
        return _spent(_rdp(steps, orders), orders, delta)
    accountant = accountants.PRVAccountant()
    accountant.history = steps
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))


def _replaced_epsilon(steps: Sequence[tuple[float, float, int]], delta: float) -> float:
    """Epsilon for one sample replaced by another.

    With P, Q the outputs for the two data sets, R that without the sample, and D_a Renyi's
    divergence of order a, Hoelder's inequality gives (Mironov 2017, Proposition 11, p = q = 2)

        D_a(P, Q)  <=  (a - 1/2) / (a - 1) * D_2a(P, R)  +  D_(2a - 1)(R, Q)

    and both on the right are bounded by the accountant. For plain Gaussians the sum is close to the
    truth, that of noise half as large; with budgets in use it costs two to four times as much as
    one sample added or removed.
    """
    orders = np.array(_REPLACING_ORDERS)
    removed, added = _rdp(steps, tuple(2 * orders)), _rdp(steps, tuple(2 * orders - 1))
    total = (orders - 0.5) / (orders - 1) * removed + added
    return _spent(total, _REPLACING_ORDERS, delta)


@lru_cache(maxsize=256)
def noise_multiplier_for_steps(
    epsilon: float,
    delta: float,
    *,
    sample_rate: float,
    steps: int,
    adjacency: Adjacency = "add-remove",
) -> float:
    """The least noise, to four digits, for which (epsilon, delta) pays for so many steps.

    Raises:
        ConfigError: A number is out of range, Opacus is not installed, or no noise is enough.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    low, high = _SMALLEST_NOISE, 1.0

    def fits(noise: float) -> bool:
        history = _checked([(noise, sample_rate, steps)])
        if adjacency == "replace-one":
            return _replaced_epsilon(history, delta) <= epsilon
        cost = _rdp(history, _PLANNING_ORDERS)
        return _spent(cost, _PLANNING_ORDERS, delta) <= epsilon

    while not fits(high):
        low, high = high, 2 * high
        if high > _LARGEST_NOISE:
            raise ConfigError(
                f"no noise keeps {steps} steps at sample rate {sample_rate:g} within epsilon "
                f"{epsilon:g} at delta {delta:g}, as far as this accountant can tell"
            )
    while high - low > _NARROW * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _checked(history: StepHistory) -> list[tuple[float, float, int]]:
    steps = [(noise, rate, count) for noise, rate, count in history if count]
    for noise, rate, count in steps:
        check_noise(noise)
        if not 0 < rate <= 1:
            raise ConfigError(f"sample_rate must be in (0, 1], got {rate}")
        if count < 0:
            raise ConfigError(f"a number of steps must not be negative, got {count}")
    return steps


def _rdp(steps: Sequence[tuple[float, float, int]], orders: tuple[float, ...]) -> np.ndarray:
    """Renyi divergence of all steps together, at every order."""
    rows = [count * _rdp_of_a_step(noise, rate, orders) for noise, rate, count in steps]
    total: np.ndarray = np.sum(rows, axis=0)
    return total


def _spent(rdp: np.ndarray, orders: tuple[float, ...], delta: float) -> float:
    with warnings.catch_warnings():  # "optimal order is the largest": true and harmless
        warnings.simplefilter("ignore")
        epsilon, _ = _opacus("accountants.analysis.rdp").get_privacy_spent(
            orders=list(orders), rdp=rdp, delta=delta
        )
    return max(0.0, float(epsilon))


@lru_cache(maxsize=256)
def _rdp_of_a_step(noise: float, rate: float, orders: tuple[float, ...]) -> np.ndarray:
    """Opacus's bound on one step at every order; the slow part, so it is done once."""
    found: np.ndarray = np.asarray(
        _opacus("accountants.analysis.rdp").compute_rdp(
            q=rate, noise_multiplier=noise, steps=1, orders=list(orders)
        )
    )
    return found


def _opacus(module: str) -> Any:
    try:
        return importlib.import_module(f"opacus.{module}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"private weights need Opacus: {install_hint('privacy')}") from error
