import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.report import Estimate, differences, estimate

values = st.lists(st.floats(0, 1), min_size=2, max_size=9)
# Student's t at 97.5 %, from any printed table.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262}


@given(values)
def test_mean_and_standard_error_are_numpys(found: list[float]) -> None:
    got = estimate(found)
    assert got.n == len(found)
    assert got.mean == pytest.approx(np.mean(found), abs=1e-12)
    assert got.se == pytest.approx(np.std(found, ddof=1) / math.sqrt(len(found)), abs=1e-12)


def test_one_seed_says_nothing_of_the_noise() -> None:
    got = estimate([0.5])
    assert (got.mean, got.se, got.n, got.interval, got.within_noise) == (0.5, None, 1, None, None)


@pytest.mark.parametrize(("freedom", "t"), T.items())
def test_the_interval_is_students(freedom: int, t: float) -> None:
    low, high = Estimate(0.5, 0.01, freedom + 1).interval or (0, 0)
    assert (low, high) == pytest.approx((0.5 - 0.01 * t, 0.5 + 0.01 * t), abs=1e-5)


def test_a_difference_is_noise_until_its_interval_leaves_zero() -> None:
    # Two seeds: t = 12.706, so 0.02 +- 0.002 reaches from -0.005 to 0.045.
    assert Estimate(0.02, 0.002, 2).within_noise
    # Three: t = 4.303, from 0.011 to 0.029.
    assert Estimate(0.02, 0.002, 3).within_noise is False
    assert Estimate(-0.02, 0.002, 3).within_noise is False
    assert Estimate(0.0, 0.0, 3).within_noise


def test_seeds_that_all_say_the_same_say_nothing_of_the_noise() -> None:
    found = estimate(list(differences({0: 0.3, 1: 0.6}, {0: 0.2, 1: 0.5}).values()))
    assert (found.interval, found.within_noise) == (None, None)
    assert Estimate(0.02, 0.0, 3).within_noise is None


seeds = st.dictionaries(st.integers(0, 8), st.floats(0, 1), min_size=1)


@given(seeds, seeds)
def test_differences_are_of_the_seeds_that_both_have(
    of: dict[int, float], against: dict[int, float]
) -> None:
    found = differences(of, against)
    assert found.keys() == of.keys() & against.keys()
    assert all(found[seed] == of[seed] - against[seed] for seed in found)
    assert {seed: -d for seed, d in differences(against, of).items()} == found


@given(seeds)
def test_a_shift_of_all_seeds_is_no_noise_at_all(of: dict[int, float]) -> None:
    """What two variants have in common, seed by seed, is not in their difference."""
    shifted = {seed: value - 0.25 for seed, value in of.items()}
    got = estimate(list(differences(of, shifted).values()))
    assert got.mean == pytest.approx(0.25)
    assert got.se is None or got.se == pytest.approx(0, abs=1e-12)
