import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.schedules import schedule

KINDS = ("triangular", "cosine", "constant")


def test_triangular_rises_and_falls() -> None:
    """10 rounds, 0.2 of them rise: peak/3, 2 peak/3; then 8 rounds of 1, 7/8, ... 1/8."""
    rate = schedule("triangular", peak=0.8, steps=10, warmup=0.2)
    expected = [0.8 / 3, 1.6 / 3, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert [rate(step) for step in range(1, 11)] == pytest.approx(expected)


def test_cosine_is_half_way_in_the_middle() -> None:
    rate = schedule("cosine", peak=2.0, steps=4)
    assert rate(1) == 2.0
    assert rate(2) == pytest.approx(1 + math.sqrt(0.5))  # 1 + cos 45 degrees
    assert rate(3) == pytest.approx(1.0)
    assert rate(4) == pytest.approx(1 - math.sqrt(0.5))


def test_constant_stays_after_the_rise() -> None:
    rate = schedule("constant", peak=3.0, steps=6, warmup=0.34)
    assert [rate(step) for step in (1, 2, 3, 6, 60)] == [1.0, 2.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize("kind", ["triangular", "cosine"])
def test_after_the_last_step_nothing_moves(kind: str) -> None:
    rate = schedule(kind, peak=1.0, steps=5)
    assert rate(6) == pytest.approx(0.0, abs=1e-15)
    assert rate(600) == pytest.approx(0.0, abs=1e-15)


@given(
    st.sampled_from(KINDS),
    st.floats(1e-6, 1e3),
    st.integers(1, 200),
    st.floats(0, 0.999),
)
def test_rates_stay_positive_and_reach_the_peak_once(
    kind: str, peak: float, steps: int, warmup: float
) -> None:
    rate = schedule(kind, peak=peak, steps=steps, warmup=warmup)
    rates = [rate(step) for step in range(1, steps + 1)]
    assert all(0 < value <= peak for value in rates)
    top = rates.index(max(rates))
    assert rates[top] == peak
    assert top == int(warmup * steps)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_at_all_is_no_error(kind: str) -> None:
    assert math.isfinite(schedule(kind, peak=1.0, steps=0)(1))
