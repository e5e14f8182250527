"""Bits per byte, perplexity, and how sure a difference of them is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import DataError
from nmoe_flower.text_metrics import TextScores, paired_bootstrap, text_scores

LN2 = np.log(2)


def scores(bits: list[float], sizes: list[int]) -> TextScores:
    """Windows of so many bits per byte and bytes, two bytes a token."""
    size = np.array(sizes)
    return TextScores(np.array(bits) * size * LN2, size, size // 2)


def test_bits_per_byte_of_groups() -> None:
    """Together (10 x 1 + 30 x 3) / 40 = 2.5; the mean over groups 2; a token is 2 bytes."""
    two = scores([1.0, 3.0], [10, 30])
    groups = np.array([0, 2])
    assert two.bits_per_byte == pytest.approx(2.5)
    assert two.perplexity == pytest.approx(2 ** (2 * 2.5))
    assert two.by(groups, 3).tolist() == pytest.approx([1, np.nan, 3], nan_ok=True)
    assert two.mean(groups, 3) == pytest.approx(2)
    assert two.worst(groups, 3) == pytest.approx(3)
    assert np.isnan(scores([], []).bits_per_byte)


def test_only_scored_tokens_count() -> None:
    nats = np.array([[1.0, 2.0, np.nan], [4.0, 8.0, 16.0]])
    scored = np.array([[False, True, False], [True, False, True]])
    found = text_scores(nats, scored, np.array([5, 7]))
    assert found.nats.tolist() == [2.0, 20.0]
    assert found.tokens.tolist() == [1, 2]
    with pytest.raises(DataError, match="a loss is NaN or below 0"):
        text_scores(nats, ~scored, np.array([5, 7]))
    with pytest.raises(DataError, match=r"losses of shape \(2, 3\), a mask of \(2, 2\)"):
        text_scores(nats, scored[:, :2], np.array([5, 7]))


@given(st.integers(1, 6), st.floats(0, 3), st.floats(-2, 2))
def test_a_constant_difference_is_certain(windows: int, level: float, gap: float) -> None:
    """Where one is worse by the same bits on each byte, every draw of windows says so."""
    rng = np.random.default_rng(windows)
    bits, sizes = rng.uniform(2, 5, windows), rng.integers(1, 99, windows).tolist()
    first, second = scores(list(bits + gap + level), sizes), scores(list(bits + level), sizes)
    found = paired_bootstrap(first, second, np.arange(windows) % 2, rng=rng, draws=20)
    assert [found.value, found.low, found.high] == pytest.approx([gap] * 3, abs=1e-9)
    assert found.deviation == pytest.approx(0, abs=1e-9)


def test_the_deviation_is_that_of_the_mean() -> None:
    """Of n equal windows with differences of deviation s it is s / sqrt(n): 1 / 20 of 400."""
    rng = np.random.default_rng(0)
    excess = rng.normal(0.3, 1, 400)
    first, second = scores(list(5 + excess), [50] * 400), scores([5.0] * 400, [50] * 400)
    found = paired_bootstrap(first, second, np.zeros(400, int), rng=rng, draws=2000)
    assert found.value == pytest.approx(excess.mean())
    assert found.deviation == pytest.approx(excess.std() / 20, rel=0.08)
    assert (found.high - found.low) / found.deviation == pytest.approx(2 * 1.96, rel=0.08)
    turned = paired_bootstrap(second, first, np.zeros(400, int), rng=rng)
    assert turned.value == pytest.approx(-found.value)


def test_predictors_of_different_windows_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="on the same windows, and these differ"):
        paired_bootstrap(scores([1.0], [10]), scores([1.0], [20]), np.array([0]), rng=rng)
    with pytest.raises(DataError, match="there is none"):
        paired_bootstrap(scores([], []), scores([], []), np.zeros(0, int), rng=rng)
