"""What a client has released and trained so far, on its own disk: a budget is never forgotten."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from nmoe_flower.errors import BudgetError, CheckpointError
from nmoe_flower.files import read_json, write_bytes
from nmoe_flower.privacy import Accountant, Adjacency, Budget, WeightsCost, steps_epsilon

__all__ = ["OF_HISTOGRAM", "OF_SUMS", "Ledger", "StepLedger"]

# The rounds that releases are for which a client makes once.
OF_SUMS, OF_HISTOGRAM = 1, 2

_MOST = 1 << 53
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


class _OnDisk(ABC):
    """A file of a client's folder: read whole or refused, on the disk before anything leaves.

    A client's own account does not rely on the server's. One that cannot be read is refused: better
    no release than one too many.
    """

    NAME: ClassVar[str]
    _as_text: ClassVar[Callable[[Exception], str]] = str

    def __init__(self, folder: Path) -> None:
        self._path = folder / self.NAME
        if self._path.exists():
            try:
                self._take(read_json(self._path))
            except _UNREADABLE as error:
                why = type(self)._as_text(error)
                raise CheckpointError(f"cannot read the ledger {self._path}: {why}") from None

    @property
    def is_new(self) -> bool:
        """Whether nothing has ever been written down."""
        return not self._path.exists()

    @abstractmethod
    def _take(self, state: Any) -> None:
        """Take over what the file holds; raise what it is wrong with."""

    def _write(self, state: Mapping[str, Any]) -> None:
        write_bytes(self._path, json.dumps(state).encode(), sync=True)


class Ledger(_OnDisk):
    """A client's account of the matrices it has released.

    Args:
        folder: The client's store.
        client: The client's partition id.
        budget: What all its releases may cost.

    Raises:
        CheckpointError: There is a ledger and it cannot be read, or it is another client's.
    """

    NAME = "privacy.json"

    def __init__(self, folder: Path, client: int, budget: Budget) -> None:
        self._client = client
        self._accountant = Accountant(budget)
        self._paid_round = 0
        super().__init__(folder)

    def _take(self, state: Any) -> None:
        self._accountant.load_state(state)
        self._paid_round = _whole_number("round", state.get("round", 0))
        holders = sorted(map(int, state["spent"]))
        if holders != [self._client]:
            raise CheckpointError(
                f"the ledger {self._path} is that of client "
                f"{', '.join(map(str, holders)) or 'nobody'}, this is client {self._client}: its "
                "budget would be forgotten"
            )

    def affords(self, noise_multiplier: float, *, server_round: int = 0) -> bool:
        """Whether one more release with this noise, in this round, stays within the budget."""
        paid = server_round > 0 and server_round == self._paid_round
        return paid or self._accountant.affords(self._client, noise_multiplier=noise_multiplier)

    def spend(self, noise_multiplier: float, *, num_examples: int, server_round: int = 0) -> None:
        """Write a release down, to the disk and not only to memory, before it is made.

        Args:
            noise_multiplier: Noise of the release over its sensitivity.
            num_examples: This client's samples.
            server_round: The round it is for, above 0: the last round that was paid for is free.
                So one killed between paying and releasing does not pay twice. Only for callers that
                have one release a round, and have it on the disk before it leaves.

        Raises:
            BudgetError: The budget is spent.
            ConfigError: The budget's delta is not below 1 / ``num_examples``.
        """
        if server_round > 0 and server_round == self._paid_round:
            return
        self._accountant.spend(
            self._client, noise_multiplier=noise_multiplier, num_examples=num_examples
        )
        self._paid_round = server_round
        self._write({**self._accountant.state(), "round": server_round})


class StepLedger(_OnDisk):
    """A client's account of its DP-SGD steps, written before they are taken.

    A round is known by what the client received in it. If a killed and resumed run asks for the
    same round again, the client takes the same steps with the same noise; the same bits cost
    nothing. Anything else is paid for again, with noise of its own: the same noise on two
    gradients would reveal their difference.

    Args:
        folder: The client's store.
        budget: What all steps may cost.
        adjacency: The adjacency in which the budget is meant.

    Raises:
        CheckpointError: There is a ledger and it cannot be read.
    """

    NAME = "privacy-weights.json"
    _as_text = repr

    def __init__(self, folder: Path, budget: Budget, *, adjacency: Adjacency) -> None:
        self.budget, self.adjacency = budget, adjacency
        self._steps: dict[tuple[float, float], int] = {}
        self._rounds: dict[int, dict[str, Any]] = {}
        super().__init__(folder)

    def _take(self, state: Any) -> None:
        for noise, rate, count in state["steps"]:
            key = float(noise), float(rate)
            self._steps[key] = self._steps.get(key, 0) + _whole_number("steps", count)
        self._rounds = {int(r): _entry(entry) for r, entry in state["rounds"].items()}
        if self._rounds and not any(self._steps.values()):
            raise ValueError("rounds are paid for, but no steps")
        steps_epsilon(self.history, self.budget.delta)

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
            server_round: Number of the round.
            received: A digest of all the steps start from.
            noise_multiplier: Noise over clip.
            sample_rate: Probability of a sample to be in a batch.
            steps: Number of steps.
            repeatable: Whether the noise is a function of the attempt, so that a round taken twice
                gives the same bits.

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
        self._write(self._state())
        return attempt

    def release(self, server_round: int, sent: str, *, kept: Iterable[int] = ()) -> bool:
        """Whether a paid round's outcome may leave: once, or the same again.

        Args:
            server_round: Number of the round.
            sent: A digest of the outcome.
            kept: Rounds one of which a resumed run goes on after; older entries are dropped.
        """
        entry = self._rounds[server_round]
        if entry["sent"] is not None:
            return bool(entry["sent"] == sent)
        entry["sent"] = sent
        first = min(kept, default=0)
        self._rounds = {r: e for r, e in self._rounds.items() if r > first}
        self._write(self._state())
        return True

    def _state(self) -> dict[str, Any]:
        return {"steps": self.history, "rounds": {str(r): e for r, e in self._rounds.items()}}


def _entry(value: dict[str, Any]) -> dict[str, Any]:
    """What is known of a round.

    Raises:
        ValueError: A part is missing, or is not what it must be.
    """
    received, sent = value["received"], value["sent"]
    if not isinstance(received, str) or not (sent is None or isinstance(sent, str)):
        raise ValueError("a round has no digests")
    attempt = _whole_number("attempt", value["attempt"])
    return {"received": received, "sent": sent, "attempt": attempt}


def _whole_number(name: str, value: object) -> int:
    """A whole number of a ledger, 0 to 2^53.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise ValueError(f"{name} is {str(value)[:40]}; allowed: a whole number, 0 to 2^53")
    return value
