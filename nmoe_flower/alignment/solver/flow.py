"""The exact end of the joint assignment: shortest augmenting paths between experts.

The transportation problem has many clients and few experts, so the residual graph is folded onto
the experts: the arc e -> f costs what the cheapest client loses that swaps e for f. A path from an
expert with too many clients to one with too few moves one client per arc (several at equal cost).
Reduced costs stay non-negative, hence the assignment stays optimal for its loads throughout.
"""

from itertools import pairwise

import numpy as np

from nmoe_flower.alignment.arrays import AnyFloats, Bools, Ints

__all__ = ["ExpertGraph", "Stuck"]


class Stuck(Exception):  # noqa: N818
    """No path leads to the experts that lack clients; ``experts`` cannot be reached."""

    def __init__(self, experts: Ints) -> None:
        self.experts = experts


class ExpertGraph:
    """An assignment that is optimal for its loads, on its way to the bounds.

    Args:
        desirability: [clients, experts]; minus infinity marks a pair that is not allowed.
        order: [clients]: rows of ``desirability`` in the order of the work, which breaks ties.
        held: bool [experts, clients], clients in that order: each one's best choice at ``prices``;
            it is changed in place.
        prices: Price of each expert, float [experts].
        lo: Least clients of each expert, int [experts].
        hi: Most clients of each expert, int [experts].
    """

    def __init__(
        self,
        desirability: AnyFloats,
        order: Ints,
        held: Bools,
        prices: AnyFloats,
        lo: Ints,
        hi: Ints,
    ) -> None:
        self._value, self._order, self.held = desirability, order, held
        self._lo, self._hi = lo, hi
        experts = len(lo)
        loads = held.sum(axis=1)
        price = np.append(prices.astype(float), 0.0)
        self._price = price
        # What flows from each expert into the sink, as its price demands it.
        bound = np.where(price[:-1] > 0, hi, np.where(price[:-1] < 0, lo, np.clip(loads, lo, hi)))
        self._flow = bound.astype(np.int64)
        self.excess = np.append(loads - bound, bound.sum() - loads.sum())
        self._cost = np.full((experts + 1, experts + 1), np.inf)
        self._mover = np.full((experts, experts), -1, dtype=np.int64)
        self._sink_arcs()
        everyone = np.arange(experts)
        for expert in range(experts):
            self._refresh(expert, everyone)
        self._moved = np.zeros(len(desirability), dtype=bool)

    @property
    def prices(self) -> AnyFloats:
        """Price of each expert now, [experts]; all others being as they are, nobody would swap."""
        prices: AnyFloats = self._price[:-1] - self._price[-1]
        return prices

    def solve(self) -> None:
        """Push along shortest paths until every load is within its bounds.

        Raises:
            Stuck: There is no such assignment.
        """
        while (self.excess > 0).any():
            self._push(self._shortest())

    def _sink_arcs(self) -> None:
        self._cost[:-1, -1] = np.where(self._flow < self._hi, 0.0, np.inf)
        self._cost[-1, :-1] = np.where(self._flow > self._lo, 0.0, np.inf)

    def _refresh(self, expert: int, others: Ints) -> None:
        """Find again the cheapest client for each arc from ``expert`` to ``others``."""
        members = np.flatnonzero(self.held[expert])
        if not len(members):
            self._cost[expert, others] = np.inf
            self._mover[expert, others] = -1
            return
        own = self._order[members]
        every = len(others) == self._value.shape[1]
        rows = self._value[own] if every else self._value[own[:, None], others]
        loss = self._value[own, expert][:, None] - rows
        loss[self.held[others][:, members].T] = np.inf
        best = loss.argmin(axis=0)
        self._cost[expert, others] = loss[best, np.arange(len(others))]
        self._mover[expert, others] = members[best]

    def _shortest(self) -> list[int]:
        """Dijkstra from all experts with too many; the path, and prices moved along it."""
        size = len(self._price)
        reduced = np.maximum(self._cost - self._price[:, None] + self._price, 0.0)
        sources = self.excess > 0
        goals = self.excess < 0
        distance = np.where(sources, 0.0, np.inf)
        before = np.full(size, -1)
        pending = distance.copy()
        while True:
            node = int(pending.argmin())
            near = pending[node]
            if near == np.inf:
                raise Stuck(np.flatnonzero(np.isinf(distance[:-1])))
            if goals[node]:
                break
            pending[node] = np.inf
            reduced[:, node] = np.inf
            through = near + reduced[node]
            better = through < distance
            distance[better] = through[better]
            pending[better] = through[better]
            before[better] = node
        self._price -= np.minimum(distance, near)
        path = [node]
        while before[path[-1]] >= 0:
            path.append(int(before[path[-1]]))
        return path[::-1]

    def _push(self, path: list[int]) -> None:
        sink = len(self._flow)
        arcs = list(pairwise(path))
        amount = int(min(self.excess[path[0]], -self.excess[path[-1]]))
        movers = {}
        for tail, head in arcs:
            if sink == head:
                amount = min(amount, int(self._hi[tail] - self._flow[tail]))
            elif sink == tail:
                amount = min(amount, int(self._flow[head] - self._lo[head]))
            else:
                movers[tail, head] = self._movers(tail, head, amount)
                amount = min(amount, len(movers[tail, head]))
        for tail, head in arcs:
            if sink == head:
                self._flow[tail] += amount
            elif sink == tail:
                self._flow[head] -= amount
            else:
                self._move(tail, head, movers[tail, head][:amount])
        self._sink_arcs()
        self.excess[path[0]] -= amount
        self.excess[path[-1]] += amount

    def _movers(self, tail: int, head: int, amount: int) -> Ints:
        """Up to ``amount`` clients that swap ``tail`` for ``head`` at the least loss."""
        first = self._mover[tail, head]
        if amount == 1:
            return np.array([first])
        members = np.flatnonzero(self.held[tail] & ~self.held[head])
        own = self._order[members]
        loss = self._value[own, tail] - self._value[own, head]
        cheapest: Ints = members[loss == self._cost[tail, head]][:amount]
        return cheapest

    def _move(self, tail: int, head: int, clients: Ints) -> None:
        self.held[tail, clients] = False
        self.held[head, clients] = True
        self._moved[clients] = True
        mover, moved = self._mover, self._moved
        gone = np.flatnonzero((mover[tail] >= 0) & moved[mover[tail]])
        rows = self._value[self._order[clients]].astype(float)
        held = self.held[:, clients].T
        with np.errstate(invalid="ignore"):
            self._offer(head, np.where(held, np.inf, rows[:, head, None] - rows), clients)
            loss = np.where(held, rows - rows[:, tail, None], np.inf)
        loss[:, tail] = np.inf
        best = loss.argmin(axis=0)
        least = loss[best, np.arange(loss.shape[1])]
        better = np.flatnonzero(least < self._cost[:-1, tail])
        self._cost[better, tail] = least[better]
        mover[better, tail] = clients[best[better]]
        stale = np.flatnonzero((mover[:, head] >= 0) & moved[mover[:, head]])
        for expert in stale:
            if expert != tail:
                self._refresh(int(expert), np.array([head]))
        moved[clients] = False
        self._refresh(tail, gone)

    def _offer(self, expert: int, loss: AnyFloats, clients: Ints) -> None:
        best = loss.argmin(axis=0)
        least = loss[best, np.arange(loss.shape[1])]
        better = np.flatnonzero(least < self._cost[expert, :-1])
        self._cost[expert, better] = least[better]
        self._mover[expert, better] = clients[best[better]]
