"""A FedSC client's part of a round, for any torch encoder (strategies/fedsc.py).

``side = Contrast(message, StateMemory(context), num_examples=n)`` reads what the server sent,
``side.loss(encoder(first), encoder(second))`` is the loss of a batch of two views, and
``side.reply(message, encoder.state_dict())`` is the answer the server expects.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from nmoe_flower import records
from nmoe_flower.clients.private import MatrixRelease
from nmoe_flower.errors import ReplyError
from nmoe_flower.losses import (
    RunningCorrelation,
    correlation,
    local_spectral,
    others_mean,
    unit_ball,
)
from nmoe_flower.privacy import smat, svec
from nmoe_flower.records import (
    CORRELATION,
    NUM_EXAMPLES,
    SERVER_ROUND,
    CorrelationKey,
)

__all__ = ["Contrast", "Memory", "StateMemory"]

RELEASED, EXACT, RUNNING = "released", "exact", "running"


class Memory(Protocol):
    """Where a client keeps what it sent: packed matrices by the round they were sent in."""

    def load(self, server_round: int) -> Mapping[str, np.ndarray] | None:
        """What was sent in that round; None if it is gone."""
        ...

    def save(self, server_round: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep what is sent in this round."""
        ...


class StateMemory:
    """A memory in Flower's ``context.state``: the last matrix, as long as the node lives.

    The one that was loaded stays too: the server may never get what is saved next.
    """

    def __init__(self, context: Context) -> None:
        self._state = context.state
        self._held: set[str] = set()

    def load(self, server_round: int) -> Mapping[str, np.ndarray] | None:
        """What was sent in that round, if it was the last that arrived."""
        self._held.add(f"{CORRELATION}-{server_round}")
        record = self._state.get(f"{CORRELATION}-{server_round}")
        return records.to_numpy(record) if isinstance(record, ArrayRecord) else None

    def save(self, server_round: int, arrays: dict[str, np.ndarray]) -> None:
        """Replace all but what was loaded."""
        kept = [key for key in self._state if key.startswith(f"{CORRELATION}-")]
        for key in set(kept) - self._held:
            del self._state[key]
        self._state[f"{CORRELATION}-{server_round}"] = records.from_numpy(arrays)


class Contrast:
    """One round of one client: its loss given the others' correlation, and its own for them.

    Args:
        message: What ``FedSC`` sent.
        memory: Finds this client's part of the received mean, to take it out.
        num_examples: This client's samples; without any it sends no matrix.
        weight: Weight of the uniformity term.
        unbiased: Negatives without a sample's own terms.
        running: Decay of a running mean of the own matrix over the batches, for small batches; it
            goes on from what ``memory`` holds of the round before. 0 uses each batch alone.
        alone: Push samples away from this client's own only, whatever is known of the others.

    Attributes:
        share: Weight of the own matrix in the loss, q_i or what the server said.
        mean: Mean matrix of all clients as it was received, [d, d]; None if none was.
        others: Mean matrix of the other clients, [d, d]; None if nothing is known of them.
    """

    def __init__(
        self,
        message: Message,
        memory: Memory,
        *,
        num_examples: int,
        weight: float = 1.0,
        unbiased: bool = True,
        running: float = 0.0,
        alone: bool = False,
    ) -> None:
        settings = records.config_of(message)
        self.memory = memory
        self.num_examples = num_examples
        self.weight, self.unbiased = weight, unbiased
        self.server_round = int(settings[SERVER_ROUND])
        self.wanted = bool(settings.get(CorrelationKey.RELEASE, False))
        own_round = int(str(settings.get(CorrelationKey.OWN_ROUND, 0)))
        own = self.memory.load(own_round) if own_round else None
        self.mean = _received_mean(message)
        self.others, samples_share = (None, 1.0) if alone else self._others(settings, own)
        told = float(settings.get(CorrelationKey.SHARE, samples_share))
        self.share = told if self.others is not None else 1.0
        self._running = RunningCorrelation(running, initial=_past(own)) if running else None
        self._sum: Tensor | None = None
        self._batches = 0

    def _others(
        self, settings: Mapping[str, object], own: Mapping[str, np.ndarray] | None
    ) -> tuple[Tensor | None, float]:
        """The others' mean, and this client's share of all samples."""
        if self.mean is None:
            return None, 1.0
        total = float(str(settings[CorrelationKey.TOTAL]))
        if own is None or not self.num_examples:
            return self.mean, self.num_examples / (total + self.num_examples)
        share = self.num_examples / total
        if share >= 1:
            return None, 1.0
        kind = EXACT if settings.get(CorrelationKey.SHRUNK) and EXACT in own else RELEASED
        return others_mean(self.mean, smat(torch.from_numpy(own[kind].copy())), share=share), share

    def loss(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Eq. 4 on the features [B, d] of two views; remembers their correlation.

        Raises:
            ConfigError: A batch of one, views that differ in shape, or features that are not
                finite.
        """
        z1, z2 = unit_ball(z1), unit_ball(z2)
        past = self._running.value if self._running else None
        loss = local_spectral(
            z1,
            z2,
            self.others,
            share=self.share,
            weight=self.weight,
            unbiased=self.unbiased,
            running=past,
        )
        both = torch.cat([z1.detach(), z2.detach()])
        if self._running:
            self._running.update(both)
        if self.wanted:
            self.see(both)
        return loss

    def see(self, z: Tensor) -> None:
        """Count features [B, d] of the unit ball in this round's own matrix."""
        matrix = correlation(z)
        self._sum = matrix if self._sum is None else self._sum + matrix
        self._batches += 1

    def matrix(self) -> Tensor | None:
        """The own matrix: the mean over the batches seen; None before the first.

        The features are those the loss was computed from: with several steps in a round they come
        from slightly different weights, which a pass over all samples at one point would not.
        """
        return None if self._sum is None else self._sum / self._batches

    def keep(self, released: Tensor, exact: Tensor | None = None) -> ArrayRecord:
        """Remember what is sent, and pack it; ``exact`` is the same without noise."""
        arrays = {RELEASED: _packed(released)}
        if exact is not None:
            arrays[EXACT] = _packed(exact)
        if self._batches and self._running and self._running.value is not None:
            arrays[RUNNING] = _packed(self._running.value)
        self.memory.save(self.server_round, arrays)
        return records.from_numpy({CorrelationKey.PACKED: arrays[RELEASED]})

    def release(
        self,
        way_out: MatrixRelease,
        make: Callable[[], Tensor],
        noise: torch.Generator | None = None,
        *,
        on_disk: bool = False,
    ) -> ArrayRecord | None:
        """Make this round's matrix and pack it to be sent with noise, if the budget pays for it.

        What was sent in this round before is sent again: the same bits cost nothing.

        Args:
            way_out: The ledger and the noise.
            make: Makes the matrix R, [d, d], of clipped features, each sample once. It is not
                called when the budget is spent.
            noise: Stream of the noise; None, and only then, if the mechanism is secure.
            on_disk: Whether ``memory`` writes to the disk before anything leaves. Only then is a
                round that was paid for, and killed before it was released, not paid for again.

        Returns:
            What ``reply`` is to send; None if the budget is spent, and ``wanted`` is False then.

        Raises:
            ConfigError: No clipped features have this R.
        """
        if (before := self.sent_before()) is not None:
            return before
        paid_round = self.server_round if on_disk else 0
        if not way_out.affords(server_round=paid_round):
            self.wanted = False
            return None
        matrix = make()
        released = way_out.release(matrix, noise, server_round=paid_round)
        return self.keep(released, matrix)

    def sent_before(self) -> ArrayRecord | None:
        """What was sent in this round before, packed again with the same bits; None if nothing."""
        before = self.memory.load(self.server_round)
        if before is None:
            return None
        return records.from_numpy({CorrelationKey.PACKED: before[RELEASED]})

    def reply(
        self,
        message: Message,
        weights: Mapping[str, Tensor],
        metrics: Mapping[str, float] | None = None,
        *,
        correlation: ArrayRecord | None = None,
    ) -> Message:
        """What ``FedSC`` expects: weights, metrics, and the matrix if one is wanted of samples.

        Args:
            message: The message to answer.
            weights: The trained state dict.
            metrics: Metrics to send beside ``num-examples``.
            correlation: A matrix packed by ``keep``; by default that of the batches seen.

        Raises:
            ReplyError: A matrix is wanted of samples of which no batch was seen.
        """
        arrays = {records.weights_name(message.content): records.pack(weights)}
        if correlation is not None:
            arrays[CORRELATION] = correlation
        elif self.wanted and self.num_examples:
            matrix = self.matrix()
            if matrix is None:
                raise ReplyError("a correlation matrix is wanted, but no batch was seen")
            arrays[CORRELATION] = self.keep(matrix)
        return records.reply(
            message, metrics={NUM_EXAMPLES: self.num_examples, **(metrics or {})}, arrays=arrays
        )


def _received_mean(message: Message) -> Tensor | None:
    record = message.content.get(CORRELATION)
    if not isinstance(record, ArrayRecord):
        return None
    return smat(torch.from_numpy(records.to_numpy(record)[CorrelationKey.MEAN].copy()))


def _past(own: Mapping[str, np.ndarray] | None) -> Tensor | None:
    """Where a running mean goes on: at the last one, or at the matrix sent, without its noise."""
    if own is None:
        return None
    kind = next(kind for kind in (RUNNING, EXACT, RELEASED) if kind in own)
    return smat(torch.from_numpy(own[kind].copy()))


def _packed(matrix: Tensor) -> np.ndarray:
    packed: np.ndarray = svec(matrix).float().cpu().numpy()
    return packed
