"""How FedSC's matrices leave a client and are remembered: as they are, or within a budget.

The handler makes a matrix and asks `matrices_of` for its way; it never asks whether it is private.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord
from torch import Tensor

from nmoe_flower.clients.device import Device, Store, Versions
from nmoe_flower.clients.plugin import Contrast, Memory
from nmoe_flower.clients.private import MatrixRelease
from nmoe_flower.errors import CheckpointError
from nmoe_flower.privacy import Budget
from nmoe_flower.records import CORRELATION
from nmoe_flower.training import generator

__all__ = ["Matrices", "matrices_of"]

SentMatrix = tuple[ArrayRecord | None, dict[str, float]]
"""A packed matrix, None if nothing may leave, and what is told of it."""


class Matrices(Protocol):
    """The way of a client's matrices."""

    def memory(self, kept: object) -> Memory:
        """Where the client keeps what it sends.

        Args:
            kept: Rounds that a resumed run may go on after, as the server tells them; None: none.
        """

    def send(self, side: Contrast, make: Callable[[], Tensor]) -> SentMatrix:
        """Make this round's matrix, keep it and pack it to be sent.

        Args:
            side: The client's part of the round, with its memory.
            make: Makes the matrix, [d, d], of clipped features, each sample once.
        """

    def check(self) -> None:
        """Refuse settings under which nothing could be sent."""


def matrices_of(device: Device) -> Matrices:
    """The way of this client's matrices, as the configuration has it."""
    return PrivateMatrices(device) if device.config.privacy.enabled else PlainMatrices(device)


@dataclass(frozen=True)
class PlainMatrices:
    """Matrices that leave as they are."""

    device: Device

    def memory(self, kept: object) -> Memory:
        """As many versions as a resumed run can ask for."""
        return _StoreMemory(self.device.store, kept)

    def send(self, side: Contrast, make: Callable[[], Tensor]) -> SentMatrix:
        """The matrix itself."""
        return side.keep(make()), {}

    def check(self) -> None:
        """Nothing can be wrong."""


@dataclass(frozen=True)
class PrivateMatrices:
    """Matrices that leave with noise, through `MatrixRelease`, as long as the budget lasts."""

    device: Device

    def memory(self, kept: object) -> Memory:
        """All versions: what has cost privacy is never thrown away."""
        return _PaidMemory(self.device.store, kept)

    def send(self, side: Contrast, make: Callable[[], Tensor]) -> SentMatrix:
        """The matrix with noise; None, and nothing is made, if the budget is spent.

        What was sent in this round before (by a run that was killed and resumed) is sent again: the
        same bits cost nothing.

        Raises:
            CheckpointError: The ledger cannot be read, or is gone while matrices were sent.
        """
        device, privacy = self.device, self.device.config.privacy
        way_out = MatrixRelease(
            device.store.folder,
            device.partition,
            Budget(privacy.epsilon, privacy.delta),
            device.mechanism,
        )
        if (before := side.sent_before()) is not None:
            return before, way_out.told
        if way_out.ledger.is_new and Versions(device.store, CORRELATION).rounds():
            raise CheckpointError(
                f"{device.store.folder} holds matrices that were sent and no ledger of their cost: "
                "no more are released"
            )
        noise = None if privacy.secure else generator(device.seed("release", side.server_round))
        sent = side.release(way_out, make, noise, on_disk=True)
        return sent, {} if sent is None else way_out.told

    def check(self) -> None:
        """Refuse a delta of 1 / images or more.

        Raises:
            ConfigError: The number is named.
        """
        _ = self.device.mechanism


class _StoreMemory:
    """A memory on the client's disk, with as many versions as a resumed run can ask for."""

    def __init__(self, store: Store, kept: object) -> None:
        self._versions = Versions(store, CORRELATION)
        self._kept: list[int] = list(kept or ())  # type: ignore[call-overload]

    def load(self, server_round: int) -> Mapping[str, np.ndarray] | None:
        self._kept.append(server_round)  # what the server has, even if it drops the next reply
        return self._versions.load(server_round)

    def save(self, server_round: int, arrays: dict[str, np.ndarray]) -> None:
        self._versions.save(server_round, arrays)
        self._versions.prune(server_round, self._kept)


class _PaidMemory(_StoreMemory):
    """The same for what has cost privacy: in spite of a power cut, and for ever."""

    def save(self, server_round: int, arrays: dict[str, np.ndarray]) -> None:
        self._versions.save(server_round, arrays, sync=True)
