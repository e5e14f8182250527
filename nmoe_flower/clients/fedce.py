"""Stage 1 at the client: train the classifier on own images (strategies/fedce.py).

Of a given backbone with adapters, these and the head are all that is trained and sent; what lies
below them is computed once, of an image and of its mirror image.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower import records
from nmoe_flower.clients.device import (
    Device,
    device_of,
    keep_head,
    latents_of_tests,
    load_classifier,
    lower_rows,
    said_to,
)
from nmoe_flower.clients.weights import LocalTask, local_optimizer, weights_of
from nmoe_flower.data import normalise
from nmoe_flower.errors import ReplyError
from nmoe_flower.losses import labelled_loss
from nmoe_flower.models import AdaptedExtractor, Classifier, standardised
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, SERVER_ROUND, STANDARD, Score
from nmoe_flower.training import SharedLoss

__all__ = ["classifier_task", "initial", "keep_standard", "test", "train"]

MOMENTUM = "momentum/"


def initial(device: Device) -> dict[str, np.ndarray]:
    """The initial classifier, and momentum if it travels: the same on every client of a seed."""
    network = device.fresh_classifier(finished=device.config.sums_come_first)
    arrays = {
        name: tensor.detach().cpu().numpy()
        for name, tensor in network.parts(with_head=device.config.extractor.shares_head).items()
    }
    if device.config.extractor.momentum_at == "averaged":
        arrays |= {
            MOMENTUM + name: np.zeros(tuple(parameter.shape), np.float32)
            for name, parameter in network.named_parameters()
            if name in arrays
        }
    return arrays


def keep_standard(message: Message, context: Context) -> Message:
    """Keep how latents are standardised, which stays as it is while adapters are trained."""
    device = device_of(context)
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    device.store.save(STANDARD, {name: np.array(value) for name, value in arrays.items()})
    return records.reply(message, metrics={NUM_EXAMPLES: len(device.train_labels)})


def train(message: Message, context: Context) -> Message:
    """Train the received weights for this round's steps and return them."""
    device = device_of(context)
    settings = records.config_of(message)
    server_round = int(settings[SERVER_ROUND])
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    network = _network(device)
    load_classifier(device, network, arrays, before=server_round)
    averaged = device.config.extractor.momentum_at == "averaged"
    optimizer = local_optimizer(device, network, message)
    if averaged:
        _load_momentum(network, optimizer, arrays)
    metrics = weights_of(device).train(classifier_task(device, network), optimizer, message)
    if not device.config.extractor.shares_head:
        keep_head(device, network, server_round, settings.get(records.KEPT_ROUNDS, ()))
    parts = network.parts(with_head=device.config.extractor.shares_head)
    packed = records.pack({name: part for name, part in parts.items() if records.is_learned(name)})
    if averaged:
        packed = ArrayRecord({**packed, **_momentum(network, optimizer, packed)})
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(device.train_labels), **metrics},
        arrays={ARRAYS: packed},
    )


def test(message: Message, context: Context) -> Message:
    """Accuracy of the received classifier on this client's tests."""
    device = device_of(context)
    network = _network(device)
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    settings = records.config_of(message)
    load_classifier(device, network, arrays, before=int(settings[SERVER_ROUND]) + 1)
    metrics: dict[str, float] = {NUM_EXAMPLES: len(device.train_labels)}
    latents = latents_of_tests(device, network.extractor)
    for name, portion in device.tests.items():
        logits = said_to(device, network.head, latents[name])
        hits = logits.argmax(dim=1).numpy() == portion.labels
        metrics[f"{Score.ACCURACY}-{name}"] = float(hits.mean())
    return records.reply(message, metrics=metrics)


def _network(device: Device) -> Classifier:
    """What is trained: adapters see their latents as experts will."""
    first = device.config.sums_come_first
    return device.finished_classifier() if first else device.classifier()


def classifier_task(
    device: Device, network: nn.Module, *, latents: np.ndarray | None = None
) -> LocalTask:
    """To train a classifier on this client's augmented images, or a head on latents of them."""
    if isinstance(network, Classifier) and isinstance(network.extractor, AdaptedExtractor):
        return _adapters_task(device, network, network.extractor)
    extractor = device.config.extractor
    images, labels = device.train_images, torch.from_numpy(device.train_labels)
    adjustment = extractor.logit_adjustment * device.log_prior

    def draw(chosen: np.ndarray, noise: torch.Generator) -> tuple[Tensor, ...]:
        if latents is None:
            batch = device.augment(normalise(images[chosen]), noise)
        else:
            batch = torch.from_numpy(latents[chosen])
        return batch.to(device.torch_device), labels[chosen].to(device.torch_device)

    loss = SharedLoss(
        labelled_loss,
        network,
        constants=(adjustment,),
        options={"label_smoothing": extractor.label_smoothing},
    )
    return LocalTask(
        network=network,
        draw=draw,
        loss=loss,
        losses=partial(loss, reduction="none"),
        augmentation="augment",
    )


def _adapters_task(device: Device, network: Classifier, extractor: AdaptedExtractor) -> LocalTask:
    """To train adapters and head on rows of what lies below, half of them of mirror images."""
    settings, rows = device.config.extractor, device.indices.train
    images, labels = device.data.train.images, torch.from_numpy(device.train_labels)
    adjustment = settings.logit_adjustment * device.log_prior

    def draw(chosen: np.ndarray, noise: torch.Generator) -> tuple[Tensor, ...]:
        lower = lower_rows(device, extractor, images, rows[chosen])
        if device.config.data.flip:
            turned = (torch.rand(len(chosen), generator=noise) < 0.5).numpy()
            lower[turned] = lower_rows(
                device, extractor, images, rows[chosen[turned]], mirrored=True
            )
        batch = [torch.from_numpy(lower), labels[chosen]]
        if settings.dropout:
            kept = torch.rand(len(chosen), extractor.latent_dim, generator=noise)
            batch.append((kept >= settings.dropout) / (1 - settings.dropout))
        return tuple(part.to(device.torch_device) for part in batch)

    def loss(batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
        latents = standardised(extractor, extractor.upper(batch[0]))
        if settings.dropout:
            latents = latents * batch[2]
        logits = network.head(latents).float() + adjustment
        smoothing = settings.label_smoothing
        return F.cross_entropy(logits, batch[1], label_smoothing=smoothing, reduction=reduction)

    return LocalTask(network=network, draw=draw, loss=loss, losses=None, augmentation="augment")


def _load_momentum(
    network: Classifier, optimizer: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray]
) -> None:
    for name, parameter in network.named_parameters():
        if (value := arrays.get(MOMENTUM + name)) is None:
            continue
        if value.shape != tuple(parameter.shape):
            raise ReplyError(f"{MOMENTUM}{name}: shape {value.shape}, wanted {parameter.shape}")
        buffer = torch.from_numpy(value.copy()).to(parameter.device)
        optimizer.state[parameter]["momentum_buffer"] = buffer


def _momentum(
    network: Classifier, optimizer: torch.optim.Optimizer, sent: Mapping[str, object]
) -> ArrayRecord:
    buffers = {
        MOMENTUM + name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in network.named_parameters()
        if name in sent
    }
    return records.pack(buffers)
