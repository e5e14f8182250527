"""How the gate of a federated mixture travels: averaged, not at all, by rows, or as statistics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.alignment import ClosedFormGate
from nmoe_flower.errors import ReplyError
from nmoe_flower.records import STATISTICS, StatisticsKey
from nmoe_flower.strategies.aggregation import WeightedMean
from nmoe_flower.strategies.optimizers import ServerOptimizer, stepped

__all__ = ["AveragedGate", "GateSharing", "StatisticsGate", "TravellingGate", "UnsharedGate"]

Arrays = Mapping[str, np.ndarray]
Held = Sequence[int] | npt.NDArray[np.int64]


class GateSharing:
    """The gate is one of the shared arrays; what other ways of sharing it start from.

    Args:
        prefix: Arrays whose names start with it are the gate's.
    """

    is_shared = True  # a newcomer can be probed with it

    def __init__(self, prefix: str = "gate.") -> None:
        self.prefix = prefix

    def outgoing(self, arrays: dict[str, np.ndarray], held: Held) -> dict[str, np.ndarray]:
        """What a client gets."""
        return arrays

    def question(self, client: int) -> dict[str, Any]:
        """What a client is told beside."""
        return {}

    def expected(self, sent: Arrays) -> Arrays:
        """Which arrays must come back."""
        return sent

    def accept(self, client: int, held: npt.NDArray[np.bool_], content: RecordDict) -> None:
        """Take what else a reply brings; refuse it if it does not fit.

        Raises:
            ReplyError: It is not as agreed.
        """

    def incoming(self, arrays: Arrays, weight: float) -> Arrays:
        """What of a reply of that weight is averaged as it is."""
        return arrays

    def result(self, sent: Arrays, means: Arrays) -> dict[str, np.ndarray]:
        """Arrays of the gate that are not just the ``means`` over the clients, after a round."""
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """Arrays carried from round to round."""
        return {}

    def load_state(self, state: Arrays) -> None:
        """Restore what ``state`` gave."""

    def _is_gate(self, name: str) -> bool:
        return name.startswith(self.prefix)


class AveragedGate(GateSharing):
    """The gate is averaged over all clients, as FedAvg would.

    With an ``optimizer`` the clients' mean change is read as a gradient, and the server takes a
    step along it (Reddi et al. 2021, "Adaptive federated optimization"). Under one class per client
    a plain mean is slow: what the clients learn mostly cancels, and only the rest is progress.

    Args:
        optimizer: Takes the server's step; None: the mean is the new gate.
        rate: Length of the server's step, above 0; 1 with plain SGD takes the mean as it is.
        prefix: Arrays whose names start with it are the gate's.
    """

    def __init__(
        self,
        optimizer: ServerOptimizer | None = None,
        *,
        rate: float = 1.0,
        prefix: str = "gate.",
    ) -> None:
        super().__init__(prefix)
        self.optimizer, self.rate = optimizer, rate

    def result(self, sent: Arrays, means: Arrays) -> dict[str, np.ndarray]:
        """The gate after the server's step."""
        if self.optimizer is None:
            return {}
        return {
            name: stepped(self.optimizer, name, sent[name], mean, rate=self.rate)
            for name, mean in means.items()
            if self._is_gate(name)
        }

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that the optimizer carries."""
        return self.optimizer.state() if self.optimizer else {}

    def load_state(self, state: Arrays) -> None:
        """Restore what the optimizer carried."""
        if self.optimizer:
            self.optimizer.load_state(state)


class UnsharedGate(GateSharing):
    """The gate never leaves a client (FLEX-MoE, arXiv:2512.23070): it is not sent either."""

    is_shared = False

    def outgoing(self, arrays: dict[str, np.ndarray], held: Held) -> dict[str, np.ndarray]:
        """All but the gate."""
        return {name: value for name, value in arrays.items() if not self._is_gate(name)}


class TravellingGate(GateSharing):
    """Row e of the gate belongs to expert e, and is averaged as it is: over its holders, by weight.

    Clients get the whole gate, to route with, and send it back; only rows of their experts count.
    The first axis of every array of the gate counts the experts.
    """

    def __init__(self, prefix: str = "gate.") -> None:
        super().__init__(prefix)
        self._rows: dict[int, WeightedMean] = {}
        self._held: npt.NDArray[np.bool_] = np.zeros(0, dtype=bool)

    def accept(self, client: int, held: npt.NDArray[np.bool_], content: RecordDict) -> None:
        """Remember whose rows the next arrays are."""
        self._held = held

    def incoming(self, arrays: Arrays, weight: float) -> Arrays:
        """Average the held rows; the rest is averaged as it is."""
        gate = {name: value for name, value in arrays.items() if self._is_gate(name)}
        for expert in np.flatnonzero(self._held).tolist():
            rows = {name: value[expert : expert + 1] for name, value in gate.items()}
            self._rows.setdefault(expert, WeightedMean()).add(rows, weight)
        return {name: value for name, value in arrays.items() if name not in gate}

    def result(self, sent: Arrays, means: Arrays) -> dict[str, np.ndarray]:
        """Rows of experts that were held are means over the holders."""
        found = {name: np.array(value) for name, value in sent.items() if self._is_gate(name)}
        for expert, mean in self._rows.items():
            if mean.weight:
                for name, row in mean.result().items():
                    found[name][expert : expert + 1] = row
        self._rows = {}
        return found


class StatisticsGate(GateSharing):
    """The gate is solved from sums of latents that travel with their experts: `ClosedFormGate`.

    Replies bring the ArrayRecord ``statistics``: ``sums`` [k, D + 2] of the held experts (sum of
    ``[latent, 1]`` and the count) and, the first time, ``moment``: the upper triangle of the sum of
    ``[latent, 1]``'s outer products. The gate itself only travels down.

    Args:
        solver: Holds the statistics.
        weight: Name of the gate's array [E, D].
        bias: Name of its biases [E].
        prefix: Arrays whose names start with it are the gate's.
    """

    def __init__(
        self,
        solver: ClosedFormGate,
        *,
        weight: str = "gate.head.weight",
        bias: str = "gate.head.bias",
        prefix: str = "gate.",
    ) -> None:
        super().__init__(prefix)
        self.solver, self.weight, self.bias = solver, weight, bias
        self._round: dict[int, np.ndarray] = {}
        self._width = 0  # D + 2, of the gate that was sent

    def question(self, client: int) -> dict[str, Any]:
        """Ask for the second moment once."""
        return {StatisticsKey.WANT_MOMENT: client not in self.solver.known}

    def expected(self, sent: Arrays) -> Arrays:
        """The gate does not come back."""
        self._width = sent[self.weight].shape[1] + 2
        return {name: value for name, value in sent.items() if not self._is_gate(name)}

    def accept(self, client: int, held: npt.NDArray[np.bool_], content: RecordDict) -> None:
        """Take a client's sums; their width is that of the gate, whoever answers first."""
        record = content.get(STATISTICS)
        if not isinstance(record, ArrayRecord):
            raise ReplyError(f"the ArrayRecord {STATISTICS!r} is missing")
        arrays, experts = records.to_numpy(record), np.flatnonzero(held)
        records.require_finite(arrays)
        sums, packed = arrays.get(StatisticsKey.SUMS), arrays.get(StatisticsKey.MOMENT)
        if sums is None or (packed is None and client not in self.solver.known):
            raise ReplyError(f"{STATISTICS} have {sorted(arrays)}; wanted sums, and moment once")
        if sums.shape != (len(experts), self._width):
            wanted = (len(experts), self._width)
            raise ReplyError(f"gate sums of shape {sums.shape}; wanted {wanted}")
        self.solver.check(packed, sums, len(experts))
        with np.errstate(over="ignore"):
            added = {
                expert: self._round.get(expert, 0.0) + row
                for expert, row in zip(experts.tolist(), sums.astype(np.float64), strict=True)
            }
        if not all(map(records.is_finite, added.values())):
            raise ReplyError("its gate sums are too large to be added to those of others")
        if packed is not None:
            self.solver.meet(client, packed, self._width - 1)
        self._round |= added

    def result(self, sent: Arrays, means: Arrays) -> dict[str, np.ndarray]:
        """The gate solved anew; as it was while no client has had a sample."""
        self.solver.update(self._round)
        self._round = {}
        if not self.solver.is_solvable:
            return {}
        weight, bias = self.solver.solve()
        return {
            self.weight: weight.astype(sent[self.weight].dtype, copy=False),
            self.bias: bias.astype(sent[self.bias].dtype, copy=False),
        }

    def state(self) -> dict[str, np.ndarray]:
        """The solver's statistics."""
        return self.solver.state()

    def load_state(self, state: Arrays) -> None:
        """Restore the statistics that ``state`` gave."""
        self.solver.load_state(state)
