"""Stage 1 at the client: train the classifier on own images (strategies/fedce.py)."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor
from torch.nn import functional as F

from nmoe_flower import records
from nmoe_flower.clients.device import Device, device_of, keep_head, load_classifier, predict
from nmoe_flower.clients.private import private_train
from nmoe_flower.data import normalise
from nmoe_flower.errors import ReplyError
from nmoe_flower.models import Classifier
from nmoe_flower.records import ARRAYS, LEARNING_RATE, LOSS, NUM_EXAMPLES, SERVER_ROUND, Score
from nmoe_flower.training import FitResult, batch_indices, fit, generator, sgd

__all__ = [
    "initial",
    "local_steps",
    "test",
    "train",
    "train_classifier",
]

MOMENTUM = "momentum/"


def initial(device: Device) -> dict[str, np.ndarray]:
    """The initial classifier, and momentum if it travels: the same on every client of a seed."""
    network = device.fresh_classifier()
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


def train(message: Message, context: Context) -> Message:
    """Train the received weights for this round's steps and return them."""
    device = device_of(context)
    settings = records.config_of(message)
    server_round = int(settings[SERVER_ROUND])
    arrays = records.to_numpy(message.content.array_records[ARRAYS])
    network = device.classifier()
    load_classifier(device, network, arrays, before=server_round)
    extractor = device.config.extractor
    averaged = extractor.momentum_at == "averaged"
    optimizer = sgd(
        network,
        learning_rate=float(settings[LEARNING_RATE]),
        momentum=0.0 if extractor.momentum_at == "server" else extractor.momentum,
        weight_decay=0.0 if extractor.steps_with_adamw else extractor.weight_decay,
    )
    if averaged:
        _load_momentum(network, optimizer, arrays)
    steps = local_steps(device)
    if device.config.privacy.weights:
        metrics = _train_privately(device, network, optimizer, message, steps)
    else:
        first = (server_round - 1) * steps
        result = train_classifier(device, network, optimizer, first=first, steps=steps)
        metrics = {LOSS: result.loss}
    if not device.config.extractor.shares_head:
        keep_head(device, network, server_round, settings.get(records.KEPT_ROUNDS, ()))
    packed = records.pack(network.parts(with_head=device.config.extractor.shares_head))
    if averaged:
        packed = ArrayRecord({**packed, **_momentum(network, optimizer, packed)})
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(device.train_labels), **metrics},
        arrays={ARRAYS: packed},
    )


def test(message: Message, context: Context) -> Message:
    """Accuracy of the received classifier on this client's two tests."""
    device = device_of(context)
    network = device.classifier()
    arrays = records.to_numpy(message.content.array_records[ARRAYS])
    settings = records.config_of(message)
    load_classifier(device, network, arrays, before=int(settings[SERVER_ROUND]) + 1)
    metrics: dict[str, float] = {NUM_EXAMPLES: len(device.train_labels)}
    for name, indices in (("iid", device.indices.test_iid), ("local", device.indices.test_local)):
        logits = predict(device, network, device.data.test.images, indices)
        hits = logits.argmax(dim=1).numpy() == device.data.test.labels[indices]
        metrics[f"{Score.ACCURACY}-{name}"] = float(hits.mean())
    return records.reply(message, metrics=metrics)


def train_classifier(
    device: Device,
    network: Classifier,
    optimizer: torch.optim.Optimizer,
    *,
    first: int,
    steps: int,
) -> FitResult:
    """Take steps ``first ..`` of this client's stream of augmented batches."""
    extractor = device.config.extractor
    images, labels = device.train_images, torch.from_numpy(device.train_labels)
    noise = generator(device.seed("augment", first))
    adjustment = extractor.logit_adjustment * device.log_prior

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in batch_indices(
            len(labels),
            extractor.batch_size,
            first=first,
            count=steps,
            seed=device.seed("batches"),
        ):
            batch = device.augment(normalise(images[chosen]), noise)
            yield batch.to(device.torch_device), labels[chosen].to(device.torch_device)

    def batch_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = network(batch[0]).float() + adjustment
        return F.cross_entropy(logits, batch[1], label_smoothing=extractor.label_smoothing)

    return fit(
        network,
        batches(),
        batch_loss,
        optimizer=optimizer,
        max_grad_norm=extractor.max_grad_norm,
        bf16=device.bf16,
    )


def _train_privately(
    device: Device,
    network: Classifier,
    optimizer: torch.optim.Optimizer,
    message: Message,
    steps: int,
) -> dict[str, float]:
    """The same with DP-SGD: batches are sampled, and the loss stays at home."""
    images, labels = device.train_images, torch.from_numpy(device.train_labels)
    smoothing = device.config.extractor.label_smoothing

    def draw(chosen: np.ndarray, noise: torch.Generator) -> tuple[Tensor, ...]:
        batch = device.augment(normalise(images[chosen]), noise)
        return batch.to(device.torch_device), labels[chosen].to(device.torch_device)

    def losses(batch: tuple[Tensor, ...]) -> Tensor:
        logits = network(batch[0])
        return F.cross_entropy(logits, batch[1], label_smoothing=smoothing, reduction="none")

    return private_train(device, network, optimizer, message, steps=steps, draw=draw, losses=losses)


def local_steps(device: Device) -> int:
    """Steps a client takes in a round."""
    extractor = device.config.extractor
    if extractor.local_steps:
        return extractor.local_steps
    batches = max(1, len(device.train_labels) // extractor.batch_size)
    return extractor.local_epochs * batches


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
