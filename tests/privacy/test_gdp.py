import math

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy import check_delta, check_epsilon, delta_of, epsilon_of, mu_of


def precise_delta(mu, epsilon):
    """The same formula with 60 digits."""
    with mpmath.workdps(60):
        mu, epsilon = mpmath.mpf(mu), mpmath.mpf(epsilon)
        first = mpmath.ncdf(-epsilon / mu + mu / 2)
        return float(first - mpmath.exp(epsilon) * mpmath.ncdf(-epsilon / mu - mu / 2))


@pytest.mark.parametrize("mu", [0.01, 0.3, 1.0, 4.0, 14.0, 60.0])
@pytest.mark.parametrize("times", [0.0, 0.1, 1.0, 3.0])
def test_delta_against_sixty_digits(mu, times):
    epsilon = times * (mu**2 / 2 + mu)
    assert delta_of(mu, epsilon) == pytest.approx(precise_delta(mu, epsilon), rel=1e-9, abs=1e-300)


def test_delta_is_the_integral_it_stands_for():
    """Hockey-stick divergence of N(0, 1) and N(mu, 1), summed over a grid."""
    mu, epsilon, step = 1.3, 0.7, 1e-3
    grid = [k * step for k in range(-12_000, 14_000)]
    total = sum(
        max(0.0, p - math.exp(epsilon) * q) * step
        for p, q in zip(norm.pdf(grid, mu), norm.pdf(grid), strict=True)
    )
    assert delta_of(mu, epsilon) == pytest.approx(total, rel=1e-5)


@given(mu=st.floats(1e-3, 100), delta=st.floats(1e-12, 0.5))
def test_epsilon_inverts_delta(mu, delta):
    epsilon = epsilon_of(mu, delta)
    if epsilon == 0:
        assert delta_of(mu, 0.0) <= delta
    else:
        assert delta_of(mu, epsilon) == pytest.approx(delta, rel=1e-6)
        assert mu_of(epsilon, delta) == pytest.approx(mu, rel=1e-6)


def test_more_mu_costs_more():
    assert epsilon_of(0.0, 1e-5) == 0.0
    costs = [epsilon_of(mu, 1e-5) for mu in (0.1, 0.2, 1, 5, 50, 500)]
    assert costs == sorted(costs)
    assert costs[-1] > 125_000  # mu^2 / 2, and no overflow


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_bad_epsilon(epsilon):
    for call in (lambda: check_epsilon(epsilon), lambda: mu_of(epsilon, 1e-5)):
        with pytest.raises(
            ConfigError, match=f"epsilon must be positive and finite, got {epsilon}"
        ):
            call()


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_bad_delta(delta):
    for call in (lambda: check_delta(delta), lambda: epsilon_of(1.0, delta)):
        with pytest.raises(ConfigError, match=r"delta must be in \(0, 1\), got"):
            call()


def test_delta_must_be_below_one_over_n():
    check_delta(1e-4, 9_999)
    with pytest.raises(ConfigError, match="below 1/10000 for a client of 10000 samples, got"):
        check_delta(1e-4, 10_000)
