"""One query of a batch, step by step, without a clock or a network.

The router tells a `Call` what came back, the call says what to ask next. A row needs one answer:

- where at least one of its chosen experts answers, the silent ones are left out, and the mixture
  spreads their weight over the others, which are the next-best experts by the gate's own ranking;
- where none does, or too slowly, the next-best expert is asked, and at last the local one answers.

Who is asked for which rows is decided by plain functions of ids, scores and health.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "SILENT",
    "Bools",
    "Call",
    "Cells",
    "ExpertRequest",
    "Floats",
    "Ints",
    "Outcome",
    "Why",
    "group_by_expert",
    "next_best",
    "prefer_healthy",
    "split_rows",
]

SILENT = -1

Why = Literal["chosen", "next-best", "hedge"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Cells(NamedTuple):
    """Places in a batch of choices [B, K].

    Attributes:
        rows: Row of each place, [n], in 0..B-1.
        slots: Column of each place, [n], in 0..K-1.
    """

    rows: Ints
    slots: Ints


class ExpertRequest(NamedTuple):
    """Rows for one expert in one message.

    Attributes:
        expert: The expert's id.
        rows: Rows of the batch, [n], in 0..B-1.
        slots: Where the answers belong, [n]. Those of "next-best" and "hedge" are spare: they take
            slot 0 of rows in which no chosen expert answers.
        why: Chosen by the gate, the next best after a failure, or after a long silence.
    """

    expert: int
    rows: Ints
    slots: Ints
    why: Why


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        logits: The answers, [B, K, C]; NaN where nobody answered.
        answered_by: Ids of the experts whose logits these are, [B, K]; ``SILENT`` where nobody
            answered.
    """

    logits: Floats
    answered_by: Ints


class Call:
    """The state of one query.

    Args:
        expert_ids: Experts chosen by the gate, [B, K].
        num_classes: C, the length of an answer.
        own: The id of the local expert, which is never asked over the network.
        available: Gives the experts that may be asked now; called whenever one is looked for.
        scores: The gate's, [B, E], to find the next best; None: straight to the local expert.
        fallbacks: Most next-best experts asked for a row, one after the other.
        max_rows: Most rows in one request.
        keep: True for rows [B] that must not leave this device; None: there are none.

    Attributes:
        expert_ids: Experts chosen by the gate, [B, K].
        skipped: How many rows chose an expert that is not available, by the expert's id.
    """

    def __init__(
        self,
        expert_ids: Ints,
        num_classes: int,
        *,
        own: int,
        available: Callable[[], Collection[int]],
        scores: Floats | None = None,
        fallbacks: int = 2,
        max_rows: int = 256,
        keep: Bools | None = None,
    ) -> None:
        batch, top_k = expert_ids.shape
        self.expert_ids = expert_ids
        self.skipped: dict[int, int] = {}
        self._own = own
        self._available = available
        self._scores = scores
        self._max_rows = max_rows
        self._logits = np.full((batch, top_k, num_classes), np.nan, np.float32)
        self._by = np.full((batch, top_k), SILENT, np.int64)
        self._spare = np.full((batch, num_classes), np.nan, np.float32)
        self._spare_by = np.full(batch, SILENT, np.int64)
        self._waiting = np.zeros(batch, np.int64)
        self._spare_waiting = np.zeros(batch, np.int64)
        self._keep = np.zeros(batch, bool) if keep is None else keep
        self._hedged = np.zeros(batch, bool)
        self._left = np.where(self._keep, 0, fallbacks)
        self._tried = np.zeros((0, 0) if scores is None else scores.shape, bool)
        # A row with the local expert among its choices is sure of an answer.
        self._sure = (expert_ids == own).any(axis=1)

    @property
    def own_cells(self) -> Cells:
        """Where the gate chose the local expert."""
        return Cells(*np.nonzero(self.expert_ids == self._own))

    @property
    def settled(self) -> bool:
        """Whether nothing that is still on its way is needed."""
        return bool(self._settled().all())

    def begin(self) -> list[ExpertRequest]:
        """The first requests."""
        ids = np.where(self._keep[:, None], self._own, self.expert_ids)
        groups = group_by_expert(ids, skip={self._own})
        available = set(self._available())
        self.skipped = {e: len(cells.rows) for e, cells in groups.items() if e not in available}
        groups = {e: cells for e, cells in groups.items() if e in available}
        requests = self._requests(groups, "chosen")
        for request in requests:
            np.add.at(self._waiting, request.rows, 1)
        if self._scores is not None:
            np.put_along_axis(self._tried, self.expert_ids, True, axis=1)
        return requests + self._follow(self._forsaken(), "next-best")

    def answered(self, request: ExpertRequest, logits: Floats) -> None:
        """Take the logits [n, C] of a request."""
        self._arrived(request)
        if request.why == "chosen":
            self._logits[request.rows, request.slots] = logits
            self._by[request.rows, request.slots] = request.expert
            self._sure[request.rows] = True
        else:
            self._spare[request.rows] = logits
            self._spare_by[request.rows] = request.expert

    def failed(self, request: ExpertRequest) -> list[ExpertRequest]:
        """Give up a request: what is to be asked instead."""
        self._arrived(request)
        again = np.zeros_like(self._sure)
        again[request.rows] = True
        forsaken = self._forsaken() & again
        requests = self._follow(forsaken, "next-best")
        if request.why == "hedge":
            requests += self._follow(self._unanswered() & again & ~forsaken, "hedge")
        return requests

    def hedge(self) -> list[ExpertRequest]:
        """What to ask besides, because rows have waited long and have no answer; once per row."""
        wanted = self._unanswered() & ~self._settled() & ~self._hedged
        self._hedged |= wanted
        return self._follow(wanted, "hedge")

    def finish(self, local: Callable[[Ints], Floats], own_logits: Floats) -> Outcome:
        """Put the answers together.

        Args:
            local: The local expert: rows [n] -> logits [n, C], for rows that have no answer.
            own_logits: The local expert's answers where the gate chose it, in the order of
                ``own_cells``.
        """
        cells = self.own_cells
        self._logits[cells.rows, cells.slots] = own_logits
        self._by[cells.rows, cells.slots] = self._own
        lost = np.flatnonzero(~self._sure & (self._spare_by == SILENT))
        if len(lost):
            self._spare[lost] = local(lost)
            self._spare_by[lost] = self._own
        spare = np.flatnonzero(~self._sure)
        self._logits[spare, 0] = self._spare[spare]
        self._by[spare, 0] = self._spare_by[spare]
        self._by[np.isnan(self._logits).all(axis=2)] = SILENT
        return Outcome(self._logits, self._by)

    def _settled(self) -> Bools:
        chosen_done = (self._waiting == 0) & (self._sure | (self._spare_waiting == 0))
        return np.asarray((self._spare_by != SILENT) | chosen_done)

    def _forsaken(self) -> Bools:
        """Rows without an answer for which nobody is being asked."""
        idle = (self._waiting == 0) & (self._spare_waiting == 0)
        return np.asarray(idle & self._unanswered())

    def _unanswered(self) -> Bools:
        """Rows that no expert has answered, and not even the local one is sure to."""
        return np.asarray(~self._sure & (self._spare_by == SILENT))

    def _arrived(self, request: ExpertRequest) -> None:
        waiting = self._waiting if request.why == "chosen" else self._spare_waiting
        np.subtract.at(waiting, request.rows, 1)

    def _follow(self, wanted: Bools, why: Why) -> list[ExpertRequest]:
        """Ask the next-best experts for the wanted rows, as far as there are any."""
        rows = np.flatnonzero(wanted & (self._left > 0))
        if self._scores is None or not len(rows):
            return []
        available = np.zeros(self._scores.shape[1], bool)
        available[[e for e in self._available() if e < len(available)]] = True
        chosen = next_best(self._scores[rows], self._tried[rows], available, own=self._own)
        rows, chosen = rows[chosen != self._own], chosen[chosen != self._own]
        self._tried[rows, chosen] = True
        self._left[rows] -= 1
        self._spare_waiting[rows] += 1
        groups = group_by_expert(chosen[:, None])
        return self._requests({e: Cells(rows[c.rows], c.slots) for e, c in groups.items()}, why)

    def _requests(self, groups: dict[int, Cells], why: Why) -> list[ExpertRequest]:
        return [
            ExpertRequest(expert, part.rows, part.slots, why)
            for expert, cells in groups.items()
            for part in split_rows(cells, self._max_rows)
        ]


def group_by_expert(expert_ids: Ints, *, skip: Collection[int] = ()) -> dict[int, Cells]:
    """Where each expert of expert_ids [B, K] is chosen, without the experts in ``skip``.

    >>> groups = group_by_expert(np.array([[2, 0], [2, 1]]), skip={1})
    >>> {expert: cells.rows.tolist() for expert, cells in groups.items()}
    {0: [0], 2: [0, 1]}
    """
    groups = {}
    for expert in np.unique(expert_ids).tolist():
        if expert not in skip:
            rows, slots = np.nonzero(expert_ids == expert)
            groups[expert] = Cells(rows.astype(np.int64), slots.astype(np.int64))
    return groups


def split_rows(cells: Cells, max_rows: int) -> Iterator[Cells]:
    """Cut into parts of at most ``max_rows`` rows: more do not fit into one request."""
    for start in range(0, len(cells.rows), max_rows):
        part = slice(start, start + max_rows)
        yield Cells(cells.rows[part], cells.slots[part])


def next_best(scores: Floats, tried: Bools, available: Bools, *, own: int) -> Ints:
    """The best expert of each row that was not tried and is available; ``own`` always is.

    So a row whose own expert scores higher than every other one left stays at home.

    Args:
        scores: The gate's, [B, E].
        tried: True where an expert was asked for the row already, [B, E].
        available: True for experts that may be asked, [E].
        own: The id of this device's expert.

    Returns:
        Expert ids [B].

    >>> scores = np.array([[9.0, 5.0, 3.0], [9.0, 1.0, 3.0]], np.float32)
    >>> tried = np.array([[True, False, False]] * 2)
    >>> next_best(scores, tried, np.array([True, True, True]), own=2).tolist()
    [1, 2]
    """
    left = ~tried & available
    left[:, own] = True
    return np.asarray(np.where(left, _comparable(scores), -np.inf).argmax(axis=1), np.int64)


def prefer_healthy(
    expert_ids: Ints, scores: Floats, penalty: npt.ArrayLike, *, margin: float
) -> Ints:
    """Replace experts by healthier ones that score almost as high.

    An expert loses up to ``margin`` of its score: ``margin`` times its penalty. Each chosen expert
    gives way to the one that then scores highest, if that is not chosen in its row already. So
    nobody takes over whose score is lower by ``margin`` or more.

    Args:
        expert_ids: Experts chosen by the gate, [B, K].
        scores: The gate's, [B, E]; a difference of ``margin`` is a factor e^margin of probability.
        penalty: How unwell each expert is, [E], 0..1.
        margin: The most that a score may lose, 0 or more.

    Returns:
        Expert ids [B, K].

    >>> scores = np.array([[2.0, 1.9, 0.0], [2.0, 1.0, 0.0]], np.float32)
    >>> prefer_healthy(np.array([[0], [0]]), scores, [1.0, 0.0, 0.0], margin=0.5).tolist()
    [[1], [0]]
    """
    ids, rows = expert_ids.copy(), np.arange(len(expert_ids))
    adjusted = _comparable(scores) - margin * np.asarray(penalty, np.float64)
    taken = np.zeros(adjusted.shape, dtype=bool)
    np.put_along_axis(taken, ids, True, axis=1)
    for slot in range(ids.shape[1]):
        best = np.where(taken, -np.inf, adjusted).argmax(axis=1)
        gives_way = ~taken[rows, best] & (adjusted[rows, best] > adjusted[rows, ids[:, slot]])
        ids[:, slot] = np.where(gives_way, best, ids[:, slot])
        taken[rows, ids[:, slot]] = True
    return ids


def _comparable(scores: Floats) -> npt.NDArray[np.float64]:
    """Scores as float64 with NaN below every number: argmax would take NaN for the highest."""
    return np.nan_to_num(scores.astype(np.float64), nan=-np.finfo(np.float64).max)
