"""Stage 3 at the client: train the shared gate on cached latents and answers."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from nmoe_flower import records
from nmoe_flower.clients.device import Device, device_of
from nmoe_flower.config import GateConfig
from nmoe_flower.losses import (
    load_balance,
    objective_of,
    pseudo_client_targets,
    shortlisted_targets,
)
from nmoe_flower.models import normalised_latents
from nmoe_flower.own_code import is_own
from nmoe_flower.records import (
    ANSWERS,
    ARRAYS,
    HOLDOUT,
    LATENTS,
    LEARNING_RATE,
    LOSS,
    MEANS,
    NUM_EXAMPLES,
    POOLED,
    SERVER_ROUND,
    ExpertKey,
    PooledKey,
    ShortlistKey,
)
from nmoe_flower.training import (
    FitResult,
    RowBatches,
    SharedLoss,
    batch_indices,
    fit,
    generator,
    sgd,
)

__all__ = [
    "configured_objective",
    "gate_steps",
    "pool",
    "train",
    "train_pooled",
    "train_rolling",
]

Loss = Callable[[tuple[Tensor, ...]], Tensor]  # a batch of rows -> scalar
_AT_ONCE = 1000  # latents that are normalised where they are


def train(message: Message, context: Context) -> Message:
    """FedGate: a few steps on this client's hold-out, with every expert frozen.

    With a shortlist the message holds the gate's rows for the experts on it, in its order.
    """
    device = device_of(context)
    rows = (
        device.kept_normal(HOLDOUT),
        device.kept(ANSWERS, HOLDOUT),
        device.kept(LATENTS, f"{HOLDOUT}-labels"),
    )
    means = device.store.load(MEANS)[ExpertKey.MEAN] if device.config.has_embeddings else None
    gate = _received(device, message, rows[0].shape[1], num_experts=rows[1].shape[1], means=means)
    weights = None
    if shortlist := device.shortlist():
        weights = device.tensor(shortlist[ShortlistKey.LOG_WEIGHTS]).expand(rows[1].shape[:2])
    loss, held = _objective(device, gate, rows, message, log_weights=weights)
    result = gate_steps(device, gate, loss, held, message)
    return _reply(message, gate, len(rows[0]), result)


def train_rolling(message: Message, context: Context) -> Message:
    """RollGate: name the pseudo client of each of this client's training latents.

    With a shortlist the pseudo clients are on it, and the softmax over all is estimated from it.
    """
    device = device_of(context)
    # Folds hold out everything in turn: one copy does for both.
    rows = device.kept_normal(HOLDOUT if device.config.gate.folds else "train")
    shortlist, weights = device.shortlist(), None
    if shortlist:
        weights = device.tensor(shortlist[ShortlistKey.LOG_WEIGHTS])
    listed = None if weights is None else len(weights)
    gate = _received(device, message, rows.shape[1], num_experts=listed)
    keep, source = device.config.gate.keep, generator(device.seed("rolling-targets"))
    if weights is None:
        targets = pseudo_client_targets(
            len(rows), device.partition, device.num_clients, keep=keep, generator=source
        )
    else:
        targets = shortlisted_targets(len(rows), weights, keep=keep, generator=source)
    targets = targets.to(device.torch_device)
    noise = _noise(device, message)

    def loss(batch: tuple[Tensor, ...]) -> Tensor:
        scores = gate(batch[0], generator=noise, normalised=True)
        if weights is None:
            return F.cross_entropy(scores, batch[1])
        named = weights[batch[1]].mean()  # so that a fresh gate has log N
        return F.cross_entropy(scores + weights, batch[1]) + named

    optimizer = _own_optimizer(device, gate, message)
    result = gate_steps(device, gate, loss, (rows, targets), message, optimizer=optimizer)
    return _reply(message, gate, len(rows), result)


def pool(message: Message, context: Context) -> Message:
    """Hand over hold-out latents, answers and labels: for the global upper bound only."""
    device = device_of(context)
    latents, answers = device.store.load(LATENTS), device.store.load(ANSWERS)
    pooled: dict[str, np.ndarray] = {
        PooledKey.LATENTS: latents["holdout"],
        PooledKey.ANSWERS: answers["holdout"],
        PooledKey.LABELS: latents["holdout-labels"],
    }
    if shortlist := device.shortlist():
        every = (len(latents["holdout"]), 1)
        pooled[PooledKey.EXPERTS] = np.tile(shortlist[ShortlistKey.EXPERTS], every)
        pooled[PooledKey.LOG_WEIGHTS] = np.tile(shortlist[ShortlistKey.LOG_WEIGHTS], every)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(pooled[PooledKey.LABELS])},
        arrays={POOLED: records.from_numpy(pooled)},
    )


def train_pooled(message: Message, context: Context) -> Message:
    """Train a gate on everybody's pooled hold-out: as many steps and images as FedGate sees."""
    device = device_of(context)
    settings, content = device.config.gate, records.of_kind(message.content, ArrayRecord)
    means = records.to_numpy(content[MEANS])[ExpertKey.MEAN] if MEANS in content else None
    pooled = _pooled(device, content[POOLED])
    rows = (pooled[PooledKey.LATENTS], pooled[PooledKey.ANSWERS], pooled[PooledKey.LABELS])
    gate = _received(device, message, rows[0].shape[1], means=means)
    loss, held = _objective(
        device,
        gate,
        rows,
        message,
        log_weights=pooled.get(PooledKey.LOG_WEIGHTS),
        experts=pooled.get(PooledKey.EXPERTS),
    )
    result = gate_steps(
        device,
        gate,
        loss,
        held,
        message,
        steps=settings.rounds * settings.local_steps,
        batch_size=settings.batch_size * device.num_clients,
        optimizer=_own_optimizer(device, gate, message),
    )
    return _reply(message, gate, len(rows[0]), result)


def _round(message: Message) -> int:
    return int(records.config_of(message)[SERVER_ROUND])


def _rate(message: Message) -> float:
    return float(records.config_of(message)[LEARNING_RATE])


def _own_optimizer(device: Device, gate: nn.Module, message: Message) -> torch.optim.Optimizer:
    """What trains a gate that no server steps for."""
    if device.config.gate.optimizer == "adamw":
        return torch.optim.AdamW(gate.parameters(), lr=_rate(message), weight_decay=0.0)
    return sgd(gate, learning_rate=_rate(message))


def _pooled(device: Device, record: ArrayRecord) -> dict[str, Tensor]:
    """The rows of all clients, in order; latents as gates see them."""
    parts = list(records.by_owner(records.to_numpy(record)).values())
    pooled = {
        name: device.tensor(np.concatenate([part[name] for part in parts])) for name in parts[0]
    }
    for rows in torch.split(pooled[PooledKey.LATENTS], _AT_ONCE):
        rows.copy_(normalised_latents(rows))
    return pooled


def _noise(device: Device, message: Message) -> torch.Generator:
    return generator(device.seed("gate-noise", _round(message)), device.torch_device)


def _received(
    device: Device,
    message: Message,
    latent_dim: int,
    *,
    num_experts: int | None = None,
    means: np.ndarray | None = None,
) -> nn.Module:
    gate: nn.Module = device.gate(latent_dim, num_experts=num_experts)
    if means is not None:
        gate = device.metric_learner(means)
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    records.load_into(gate.state_dict(), arrays)
    return gate


def _reply(message: Message, gate: nn.Module, size: int, result: FitResult) -> Message:
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: size, LOSS: result.loss},
        arrays={ARRAYS: records.pack(gate.state_dict())},
    )


def _objective(
    device: Device,
    gate: nn.Module,
    cached: tuple[Tensor, Tensor, Tensor],
    message: Message,
    *,
    log_weights: Tensor | None = None,
    experts: Tensor | None = None,
) -> tuple[Loss, tuple[Tensor, ...]]:
    """The configured objective over cached latents [N, D], answers [N, E, C] and labels [N].

    Args:
        device: The client.
        gate: Scores E experts, or more of which ``experts`` names E per row.
        cached: Normalised latents, answers, labels.
        message: Names the round.
        log_weights: Weights of the E experts of a shortlist, [N, E], as in `losses.gating`.
        experts: Ids of those who gave the answers, [N, E]; None: in the order of the scores.

    Returns:
        The loss of a batch of rows, and the rows: those given and the optional ones.
    """
    rows = tuple(value for value in (*cached, log_weights, experts) if value is not None)
    settings = device.config.gate
    loss = SharedLoss(
        _gate_loss,
        gate,
        options={
            "objective": configured_objective(device),
            "is_weighted": log_weights is not None,
            "is_named": experts is not None,
        },
        by_rows=not settings.balance,
    )
    if not (settings.noisy or is_own(settings.objective)):
        return loss, rows
    return partial(loss, generator=_noise(device, message)), rows


def _gate_loss(
    gate: Callable[..., Tensor],
    batch: tuple[Tensor, ...],
    *,
    objective: Callable[..., Tensor],
    is_weighted: bool,
    is_named: bool,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Loss of a gate on normalised latents, answers, labels; experts' weights and ids if any."""
    latents, logits, truth, *more = batch
    scores = gate(latents, generator=generator, normalised=True)
    if is_named:
        scores = scores.gather(1, more[-1])
    parts = (scores, logits, truth, *more[:1]) if is_weighted else (scores, logits, truth)
    if reduction == "mean":
        return objective(*parts)
    each: Tensor = vmap(lambda *row: objective(*(part[None] for part in row)))(*parts)
    return each


def configured_objective(device: Device) -> Callable[..., Tensor]:
    """What the gate minimises, of scores [B, E], experts' logits [B, E, C] and labels [B].

    A fourth argument weighs experts of a shortlist, [B, E], as in `nmoe_flower.losses.gating`.
    It is one function for all clients of a process, unless it is somebody's own.

    Args:
        device: The client.
    """
    settings = device.config.gate
    own = is_own(settings.objective)  # whose file may have changed
    return _objective_for.__wrapped__(settings) if own else _objective_for(settings)


@lru_cache(maxsize=8)
def _objective_for(settings: GateConfig) -> Callable[..., Tensor]:
    options: dict[str, Any] = {}
    if settings.objective == "distill":
        options["temperature"] = settings.temperature
    elif settings.objective == "straight-through":
        options["top_k"] = settings.top_k
    objective = objective_of(settings.objective)

    def value(
        scores: Tensor, logits: Tensor, labels: Tensor, log_weights: Tensor | None = None
    ) -> Tensor:
        if log_weights is None:
            found = objective(scores, logits, labels, **options)
        elif is_own(settings.objective):
            found = objective(scores + log_weights, logits, labels)
        else:
            found = objective(scores, logits, labels, log_weights=log_weights, **options)
        if settings.balance:
            found = found + settings.balance * load_balance(scores.softmax(dim=1))
        return found

    return value


def gate_steps(
    device: Device,
    gate: nn.Module,
    loss: Loss,
    rows: tuple[Tensor, ...],
    message: Message,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> FitResult:
    """This round's steps through this client's shuffled rows.

    Args:
        device: The client.
        gate: What is trained.
        loss: The loss of a batch of rows.
        rows: The rows, [n, ...] each.
        message: The round's question.
        steps: How many steps; None: ``gate.local-steps``.
        batch_size: Rows per step; None: ``gate.batch-size``.
        optimizer: What moves the gate; None: SGD without momentum at the round's rate.
    """
    settings = device.config.gate
    count = steps or settings.local_steps
    first = (_round(message) - 1) * count

    order = batch_indices(
        len(rows[0]),
        batch_size or settings.batch_size,
        first=first,
        count=count,
        seed=device.seed("gate-batches"),
    )
    return fit(
        gate,
        RowBatches(rows, order),
        loss,
        optimizer=optimizer or sgd(gate, learning_rate=_rate(message)),
        normalise_gradient=settings.normalise_gradient,
    )
