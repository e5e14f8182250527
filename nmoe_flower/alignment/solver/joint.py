"""The joint assignment: the most desirable one within capacities and load bounds.

Maximise ``sum x_ie D_ie`` subject to ``sum_e x_ie <= k_i`` and ``lo_e <= sum_i x_ie <= hi_e``, x in
{0, 1}: a transportation problem, so the optimum of the linear program is integral. Prices come from
auction steps (`prices`), the exact end from shortest augmenting paths (`flow`).
"""

import numpy as np

from nmoe_flower.alignment.arrays import AnyFloats, Bools, Ints
from nmoe_flower.alignment.solver.bounds import Bound, fillable, load_bounds
from nmoe_flower.alignment.solver.flow import ExpertGraph
from nmoe_flower.alignment.solver.prices import find_prices
from nmoe_flower.alignment.solver.ties import Keys, top

__all__ = ["solve_joint"]


def solve_joint(
    desirability: AnyFloats, counts: Ints, keys: Keys, *, lo: Bound = None, hi: Bound = None
) -> Bools:
    """The optimal assignment, bool [clients, experts].

    As many slots are filled as the upper bounds allow, then desirability decides.

    Args:
        desirability: [clients, experts]; minus infinity: not allowed.
        counts: [clients]: slots, at most the experts the client may hold.
        keys: [clients]: see `ties.client_keys`; they decide the order of the work, so that the
            result does not depend on the order of the rows.
        lo: Least load per expert.
        hi: Greatest load per expert.

    Raises:
        InfeasibleBoundsError: No assignment meets the bounds.
    """
    clients, experts = desirability.shape
    allowed = None if np.isfinite(desirability).all() else np.isfinite(desirability)
    low, high = load_bounds(counts, allowed, experts, lo, hi)
    high = np.minimum(high, clients)
    order = np.argsort(keys, kind="stable")
    values, slots = desirability[order], counts[order]
    if allowed is not None or fillable(counts, high) < counts.sum():
        values, low, high = _with_idle(values, slots, low, high)
    full = int((slots == values.shape[1]).sum())
    prices = find_prices(
        values, slots, np.maximum(low - full, 0).astype(float), (high - full).astype(float)
    )
    chosen = top(values - prices, slots, keys[order])
    graph = ExpertGraph(values, chosen, prices, low, high)
    del chosen
    graph.solve()
    result = np.zeros((clients, experts), dtype=bool)
    result[order] = graph.held[:experts].T
    return result


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
