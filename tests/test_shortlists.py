"""Whom a client learns the gate from, and with which weights."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.shortlists import draw_shortlists


def points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.data())
def test_every_list_has_oneself_the_nearest_and_others_once(
    count: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, count))
    seed = data.draw(st.integers(0, 5))
    drawn = draw_shortlists(points(count), size, seed=seed)
    near = (size - 1) // 2
    distances = ((points(count)[:, None] - points(count)[None]) ** 2).sum(axis=2)
    for client, listed in enumerate(drawn.experts.tolist()):
        assert listed[0] == client
        assert len(set(listed)) == size
        assert set(listed) <= set(range(count))
        others = [one for one in np.argsort(distances[client]).tolist() if one != client]
        assert listed[1 : 1 + near] == others[:near]
    rest, places = count - 1 - near, size - 1 - near
    weights = [1.0] * (1 + near) + [rest / places if places else 1.0] * places
    np.testing.assert_allclose(np.exp(drawn.log_weights), np.tile(weights, (count, 1)), rtol=1e-5)
    if size == count:
        assert not drawn.log_weights.any()


def test_every_other_expert_is_as_likely_as_the_weights_say() -> None:
    """Client 0 of 9 with 5 places: 2 of 6 at random, in 900 draws each 300 +- 14 times.

    Within 5 deviations; that one of 6 is not has p = 3e-6. All 15 pairs occur: 60 +- 7.5 each.
    """
    seen = np.zeros(9, int)
    pairs: dict[tuple[int, ...], int] = {}
    line = np.arange(9.0)[:, None]
    for seed in range(900):
        listed = draw_shortlists(line, 5, seed=seed).experts[0]
        seen[listed] += 1
        pair = tuple(sorted(listed[3:].tolist()))
        pairs[pair] = pairs.get(pair, 0) + 1
    assert seen[:3].tolist() == [900] * 3
    assert np.abs(seen[3:] - 300).max() < 5 * 14.2
    assert set(pairs) == set(itertools.combinations(range(3, 9), 2))
    assert max(abs(count - 60) for count in pairs.values()) < 5 * 7.5


def test_askers_are_the_lists_read_the_other_way() -> None:
    drawn = draw_shortlists(points(12), 4, seed=1)
    for expert, clients in enumerate(drawn.askers()):
        assert clients.tolist() == [c for c in range(12) if expert in drawn.experts[c]]


@pytest.mark.parametrize("size", [0, 6])
def test_a_list_longer_than_all_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"1 to 5 of 5 experts, got {size}"):
        draw_shortlists(points(5), size, seed=0)


def test_equal_means_are_no_reason_to_fail() -> None:
    drawn = draw_shortlists(np.zeros((6, 2)), 5, seed=0)
    assert all(len(set(listed)) == 5 for listed in drawn.experts.tolist())


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_means_in_float16_have_the_neighbours_of_the_same_numbers_in_float64(scale: float) -> None:
    """Squares of 512 numbers of about 40 add up to 800,000: float16 ends at 65,504."""
    means = (scale * np.random.default_rng(0).normal(size=(40, 512))).astype(np.float16)
    halves, doubles = (draw_shortlists(m, 9, seed=0) for m in (means, means.astype(np.float64)))
    np.testing.assert_array_equal(halves.experts, doubles.experts)
