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
from nmoe_flower.errors import CheckpointError
from nmoe_flower.strategies.base import StreamingOptions
from nmoe_flower.strategies.limits import require_number
from nmoe_flower.strategies.shortlisted import ShortlistedFedAvg

__all__ = ["RollGate"]


class RollGate(ShortlistedFedAvg):
    """Client after client trains the same gate; no averaging, no two clients at once.

    The client trains the gate it is sent to name a pseudo client: its own id for a share ``p`` of
    its data, another client's for the rest; it returns the gate's weights. A client that fails is
    skipped. Training has converged when a whole cycle through the clients moved the weights by
    less than ``tolerance``, relative to their norm.

    Args:
        tolerance: Relative change over one cycle below which ``converged`` turns true.
        shortlists: Ids of the experts each client knows, by partition: it is sent, and returns,
            their rows in place of those of all experts. None: all.
        **options: What ``StreamingFedAvg`` and FedAvg take; ``fraction_train`` has no meaning here.
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
        self._cycle = 1
        self._cycle_start: dict[str, np.ndarray] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the gate to the next client in partition order."""
        nodes = self.nodes(grid, max(1, self.min_available_nodes))
        self._cycle = len(nodes)
        turn = (server_round - 1) % len(nodes)
        if turn == 0:
            self._cycle_start = records.to_numpy(arrays)
        return self.broadcast([nodes[turn]], arrays, self.round_config(server_round, config))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take over the client's gate; keep the old one if the client failed."""
        latest, metrics = self.sent, None
        for usable in self.usable(replies, arrays=True):
            latest = usable.arrays
            metrics = self.average_metrics(server_round, [self.measured(usable)])
        if server_round % self._cycle == 0 and self._cycle_start:
            self.converged = _relative_change(latest, self._cycle_start) < self.tolerance
        return records.from_numpy(latest), metrics

    def state(self) -> dict[str, np.ndarray]:
        """The gate at the start of the current cycle, and whether training has converged."""
        start = {f"start/{name}": value for name, value in self._cycle_start.items()}
        return {**start, "converged": np.array(self.converged)}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        self.converged = bool(arrays.get("converged", False))
        self._cycle_start = records.part_of(arrays, "start/")


def _relative_change(new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> float:
    """||new - old|| / ||new|| over all arrays together; 0 where nothing moved."""
    wide = np.float64  # whole numbers and flags have no differences of their own dtype
    if {n: v.shape for n, v in new.items()} != {n: v.shape for n, v in old.items()}:
        raise CheckpointError("the gate at the start of the cycle is another model's")
    moved = sum(float(np.square(new[n].astype(wide) - old[n].astype(wide)).sum()) for n in new)
    size = sum(float(np.square(value.astype(wide)).sum()) for value in new.values())
    return float(np.sqrt(moved / size)) if size > 0 else float(moved > 0)
