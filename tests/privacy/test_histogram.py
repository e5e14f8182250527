"""Histograms of tokens with noise: how far apart neighbours are, and what noise that takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy import HistogramMechanism, epsilon_of

V = 6
texts = st.lists(
    st.lists(st.integers(0, V - 1), max_size=20).map(lambda part: np.array(part, np.int64)),
    min_size=1,
    max_size=6,
)


@given(texts, st.lists(st.integers(0, V - 1), max_size=20), st.floats(0.5, 30))
def test_neighbours_are_no_further_apart_than_the_sensitivity(
    parts: list[np.ndarray], other: list[int], clip: float
) -> None:
    for adjacency in ("replace-one", "add-remove"):
        mechanism = HistogramMechanism(1.0, clip, adjacency=adjacency)  # type: ignore[arg-type]
        replaced = [*parts[1:], np.array(other, np.int64)]
        neighbour = replaced if adjacency == "replace-one" else parts[1:]
        gap = mechanism.count(parts, V) - mechanism.count(neighbour, V)
        assert np.linalg.norm(gap) <= mechanism.sensitivity * (1 + 1e-12)


def test_two_parts_without_a_common_token_attain_it() -> None:
    """Nine of a token against nine of another: sqrt(9^2 + 9^2), clipped to 4: sqrt(2) 4."""
    for clip, gap in ((9.0, 9 * math.sqrt(2)), (4.0, 4 * math.sqrt(2))):
        mechanism = HistogramMechanism(1.0, clip)
        counts = [mechanism.count([np.full(9, token)], V) for token in (0, 1)]
        assert np.linalg.norm(counts[0] - counts[1]) == pytest.approx(gap)
        assert mechanism.sensitivity == pytest.approx(gap)


def test_counts_below_the_clip_stay() -> None:
    mechanism = HistogramMechanism(1.0, 100.0)
    assert mechanism.count([np.array([0, 0, 5]), np.array([5])], V).tolist() == [2, 0, 0, 0, 0, 2]
    single = HistogramMechanism(1.0, 1.0)  # a token is a part
    assert single.count(np.array([[0], [0], [5]]), V).tolist() == [2, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("secure", [False, True])
def test_the_noise_is_of_the_multiple_of_the_sensitivity(secure: bool) -> None:
    """2 x sqrt(2) x 3; counts of 1,000 stay far from 0. Of 20,000 draws 1 % is two deviations."""
    mechanism = HistogramMechanism(2.0, 3.0, secure=secure)
    rng = None if secure else np.random.default_rng(0)
    noise = mechanism.release(np.full(20_000, 1000.0), rng) - 1000
    assert mechanism.noise_std == pytest.approx(6 * math.sqrt(2))
    assert noise.std() == pytest.approx(mechanism.noise_std, rel=0.03)
    assert abs(noise.mean()) < 4 * mechanism.noise_std / math.sqrt(20_000)
    assert (
        mechanism.release(np.zeros(99), None if secure else np.random.default_rng(0)) >= 0
    ).all()


def test_a_distinguisher_does_no_better_than_promised() -> None:
    """The best test of two neighbours errs as a 1/noise-GDP mechanism's: Phi(-mu / 2) each way.

    With a multiplier of 1, mu is 1: it is right in Phi(1/2) = .691 of the cases.
    """
    mechanism, rng = HistogramMechanism(1.0, 4.0), np.random.default_rng(1)
    base = [np.full(9, token) for token in range(2, V)] * 30  # so that nothing is cut at 0
    pair = [mechanism.count([np.full(9, token), *base, *base[:1]], V) + 50 for token in (0, 1)]
    way = (pair[0] - pair[1]) / np.linalg.norm(pair[0] - pair[1])
    middle = (pair[0] + pair[1]) @ way / 2
    right = [
        (mechanism.release(counts, rng) @ way > middle) == first
        for counts, first in zip(pair, (True, False), strict=True)
        for _ in range(4000)
    ]
    assert np.mean(right) == pytest.approx(0.6915, abs=0.02)
    assert epsilon_of(1.0, 1e-5) == pytest.approx(4.377, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier must be positive"),
        ({"clip": math.inf}, "clip must be positive and finite, got inf"),
        ({"clip": 0.0}, "clip must be positive and finite, got 0.0"),
        ({"adjacency": "none"}, "adjacency must be replace-one or add-remove, got 'none'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HistogramMechanism(**{"noise_multiplier": 1.0, "clip": 1.0, **arguments})  # type: ignore[arg-type]


def test_noise_comes_from_one_place() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="pass no generator"):
        HistogramMechanism(1.0, 1.0, secure=True).release(np.zeros(2), rng)
    with pytest.raises(ConfigError, match="release needs a generator"):
        HistogramMechanism(1.0, 1.0).release(np.zeros(2))
    for wrong in (np.array([np.nan]), np.array([-1.0]), np.zeros((2, 2))):
        with pytest.raises(ConfigError, match="a histogram must be a vector of finite numbers"):
            HistogramMechanism(1.0, 1.0).release(wrong, rng)
