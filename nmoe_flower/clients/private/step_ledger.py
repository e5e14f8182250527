"""What DP-SGD steps a client has taken, on its own disk: a budget is never forgotten."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nmoe_flower.clients.private.ledger import whole_number
from nmoe_flower.errors import BudgetError, CheckpointError
from nmoe_flower.files import read_json, write_bytes
from nmoe_flower.privacy import Budget, WeightsCost, steps_epsilon
from nmoe_flower.privacy.mechanism import Adjacency

__all__ = ["StepLedger"]

NAME = "privacy-weights.json"


class StepLedger:
    """A client's account of its steps, written before they are taken.

    A round is known by what the client received in it. If a killed and resumed run asks for the
    same round again, the client takes the same steps with the same noise; the same bits cost
    nothing. Anything else is paid for again, with noise of its own: the same noise on two
    gradients would reveal their difference.

    Args:
        folder: The client's store.
        budget: What all steps may cost.
        adjacency: In which the budget is meant.

    Raises:
        CheckpointError: There is a ledger and it cannot be read.
    """

    def __init__(self, folder: Path, budget: Budget, *, adjacency: Adjacency) -> None:
        self.budget, self.adjacency = budget, adjacency
        self._path = folder / NAME
        self._steps: dict[tuple[float, float], int] = {}
        self._rounds: dict[int, dict[str, Any]] = {}
        if self._path.exists():
            try:
                state = read_json(self._path)
                for noise, rate, count in state["steps"]:
                    key = float(noise), float(rate)
                    self._steps[key] = self._steps.get(key, 0) + whole_number("steps", count)
                self._rounds = {int(r): _entry(entry) for r, entry in state["rounds"].items()}
                if self._rounds and not any(self._steps.values()):
                    raise ValueError("rounds are paid for, but no steps")
                steps_epsilon(self.history, budget.delta)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"cannot read the ledger {self._path}: {error!r}") from None

    @property
    def history(self) -> list[tuple[float, float, int]]:
        """Noise multiplier, sample rate and number of the steps paid for."""
        return [(noise, rate, count) for (noise, rate), count in self._steps.items()]

    @property
    def cost(self) -> WeightsCost:
        """What all of it comes to, in both adjacencies."""
        delta = self.budget.delta
        return WeightsCost(
            sum(self._steps.values()),
            steps_epsilon(self.history, delta),
            steps_epsilon(self.history, delta, adjacency="replace-one"),
        )

    def pay(
        self,
        server_round: int,
        received: str,
        *,
        noise_multiplier: float,
        sample_rate: float,
        steps: int,
        repeatable: bool = True,
    ) -> int:
        """Pay for the steps of a round and return which attempt at it this is, from 0.

        Args:
            server_round: The round.
            received: A digest of all the steps start from.
            noise_multiplier: Noise over clip.
            sample_rate: Probability of a sample to be in a batch.
            steps: How many.
            repeatable: The noise is a function of the attempt, so that a round taken twice gives
                the same bits.

        Raises:
            BudgetError: The budget does not pay for them; nothing is written.
        """
        entry = self._rounds.get(server_round)
        same = entry is not None and entry["received"] == received
        if same and (repeatable or entry["sent"] is None):  # type: ignore[index]
            return int(entry["attempt"])  # type: ignore[index]
        key = (noise_multiplier, sample_rate)
        after = [*self.history, (*key, steps)]
        delta = self.budget.delta
        if steps_epsilon(after, delta, adjacency=self.adjacency) > self.budget.epsilon:
            spent = steps_epsilon(self.history, delta, adjacency=self.adjacency)
            raise BudgetError(
                f"{sum(self._steps.values())} steps have cost epsilon {spent:.4g}; {steps} more "
                f"with noise multiplier {noise_multiplier:g} would exceed the budget of "
                f"{self.budget.epsilon:g} (delta {delta:g})"
            )
        attempt = 0 if entry is None else int(entry["attempt"]) + 1
        self._steps[key] = self._steps.get(key, 0) + steps
        self._rounds[server_round] = {"received": received, "sent": None, "attempt": attempt}
        self._write()
        return attempt

    def release(self, server_round: int, sent: str, *, kept: Iterable[int] = ()) -> bool:
        """Whether a paid round's outcome, by its digest, may leave: once, or the same again.

        ``kept``: a resumed run goes on after one of these rounds; older entries are dropped.
        """
        entry = self._rounds[server_round]
        if entry["sent"] is not None:
            return bool(entry["sent"] == sent)
        entry["sent"] = sent
        first = min(kept, default=0)
        self._rounds = {r: e for r, e in self._rounds.items() if r > first}
        self._write()
        return True

    def _write(self) -> None:
        state = {"steps": self.history, "rounds": {str(r): e for r, e in self._rounds.items()}}
        write_bytes(self._path, json.dumps(state).encode(), sync=True)


def _entry(value: dict[str, Any]) -> dict[str, Any]:
    """What is known of a round.

    Raises:
        ValueError: A part is missing, or is not what it must be.
    """
    received, sent = value["received"], value["sent"]
    if not isinstance(received, str) or not (sent is None or isinstance(sent, str)):
        raise ValueError("a round has no digests")
    attempt = whole_number("attempt", value["attempt"])
    return {"received": received, "sent": sent, "attempt": attempt}
