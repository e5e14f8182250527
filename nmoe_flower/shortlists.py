"""Which experts a client learns the gate from: its own, the nearest, some at random."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ConfigError
from nmoe_flower.nearest import topk
from nmoe_flower.seeds import numpy_stream

__all__ = ["Shortlists", "draw_shortlists"]


@dataclass(frozen=True)
class Shortlists:
    """S experts of N for every client.

    Attributes:
        experts: Ids of the experts, int64 [N, S]; a client's own, then the nearest, then others.
        log_weights: Minus the log of the probability that each was to be on the list, [N, S].
    """

    experts: npt.NDArray[np.int64]
    log_weights: npt.NDArray[np.float32]

    def askers(self) -> list[npt.NDArray[np.int64]]:
        """For every expert the clients that have it on their lists, in order."""
        size = self.experts.shape[1]
        order = np.argsort(self.experts, axis=None, kind="stable")
        counts = np.bincount(self.experts.reshape(-1), minlength=len(self.experts))
        return list(np.split(order // size, np.cumsum(counts)[:-1]))


def draw_shortlists(means: npt.NDArray[np.floating], size: int, *, seed: int) -> Shortlists:
    """Draw a shortlist for every client.

    Of the places that its own expert leaves, half (rounded down) go to the experts of the clients
    whose means are nearest to its own, and the others to experts drawn from all the rest
    alike, without replacement. So an expert of the rest is drawn with probability R / (N - 1 - M),
    if R are drawn and M are nearest, and the others are there for sure.

    Args:
        means: What every client is known by, the mean of its normalised latents, [N, D]; distances
            are of float32 at least, also between means in float16.
        size: Experts on a list, S, from 1 to N.
        seed: The seed of the run.

    Raises:
        ConfigError: ``size`` is out of range.

    >>> line = np.arange(6.0)[:, None]
    >>> drawn = draw_shortlists(line, 4, seed=0)
    >>> drawn.experts[2, :2].tolist(), drawn.experts.shape
    ([2, 1], (6, 4))
    >>> np.exp(drawn.log_weights[2]).round(6).tolist()  # 2 of the 4 others
    [1.0, 1.0, 2.0, 2.0]
    """
    count = len(means)
    if not 1 <= size <= count:
        raise ConfigError(f"a shortlist has 1 to {count} of {count} experts, got {size}")
    near = (size - 1) // 2
    drawn = size - 1 - near
    rest = count - 1 - near
    experts = np.empty((count, size), np.int64)
    experts[:, 0] = np.arange(count)
    experts[:, 1 : 1 + near] = _nearest(means, near)
    for client in range(count):
        rng = numpy_stream(seed, "shortlist", client)
        ranks = np.sort(rng.choice(rest, size=drawn, replace=False))
        experts[client, 1 + near :] = _without(np.sort(experts[client, : 1 + near]), ranks)
    log_weights = np.zeros((count, size), np.float32)
    if drawn:
        log_weights[:, 1 + near :] = np.log(rest / drawn)
    return Shortlists(experts, log_weights)


def _without(taken: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64]) -> Sequence[int]:
    """The ids that have these ranks among all that are not ``taken``; both in order."""
    ids = ranks.copy()
    for one in taken:
        ids += ids >= one
    return ids  # type: ignore[return-value]


def _nearest(points: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """The ``count`` nearest others of each of points [N, D], nearest first: ids [N, count].

    The nearest are those of the largest a . b - |b|^2 / 2, which is an inner product, too.
    """
    if not count:
        return np.empty((len(points), 0), np.int64)
    wide = points.astype(np.promote_types(points.dtype, np.float32), copy=False)  # not in halves
    centred = wide - wide.mean(axis=0)
    squares = np.einsum("nd,nd->n", centred, centred)
    queries = np.column_stack([centred, np.ones(len(points))])
    ids, _ = topk(queries, np.column_stack([centred, -squares / 2]), count + 1)
    own = ids == np.arange(len(points))[:, None]
    own[~own.any(axis=1), -1] = True  # one of more than ``count`` equal points: the last is dropped
    others: npt.NDArray[np.int64] = ids[~own].reshape(len(points), count)
    return others
