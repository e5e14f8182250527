"""The controls the mixture is measured against; only for simulations."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import torch
from flwr.app import Context, Message
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower import records
from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.clients.control_head import pooled_head
from nmoe_flower.clients.device import (
    Device,
    device_of,
    in_passes,
    predict,
    received_classifier,
    said_to,
)
from nmoe_flower.clients.fedce import classifier_task
from nmoe_flower.clients.weights import take_steps
from nmoe_flower.data import Portion, normalise
from nmoe_flower.losses import load_balance
from nmoe_flower.models import CentralizedMoE, Gate, LocalExperts
from nmoe_flower.records import CENTRALIZED, LATENTS, NUM_EXAMPLES, POOLED_HEAD, ControlKey
from nmoe_flower.schedules import schedule
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import autocast, batch_indices, fit, generator

__all__ = ["LOCAL_CLASSIFIER", "central_rows", "train"]

LOCAL_CLASSIFIER = "local-classifier"
CONTROL_WEIGHT_DECAY = 1e-2
BALANCE_WEIGHT = 1e-2  # Fedus et al. 2021, section 2.2
_LOSS, _MADE_FOR = "loss", "made-for"  # beside what a control answers

Answers = dict[str, np.ndarray]
"""What a control says to tests, and its loss."""


def train(message: Message, context: Context) -> Message:
    """Train controls from scratch: this client's own classifier, and what pools all data."""
    device = device_of(context)
    settings = records.config_of(message)
    steps = int(settings[ControlKey.STEPS])
    metrics: dict[str, float] = {NUM_EXAMPLES: len(device.train_labels)}
    arrays = {}
    if CENTRALIZED in settings[ControlKey.CONTROLS]:
        found = _once(device, CENTRALIZED, steps, _centralized)
        metrics["centralized-loss"] = float(found[_LOSS])
        told = (ControlKey.PROBABILITIES, ControlKey.EXPERT_IDS)
        arrays[CENTRALIZED] = records.from_numpy({name: found[name] for name in told})
    if POOLED_HEAD in settings[ControlKey.CONTROLS]:
        network, _ = received_classifier(device, message)
        answered, metrics["pooled-loss"] = pooled_head(device, network.extractor)
        arrays[POOLED_HEAD] = records.from_numpy(answered)
    if LOCAL_CLASSIFIER in settings[ControlKey.CONTROLS]:
        metrics["local-loss"] = float(
            _once(device, LOCAL_CLASSIFIER, steps, _local_classifier)[_LOSS]
        )
    return records.reply(message, metrics=metrics, arrays=arrays)


def _once(
    device: Device, control: str, steps: int, train: Callable[[Device, int], Answers]
) -> Answers:
    """What a control answers; a client that trained it before its run was killed still knows.

    A control takes as long as a whole stage 1, so a resumed run must not begin it anew.
    """
    settings = {k: v for k, v in device.config.flat().items() if k not in ("run.out", "run.name")}
    made_for = np.array(derive_seed(steps, json.dumps(settings, sort_keys=True)))
    if device.store.has(control):
        kept = device.store.load(control)
        if np.array_equal(kept.get(_MADE_FOR, -1), made_for):
            return kept
    found = {**train(device, steps), _MADE_FOR: made_for}
    device.store.save(control, found)
    return found


def _local_classifier(device: Device, steps: int) -> Answers:
    """The stage-1 network on this client's images alone: what it says to each test."""
    given = device.config.extractor.stands_on_given
    reduced = given and device.config.head.components > 0
    classifier = device.fresh_classifier(finished=reduced)
    network: nn.Module = classifier
    seen: dict[str, np.ndarray] = {}
    if given:  # all that is trained is the head
        network, seen = classifier.head, device.store.load(LATENTS)
    task = classifier_task(device, network, latents=seen.get("train"))
    optimizer = _optimizer(device, network)
    follow = _follow_schedule(device, optimizer, steps)

    def logits(name: str, test: Portion) -> Tensor:
        if given:
            return said_to(device, network, seen[name])
        return predict(device, network, test.split.images, test.rows)

    block, losses = max(1, steps // 100), []
    for first in range(0, steps, block):
        follow(first)
        count = min(block, steps - first)
        losses.append(take_steps(device, task, optimizer, first=first, count=count).loss)
    answers = {
        name: logits(name, test).softmax(dim=1).numpy() for name, test in device.tests.items()
    }
    return {**answers, _LOSS: np.array(losses[-1] if losses else 0.0)}


def _centralized(device: Device, steps: int) -> Answers:
    """The mixture of section II-A on everybody's images: what it says to all tests."""
    config, data = device.config, device.data
    network = device.fresh_classifier()
    latent_dim = network.extractor.latent_dim
    gate = Gate(latent_dim, device.num_clients, top_k=config.gate.top_k, noisy=True)
    pool = LocalExperts([device.fresh_expert(latent_dim) for _ in range(device.num_clients)])
    for number, expert in enumerate(pool.experts):
        _perturb(expert, derive_seed(config.run.seed, "centralized-expert", number))
    mine = np.concatenate([indices.train for indices in device.everyone])
    body: nn.Module = network.extractor
    given = device.config.extractor.stands_on_given
    latents = torch.empty(0)
    if given:
        latents = predict(device, body, data.train.images, mine)
        body = nn.Identity()
    mixture = CentralizedMoE(body, gate, pool)
    mixture.to(device.torch_device)
    labels = torch.from_numpy(np.asarray(data.train.labels[mine]))
    noise = generator(derive_seed(config.run.seed, "centralized-noise"))
    optimizer = _optimizer(device, mixture)
    follow = _follow_schedule(device, optimizer, steps)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        size = config.extractor.batch_size * device.num_clients
        seed = derive_seed(config.run.seed, "centralized-batches")
        for step, chosen in enumerate(
            batch_indices(len(mine), size, first=0, count=steps, seed=seed)
        ):
            follow(step)
            batch = (
                latents[chosen]
                if given
                else device.augment(normalise(data.train.images[mine[chosen]]), noise)
            )
            yield batch.to(device.torch_device), labels[chosen].to(device.torch_device)

    def batch_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        answer = mixture(batch[0], generator=noise)
        task = F.nll_loss(answer.log_probabilities.float(), batch[1])
        return task + BALANCE_WEIGHT * load_balance(answer.gate_probabilities.float())

    loss = fit(mixture, batches(), batch_loss, optimizer=optimizer, bf16=device.bf16).loss
    probabilities, expert_ids = _answer(device, mixture, network.extractor if given else None)
    return {
        ControlKey.PROBABILITIES: probabilities,
        ControlKey.EXPERT_IDS: expert_ids,
        _LOSS: np.array(loss),
    }


def central_rows(device: Device, test: str) -> np.ndarray:
    """Where this client's images of a test are in what a central control answers, [n]."""
    rows = device.tests[test].rows
    if test != VALIDATION:
        return rows
    before = sum(len(other.validation) for other in device.everyone[: device.partition])
    return len(device.data.test) + before + np.arange(len(rows))


@torch.inference_mode()
def _answer(
    device: Device, mixture: CentralizedMoE, given: nn.Module | None
) -> tuple[np.ndarray, np.ndarray]:
    """What the mixture says to the test split, then to every client's validation images.

    A mixture on a ``given`` extractor reads its latents.
    """
    data = device.data
    validation = np.concatenate([other.validation for other in device.everyone])
    parts = [
        Portion(data.test, np.arange(len(data.test))),
        Portion(data.train, validation),
    ]
    probabilities, chosen = [], []
    for part in parts:
        for rows in in_passes(device, part.rows):
            if given is None:
                batch = normalise(part.split.images[rows])
            else:
                batch = predict(device, given, part.split.images, rows)
            batch = batch.to(device.torch_device)
            with autocast(device.bf16, device.torch_device):
                answer = mixture(batch)
            probabilities.append(answer.log_probabilities.float().exp().cpu())
            chosen.append(answer.routing.expert_ids.cpu())
    return torch.cat(probabilities).numpy(), torch.cat(chosen).numpy()


def _perturb(expert: nn.Module, seed: int) -> None:
    """Give an expert initial weights of its own."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in expert.parameters():
            if parameter.ndim > 1:
                order = torch.randperm(parameter.shape[0], generator=source)
                parameter.copy_(parameter[order.to(parameter.device)])


def _optimizer(device: Device, network: nn.Module) -> torch.optim.AdamW:
    """AdamW: one learning rate serves a lone client's small batches and the central mixture."""
    rate = device.config.run.control_learning_rate
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=CONTROL_WEIGHT_DECAY)


def _follow_schedule(
    device: Device, optimizer: torch.optim.Optimizer, steps: int
) -> Callable[[int], None]:
    """Set the rate of step ``s`` (from 0) along stage 1's schedule."""
    extractor = device.config.extractor
    rate = schedule(
        extractor.schedule,
        peak=device.config.run.control_learning_rate,
        steps=steps,
        warmup=extractor.warmup,
    )

    def follow(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate(step + 1)

    return follow
