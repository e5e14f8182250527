"""Who is asked chunk by chunk, from the latest tokens: for text that changes its domain midway.

A window of T tokens begins with a prefix, which is given. What follows is predicted in chunks:
before each one every expert has a score from the tokens just read. One chunk as long as the window
is the decision of sequence level.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ConfigError

__all__ = ["Chunks", "at_home", "best_of", "token_scores"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chunks:
    """Where decisions are made in a window, and from what.

    Attributes:
        window: Tokens of a window, T.
        prefix: First tokens, which are given.
        every: Tokens of a chunk; 0: all that follows the prefix.
        last: How many of the latest tokens a decision is made from; 0: all.

    Raises:
        ConfigError: A number is out of range.
    """

    window: int
    prefix: int
    every: int = 0
    last: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.prefix < self.window:
            raise ConfigError(
                f"the prefix is {self.prefix} tokens of {self.window}; allowed: 1 to "
                f"{self.window - 1}"
            )
        if self.every < 0 or self.last < 0:
            raise ConfigError(
                f"chunks of {self.every} tokens decided from the last {self.last}; allowed: 0 or "
                "more"
            )

    @property
    def starts(self) -> Ints:
        """First token of each chunk, int64 [C]."""
        return np.arange(self.prefix, self.window, self.every or self.window, dtype=np.int64)

    @property
    def of_places(self) -> Ints:
        """Chunk of each prediction, int64 [T - 1]; the prefix counts as the first one's.

        >>> Chunks(window=7, prefix=2, every=2).of_places.tolist()  # of tokens 1 to 6
        [0, 0, 0, 1, 1, 2]
        """
        ahead = np.arange(1, self.window) - self.prefix
        return np.maximum(ahead, 0) // (self.every or self.window)

    def scores(self, per_token: npt.NDArray[np.floating]) -> Floats:
        """The experts' scores before each chunk: sums over the latest tokens, float64 [N, C, E].

        Args:
            per_token: What each token adds to each expert's score, [N, E, T].

        >>> chunks = Chunks(window=5, prefix=1, every=2, last=2)
        >>> chunks.scores(np.array([[[1.0, 2.0, 4.0, 8.0, 16.0]]])).tolist()  # 1, then 2 + 4
        [[[1.0], [6.0]]]
        """
        count, experts, length = per_token.shape
        sums = np.zeros((count, experts, length + 1))
        np.cumsum(per_token, axis=2, out=sums[:, :, 1:], dtype=np.float64)
        found: Floats = (sums[:, :, self.starts] - sums[:, :, self._begins]).transpose(0, 2, 1)
        return found

    def means(self, states: npt.NDArray[np.floating]) -> Floats:
        """The mean state of the tokens that each chunk is decided from, float64 [N, C, d].

        Args:
            states: A state of each token, [N, T, d]; of one chunk as long as the window the prefix
                is enough.

        >>> Chunks(window=5, prefix=2).means(np.array([[[1.0], [3.0], [8.0]]])).tolist()
        [[[2.0]]]
        """
        sums = self.scores(states.transpose(0, 2, 1))
        return sums / (self.starts - self._begins)[:, None]

    @property
    def _begins(self) -> Ints:
        """First of the tokens that each chunk is decided from, int64 [C]."""
        return np.maximum(self.starts - self.last, 0) if self.last else 0 * self.starts

    def loss(self, nats: npt.NDArray[np.floating], ids: Ints, weights: Floats) -> Floats:
        """What the mixture sum_k w_k p_k of each chunk's experts loses on every token, [N, T - 1].

        Args:
            nats: What each expert loses on all tokens but the first, [N, E, T - 1].
            ids: Who is asked in each chunk, [N, C, K].
            weights: Share of each of them, which add up to 1, [N, C, K].
        """
        chunk = self.of_places
        asked = np.take_along_axis(nats, ids[:, chunk].transpose(0, 2, 1), axis=1)
        with np.errstate(divide="ignore"):
            shares = np.log(weights[:, chunk]).transpose(0, 2, 1)
        return np.asarray(-np.logaddexp.reduce(shares - asked.astype(np.float64), axis=1))


def token_scores(nats: npt.NDArray[np.floating]) -> Floats:
    """What each token adds to the log-likelihood of each expert, [N, E, T]; the first adds nothing.

    Args:
        nats: What each expert loses on all tokens but the first, [N, E, T - 1].
    """
    return np.pad(-nats.astype(np.float64), ((0, 0), (0, 0), (1, 0)))


def at_home(scores: Floats, own_id: int, bias: float) -> Floats:
    """Scores with a preference for the expert of whoever asks, as `scores` are shaped.

    Args:
        scores: Log-likelihoods of each expert, [..., E].
        own_id: The expert at home.
        bias: What is added to its score, in nats: its prior odds are exp(bias) times the others'.
    """
    moved = scores.astype(np.float64)
    moved[..., own_id] += bias
    return moved


def best_of(scores: Floats, cheap: npt.NDArray[np.floating], count: int) -> Floats:
    """Scores among the best of a cheap gate; the others' are minus infinity.

    Only those that are left must read the prefix: their scores cost a pass each.

    Args:
        scores: What decides among them, [..., E].
        cheap: Scores of the cheap gate, [..., E], or of a shape that is repeated to that.
        count: How many are left; 0, or as many as there are: all.
    """
    if not 0 < count < scores.shape[-1]:
        return scores.astype(np.float64)
    best = np.argsort(-cheap, axis=-1, kind="stable")[..., :count]
    left = np.broadcast_to(best, (*scores.shape[:-1], count))
    found = np.full(scores.shape, -np.inf)
    np.put_along_axis(found, left, np.take_along_axis(scores, left, axis=-1), axis=-1)
    return found
