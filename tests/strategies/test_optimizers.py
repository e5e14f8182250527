"""Server optimizers against torch's own."""

import numpy as np
import pytest
import torch

from nmoe_flower.strategies.optimizers import AdamW, Nesterov


def gradients(steps: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, generator=source, dtype=torch.float64) for _ in range(steps)]


@pytest.mark.parametrize("name", ["adamw", "nesterov", "sgd"])
def test_the_steps_are_those_of_torch(name: str) -> None:
    parameter = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    rates = [0.1, 0.05, 0.2, 0.01]
    ours: AdamW | Nesterov
    theirs: torch.optim.Optimizer
    if name == "adamw":
        theirs = torch.optim.AdamW([parameter], betas=(0.9, 0.99), weight_decay=0.3)
        ours = AdamW(weight_decay=0.3)
    else:
        momentum = 0.9 if name == "nesterov" else 0.0
        theirs = torch.optim.SGD([parameter], momentum=momentum, nesterov=momentum > 0)
        ours = Nesterov(momentum)
    weights = np.ones((3, 2))
    for gradient, rate in zip(gradients(4), rates, strict=True):
        theirs.param_groups[0]["lr"] = rate
        parameter.grad = gradient
        theirs.step()
        weights = ours.step("w", weights, gradient.numpy(), rate)
        np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("make", [AdamW, lambda: Nesterov(0.9)])
def test_a_loaded_optimizer_goes_on(make: type[AdamW]) -> None:
    whole, before, after = make(), make(), make()
    weights = other = np.ones((3, 2), np.float32)
    for number, gradient in enumerate(gradients(4)):
        if number == 2:
            after.load_state(before.state())
            before = after
        weights = whole.step("w", weights, gradient.numpy().astype(np.float32), 0.1)
        other = before.step("w", other, gradient.numpy().astype(np.float32), 0.1)
    assert np.array_equal(weights, other)
    assert weights.dtype == np.float32


def test_biases_and_norms_do_not_decay() -> None:
    optimizer = AdamW(weight_decay=0.5)
    still = np.zeros(3)
    assert optimizer.step("bias", np.ones(3), still, 0.1).tolist() == [1.0] * 3
    assert optimizer.step("weight", np.ones((1, 1)), np.zeros((1, 1)), 0.1)[0, 0] == 0.95
