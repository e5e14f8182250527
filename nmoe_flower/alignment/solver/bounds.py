"""Load bounds: how many clients each expert gets at least and at most, and whether that can be."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import bmat, csr_array
from scipy.sparse.csgraph import maximum_flow

from nmoe_flower.alignment.arrays import Bools, Ints
from nmoe_flower.errors import ConfigError

__all__ = ["InfeasibleBoundsError", "fillable", "load_bounds", "nearest_lo"]

Bound = int | Sequence[int] | Ints | None
Namer = Callable[[int], str]
Told = Callable[[Namer, Namer], str]  # a text, from how experts and clients are called

_SHOWN = 8


class InfeasibleBoundsError(ConfigError):
    """No assignment meets the load bounds.

    Attributes:
        experts: The experts of the cut: together they demand more than clients can give.
        clients: The clients (row numbers) that can hold any of them.
        lo: The nearest feasible lower bounds (least total reduction), int [experts].
        hi: The upper bounds, raised where they were below ``lo``.
    """

    def __init__(self, text: Told, experts: Ints, clients: Ints, lo: Ints, hi: Ints) -> None:
        bounds = f"lo={lo.tolist()}, hi={hi.tolist()}"
        super().__init__(f"{text(str, str)}; nearest feasible bounds: {bounds}")
        self.experts, self.clients, self.lo, self.hi = experts, clients, lo, hi
        self._text = text

    def named(self, experts: Sequence[str], clients: Sequence[str]) -> ConfigError:
        """The same in names instead of numbers.

        Args:
            experts: Names of all experts.
            clients: Names of all clients.
        """
        rows = zip(experts, self.lo.tolist(), self.hi.tolist(), strict=True)
        bounds = [f"{name} {lo}..{hi}" for name, lo, hi in rows]
        more = ", ..." if len(bounds) > _SHOWN else ""
        text = self._text(lambda i: repr(experts[i]), lambda i: repr(clients[i]))
        return ConfigError(
            f"{text}; nearest feasible bounds (lo..hi): {', '.join(bounds[:_SHOWN])}{more}"
        )


def load_bounds(
    counts: Ints, allowed: Bools | None, experts: int, lo: Bound, hi: Bound
) -> tuple[Ints, Ints]:
    """Fill in and check the bounds, int [experts] each.

    Left out, they are the even share of all slots, rounded down and up. Explicit bounds on one side
    and pairs that are not allowed make the defaults give way.

    Args:
        counts: [clients]: slots, at most the experts the client may hold.
        allowed: bool [clients, experts]; None: every pair is.
        experts: Number of experts E.
        lo: Least load, one for all or one per expert.
        hi: Greatest load; clients keep free slots if all upper bounds are reached.

    Raises:
        InfeasibleBoundsError: The cut is named, nearest feasible bounds are offered.
        ConfigError: A bound is negative or has the wrong length.
    """
    total = int(counts.sum())
    low = _spread("lo", total // experts if lo is None else lo, experts)
    high = _spread("hi", -(-total // experts) if hi is None else hi, experts)
    if lo is None and hi is not None:
        low = np.minimum(low, high)
    if hi is None and lo is not None:
        high = np.maximum(low, high)
    if lo is None and allowed is not None:
        low = nearest_lo(counts, allowed, low)
    if hi is None and allowed is not None:
        high = np.maximum(high, _least_level(counts, allowed))
    crossed = np.flatnonzero(low > high)
    if len(crossed):
        first = int(crossed[0])
        text = f"lo={low[first]} is above hi={high[first]}"
        fixed = nearest_lo(counts, allowed, np.minimum(low, high))
        raise InfeasibleBoundsError(
            lambda expert, _: f"expert {expert(first)}: {text}",
            crossed, np.flatnonzero(counts), fixed, high,
        )  # fmt: skip
    fixed = nearest_lo(counts, allowed, low)
    if (fixed < low).any():
        _refuse(counts, allowed, low, high, fixed)
    return low, high


def _spread(name: str, bound: int | Sequence[int] | Ints, experts: int) -> Ints:
    values = np.asarray(bound)
    if values.shape not in ((), (experts,)):
        raise ConfigError(f"{name} has shape {values.shape}; allowed: one number or {experts}")
    if values.dtype.kind not in "iu" or (values < 0).any():
        raise ConfigError(f"{name}={values.tolist()}; allowed: whole numbers, 0 or more")
    return np.broadcast_to(values, (experts,)).astype(np.int64)


def fillable(counts: Ints, hi: Ints) -> int:
    """The most slots that can be filled below ``hi`` if every pair is allowed (Gale and Ryser).

    >>> fillable(np.array([2, 2]), np.array([1, 1, 5]))
    4
    """
    smallest = np.concatenate([[0], np.cumsum(np.sort(hi))])
    supply = _supply(counts, len(hi))
    return int((smallest[::-1] + supply).min())


def _supply(counts: Ints, experts: int) -> Ints:
    """How many slots any t experts can have together, for t = 0 ... experts."""
    larger = len(counts) - np.cumsum(np.bincount(counts, minlength=experts + 1)[:experts])
    return np.concatenate([[0], np.cumsum(larger)])


def _least_level(counts: Ints, allowed: Bools) -> int:
    """The least upper bound, the same for all experts, at which every slot can be filled."""
    total, experts = int(counts.sum()), allowed.shape[1]
    least, most = -(-total // experts), len(counts)
    level = least  # it mostly does
    while least < most:
        if nearest_lo(counts, allowed, np.full(experts, level, dtype=np.int64)).sum() == total:
            most = level
        else:
            least = level + 1
        level = (least + most) // 2
    return int(least)


def nearest_lo(counts: Ints, allowed: Bools | None, lo: Ints) -> Ints:
    """The largest feasible lower bounds below ``lo`` (greatest sum); ``lo`` itself if feasible.

    If all pairs are allowed, t experts can have at most ``sum_i min(k_i, t)`` clients; the largest
    bounds are cut first. Otherwise by maximum flow.

    >>> nearest_lo(np.array([1, 1, 1]), None, np.array([3, 1, 1])).tolist()
    [1, 1, 1]
    """
    if allowed is not None:
        return _by_flow(counts, allowed, lo)
    supply = _supply(counts, len(lo))
    order = np.argsort(-lo, kind="stable")
    missing = int((np.cumsum(lo[order]) - supply[1:]).max(initial=0))
    fixed = lo.copy()
    while missing > 0:
        level = fixed.max()
        tallest = np.flatnonzero(fixed == level)
        below = fixed[fixed < level].max(initial=0)
        drop = min(int(level - below), -(-missing // len(tallest)))
        cut = min(missing, drop * len(tallest))
        fixed[tallest] -= drop
        fixed[tallest[: drop * len(tallest) - cut]] += 1
        missing -= cut
    return fixed


def _by_flow(counts: Ints, allowed: Bools, lo: Ints) -> Ints:
    pairs = csr_array(allowed.astype(np.int32))
    clients = len(counts)
    lo = np.minimum(lo, clients)  # no expert can have more; sums stay within 32 bits
    graph = bmat(
        [
            [None, csr_array(counts[None, :].astype(np.int32)), None, None],
            [csr_array((clients, 1), dtype=np.int32), None, pairs, None],
            [None, None, None, csr_array(lo[:, None].astype(np.int32))],
            [csr_array((1, 1), dtype=np.int32), None, None, None],
        ],
        format="csr",
    )
    size = graph.shape[0]
    flow = maximum_flow(graph, 0, size - 1).flow
    return np.asarray(flow[clients + 1 : size - 1, [size - 1]].toarray()).ravel().astype(np.int64)


def _refuse(counts: Ints, allowed: Bools | None, lo: Ints, hi: Ints, fixed: Ints) -> None:
    if allowed is None:
        order = np.argsort(-lo, kind="stable")
        supply = _supply(counts, len(lo))
        size = int(np.argmax(np.cumsum(lo[order]) - supply[1:])) + 1
        cut = np.sort(order[:size])
        able, most = np.flatnonzero(counts), int(supply[size])
    else:
        cut = _cut(counts, allowed, lo)
        share = np.minimum(counts, allowed[:, cut].sum(axis=1))
        able, most = np.flatnonzero(share), int(share.sum())
    needed = int(lo[cut].sum())
    raise InfeasibleBoundsError(
        lambda expert, client: (
            f"load bounds cannot be met: experts {_some(cut, expert)} need {needed} clients "
            f"together, but the {len(able)} clients that can hold them ({_some(able, client)}) "
            f"have {most} slots for them"
        ),
        cut, able, fixed, hi,
    )  # fmt: skip


def _cut(counts: Ints, allowed: Bools, lo: Ints) -> Ints:
    """Experts whose demand exceeds what clients can give, as few as removal one by one finds."""
    cut = np.flatnonzero(lo)

    def missing(some: Ints) -> int:
        return int(lo[some].sum() - nearest_lo(counts, allowed[:, some], lo[some]).sum())

    for expert in cut.tolist():
        fewer = cut[cut != expert]
        if missing(fewer):
            cut = fewer
    return cut


def _some(numbers: Ints, name: Namer) -> str:
    shown = ", ".join(map(name, numbers[:_SHOWN].tolist()))
    return shown if len(numbers) <= _SHOWN else f"{shown}, ..."
