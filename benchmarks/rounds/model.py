"""What a client computes, the same for every runner: model, synthetic images, plain steps."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rounds.kinds import Kind, kind_of
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import seeded

__all__ = ["LEARNING_RATE", "batches", "build_model", "images_of", "optimizer_for", "take_steps"]

LEARNING_RATE = 0.01
_CLASSES = 10


def build_model(kind: Kind, seed: int) -> nn.Module:
    """The model of this kind; the same weights for the same seed.

    >>> from benchmarks.rounds.kinds import KINDS
    >>> [sum(p.numel() for p in build_model(kind, 0).parameters()) for kind in KINDS.values()]
    [7850, 299158, 155786, 1616918]
    """
    with seeded(derive_seed(seed, "bench", "model")):
        return nn.Sequential(*_layers(kind))


def _layers(kind: Kind) -> Iterator[nn.Module]:
    size = kind.shape[0]
    if kind.residual:
        yield nn.Conv2d(size, 32, 3, padding=1)
        yield _Block(32, 32, 1)
        yield _Block(32, 64, 2)
        yield _Block(64, 64, 2)
        yield nn.AdaptiveAvgPool2d(1)
        yield nn.Flatten()
        size = 64
    elif len(kind.shape) == 3:
        for width in (32, 64, 128):
            yield nn.Conv2d(size, width, 3, padding=1)
            yield nn.ReLU()
            yield nn.MaxPool2d(2)
            size = width
        yield nn.Flatten()
        size *= (kind.shape[1] // 8) * (kind.shape[2] // 8)
    if kind.hidden:
        yield nn.Linear(size, kind.hidden)
        yield nn.ReLU()
        size = kind.hidden
    yield nn.Linear(size, _CLASSES)


class _Block(nn.Module):
    """Two convolutions with normalised groups, and the input beside them."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(8, width),
        )
        alike = before == width and stride == 1
        self.beside = nn.Identity() if alike else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.inner(images) + self.beside(images))


def optimizer_for(model: nn.Module) -> torch.optim.SGD:
    """Plain SGD: it carries nothing from one client to the next."""
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


@lru_cache(maxsize=128)
def images_of(name: str, seed: int, partition: int) -> tuple[Tensor, Tensor]:
    """A client's images [N, *shape] in [0, 1) and labels [N]; made once per process."""
    kind = kind_of(name)
    source = torch.Generator().manual_seed(derive_seed(seed, "bench", name, partition))
    images = torch.rand((kind.images, *kind.shape), generator=source)
    return images, torch.randint(_CLASSES, (kind.images,), generator=source)


def batches(
    kind: Kind, seed: int, partition: int, server_round: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one client in one round: the next ``steps`` slices, round and round."""
    images, labels = images_of(kind.name, seed, partition)
    for step in range((server_round - 1) * kind.steps, server_round * kind.steps):
        start = step * kind.batch % kind.images
        yield images[start : start + kind.batch], labels[start : start + kind.batch]


def take_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """One SGD step per batch, as fast as it can be written by hand."""
    parameters = list(model.parameters())
    for images, labels in steps:
        loss = F.cross_entropy(model(images), labels)
        for parameter in parameters:
            parameter.grad = None  # ``zero_grad`` costs a tenth of a tiny step
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
