"""Fused steps: the numbers of torch's loop, and torch's loop where memory lies otherwise."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from nmoe_flower.training import fit
from nmoe_flower.training.fused import fused

KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
}
LAYOUTS = {"rows": torch.contiguous_format, "channels last": torch.channels_last}


def network(layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(45, 4))
    return body.to(memory_format=layout)


def batches(layout: torch.memory_format = torch.contiguous_format) -> Iterator[torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    for _ in range(6):
        yield torch.randn(8, 3, 5, 5, generator=source).to(memory_format=layout)


def loss_of(body: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: body(images).square().mean()


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    with fused(optimizer):
        found = [group["fused"] for group in optimizer.param_groups]
    assert all(group["fused"] is None for group in optimizer.param_groups)
    return all(found)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_moves_weights_as_a_loop_written_by_hand(
    kind: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = network(layout)
    steps = KINDS[kind](by_hand.parameters())
    for images in batches(layout):
        steps.zero_grad()
        loss_of(by_hand)(images).backward()
        steps.step()
    seen: list[bool] = []
    ours = network(layout)
    optimizer = KINDS[kind](ours.parameters())
    optimizer.register_step_pre_hook(
        lambda found, *_: seen.extend(group["fused"] for group in found.param_groups)
    )
    fit(ours, batches(layout), loss_of(ours), optimizer=optimizer)
    assert seen == [True] * 6
    for mine, theirs in zip(ours.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert optimizer.param_groups[0]["fused"] is None


def conv() -> nn.Parameter:
    return nn.Parameter(network().get_parameter("0.weight").detach().clone())


def of(weight: nn.Parameter, **options: Any) -> torch.optim.Optimizer:
    weight.grad = torch.ones_like(weight)
    return torch.optim.SGD([weight], lr=0.1, momentum=0.9, **options)


def test_a_gradient_that_lies_otherwise_than_its_weight_is_not_fused() -> None:
    """The kernel would give each weight the gradient of another: 0, 1, 2 ... of rows."""
    weight = conv()
    optimizer = of(weight)
    assert is_fused(optimizer)
    weight.grad = torch.ones_like(weight).to(memory_format=torch.channels_last)
    assert not is_fused(optimizer)
    mixed, right = conv(), conv()
    for one in (mixed, right):
        one.grad = torch.arange(one.numel(), dtype=torch.float32).view_as(one)
        one.grad = one.grad.to(memory_format=torch.channels_last)
    torch.optim.SGD([mixed], lr=1.0, fused=True).step()
    torch.optim.SGD([right], lr=1.0).step()
    assert not torch.equal(mixed, right)  # else the check can go


def test_moments_that_lie_otherwise_are_not_fused() -> None:
    weight = conv()
    optimizer = of(weight)
    optimizer.state[weight]["momentum_buffer"] = torch.ones_like(weight)
    assert is_fused(optimizer)
    other = torch.ones_like(weight).to(memory_format=torch.channels_last)
    optimizer.state[weight]["momentum_buffer"] = other
    assert not is_fused(optimizer)


@pytest.mark.parametrize(
    "weight",
    [
        nn.Parameter(torch.zeros(4, 6).t()),
        nn.Parameter(torch.zeros(4, 6)[:, ::2]),
        nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)),
    ],
    ids=["transposed", "with gaps", "bfloat16"],
)
def test_other_weights_are_not_fused(weight: nn.Parameter) -> None:
    assert not is_fused(of(weight))


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": True}, {"foreach": False}])
def test_who_chose_how_to_step_keeps_that(options: dict[str, bool]) -> None:
    optimizer = of(conv(), **options)
    before = dict(optimizer.param_groups[0])
    with fused(optimizer):
        assert optimizer.param_groups[0] == before


def test_sparse_gradients_are_stepped_as_ever() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    before = table.weight.detach().clone()
    fit(table, [torch.tensor([1, 3])] * 2, lambda rows: table(rows).sum(), optimizer=optimizer)
    moved = (table.weight.detach() - before).abs().sum(dim=1) > 0
    assert moved.tolist() == [False, True, False, True, False]


def test_another_optimizer_steps_as_ever() -> None:
    optimizer = torch.optim.RMSprop([conv()])
    before = dict(optimizer.param_groups[0])
    with fused(optimizer):
        assert optimizer.param_groups[0] == before
