"""A client's round with private weights: what it costs, what it may cost, and who is told."""

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor, nn

from nmoe_flower import records
from nmoe_flower.clients.device import Device
from nmoe_flower.clients.private.private_fit import Losses, Plan, Sampler, private_fit
from nmoe_flower.clients.private.step_ledger import StepLedger
from nmoe_flower.errors import BudgetError
from nmoe_flower.privacy import Budget, check_delta, noise_multiplier_for_steps
from nmoe_flower.records import KEPT_ROUNDS, SERVER_ROUND, StepKey
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import generator

__all__ = ["plan_of", "private_train", "report"]

Draw = Callable[[np.ndarray, torch.Generator], tuple[Tensor, ...]]
"""Indices [b] and a stream for augmentation -> a batch of them."""


def plan_of(device: Device, steps: int) -> Plan:
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
    return Plan(steps, batch_size, batch_size / size, settings.weights_clip, noise)


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
    received = _digest(message, network, str(settings.get("learning-rate")))
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
    """Of all that a round's outcome depends on, or of an outcome."""
    found = hashlib.sha256("\x1f".join(more).encode())
    received = {} if message is None else message.content.array_records
    for key, record in sorted(received.items()):
        for name, array in sorted(records.to_numpy(record).items()):  # order, layout vary
            found.update(f"{key}/{name}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
