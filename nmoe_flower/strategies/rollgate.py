"""RollGate: one gate, handed from client to client (Networked MoE, section III-C.2).

Gao et al. 2025, arXiv:2511.01743: "we roll the training of such a gating classifier in each client
using local data recurrently until convergence".
"""

from collections.abc import Iterable, Mapping
from typing import Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.errors import CheckpointError, RoundError
from nmoe_flower.plurals import how_many
from nmoe_flower.strategies.base import StreamingOptions
from nmoe_flower.strategies.limits import require_number
from nmoe_flower.strategies.shortlisted import ShortlistedFedAvg

__all__ = ["RollGate"]


class RollGate(ShortlistedFedAvg):
    """Client after client trains the same gate; no averaging, no two clients at once.

    The client trains the gate it is sent to name a pseudo client: its own id for a share ``p`` of
    its data, another client's for the rest; it returns the gate's weights. A client that fails is
    skipped. A cycle is over when all clients that are there have been asked, whoever came or went
    meanwhile. Training has converged when a whole cycle moved the weights by less than
    ``tolerance``, relative to their norm.

    Args:
        tolerance: Relative change over one cycle below which ``converged`` turns true.
        shortlists: Ids of the experts each client knows, by partition: it is sent, and returns,
            their rows in place of those of all experts. None: all.
        **options: What ``StreamingFedAvg`` and FedAvg take; ``fraction_train`` has no meaning here,
            and ``min_replies`` is of a cycle.
    """

    purpose = "rolling"

    def __init__(
        self,
        *,
        tolerance: float = 0.01,
        shortlists: Mapping[int, np.ndarray] | None = None,
        **options: Unpack[StreamingOptions],
    ) -> None:
        super().__init__(shortlists=shortlists, **options)
        self.tolerance = require_number("tolerance", tolerance)
        self._cycle_start: dict[str, np.ndarray] = {}
        self._there: set[int] = set()
        self._asked: set[int] | None = None  # of this cycle; None: not known, as after older states
        self._usable = 0  # replies of this cycle

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the gate to the first client in partition order that the cycle has not met."""
        nodes = self.nodes(grid, max(1, self.min_available_nodes))
        clients = {self.partitions.get(node, node): node for node in nodes}
        self._there = set(clients)
        if self._asked is None:
            before = (server_round - 1) % len(clients) if self._cycle_start else 0
            self._asked, self._usable = set(list(clients)[:before]), before
        if self._asked >= self._there:  # who was left to ask has gone
            self._asked = set()
        if not self._asked:
            self._cycle_start, self._usable = records.to_numpy(arrays), 0
        turn = next(client for client in clients if client not in self._asked)
        self._asked.add(turn)
        return self.broadcast([clients[turn]], arrays, self.round_config(server_round, config))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take over the client's gate; keep the old one if the client failed.

        Raises:
            RoundError: The cycle ends, and had fewer than ``min_replies`` usable replies.
        """
        latest, metrics = self.sent, None
        for usable in self.usable(replies, arrays=True):
            latest = usable.arrays
            self._usable += 1
            metrics = self.average_metrics(server_round, [self.measured(usable)])
        if self._asked is not None and self._asked >= self._there:
            self._end_cycle(server_round, latest)
        return records.from_numpy(latest), metrics

    def _end_cycle(self, server_round: int, latest: Mapping[str, np.ndarray]) -> None:
        needed = max(self.min_replies, 1)
        if self._usable < needed:
            reasons = "; ".join(self.last_exchange.reasons()) or "no client replied"
            raise RoundError(
                f"round {server_round}: {how_many(self._usable, 'usable reply', 'usable replies')} "
                f"in a cycle of {how_many(len(self._there), 'client')}, {needed} needed (at last "
                f"{reasons})"
            )
        self.converged = _relative_change(latest, self._cycle_start) < self.tolerance
        self._asked = set()

    def state(self) -> dict[str, np.ndarray]:
        """The gate at the start of the cycle, who was asked since, and whether it converged."""
        start = {f"start/{name}": value for name, value in self._cycle_start.items()}
        return {
            **start,
            "asked": np.array(sorted(self._asked or ()), np.int64),
            "usable": np.array(self._usable),
            "converged": np.array(self.converged),
        }

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        self.converged = bool(arrays.get("converged", False))
        self._cycle_start = records.part_of(arrays, "start/")
        self._asked = set(arrays["asked"].tolist()) if "asked" in arrays else None
        self._usable = int(arrays.get("usable", 0))


def _relative_change(new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> float:
    """||new - old|| / ||new|| over all arrays together; 0 where nothing moved."""
    wide = np.float64  # whole numbers and flags have no differences of their own dtype
    if {n: v.shape for n, v in new.items()} != {n: v.shape for n, v in old.items()}:
        raise CheckpointError("the gate at the start of the cycle is another model's")
    moved = sum(float(np.square(new[n].astype(wide) - old[n].astype(wide)).sum()) for n in new)
    size = sum(float(np.square(value.astype(wide)).sum()) for value in new.values())
    return float(np.sqrt(moved / size)) if size > 0 else float(moved > 0)
