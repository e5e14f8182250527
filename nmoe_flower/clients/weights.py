"""How a client trains the weights of stage 1, and what of it leaves: plainly, or with DP-SGD.

A handler says what it trains (`LocalTask`) and asks `weights_of` for the way; it never asks whether
the weights are private.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor, nn

from nmoe_flower import records
from nmoe_flower.clients.device import Device
from nmoe_flower.clients.private import Draw, Losses, plan_of, private_train, report
from nmoe_flower.records import LEARNING_RATE, LOSS, SERVER_ROUND
from nmoe_flower.training import DrawnBatches, FitResult, batch_indices, fit, generator, sgd

__all__ = [
    "LocalTask",
    "Weights",
    "batches",
    "local_optimizer",
    "local_steps",
    "take_steps",
    "weights_of",
]


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """What a client trains in a round, on its own images.

    Attributes:
        network: What is trained.
        draw: Indices [b] of own images, and a stream for their augmentation -> a batch.
        loss: A batch -> its loss, a scalar.
        losses: A batch -> the loss of each of its samples, [b], which DP-SGD can clip; None if no
            sample has a loss of its own in this round.
        augmentation: Purpose of the stream of augmentation.
        views: Rows of a pass through the network that belong to one sample.
    """

    network: nn.Module
    draw: Draw
    loss: Callable[[tuple[Tensor, ...]], Tensor]
    losses: Losses | None
    augmentation: str
    views: int = 1


class Weights(Protocol):
    """How a client's weights are trained and watched."""

    def train(
        self, task: LocalTask, optimizer: torch.optim.Optimizer, message: Message
    ) -> dict[str, float]:
        """Take the steps of a round.

        Args:
            task: What is trained, with the weights that were received.
            optimizer: Holds the parameters that move.
            message: Tells the round, and all that the steps start from.

        Returns:
            The metrics that may leave.
        """

    @property
    def watched(self) -> np.ndarray:
        """Images of this client whose features may be measured and told, [n, H, W, C]."""

    def check(self) -> None:
        """Refuse settings under which no step could be taken."""


def weights_of(device: Device) -> Weights:
    """The way of this client's weights, as the configuration has it."""
    return PrivateWeights(device) if device.config.privacy.weights else PlainWeights(device)


@dataclass(frozen=True)
class PlainWeights:
    """Weights that leave as they are."""

    device: Device

    def train(
        self, task: LocalTask, optimizer: torch.optim.Optimizer, message: Message
    ) -> dict[str, float]:
        """Take the steps of the round; tells their mean loss."""
        steps = local_steps(self.device)
        first = (int(records.config_of(message)[SERVER_ROUND]) - 1) * steps
        return {LOSS: take_steps(self.device, task, optimizer, first=first, count=steps).loss}

    @property
    def watched(self) -> np.ndarray:
        """The training images."""
        return self.device.train_images

    def check(self) -> None:
        """Nothing can be wrong."""


@dataclass(frozen=True)
class PrivateWeights:
    """Weights trained with DP-SGD, within a budget that the client keeps."""

    device: Device

    def train(
        self, task: LocalTask, optimizer: torch.optim.Optimizer, message: Message
    ) -> dict[str, float]:
        """Take the steps that the budget pays for; tells what they have cost, and no loss.

        A task without losses of single samples takes no step, and costs nothing.

        Raises:
            BudgetError: This round was answered before, and does not give the same bits again.
        """
        if task.losses is None:
            return report(self.device)
        return private_train(
            self.device,
            task.network,
            optimizer,
            message,
            steps=local_steps(self.device),
            draw=task.draw,
            losses=task.losses,
            views=task.views,
        )

    @property
    def watched(self) -> np.ndarray:
        """The images of the local test: training images would tell more than was paid for."""
        return np.asarray(self.device.data.test.images[self.device.indices.test_local])

    def check(self) -> None:
        """Refuse a delta of 1 / images or more, and budgets that no noise is enough for.

        Raises:
            ConfigError: The key and its value are named.
        """
        plan_of(self.device, local_steps(self.device))


def local_steps(device: Device) -> int:
    """Steps a client takes in a round."""
    extractor = device.config.extractor
    if extractor.local_steps:
        return extractor.local_steps
    batches = max(1, len(device.train_labels) // extractor.batch_size)
    return extractor.local_epochs * batches


def local_optimizer(device: Device, network: nn.Module, message: Message) -> torch.optim.SGD:
    """SGD at the rate of a message's round, without what the server's step does."""
    extractor = device.config.extractor
    return sgd(
        network,
        learning_rate=float(records.config_of(message)[LEARNING_RATE]),
        momentum=0.0 if extractor.momentum_at == "server" else extractor.momentum,
        weight_decay=0.0 if extractor.steps_with_adamw else extractor.weight_decay,
    )


def batches(
    device: Device, draw: Draw, *, augmentation: str, first: int, count: int
) -> Iterator[tuple[Tensor, ...]]:
    """The batches of steps ``first .. first + count - 1``; a second call draws the same."""
    noise = generator(device.seed(augmentation, first))
    for chosen in batch_indices(
        len(device.train_images),
        device.config.extractor.batch_size,
        first=first,
        count=count,
        seed=device.seed("batches"),
    ):
        yield draw(chosen, noise)


def take_steps(
    device: Device, task: LocalTask, optimizer: torch.optim.Optimizer, *, first: int, count: int
) -> FitResult:
    """Take plain steps ``first ..`` of this client's stream of augmented batches."""
    size = min(device.config.extractor.batch_size, len(device.train_images))
    make = partial(
        batches, device, task.draw, augmentation=task.augmentation, first=first, count=count
    )
    return fit(
        task.network,
        DrawnBatches(make, count, size),
        task.loss,
        optimizer=optimizer,
        max_grad_norm=device.config.extractor.max_grad_norm,
        bf16=device.bf16,
    )
