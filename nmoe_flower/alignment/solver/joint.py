"""The joint assignment: the most desirable one within capacities and load bounds.

Maximise ``sum x_ie D_ie`` subject to ``sum_e x_ie <= k_i`` and ``lo_e <= sum_i x_ie <= hi_e``, x in
{0, 1}: a transportation problem, so the optimum of the linear program is integral. Prices come from
auction steps (`prices`), the exact end from shortest augmenting paths (`flow`).
"""

from dataclasses import dataclass

import numpy as np

from nmoe_flower.alignment.arrays import AnyFloats, Bools, Ints
from nmoe_flower.alignment.solver.bounds import (
    Bound,
    fillable,
    load_bounds,
)
from nmoe_flower.alignment.solver.flow import ExpertGraph
from nmoe_flower.alignment.solver.prices import find_prices
from nmoe_flower.alignment.solver.ties import Keys, top
from nmoe_flower.errors import ConfigError

__all__ = ["Standing", "price_bound", "solve_joint"]

_ROWS = 1 << 14  # at a time, so that memory beyond the matrix is one byte per pair and choice
_SHARING = 4  # clients per expert, at least, that share the burden of those who changed


@dataclass(eq=False)
class Standing:
    """What a joint assignment leaves for the next one; empty at first.

    Attributes:
        chosen: Who holds what, bool [clients, experts].
        prices: What each expert cost at the optimum when everybody was last assigned, float
            [experts]; they prove how good an assignment is, see `price_bound`.
    """

    chosen: Bools | None = None
    prices: AnyFloats | None = None


def solve_joint(
    desirability: AnyFloats,
    counts: Ints,
    keys: Keys,
    *,
    lo: Bound = None,
    hi: Bound = None,
    standing: Standing | None = None,
    changed: Bools | None = None,
) -> Bools:
    """The optimal assignment, bool [clients, experts].

    As many slots are filled as the upper bounds allow, then desirability decides. If they can all
    be filled and every pair is allowed, the matrix is not copied: memory beside it is about two
    bytes per pair.

    Args:
        desirability: [clients, experts]; minus infinity: not allowed.
        counts: [clients]: slots, at most the experts the client may hold.
        keys: [clients]: see `ties.client_keys`; they decide the order of the work, so that the
            result does not depend on the order of the rows.
        lo: Least load per expert.
        hi: Greatest load per expert.
        standing: The last assignment, which is brought up to date; see `changed`.
        changed: bool [clients]: whose row or slots are not as they were. With a last assignment,
            only they are assigned, and as many others by lot (at least four per expert) to share
            the burden; the rest keeps what it has, unless the bounds cannot be met so. None:
            everybody is assigned.

    Raises:
        InfeasibleBoundsError: No assignment meets the bounds.
    """
    experts = desirability.shape[1]
    allowed = None if np.isfinite(desirability.min()) else np.isfinite(desirability)
    low, high = load_bounds(counts, allowed, experts, lo, hi)
    if standing is not None and changed is not None and _fits(standing, desirability):
        assert standing.chosen is not None
        free = changed if allowed is None else changed | (standing.chosen & ~allowed).any(axis=1)
        mended = _mend(desirability, counts, keys, low, high, standing, free)
        if mended is not None:
            standing.chosen = mended
            return mended
    chosen, prices = _solve(desirability, counts, keys, low, high)
    if standing is not None:
        standing.chosen, standing.prices = chosen, prices
    return chosen


def price_bound(
    desirability: AnyFloats,
    capacity: Ints,
    prices: AnyFloats,
    *,
    lo: Bound = None,
    hi: Bound = None,
) -> float:
    """What no assignment that fills all slots within the load bounds is worth more than.

    By duality: every client takes what is best for it at the prices, and the prices are paid back
    for as many clients as each expert may have. At the optimum's own prices, nothing is lost.

    Args:
        desirability: What each pair is worth, [clients, experts]; minus infinity: not allowed.
        capacity: How many experts each client takes, int [clients].
        prices: Any prices, float [experts]; those of a `Standing` are near the best.
        lo: Least clients per expert; an even share by default.
        hi: Most clients per expert; an even share by default.

    >>> wanted = np.array([[0.9, 0.5], [0.8, 0.1]])
    >>> round(price_bound(wanted, np.array([1, 1]), np.array([0.5, 0.0])), 6)
    1.3
    """
    allowed = None if np.isfinite(desirability.min()) else np.isfinite(desirability)
    experts = desirability.shape[1]
    able = experts if allowed is None else allowed.sum(axis=1)
    counts = np.minimum(capacity, able)
    low, high = load_bounds(counts, allowed, experts, lo, hi)
    worth = float(np.where(prices > 0, prices * high, prices * low).sum())
    taken = np.arange(experts)
    for begin in range(0, len(counts), _ROWS):
        some = slice(begin, begin + _ROWS)
        scores = np.sort(desirability[some] - prices.astype(float), axis=1)
        worth += float(scores[taken >= experts - counts[some, None]].sum())
    return worth


def _solve(
    desirability: AnyFloats,
    counts: Ints,
    keys: Keys,
    low: Ints,
    high: Ints,
    start: AnyFloats | None = None,
) -> tuple[Bools, AnyFloats]:
    """Everybody within feasible bounds, from ``start`` prices if there are any."""
    clients, experts = desirability.shape
    high = np.minimum(high, clients)
    order = np.argsort(keys, kind="stable")
    values = desirability
    if not np.isfinite(values.min()) or fillable(counts, high) < counts.sum():
        values, low, high = _with_idle(values, counts, low, high)
        start = None
    full = int((counts == values.shape[1]).sum())
    prices = find_prices(
        values,
        counts,
        np.maximum(low - full, 0).astype(float),
        (high - full).astype(float),
        order,
        start,
    )
    held = np.empty((values.shape[1], clients), dtype=bool)
    for begin in range(0, clients, _ROWS):
        some = order[begin : begin + _ROWS]
        held[:, begin : begin + _ROWS] = top(values[some] - prices, counts[some], keys[some]).T
    graph = ExpertGraph(values, order, held, prices, low, high)
    graph.solve()
    result = np.zeros((clients, experts), dtype=bool)
    for begin in range(0, clients, _ROWS):
        result[order[begin : begin + _ROWS]] = held[:experts, begin : begin + _ROWS].T
    return result, graph.prices[:experts]


def _mend(
    desirability: AnyFloats,
    counts: Ints,
    keys: Keys,
    low: Ints,
    high: Ints,
    standing: Standing,
    changed: Bools,
) -> Bools | None:
    """The last assignment with those who changed assigned anew; None if that cannot be."""
    last = standing.chosen
    assert last is not None
    free = changed | (last.sum(axis=1) != counts)
    others = np.flatnonzero(~free)
    most = min(max(int(free.sum()), _SHARING * len(low)), len(others))
    if len(others) - most < len(counts) // 2:  # from the start is as fast
        return None
    free[others[np.argpartition(keys[others], most)[:most]]] = True
    rows = np.flatnonzero(free)
    fixed = last.sum(axis=0) - last[rows].sum(axis=0)
    part, slots = desirability[rows], counts[rows]
    allowed = None if np.isfinite(part.min(initial=0.0)) else np.isfinite(part)
    try:
        least, greatest = load_bounds(
            slots, allowed, len(fixed), np.maximum(low - fixed, 0), high - fixed
        )
    except ConfigError:
        return None  # those who stay hold too many of one expert, or too few can hold another
    found, _ = _solve(part, slots, keys[rows], least, greatest, standing.prices)
    if found.sum() < slots.sum():
        return None  # among all there may be room
    chosen = last.copy()
    chosen[rows] = found
    return chosen


def _fits(standing: Standing, desirability: AnyFloats) -> bool:
    return standing.chosen is not None and standing.chosen.shape == desirability.shape


def _with_idle(values: AnyFloats, slots: Ints, lo: Ints, hi: Ints) -> tuple[AnyFloats, Ints, Ints]:
    """Add columns for slots that stay free, so bad that no path of swaps is worth one more."""
    clients, experts = values.shape
    extra = int(slots.max(initial=0))
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    price = least - (2 * (experts + extra) + 2) * max(most - least, 1.0)
    idle = np.full((clients, extra), price)
    none, all_ = np.zeros(extra, dtype=np.int64), np.full(extra, clients, dtype=np.int64)
    wide = np.hstack([values.astype(float), idle])
    return wide, np.concatenate([lo, none]), np.concatenate([hi, all_])
