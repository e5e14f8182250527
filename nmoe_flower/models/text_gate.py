"""Gates of text: who is asked, from the first tokens of a window; and what mixtures lose.

``unigram`` is naive Bayes: each client tells how often its text has each token. ``likelihood``
lets every expert predict the first tokens.
"""

import numpy as np
import numpy.typing as npt

from nmoe_flower.models.gate import check_top_k

__all__ = [
    "likelihood_scores",
    "mixture_loss",
    "text_routes",
    "token_frequencies",
    "unigram_scores",
]

Floats = npt.NDArray[np.floating]
_UNSEEN = 0.5  # of an occurrence, for every token (Jeffreys)


def token_frequencies(tokens: npt.NDArray[np.integer], vocab_size: int) -> npt.NDArray[np.float16]:
    """Log-probability of every token in a client's text, float16 [V]: two bytes a token.

    Args:
        tokens: Tokens of all windows of the client, any shape.
        vocab_size: Number of tokens, V.
    """
    counts = np.bincount(tokens.ravel(), minlength=vocab_size) + _UNSEEN
    return np.asarray(np.log(counts / counts.sum()), np.float16)


def unigram_scores(tokens: npt.NDArray[np.integer], frequencies: Floats) -> npt.NDArray[np.float64]:
    """Log-likelihood of tokens as if they were drawn from each client's, [N, E].

    Args:
        tokens: The first tokens of N windows, [N, P].
        frequencies: Log-probabilities of every client, [E, V].

    >>> frequencies = np.log([[0.9, 0.1], [0.2, 0.8]])
    >>> unigram_scores(np.array([[0, 0], [1, 1]]), frequencies).argmax(axis=1)
    array([0, 1])
    """
    found: npt.NDArray[np.float64] = frequencies.astype(np.float64).T[tokens].sum(axis=1)
    return found


def likelihood_scores(nats: Floats, prefix: int) -> npt.NDArray[np.float64]:
    """Log-likelihood that each expert gives the first tokens, [N, E].

    Args:
        nats: What each expert loses on all tokens but the first, [N, E, T - 1].
        prefix: How many tokens are given, P; the first of them nobody predicts.
    """
    found: npt.NDArray[np.float64] = -nats[:, :, : prefix - 1].sum(axis=2, dtype=np.float64)
    return found


def text_routes(
    scores: Floats, top_k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The k best experts, and their share by Bayes' rule among them: [N, K] each.

    Equal scores go to the lower id first.

    Args:
        scores: Log-likelihoods, [N, E].
        top_k: How many experts are asked, K.

    Raises:
        ConfigError: ``top_k`` is not in 1..E.
    """
    check_top_k(top_k, scores.shape[1])
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    best = np.take_along_axis(scores, ids, axis=1).astype(np.float64)
    weights = np.exp(best - best.max(axis=1, keepdims=True))
    return ids, weights / weights.sum(axis=1, keepdims=True)


def mixture_loss(
    nats: Floats, ids: npt.NDArray[np.int64], weights: Floats
) -> npt.NDArray[np.float64]:
    """What the mixture sum_k w_k p_k loses on every token, [N, T - 1].

    Args:
        nats: What each expert loses, [N, E, T - 1].
        ids: Who is asked, [N, K].
        weights: Shares of those that are asked, [N, K].

    >>> nats = -np.log([[[0.5], [0.1]]])
    >>> lost = mixture_loss(nats, np.array([[0, 1]]), np.array([[0.5, 0.5]]))
    >>> float(np.exp(-lost[0, 0]).round(3))
    0.3
    """
    asked = np.take_along_axis(nats, ids[:, :, None], axis=1).astype(np.float64)
    with np.errstate(divide="ignore"):
        shares = np.log(weights)[:, :, None]
    return np.asarray(-np.logaddexp.reduce(shares - asked, axis=1))
