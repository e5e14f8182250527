"""Bits per byte and perplexity of text: by domain, by client, the worst, all; and differences.

A predictor's loss is ``nats`` [N, T - 1], the negative log-likelihood of every token but the first
of N windows. What counts are the scored tokens, and the bytes they stand for: bits per byte compare
models whatever their tokens are.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import DataError

__all__ = ["Difference", "TextScores", "paired_bootstrap", "text_scores"]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TextScores:
    """What a predictor lost on N windows.

    Attributes:
        nats: Loss over the scored tokens of each window, float64 [N].
        bytes: Bytes that these tokens stand for, int64 [N].
        tokens: How many tokens are scored, int64 [N].
    """

    nats: Floats
    bytes: Codes
    tokens: Codes

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of all windows together; NaN if nothing is scored."""
        return float(_ratio(self.nats.sum(), np.log(2) * self.bytes.sum()))

    @property
    def perplexity(self) -> float:
        """Perplexity per token of all windows together; NaN if nothing is scored."""
        return float(np.exp(_ratio(self.nats.sum(), self.tokens.sum())))

    def by(self, groups: Codes, count: int) -> Floats:
        """Bits per byte of each group of windows, float64 [count]; NaN where there are none.

        Args:
            groups: Group of each window, such as its domain or client, [N].
            count: How many groups there are.
        """
        nats = np.bincount(groups, weights=self.nats, minlength=count)
        sizes = np.bincount(groups, weights=self.bytes, minlength=count)
        return _ratio(nats, np.log(2) * sizes)

    def mean(self, groups: Codes, count: int) -> float:
        """Mean of `by` over the groups that have text, each counting alike.

        Args:
            groups: Group of each window, [N].
            count: How many groups there are.
        """
        return float(np.nanmean(self.by(groups, count)))

    def worst(self, groups: Codes, count: int) -> float:
        """Most bits per byte of a group.

        Args:
            groups: Group of each window, [N].
            count: How many groups there are.
        """
        return float(np.nanmax(self.by(groups, count)))


def _ratio(above: npt.ArrayLike, below: npt.ArrayLike) -> Floats:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    found: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return found


def text_scores(
    nats: npt.NDArray[np.floating], scored: npt.NDArray[np.bool_], sizes: Codes
) -> TextScores:
    """Sum a predictor's loss over what is scored of each window.

    Args:
        nats: Loss of every token but the first, [N, T - 1].
        scored: Which of them count, as ``TextSplit.scored`` tells, [N, T - 1].
        sizes: Bytes of these tokens, as ``TextSplit.scored_bytes`` tells, [N].

    Raises:
        DataError: The shapes do not fit, or a scored loss is NaN or below 0.

    >>> two = text_scores(np.log([[8.0, 2.0]]), np.array([[True, False]]), np.array([3]))
    >>> two.bits_per_byte, round(two.perplexity, 6)
    (1.0, 8.0)
    """
    if nats.shape != scored.shape or sizes.shape != nats.shape[:1]:
        raise DataError(
            f"losses of shape {nats.shape}, a mask of {scored.shape} and bytes of {sizes.shape} do "
            "not fit together; allowed: [N, T - 1], [N, T - 1] and [N]"
        )
    kept = np.where(scored, nats, 0.0)
    if not (kept >= 0).all():
        raise DataError("a loss is NaN or below 0: losses are negative log-likelihoods in nats")
    return TextScores(
        kept.sum(axis=1, dtype=np.float64), sizes, np.asarray(scored.sum(axis=1), np.int64)
    )


@dataclass(frozen=True)
class Difference:
    """Bits per byte of one predictor less those of another on the same windows.

    Attributes:
        value: The difference; below 0 the first is better.
        deviation: Standard deviation of the difference over draws of windows.
        low: 2.5 % of the draws are below it.
        high: 2.5 % of the draws are above it.
    """

    value: float
    deviation: float
    low: float
    high: float


def paired_bootstrap(
    first: TextScores,
    second: TextScores,
    groups: Codes,
    *,
    rng: np.random.Generator,
    draws: int = 1000,
) -> Difference:
    """How sure the difference of two predictors is: windows of each group are drawn again.

    Both are scored on the same windows in every draw. The figure is the mean over groups, each
    counting alike; with one group it is that of all windows together.

    Args:
        first: A predictor's scores.
        second: Another one's, on the same windows.
        groups: Group of each window, such as its domain, [N].
        rng: The only randomness.
        draws: How often windows are drawn.

    Raises:
        DataError: The windows differ, or there are none.
    """
    if not np.array_equal(first.bytes, second.bytes) or groups.shape != first.bytes.shape:
        raise DataError("two predictors are compared on the same windows, and these differ")
    if not first.bytes.sum():
        raise DataError("two predictors are compared on windows with scored text; there is none")
    found, means = [], []
    for code in np.unique(groups):
        rows = np.flatnonzero((groups == code) & (first.bytes > 0))
        if not len(rows):
            continue
        excess = (first.nats - second.nats)[rows] / np.log(2)
        sizes = first.bytes[rows]
        # how often each window is in a draw: as if rows were drawn one by one
        times = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
        found.append((times @ excess) / (times @ sizes))
        means.append(excess.sum() / sizes.sum())
    drawn = np.mean(found, axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(np.mean(means)), float(drawn.std()), float(low), float(high))
