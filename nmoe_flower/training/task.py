"""What can be trained together: losses and batches that are more than a closure."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["DrawnBatches", "FitResult", "RowBatches", "SharedLoss"]


@dataclass(frozen=True, slots=True)
class FitResult:
    """Mean loss over the steps taken, and their number."""

    loss: float
    steps: int


@dataclass(frozen=True)
class SharedLoss:
    """A loss that is the same function of weights and batch for every client that has it.

    Attributes:
        function: ``function(network, batch, *constants, **options)`` to a scalar.
        network: What is trained.
        constants: Tensors that this client's batches share; of one shape for all clients.
        options: Values that all clients share, as ``function`` takes them by name.
        by_rows: Whether the scalar is a mean over rows, and ``reduction="none"`` gives the loss of
            each, [b]. Otherwise only batches of one size can be computed together.
    """

    function: Callable[..., Tensor]
    network: nn.Module
    constants: tuple[Tensor, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    by_rows: bool = True

    def __call__(self, batch: tuple[Tensor, ...], **more: Any) -> Tensor:
        """The loss of a batch; ``more`` is handed on to the function."""
        return self.function(self.network, batch, *self.constants, **self.options, **more)


@dataclass(frozen=True)
class RowBatches:
    """Batches of rows that lie in memory: a tuple of tensors [b, ...] per step.

    Attributes:
        tensors: The rows, [n, ...] each.
        order: Which of them each step takes, [b], all of one length.
    """

    tensors: tuple[Tensor, ...]
    order: Iterable[np.ndarray]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for chosen in self.order:
            index = torch.from_numpy(chosen).to(self.tensors[0].device)
            yield tuple(tensor.index_select(0, index) for tensor in self.tensors)


@dataclass(frozen=True)
class DrawnBatches:
    """Batches that are made when they are needed: a tuple of tensors [b, ...] per step.

    Attributes:
        make: Begins at the first batch; every call gives the same ones.
        steps: How many there are.
        size: Rows of each, b.
    """

    make: Callable[[], Iterator[tuple[Tensor, ...]]]
    steps: int
    size: int

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.make()
