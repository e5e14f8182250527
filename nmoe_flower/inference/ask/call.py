"""One query of a batch, step by step, without a clock or a network.

The router tells a `Call` what came back, the call says what to ask next. A row needs one answer:

- where at least one of its chosen experts answers, the silent ones are left out, and the mixture
  spreads their weight over the others, which are the next-best experts by the gate's own ranking;
- where none does, or too slowly, the next-best expert is asked, and at last the local one answers.
"""

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import numpy as np

from nmoe_flower.inference.ask.plan import (
    Bools,
    Cells,
    Floats,
    Ints,
    group_by_expert,
    next_best,
    split,
)

__all__ = ["SILENT", "Call", "Outcome", "Request", "Why"]

SILENT = -1

Why = Literal["chosen", "next-best", "hedge"]


class Request(NamedTuple):
    """Rows for one expert in one message.

    Attributes:
        expert: Its id.
        rows: Of the batch, [n].
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
        logits: [B, K, C]; NaN where nobody answered.
        answered_by: Whose logits these are, [B, K]; ``SILENT`` where nobody answered.
    """

    logits: Floats
    answered_by: Ints


class Call:
    """The state of one query.

    Args:
        expert_ids: Chosen by the gate, [B, K].
        num_classes: C.
        own: The local expert, which is never asked over the network.
        available: The experts that may be asked now; called again whenever one is looked for.
        scores: Of the gate, [B, E], to find the next best; None: straight to the local expert.
        fallbacks: Most next-best experts asked for a row, one after the other.
        max_rows: Most rows in one request.
        keep: Rows [B] that must not leave this device.

    Attributes:
        expert_ids: [B, K].
        skipped: Chosen experts that are not available, and how many rows chose them.
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

    def begin(self) -> list[Request]:
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

    def answered(self, request: Request, logits: Floats) -> None:
        """Take the logits [n, C] of a request."""
        self._arrived(request)
        if request.why == "chosen":
            self._logits[request.rows, request.slots] = logits
            self._by[request.rows, request.slots] = request.expert
            self._sure[request.rows] = True
        else:
            self._spare[request.rows] = logits
            self._spare_by[request.rows] = request.expert

    def failed(self, request: Request) -> list[Request]:
        """Give up a request: what is to be asked instead."""
        self._arrived(request)
        again = np.zeros_like(self._sure)
        again[request.rows] = True
        return self._follow(self._forsaken() & again, "next-best")

    def hedge(self) -> list[Request]:
        """What to ask besides, because rows have waited long and have no answer at all."""
        return self._follow(~self._settled() & ~self._sure & (self._spare_waiting == 0), "hedge")

    def finish(self, local: Callable[[Ints], Floats], own_logits: Floats) -> Outcome:
        """Put the answers together.

        Args:
            local: The local expert: rows [n] -> logits [n, C], for rows that have no answer.
            own_logits: Its answers where the gate chose it, in the order of ``own_cells``.
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
        return np.asarray(idle & ~self._sure & (self._spare_by == SILENT))

    def _arrived(self, request: Request) -> None:
        waiting = self._waiting if request.why == "chosen" else self._spare_waiting
        np.subtract.at(waiting, request.rows, 1)

    def _follow(self, wanted: Bools, why: Why) -> list[Request]:
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

    def _requests(self, groups: dict[int, Cells], why: Why) -> list[Request]:
        return [
            Request(expert, part.rows, part.slots, why)
            for expert, cells in groups.items()
            for part in split(cells, self._max_rows)
        ]
