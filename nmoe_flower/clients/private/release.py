"""How a private matrix leaves a client: checked, written down on the disk, then with noise.

The one way out: FedSC's handler takes it, and so does ``PrivateMatrix`` in other people's apps.
"""

from functools import cached_property
from pathlib import Path

from torch import Generator, Tensor

from nmoe_flower.clients.private.ledger import Ledger
from nmoe_flower.privacy import Budget, GaussianMechanism
from nmoe_flower.records import NOISE_MULTIPLIER, NOISE_STD

__all__ = ["MatrixRelease"]


class MatrixRelease:
    """A client's releases of matrices, all with the noise of one mechanism.

    Args:
        folder: Where the client's ledger is.
        client: The client's partition id.
        budget: What all its releases may cost together.
        mechanism: Sets the noise, and knows which matrices clipped features can have.
    """

    def __init__(
        self, folder: Path, client: int, budget: Budget, mechanism: GaussianMechanism
    ) -> None:
        self.folder, self.client, self.budget = folder, client, budget
        self.mechanism = mechanism

    @cached_property
    def ledger(self) -> Ledger:
        """What was released so far.

        Raises:
            CheckpointError: There is a ledger and it cannot be read, or it is another client's.
        """
        return Ledger(self.folder, self.client, self.budget)

    @property
    def told(self) -> dict[str, float]:
        """What the server is told of the noise, as metrics."""
        return {
            NOISE_MULTIPLIER: self.mechanism.noise_multiplier,
            NOISE_STD: self.mechanism.noise_std,
        }

    def affords(self, *, server_round: int = 0) -> bool:
        """Whether the budget pays for one more release; for that of a round again, see `Ledger`."""
        return self.ledger.affords(self.mechanism.noise_multiplier, server_round=server_round)

    def release(
        self, matrix: Tensor, noise: Generator | None = None, *, server_round: int = 0
    ) -> Tensor:
        """Check R, write its release down, and return it with noise: what is refused costs nothing.

        Args:
            matrix: R, symmetric, [d, d].
            noise: Stream of the noise; None, and only then, for a secure mechanism.
            server_round: The round it is for, above 0, for callers that have one release a round
                and keep it on the disk; 0 pays every time.

        Raises:
            ConfigError: No clipped features have this R, or the budget's delta is not below 1/n.
            BudgetError: The budget is spent.
        """
        self.mechanism.check(matrix)
        self.ledger.spend(
            self.mechanism.noise_multiplier,
            num_examples=self.mechanism.num_examples,
            server_round=server_round,
        )
        return self.mechanism.release(matrix, noise)
