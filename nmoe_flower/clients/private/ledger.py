"""What a client has released so far, on its own disk: a budget is never forgotten."""

import json
from pathlib import Path

from nmoe_flower.errors import CheckpointError
from nmoe_flower.files import read_json, write_bytes
from nmoe_flower.privacy import Accountant, Budget

__all__ = ["Ledger", "whole_number"]

NAME = "privacy.json"
_MOST = 1 << 53


class Ledger:
    """A client's own account of its releases; it does not rely on the server's.

    Args:
        folder: The client's store.
        client: Its partition id.
        budget: What all its releases may cost.

    Raises:
        CheckpointError: There is a ledger and it cannot be read, or it is another client's: better
            no release than one too many.
    """

    def __init__(self, folder: Path, client: int, budget: Budget) -> None:
        self._path = folder / NAME
        self._client = client
        self._accountant = Accountant(budget)
        self._paid_round = 0
        if self._path.exists():
            try:
                state = read_json(self._path)
                self._accountant.load_state(state)
                self._paid_round = whole_number("round", state.get("round", 0))
                holders = sorted(map(int, state["spent"]))
            except (OSError, ValueError, TypeError, OverflowError) as error:
                raise CheckpointError(f"cannot read the ledger {self._path}: {error}") from None
            if holders != [client]:
                raise CheckpointError(
                    f"the ledger {self._path} is that of client "
                    f"{', '.join(map(str, holders)) or 'nobody'}, this is client {client}: its "
                    "budget would be forgotten"
                )

    @property
    def is_new(self) -> bool:
        """Whether nothing has ever been written down."""
        return not self._path.exists()

    def affords(self, noise_multiplier: float, *, server_round: int = 0) -> bool:
        """Whether one more release with this noise, in this round, stays within the budget."""
        paid = server_round > 0 and server_round == self._paid_round
        return paid or self._accountant.affords(self._client, noise_multiplier=noise_multiplier)

    def spend(self, noise_multiplier: float, *, num_examples: int, server_round: int = 0) -> None:
        """Write a release down, to the disk and not only to memory, before it is made.

        Args:
            noise_multiplier: Of the release.
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
        text = json.dumps({**self._accountant.state(), "round": server_round})
        write_bytes(self._path, text.encode(), sync=True)


def whole_number(name: str, value: object) -> int:
    """A whole number of a ledger, 0 to 2^53.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise ValueError(f"{name} is {str(value)[:40]}; allowed: a whole number, 0 to 2^53")
    return value
