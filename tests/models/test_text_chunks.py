"""Chunk by chunk: when it is decided, from which tokens, and what the mixture loses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import (
    Chunks,
    at_home,
    best_of,
    posterior_routes,
    token_scores,
)


def losses(seed: int = 0, windows: int = 3, experts: int = 4, length: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 5, (windows, experts, length - 1))


def test_decisions_of_chunks_are_made_from_what_was_just_read() -> None:
    """12 tokens: 4 given, chunks at 4, 7 and 10; tokens 2, 3 decide for the first."""
    chunks = Chunks(window=12, prefix=4, every=3, last=2)
    assert chunks.starts.tolist() == [4, 7, 10]
    per_token = 2.0 ** np.arange(12)[None, None]
    assert chunks.scores(per_token)[0, :, 0].tolist() == [4 + 8, 32 + 64, 256 + 512]
    assert chunks.of_places.tolist() == [0] * 6 + [1] * 3 + [2] * 2  # of tokens 1 to 11


def test_one_chunk_decides_from_the_prefix() -> None:
    chunks = Chunks(window=12, prefix=4)
    assert chunks.starts.tolist() == [4]
    assert chunks.scores(np.ones((2, 3, 12))).tolist() == [[[4.0] * 3]] * 2
    assert chunks.of_places.tolist() == [0] * 11


@given(st.integers(2, 30), st.data())
def test_chunks_follow_each_other(window: int, data: st.DataObject) -> None:
    """No decision looks at what it predicts, and every prediction has one."""
    prefix = data.draw(st.integers(1, window - 1))
    every, last = data.draw(st.integers(0, window)), data.draw(st.integers(0, window))
    chunks = Chunks(window, prefix, every, last)
    starts, of_places = chunks.starts, chunks.of_places
    assert (np.diff(of_places) >= 0).all()
    assert of_places[-1] == len(starts) - 1
    for place, chunk in enumerate(of_places):
        assert starts[chunk] <= max(place + 1, prefix)
    # a token that is 1 at one place only is seen by those decisions that come after it, if recent
    token = data.draw(st.integers(0, window - 1))
    seen = chunks.scores(np.eye(window)[token][None, None])[0, :, 0] > 0
    assert seen.tolist() == [
        token < start and (not last or token >= start - last) for start in starts.tolist()
    ]


@given(st.integers(1, 11), st.integers(0, 12), st.integers(1, 4), st.integers(0, 50))
def test_a_mixture_loses_no_more_than_its_worst_expert(
    prefix: int, every: int, asked: int, seed: int
) -> None:
    """And no less than its best; the mean in probabilities, so below the mean loss (Jensen)."""
    nats = losses(seed)
    chunks = Chunks(12, prefix, every)
    rng = np.random.default_rng(seed)
    count = len(chunks.starts)
    ids = np.stack([[rng.permutation(4)[:asked] for _ in range(count)] for _ in range(3)])
    weights = rng.dirichlet(np.ones(asked), (3, count))
    lost = chunks.loss(nats, ids, weights)
    assert lost.shape == (3, 11)
    for place, chunk in enumerate(chunks.of_places):
        for row in range(3):
            own = nats[row, ids[row, chunk], place]
            expected = -np.log((weights[row, chunk] * np.exp(-own)).sum())
            assert lost[row, place] == pytest.approx(expected)
            assert own.min() - 1e-9 <= lost[row, place] <= (weights[row, chunk] @ own) + 1e-9


@given(experts=st.integers(1, 4), bias=st.floats(0, 5), seed=st.integers(0, 2**32 - 1))
def test_a_posterior_of_alike_experts_stays_the_prior(experts: int, bias: float, seed: int) -> None:
    """They tell nothing of each other: each keeps its share, and the mixture is any of them."""
    lost = np.random.default_rng(seed).uniform(0, 9, (2, 1, 7))
    nats = np.repeat(lost, experts, axis=1)
    each_token = Chunks(window=8, prefix=3, every=1)
    cheap = np.zeros((2, 1, experts))
    ids, weights = posterior_routes(nats, cheap, each_token, experts, own_id=0, bias=bias)
    prior = np.exp(np.where(ids == 0, bias, 0.0))
    assert weights == pytest.approx(prior / prior.sum(axis=-1, keepdims=True))
    assert each_token.loss(nats, ids, weights) == pytest.approx(lost[:, 0])


def test_a_posterior_is_that_of_those_whom_a_cheap_gate_chose() -> None:
    """By hand: what was read is likelier of expert 0 than of 2 by e, and 2 is at home by e^2."""
    nats = np.array([[[1.0, 3.0], [0.5, 3.0], [2.0, 3.0]]])
    tokens = Chunks(window=3, prefix=2, every=1)
    cheap = np.array([[[2.0, 0.0, 1.0]]])
    ids, weights = posterior_routes(nats, cheap, tokens, 2, own_id=2, bias=2.0)
    assert ids.tolist() == [[[2, 0]]]
    assert weights[0, 0, 0] == pytest.approx(np.e / (np.e + 1))


def test_an_expert_that_has_no_share_is_not_heard() -> None:
    nats = np.array([[[1.0], [np.inf]]])
    lost = Chunks(2, 1).loss(nats, np.array([[[0, 1]]]), np.array([[[1.0, 0.0]]]))
    assert lost.tolist() == [[1.0]]


def test_text_that_changes_midway_goes_to_another_expert() -> None:
    """Experts predict one half each, at 1 nat against 4; only chunks find the second one."""
    nats = np.full((1, 2, 15), 4.0)
    nats[0, 0, :7] = nats[0, 1, 7:] = 1.0
    means = {}
    for every, last in ((0, 0), (2, 2)):
        chunks = Chunks(16, 4, every, last)
        ids = chunks.scores(token_scores(nats)).argmax(axis=2)[..., None]
        lost = chunks.loss(nats, ids, np.ones(ids.shape))
        means[every] = lost[0, 3:].mean()
    # of 12 predictions 4 are right by the first expert; chunks are 2 tokens late, so 10 are right
    assert means == {0: (4 * 1 + 8 * 4) / 12, 2: (10 * 1 + 2 * 4) / 12}


def test_scores_lean_home_and_keep_to_the_best() -> None:
    scores = np.array([[1.0, 3.0, 2.0]])
    assert at_home(scores, 0, 2.5).tolist() == [[3.5, 3.0, 2.0]]
    assert scores.tolist() == [[1.0, 3.0, 2.0]]
    left = best_of(scores, np.array([[5.0, 1.0, 5.0]]), 2)  # equal ones: the lower id first
    assert left.tolist() == [[1.0, -np.inf, 2.0]]
    assert best_of(scores, scores, 0).tolist() == scores.tolist()
    assert best_of(scores, scores, 3).tolist() == scores.tolist()


def test_the_first_token_tells_nothing_of_an_expert() -> None:
    assert token_scores(np.array([[[2.0, 3.0]]])).tolist() == [[[0.0, -2.0, -3.0]]]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((12, 12), "the prefix is 12 tokens of 12; allowed: 1 to 11"),
        ((12, 0), "the prefix is 0 tokens of 12"),
        ((12, 4, -1), "chunks of -1 tokens decided from the last 0"),
        ((12, 4, 1, -2), "chunks of 1 tokens decided from the last -2"),
    ],
)
def test_chunks_that_cannot_be_are_refused(numbers: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Chunks(*numbers)
