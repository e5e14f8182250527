"""DP-SGD: sampled batches, clipped gradients of samples, noise (Abadi et al. 2016), by Opacus.

Every sample joins a batch on its own (Poisson sampling), its gradient is clipped, and noise is
added to the sum, which is divided by the batch size that was expected. What an optimizer does with
the noisy gradient, momentum too, costs nothing more.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.installation import install_hint
from nmoe_flower.privacy import secure_normal

__all__ = ["Losses", "Plan", "Sampler", "private_fit"]

Losses = Callable[[tuple[Tensor, ...]], Tensor]
"""A batch -> the loss of each of its b samples, [b]."""

_FLOATS_AT_ONCE = 2**26  # gradients of samples kept at a time: a quarter of a gigabyte


@dataclass(frozen=True)
class Plan:
    """What a client's steps are like.

    Attributes:
        steps: In a round.
        batch_size: Expected number of samples in a batch.
        sample_rate: Probability of each sample to be in it.
        clip: Largest norm of a sample's gradient.
        noise_multiplier: Noise over clip.
    """

    steps: int
    batch_size: int
    sample_rate: float
    clip: float
    noise_multiplier: float


class Sampler:
    """Batches in which each of ``size`` samples is with probability ``rate``, on its own.

    Args:
        size: Number of samples.
        rate: Probability.
        seed: Of the draws; None draws from the operating system. Whoever knows who was drawn has
            more than the accountant allows for.
    """

    def __init__(self, size: int, rate: float, seed: int | None) -> None:
        self.size, self.rate = size, rate
        self._rng = None if seed is None else np.random.default_rng(seed)

    def draw(self) -> np.ndarray:
        """The indices of one batch, in order; it may be empty."""
        if self._rng is not None:
            return np.flatnonzero(self._rng.random(self.size) < self.rate)
        bits = np.frombuffer(os.urandom(8 * self.size), np.uint64) >> np.uint64(11)
        return np.flatnonzero(bits * 2.0**-53 < self.rate)


def private_fit(
    module: nn.Module,
    batches: Iterator[np.ndarray],
    draw: Callable[[np.ndarray], tuple[Tensor, ...]],
    losses: Losses,
    *,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    views: int = 1,
    noise: torch.Generator | None,
) -> int:
    """Take one private step per batch and return their number; the module ends in evaluation mode.

    Args:
        module: What is trained, in float32.
        batches: The indices of each batch.
        draw: Makes a batch of some of them.
        losses: The loss of each sample.
        optimizer: Holds the parameters that move.
        plan: Clip, noise and expected size.
        views: Rows of a pass through ``module`` that belong to one sample: all first views, then
            all second ones.
        noise: Its stream, on the parameters' device; None draws from the operating system.

    Raises:
        ConfigError: Opacus is missing, or a layer mixes samples.
    """
    try:
        samples = importlib.import_module("nmoe_flower.clients.private.grad_samples")
    except ModuleNotFoundError as error:
        raise ConfigError(f"private weights need Opacus: {install_hint('privacy')}") from error
    module.train()
    gradients, taken = samples.SampleGradients(module), 0
    private = _private_optimizer(optimizer, plan, noise)
    size = sum(parameter.numel() for parameter in private.params) * views
    at_once = max(1, _FLOATS_AT_ONCE // size)
    try:
        for chosen in batches:
            parts = [chosen[i : i + at_once] for i in range(0, len(chosen), at_once)]
            for part in parts:
                private.zero_grad(set_to_none=True)
                gradients.backward(losses(draw(part)).sum(), views=views)
                private.signal_skip_step(part is not parts[-1])
                private.step()
            if not parts:
                private.zero_grad(set_to_none=True)
                for parameter in private.params:
                    parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
                private.step()
            taken += 1
    finally:
        gradients.close()
        module.eval()
    return taken


def _private_optimizer(
    optimizer: torch.optim.Optimizer, plan: Plan, noise: torch.Generator | None
) -> Any:
    """Opacus's optimizer around another, with noise from ``noise`` or the operating system."""
    private = importlib.import_module("opacus.optimizers").DPOptimizer(
        optimizer,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clip,
        expected_batch_size=plan.batch_size,
        generator=noise,
    )
    if noise is None:
        deviation = plan.noise_multiplier * plan.clip

        def add_noise() -> None:
            for p in private.params:
                drawn = torch.from_numpy(secure_normal(p.numel())).view(p.shape)
                p.grad = p.summed_grad + (deviation * drawn).to(p)

        private.add_noise = add_noise
    return private
