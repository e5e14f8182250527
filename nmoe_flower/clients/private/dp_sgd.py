"""DP-SGD: sampled batches, clipped gradients of samples, noise (Abadi et al. 2016), by Opacus.

Every sample joins a batch on its own (Poisson sampling), its gradient is clipped, and noise is
added to the sum, which is divided by the batch size that was expected. What an optimizer does with
the noisy gradient, momentum too, costs nothing more.

``private_fit`` does it for any module; ``private_train`` is a client's round with it: what it
costs, what it may cost, and who is told.
"""

import hashlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor, nn

from nmoe_flower import records
from nmoe_flower.clients.device import Device
from nmoe_flower.clients.private.ledger import StepLedger
from nmoe_flower.errors import BudgetError, ConfigError
from nmoe_flower.installation import install_hint
from nmoe_flower.privacy import Budget, check_delta, noise_multiplier_for_steps, secure_normal
from nmoe_flower.records import KEPT_ROUNDS, LEARNING_RATE, SERVER_ROUND, StepKey
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import generator

__all__ = [
    "Draw",
    "Losses",
    "Sampler",
    "StepPlan",
    "plan_of",
    "private_fit",
    "private_train",
    "report",
]

Losses = Callable[[tuple[Tensor, ...]], Tensor]
"""A batch -> the loss of each of its b samples, [b]."""

Draw = Callable[[np.ndarray, torch.Generator], tuple[Tensor, ...]]
"""Indices [b] and a stream for augmentation -> a batch of them."""

_FLOATS_AT_ONCE = 2**26  # gradients of samples kept at a time: a quarter of a gigabyte


@dataclass(frozen=True)
class StepPlan:
    """What a client's private steps are like.

    Attributes:
        steps: Number of steps in a round.
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
        rate: Probability of each to be drawn, 0 to 1.
        seed: Seed of the draws; None draws from the operating system. Whoever knows who was drawn
            has more than the accountant allows for.
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
    plan: StepPlan,
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
        noise: Stream of the noise, on the parameters' device; None draws from the operating system.

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
    optimizer: torch.optim.Optimizer, plan: StepPlan, noise: torch.Generator | None
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


def plan_of(device: Device, steps: int) -> StepPlan:
    """This client's plan for rounds of so many steps.

    Raises:
        ConfigError: ``privacy.delta`` is not below 1 / images, or no noise is enough.
    """
    settings, extractor, size = (
        device.config.privacy,
        device.config.extractor,
        len(device.train_labels),
    )
    check_delta(settings.delta, size)
    batch_size = min(extractor.batch_size, size)
    noise = settings.weights_noise or noise_multiplier_for_steps(
        settings.weights_epsilon,
        settings.delta,
        sample_rate=batch_size / size,
        steps=max(1, extractor.rounds * steps),
        adjacency=settings.adjacency,
    )
    return StepPlan(steps, batch_size, batch_size / size, settings.weights_clip, noise)


def private_train(
    device: Device,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    message: Message,
    *,
    steps: int,
    draw: Draw,
    losses: Losses,
    views: int = 1,
) -> dict[str, float]:
    """Train a round with DP-SGD, if the budget pays for it, and tell what it has cost so far.

    If it does not pay, the network keeps the weights it was sent: a step of zero.

    Raises:
        BudgetError: This round was answered before, and arithmetic (on another machine, say) does
            not give the same bits again: a second answer was not paid for.
    """
    plan, settings = plan_of(device, steps), records.config_of(message)
    server_round, secure = int(settings[SERVER_ROUND]), device.config.privacy.secure
    ledger = _ledger(device)
    received = _digest(message, network, str(settings.get(LEARNING_RATE)))
    try:
        attempt = ledger.pay(
            server_round,
            received,
            noise_multiplier=plan.noise_multiplier,
            sample_rate=plan.sample_rate,
            steps=plan.steps,
            repeatable=not secure,
        )
    except BudgetError:
        return report(device, spent=True)
    seed = derive_seed(device.seed("private", server_round, attempt), received)
    sampler = Sampler(
        len(device.train_labels), plan.sample_rate, None if secure else derive_seed(seed, "batches")
    )
    augment = generator(derive_seed(seed, "augment"))
    private_fit(
        network,
        (sampler.draw() for _ in range(plan.steps)),
        lambda chosen: draw(chosen, augment),
        losses,
        optimizer=optimizer,
        plan=plan,
        views=views,
        noise=None if secure else generator(derive_seed(seed, "noise"), device.torch_device),
    )
    if not ledger.release(server_round, _digest(None, network), kept=settings.get(KEPT_ROUNDS, ())):
        raise BudgetError(
            f"round {server_round} was answered before, and taking it again does not give the same "
            "bits: nothing is sent"
        )
    return report(device)


def report(device: Device, *, spent: bool = False) -> dict[str, float]:
    """What this client's steps have cost so far, as metrics; none of it depends on the images."""
    cost = _ledger(device).cost
    return {
        StepKey.STEPS: cost.steps,
        StepKey.EPSILON: cost.epsilon,
        StepKey.REPLACED: cost.replaced,
        StepKey.SPENT: float(spent),
    }


def _ledger(device: Device) -> StepLedger:
    privacy = device.config.privacy
    budget = Budget(privacy.weights_epsilon, privacy.delta)
    return StepLedger(device.store.folder, budget, adjacency=privacy.adjacency)


def _digest(message: Message | None, network: nn.Module, *more: str) -> str:
    """Digest of all that a round's outcome depends on, or of an outcome."""
    found = hashlib.sha256("\x1f".join(more).encode())
    received = {} if message is None else records.of_kind(message.content, ArrayRecord)
    for key, record in sorted(received.items()):
        for name, array in sorted(records.to_numpy(record).items()):  # order, layout vary
            found.update(f"{key}/{name}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
