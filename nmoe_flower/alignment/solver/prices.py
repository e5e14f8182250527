"""Expert prices: the dual of the joint assignment, solved by vectorised auction steps.

With a price per expert, every client takes its best ``k_i`` experts of ``D_ie - p_e`` on its own.
At the right prices, those free choices meet the load bounds. A step moves all prices at once to the
value at which each expert, the other prices unchanged, would have the load it should have.
"""

import numpy as np

from nmoe_flower.alignment.arrays import AnyFloats, Ints

__all__ = ["find_prices"]


_BLOCK = 1 << 20
_COLUMNS = 16
_DAMPING = (0.9, 0.6, 0.6)
_SAMPLES = ((2048, 25), (16384, 8), (131072, 4))  # clients, steps
_LAST_STEPS = 4


def find_prices(
    desirability: AnyFloats,
    counts: Ints,
    lo: AnyFloats,
    hi: AnyFloats,
    order: Ints,
    start: AnyFloats | None = None,
) -> AnyFloats:
    """Prices [experts] near the dual optimum.

    The first rows of ``order`` serve as a sample, whose prices start the search on a larger sample.

    Args:
        desirability: [clients, experts]; minus infinity where a pair is not allowed.
        counts: [clients]: how many experts each client takes. Those that take none or all do not
            count; the bounds are without them.
        lo: [experts]: the least load.
        hi: [experts]: the greatest load; ``lo.sum() <= counts.sum() <= hi.sum()``.
        order: [clients]: all rows in random order.
        start: Prices [experts] to start from; from samples, if there are none.
    """
    free = (counts > 0) & (counts < desirability.shape[1])
    total = counts[free].sum()
    if not total:
        return np.zeros(desirability.shape[1], dtype=desirability.dtype)
    prices = np.zeros(desirability.shape[1], dtype=desirability.dtype)
    if start is not None:
        return _search(desirability, counts, lo, hi, start.astype(desirability.dtype), _LAST_STEPS)
    for size, steps in _schedule(len(desirability)):
        rows = order[:size] if size < len(order) else slice(None)  # all of them are not copied
        some = counts[rows]
        share = some[free[rows]].sum() / total
        prices = _search(desirability[rows], some, lo * share, hi * share, prices, steps)
    return prices


def _schedule(clients: int) -> list[tuple[int, int]]:
    """Sizes of the growing samples, and how many steps each gets."""
    samples = [(size, steps) for size, steps in _SAMPLES if 2 * size < clients]
    return [*samples, (clients, (25, 4, 4, 2)[len(samples)])]


def _search(
    part: AnyFloats, counts: Ints, lo: AnyFloats, hi: AnyFloats, prices: AnyFloats, steps: int
) -> AnyFloats:
    best, least = prices, np.inf
    for step in range(steps):
        thresholds = _thresholds(part, counts, prices)
        wrong, change = _changes(part, prices, thresholds, lo, hi)
        if wrong < least:
            best, least = prices, wrong
        if wrong < 0.1 * len(prices):
            break
        prices = (prices + _DAMPING[step % 3] * change).astype(part.dtype)
    return best


def _thresholds(part: AnyFloats, counts: Ints, prices: AnyFloats) -> AnyFloats:
    """Per client, the worst score it takes and the best it leaves, [clients, 2]."""
    found = np.full((len(part), 2), np.inf, dtype=part.dtype)
    experts = part.shape[1]
    step = max(1, _BLOCK // experts)
    for count in np.unique(counts[(counts > 0) & (counts < experts)]):
        rows = np.flatnonzero(counts == count)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            scores = part[some] - prices
            scores.partition(experts - 1 - count, axis=1)
            found[some, 0] = scores[:, experts - count :].min(axis=1)
            found[some, 1] = scores[:, experts - 1 - count]
    return found


def _changes(
    part: AnyFloats, prices: AnyFloats, thresholds: AnyFloats, lo: AnyFloats, hi: AnyFloats
) -> tuple[float, AnyFloats]:
    """How many clients are misplaced, and the price changes [experts] that would help."""
    wrong = 0.0
    change = np.zeros_like(prices)
    for start in range(0, len(prices), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        scores = np.ascontiguousarray((part[:, columns] - prices[columns]).T)
        taken = scores > thresholds[:, 1]
        margins = scores - np.where(taken, thresholds[:, 1], thresholds[:, 0])
        loads = taken.sum(axis=1)
        wrong += float(np.maximum(loads - hi[columns], 0).sum())
        wrong += float(np.maximum(lo[columns] - loads, 0).sum())
        for column in range(len(margins)):
            at = start + column
            below = _level(margins[column], int(np.rint(hi[at])))
            above = below if lo[at] == hi[at] else _level(margins[column], int(np.rint(lo[at])))
            goal = np.clip(0.0, prices[at] + below, prices[at] + max(above, below))
            change[at] = goal - prices[at]
    return wrong, np.nan_to_num(change, posinf=0.0, neginf=0.0)


def _level(margins: AnyFloats, load: int) -> float:
    """The price change that leaves an expert the given load; ``margins`` [clients] is reordered."""
    last = len(margins) - 1
    if load <= 0:
        return float(margins.max())
    if load > last:
        return float(margins.min())
    margins.partition(last - load)
    following = margins[last - load]
    least = margins[last - load + 1 :].min()
    return float((least + following) / 2) if np.isfinite(following) else float(least)
