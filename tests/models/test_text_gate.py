import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import Chunks, text_routes, token_frequencies, unigram_scores


def counted(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    return np.bincount(tokens.ravel(), minlength=vocab_size)


def test_frequencies_are_a_distribution_in_two_bytes_a_token() -> None:
    found = token_frequencies(counted(np.array([[0, 1], [1, 1]], np.uint16), 5))
    assert found.nbytes == 10
    probabilities = np.exp(found.astype(np.float64))
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-2)
    assert probabilities == pytest.approx([1.5 / 6.5, 3.5 / 6.5, *[0.5 / 6.5] * 3], rel=1e-2)


def test_a_text_goes_where_its_tokens_are_frequent() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(10 * client, 10 * client + 15, (20, 8)) for client in range(3)]
    frequencies = np.stack([token_frequencies(counted(text, 40)) for text in texts])
    for client, text in enumerate(texts):
        ids, weights = text_routes(unigram_scores(text, frequencies).sum(axis=2), 1)
        assert (ids == client).mean() > 0.8
        assert np.array_equal(weights, np.ones((20, 1)))


def test_every_token_has_a_likelihood_of_its_own() -> None:
    frequencies = np.log([[0.75, 0.25], [0.5, 0.5]])
    found = np.exp(unigram_scores(np.array([[0, 1, 1]], np.uint16), frequencies))
    assert found == pytest.approx(np.array([[[0.75, 0.25, 0.25], [0.5] * 3]]))


def test_more_smoothing_makes_frequencies_more_alike() -> None:
    counts = np.array([90.0, 0.0])
    assert np.exp(token_frequencies(counts, 5.0).astype(float)) == pytest.approx([0.95, 0.05], 1e-2)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(1, 4))
def test_a_mixture_is_the_weighted_mean_of_probabilities(seed: int, top_k: int) -> None:
    rng = np.random.default_rng(seed)
    nats = rng.exponential(2.0, (5, 4, 7)).astype(np.float32)
    ids, weights = text_routes(rng.normal(size=(5, 4)) * 3, top_k)
    assert weights.sum(axis=1) == pytest.approx(1.0)
    wanted = sum(weights[:, k, None] * np.exp(-nats[np.arange(5), ids[:, k]]) for k in range(top_k))
    lost = Chunks(8, 1).loss(nats, ids[:, None], weights[:, None])
    assert np.exp(-lost) == pytest.approx(wanted, rel=1e-5)


def test_weights_follow_bayes_and_underflow_to_the_best() -> None:
    ids, weights = text_routes(np.array([[0.0, np.log(3.0), -1e5]]), 3)
    assert ids.tolist() == [[1, 0, 2]]
    assert weights[0] == pytest.approx([0.75, 0.25, 0.0])
    lost = Chunks(3, 1).loss(np.ones((1, 3, 2)), ids[:, None], weights[:, None])
    assert np.isfinite(lost).all()


@pytest.mark.parametrize("top_k", [0, 3])
def test_more_experts_than_there_are_cannot_be_asked(top_k: int) -> None:
    with pytest.raises(ConfigError, match="between 1 and the number of experts, 2"):
        text_routes(np.zeros((1, 2)), top_k)
