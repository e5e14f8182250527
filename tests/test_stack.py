"""Clients trained at once end with what each of them gets alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.models import Expert
from nmoe_flower.rendezvous import run_together
from nmoe_flower.training import (
    DrawnBatches,
    FitResult,
    RowBatches,
    SharedLoss,
    batch_indices,
    fit,
    seeded,
    sgd,
    stack,
)

WIDTH, CLASSES = 5, 3


def loss_of(
    network: Callable[[Tensor], Tensor],
    batch: tuple[Tensor, ...],
    shift: Tensor,
    *,
    smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    logits = network(batch[0]) + shift
    return F.cross_entropy(logits, batch[1], label_smoothing=smoothing, reduction=reduction)


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": partial(sgd, learning_rate=0.1),
    "momentum and decay": partial(sgd, learning_rate=0.1, momentum=0.9, weight_decay=0.1),
    "heavy ball": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.5, dampening=0.2),
    "adamw": adamw,
}
BODIES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Expert(WIDTH, CLASSES, hidden=()),
    "layers": lambda: Expert(WIDTH, CLASSES, hidden=(7, 4)),
    "norms": lambda: nn.Sequential(nn.Linear(WIDTH, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES)),
    "frozen": lambda: frozen_first(nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, CLASSES))),
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(),
        nn.Linear(12, CLASSES),
    ),
}  # fmt: skip


def frozen_first(network: nn.Sequential) -> nn.Module:
    network[0].requires_grad_(False)
    return network


class Client:
    """Rows of its own, and a network that starts where its seed says."""

    def __init__(
        self, seed: int, body: str, size: int, batch_size: int, steps: int, optimizer: str
    ) -> None:
        with seeded(seed):
            self.network = BODIES[body]()
            rows, shift = torch.randn(size, WIDTH), torch.randn(CLASSES)
            labels = torch.randint(CLASSES, (size,))
        chosen = list(batch_indices(size, batch_size, first=0, count=steps, seed=seed))
        order = np.stack(chosen) if steps else np.empty((0, 1), np.int64)
        self.batches = RowBatches((rows, labels), order)
        self.loss = SharedLoss(loss_of, self.network, (shift,), {"smoothing": 0.1})
        self.optimizer = OPTIMIZERS[optimizer](self.network)

    def train(self, *, drawn: bool = False, **options: Any) -> FitResult:
        held = self.batches
        steps, size = np.asarray(held.order).shape
        batches = DrawnBatches(held.__iter__, steps, size) if drawn else held
        return fit(self.network, batches, self.loss, optimizer=self.optimizer, **options)


def pairs(clients: list[tuple[int, int, int]], body: str, optimizer: str) -> list[list[Client]]:
    """The same clients twice, each (size, batch size, steps)."""
    return [
        [Client(seed, body, *sizes, optimizer) for seed, sizes in enumerate(clients)]
        for _ in range(2)
    ]


def assert_equal(alone: Client, together: Client) -> None:
    for wanted, got in zip(alone.network.parameters(), together.network.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    wanted_state, got_state = (c.optimizer.state_dict()["state"] for c in (alone, together))
    assert wanted_state.keys() == got_state.keys()
    for place, kept in wanted_state.items():
        assert kept.keys() == got_state[place].keys()
        for name, value in kept.items():
            torch.testing.assert_close(got_state[place][name], value, rtol=1e-4, atol=1e-6)


def check(clients: list[tuple[int, int, int]], body: str, optimizer: str, **limit: Any) -> None:
    alone, together = pairs(clients, body, optimizer)
    wanted = [client.train(**limit) for client in alone]
    got = run_together([partial(client.train, **limit) for client in together])
    for client, other, expected, found in zip(alone, together, wanted, got, strict=True):
        assert_equal(client, other)
        assert found.steps == expected.steps
        assert found.loss == pytest.approx(expected.loss, abs=1e-6)


UNEQUAL = [(9, 4, 5), (3, 4, 2), (8, 4, 7), (5, 4, 0), (6, 2, 3)]  # size, batch size, steps
LIMITS: list[dict[str, Any]] = [
    {},
    {"max_grad_norm": 0.3},
    {"normalise_gradient": True},
    {"cosine_steps": 7},
    {"drawn": True},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("body", BODIES)
def test_together_each_ends_where_it_ends_alone(
    body: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    train = stack._Stack.train
    monkeypatch.setattr(
        stack._Stack, "train", lambda self: [seen.append(len(self._tasks)), train(self)][1]
    )
    monkeypatch.setattr(stack, "SLOW_ON_CPU", ())
    check(UNEQUAL, body, optimizer)
    assert seen == [4]  # all but the one without a step


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_gradients_and_rates_are_each_clients_own(limit: dict[str, Any]) -> None:
    check(UNEQUAL, "layers", "adamw", **limit)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(0, 4))


@settings(max_examples=25)
@given(st.lists(sizes, min_size=2, max_size=5), st.sampled_from(LIMITS))
def test_whatever_the_sizes(clients: list[tuple[int, int, int]], limit: dict[str, Any]) -> None:
    check(clients, "layers", "momentum and decay", **limit)
