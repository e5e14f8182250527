"""Bytes between the server and each client of a federated mixture, in a round and in all."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["Traffic"]


class Traffic:
    """What every client got and sent.

    Args:
        clients: Their number at the start; `meet` adds more.

    Attributes:
        total: int [clients, 2]: bytes down and up, of all rounds.
        down: By client: bytes it got this round.
        up: By client: bytes of its usable reply this round.

    >>> traffic = Traffic(2)
    >>> traffic.begin({1: 100})
    >>> traffic.take(1, 120)
    >>> traffic.total.tolist(), traffic.over({1: 80})
    ([[0, 0], [100, 120]], 1.5)
    """

    def __init__(self, clients: int) -> None:
        self.total: npt.NDArray[np.int64] = np.zeros((clients, 2), dtype=np.int64)
        self.down: dict[int, int] = {}
        self.up: dict[int, int] = {}

    def meet(self, clients: int) -> None:
        """Make room for clients up to number ``clients - 1``."""
        more = max(clients - len(self.total), 0)
        self.total = np.vstack([self.total, np.zeros((more, 2), dtype=np.int64)])

    def begin(self, down: Mapping[int, int]) -> None:
        """A round starts with so many bytes to each client."""
        self.down, self.up = dict(down), {}
        for client, size in down.items():
            self.total[client, 0] += size

    def ask(self, client: int, size: int) -> None:
        """A question beside the round."""
        self.total[client, 0] += size

    def take(self, client: int, size: int) -> None:
        """A usable reply."""
        self.up[client] = size
        self.total[client, 1] += size

    def over(self, allowed: Mapping[int, int]) -> float:
        """The most that a client got or sent this round, in its ``allowed`` bytes."""
        shares = [
            max(size, self.up.get(client, 0)) / allowed[client]
            for client, size in self.down.items()
        ]
        return max(shares, default=0.0)
