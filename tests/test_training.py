import copy
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nmoe_flower.errors import DataError
from nmoe_flower.training import (
    batch_indices,
    fit,
    fit_along_cosine,
    generator,
    log_prior,
    seeded,
    sgd,
)

CPU = torch.device("cpu")


def line(weight: float = 2.0) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, weight)
    return module


def output(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda batch: module(batch).sum()


def test_plain_steps_by_hand() -> None:
    """loss = w x, so w goes 2 - 0.5 * 3 = 0.5, then 0.5 - 0.5 * 1 = 0; losses 2 * 3 and 0.5 * 1."""
    module = line()
    batches = [torch.tensor([[3.0]]), torch.tensor([[1.0]])]
    result = fit(module, batches, output(module), optimizer=sgd(module, learning_rate=0.5))
    assert module.weight.item() == 0.0
    assert (result.loss, result.steps) == (pytest.approx((6.0 + 0.5) / 2), 2)
    assert not module.training


def test_no_batches_leave_the_weights_alone() -> None:
    module = line()
    result = fit(module, [], output(module), optimizer=sgd(module, learning_rate=1.0))
    assert (result.loss, result.steps, module.weight.item()) == (0.0, 0, 2.0)


def test_seeded_draws_as_torch_does_and_leaves_no_trace() -> None:
    torch.manual_seed(5)
    wanted = nn.Linear(3, 2).weight.detach().clone()
    torch.manual_seed(1)
    first, second = torch.rand(2)
    torch.manual_seed(1)
    assert torch.rand(1) == first
    with seeded(5):
        assert torch.equal(nn.Linear(3, 2).weight, wanted)
    assert torch.rand(1) == second


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_normalised_gradients_take_steps_of_one_length(scale: float) -> None:
    """Both parameters together move by the learning rate, whatever the loss is multiplied by."""
    module = nn.Linear(3, 2)
    before = copy.deepcopy(module.state_dict())
    fit(
        module,
        [torch.ones(4, 3)],
        lambda batch: scale * module(batch).square().sum(),
        optimizer=sgd(module, learning_rate=0.25),
        normalise_gradient=True,
    )
    moved = [module.state_dict()[name] - value for name, value in before.items()]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(0.25, rel=1e-4)


def test_a_zero_gradient_stays_zero_when_normalised() -> None:
    module = line()
    zero = [torch.zeros(1, 1)]
    fit(
        module,
        zero,
        output(module),
        optimizer=sgd(module, learning_rate=1.0),
        normalise_gradient=True,
    )
    assert module.weight.item() == 2.0


@pytest.mark.parametrize(("x", "moved"), [(10.0, 1.5), (1.0, 1.0)])
def test_clipping_shortens_only_long_gradients(x: float, moved: float) -> None:
    module = line()
    fit(
        module,
        [torch.tensor([[x]])],
        output(module),
        optimizer=sgd(module, learning_rate=1.0),
        max_grad_norm=1.5,
    )
    assert module.weight.item() == pytest.approx(2.0 - moved, rel=1e-5)


def test_momentum_is_nesterov_and_decay_spares_biases() -> None:
    """Step 1: v = g + d w, w -= lr (v + mu v); the bias has no d. Constant gradients 1 and 1."""
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, 1.0)
    nn.init.constant_(module.bias, 1.0)
    optimizer = sgd(module, learning_rate=0.1, momentum=0.5, weight_decay=0.2)
    fit(module, [torch.ones(1, 1)], output(module), optimizer=optimizer)
    assert module.weight.item() == pytest.approx(1 - 0.1 * 1.2 * 1.5)
    assert module.bias.item() == pytest.approx(1 - 0.1 * 1.0 * 1.5)


def test_a_rate_along_a_cosine_by_hand() -> None:
    """Rates .1 (1 + cos(pi t / 4)) / 2 of AdamW, whose first steps on one gradient are of length 1.

    With a constant gradient both moments are that gradient, once corrected: every step is the rate.
    """
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    seen: list[float] = []

    def loss(step: int) -> torch.Tensor:
        seen.append(module.weight.item())
        return -module(torch.ones(1, 1)).sum()

    result = fit_along_cosine(
        module,
        range(3),
        loss,
        parameters=module.parameters(),
        learning_rate=0.1,
        weight_decay=0.0,
        steps=4,
    )
    seen.append(module.weight.item())
    moved = [later - before for before, later in pairwise(seen)]
    assert result.steps == 3
    wanted = [0.05 * (1 + math.cos(math.pi * t / 4)) for t in range(3)]
    assert moved == pytest.approx(wanted, rel=1e-5)


def test_frozen_parameters_are_not_in_the_optimizer() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[0].requires_grad_(requires_grad=False)
    held = [p for group in sgd(module, learning_rate=1.0).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module[1].parameters()}


sizes = st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**62))


@given(sizes)
def test_an_epoch_visits_every_index_at_most_once(case: tuple[int, int, int]) -> None:
    size, batch_size, seed = case
    per_epoch = size // min(size, batch_size)
    for epoch in (0, 3):
        batches = list(
            batch_indices(size, batch_size, first=epoch * per_epoch, count=per_epoch, seed=seed)
        )
        together = np.concatenate(batches)
        assert {len(b) for b in batches} == {min(size, batch_size)}
        assert len(set(together.tolist())) == len(together) == per_epoch * min(size, batch_size)
        assert together.min() >= 0
        assert together.max() < size


@given(sizes, st.integers(0, 30), st.integers(0, 30))
def test_a_step_is_the_same_whoever_asks(
    case: tuple[int, int, int], first: int, count: int
) -> None:
    size, batch_size, seed = case
    together = list(batch_indices(size, batch_size, first=0, count=first + count, seed=seed))
    later = list(batch_indices(size, batch_size, first=first, count=count, seed=seed))
    assert len(later) == count
    for one, other in zip(together[first:], later, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("size", "batch_size"), [(0, 4), (5, 0), (5, -1)])
def test_batches_of_nothing_are_refused(size: int, batch_size: int) -> None:
    with pytest.raises(DataError, match=f"{size} rows in batches of {batch_size}; allowed"):
        next(batch_indices(size, batch_size, first=0, count=1, seed=0))


def test_epochs_and_seeds_differ() -> None:
    def order(first: int, seed: int) -> list[int]:
        return next(batch_indices(50, 50, first=first, count=1, seed=seed)).tolist()

    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)
    assert sorted(order(1, 0)) == list(range(50))


def test_log_prior_by_hand() -> None:
    """Counts 3, 1, 0 with half a sample added to each: 3.5, 1.5, 0.5 of 5.5."""
    prior = log_prior(np.array([0, 0, 1, 0]), 3)
    expected = [math.log(3.5 / 5.5), math.log(1.5 / 5.5), math.log(0.5 / 5.5)]
    assert prior.dtype == torch.float32
    assert prior.tolist() == pytest.approx(expected)
    assert float(prior.exp().sum()) == pytest.approx(1.0)


def test_generators_are_their_own() -> None:
    state = torch.random.get_rng_state()
    one, other = (torch.rand(3, generator=generator(seed)) for seed in (1, 2))
    assert torch.equal(one, torch.rand(3, generator=generator(1)))
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())
