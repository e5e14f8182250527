"""Gates of text: how likely each token is at each client, and who is asked.

``unigram`` is naive Bayes: each client tells how often its text has each token. Other gates are
linear in the mean hidden state of the tokens that were read. How scores of tokens become decisions,
and these a mixture: `Chunks`.
"""

import numpy as np
import numpy.typing as npt

from nmoe_flower.models.gate import check_top_k
from nmoe_flower.models.text_chunks import Chunks, at_home, best_of, token_scores

__all__ = [
    "UNSEEN",
    "posterior_routes",
    "state_scores",
    "text_routes",
    "token_frequencies",
    "unigram_scores",
]

Floats = npt.NDArray[np.floating]
UNSEEN = 0.5  # of an occurrence, for every token (Jeffreys)


def token_frequencies(
    counts: npt.NDArray[np.floating] | npt.NDArray[np.integer], smoothing: float = UNSEEN
) -> npt.NDArray[np.float16]:
    """Log-probability of every token in a client's text, float16 [V]: two bytes a token.

    Args:
        counts: How often each token stands there, 0 or more, [V].
        smoothing: What is added to every count, above 0.
    """
    found = counts.astype(np.float64) + smoothing
    return np.asarray(np.log(found / found.sum()), np.float16)


def unigram_scores(tokens: npt.NDArray[np.integer], frequencies: Floats) -> npt.NDArray[np.float64]:
    """Log-likelihood of each token as if it were drawn from each client's, [N, E, T].

    Args:
        tokens: Tokens of N windows, [N, T].
        frequencies: Log-probabilities of every client, [E, V].

    >>> frequencies = np.log([[0.9, 0.1], [0.2, 0.8]])
    >>> unigram_scores(np.array([[0, 0], [1, 1]]), frequencies).sum(axis=2).argmax(axis=1)
    array([0, 1])
    """
    found: npt.NDArray[np.float64] = frequencies.astype(np.float64).T[tokens].transpose(0, 2, 1)
    return found


def state_scores(
    means: npt.NDArray[np.floating], weight: npt.NDArray[np.floating], bias: Floats
) -> npt.NDArray[np.float64]:
    """Scores of a linear gate of mean hidden states, [..., E].

    Args:
        means: Mean states, [..., d].
        weight: A row per expert, [E, d].
        bias: A number per expert, [E].
    """
    return np.asarray(means.astype(np.float64) @ weight.T + bias, np.float64)


def text_routes(
    scores: Floats, top_k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The k best experts, and their share by Bayes' rule among them: [..., K] each.

    Equal scores go to the lower id first.

    Args:
        scores: Log-likelihoods, [..., E].
        top_k: How many experts are asked, K.

    Raises:
        ConfigError: ``top_k`` is not in 1..E.
    """
    check_top_k(top_k, scores.shape[-1])
    ids = np.argsort(-scores, axis=-1, kind="stable")[..., :top_k]
    best = np.take_along_axis(scores, ids, axis=-1).astype(np.float64)
    weights = np.exp(best - best.max(axis=-1, keepdims=True))
    return ids, weights / weights.sum(axis=-1, keepdims=True)


def posterior_routes(
    nats: Floats,
    cheap: npt.NDArray[np.float64],
    tokens: Chunks,
    count: int,
    *,
    own_id: int,
    bias: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The posterior of experts: who is weighed at each token, by all that were read before it.

    Args:
        nats: What each expert loses on all tokens but the first, [N, E, T - 1].
        cheap: Scores that say once who is weighed, [N, 1, E]; or each time, [N, C, E].
        tokens: Chunks of one token, C of them.
        count: How many experts are weighed, K.
        own_id: The expert at home, of whoever asks.
        bias: What is added to its log-likelihood, as by `at_home`.

    Returns:
        Their ids and their shares, [N, C, K].
    """
    likely = at_home(tokens.scores(token_scores(nats)), own_id, bias)
    return text_routes(best_of(likely, cheap, count), count)
