"""Stage 1 at the client, without labels: FedSC on own images (strategies/fedsc.py)."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from nmoe_flower import records, representation
from nmoe_flower.clients.device import Device, Versions, device_of, predict
from nmoe_flower.clients.fedce import local_steps
from nmoe_flower.clients.plugin import Contrast
from nmoe_flower.clients.private import Ledger, private_train, report
from nmoe_flower.data import normalise
from nmoe_flower.errors import CheckpointError
from nmoe_flower.losses import sample_spectral, unit_ball
from nmoe_flower.models import Contrastive
from nmoe_flower.privacy import Budget, smat
from nmoe_flower.records import (
    ARRAYS,
    CORRELATION,
    KEPT_ROUNDS,
    LEARNING_RATE,
    LOSS,
    NOISE_MULTIPLIER,
    NOISE_STD,
    NUM_EXAMPLES,
    SERVER_ROUND,
    CorrelationKey,
    WatchKey,
)
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.training import autocast, batch_indices, fit, generator, sgd

__all__ = ["correlate", "initial", "test", "train"]

PASS_BATCH = 250
WATCHED_IMAGES = 500


class _StoreMemory:
    """A memory on the client's disk, with as many versions as a resumed run can ask for."""

    def __init__(self, device: Device, kept: object) -> None:
        self._versions = Versions(device.store, CORRELATION)
        self._private = device.config.privacy.enabled
        self._kept: list[int] = list(kept or ())  # type: ignore[call-overload]

    def load(self, server_round: int) -> Mapping[str, np.ndarray] | None:
        self._kept.append(server_round)  # what the server has, even if it drops the next reply
        return self._versions.load(server_round)

    def save(self, server_round: int, arrays: dict[str, np.ndarray]) -> None:
        self._versions.save(server_round, arrays, sync=self._private)
        if not self._private:  # what has cost privacy is never thrown away
            self._versions.prune(server_round, self._kept)


def initial(device: Device) -> dict[str, np.ndarray]:
    """The initial encoder and projector: the same on every client of a seed."""
    network = device.fresh_contrastive()
    return {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}


def train(message: Message, context: Context) -> Message:
    """Train the received weights against the others' correlation; return them and the own one."""
    device, network, side = _begin(message, context)
    extractor = device.config.extractor
    sent, metrics = _release(device, network, side, message) if side.wanted else (None, {})
    optimizer = sgd(
        network,
        learning_rate=float(records.config_of(message)[LEARNING_RATE]),
        momentum=0.0 if extractor.momentum_at == "server" else extractor.momentum,
        weight_decay=0.0 if extractor.steps_with_adamw else extractor.weight_decay,
    )
    if device.config.privacy.weights:
        metrics |= _train_privately(device, network, optimizer, message)
    else:
        result = fit(
            network,
            _batches(device, side.server_round),
            lambda views: side.loss(*network(torch.cat(views)).chunk(2)),
            optimizer=optimizer,
            max_grad_norm=extractor.max_grad_norm,
            bf16=device.bf16,
        )
        metrics[LOSS] = result.loss
    if side.wanted and sent is None and not device.config.makes_passes:
        matrix = side.matrix()
        sent = None if matrix is None else side.keep(matrix)
    return _reply(message, side, {ARRAYS: records.pack(network.state_dict())}, metrics, sent)


def _train_privately(
    device: Device, network: Contrastive, optimizer: torch.optim.Optimizer, message: Message
) -> dict[str, float]:
    """The same with DP-SGD and the loss of single samples, which stays at home.

    Without a mean matrix nothing would hold the features apart: such a round takes no step, and
    costs nothing.
    """
    record = message.content.get(CORRELATION)
    if not isinstance(record, ArrayRecord):
        return report(device)
    mean = smat(torch.from_numpy(records.to_numpy(record)[CorrelationKey.MEAN].copy()))
    weight = device.config.contrast.weight

    def draw(chosen: np.ndarray, noise: torch.Generator) -> tuple[Tensor, ...]:
        views = device.views(normalise(device.train_images[chosen]), noise)
        return tuple(view.to(device.torch_device) for view in views)

    def losses(views: tuple[Tensor, ...]) -> Tensor:
        z1, z2 = unit_ball(network(torch.cat(views))).chunk(2)
        return sample_spectral(z1, z2, mean, weight=weight)

    return private_train(
        device,
        network,
        optimizer,
        message,
        steps=local_steps(device),
        draw=draw,
        losses=losses,
        views=2,
    )


def correlate(message: Message, context: Context) -> Message:
    """The first phase of a two-phase round: the own matrix at the received weights."""
    device, network, side = _begin(message, context)
    sent, metrics = _release(device, network, side, message)
    if sent is None and not device.config.makes_passes:
        network.train()
        with torch.no_grad(), autocast(device.bf16, device.torch_device):
            for views in _batches(device, side.server_round):
                side.see(unit_ball(network(torch.cat(views))))
        network.eval()
        matrix = side.matrix()
        sent = None if matrix is None else side.keep(matrix)
    return _reply(message, side, {}, metrics, sent)


def _reply(
    message: Message,
    side: Contrast,
    arrays: Mapping[str, ArrayRecord],
    metrics: Mapping[str, float],
    sent: ArrayRecord | None,
) -> Message:
    """The reply, with the own matrix if one is sent: a budget may be spent."""
    matrices = {} if sent is None else {CORRELATION: sent}
    told = {NUM_EXAMPLES: side.num_examples, **metrics}
    return records.reply(message, metrics=told, arrays={**arrays, **matrices})


def _begin(message: Message, context: Context) -> tuple[Device, Contrastive, Contrast]:
    device = device_of(context)
    network = device.contrastive()
    arrays = records.to_numpy(message.content.array_records[ARRAYS])
    records.load_into(network.state_dict(), arrays)
    contrast = device.config.contrast
    side = Contrast(
        message,
        _StoreMemory(device, records.config_of(message).get(KEPT_ROUNDS)),
        num_examples=len(device.train_labels),
        weight=contrast.weight,
        unbiased=contrast.unbiased,
        running=contrast.running,
        alone=contrast.share == "own",
    )
    return device, network, side


def _release(
    device: Device, network: Contrastive, side: Contrast, message: Message
) -> tuple[ArrayRecord | None, dict[str, float]]:
    """The matrix of a pass over all own images, with noise if it is private, packed to be sent.

    None if matrices are made from batches, or if the budget is spent. What was sent in this round
    before (by a run that was killed and resumed) is sent again: the same bits cost nothing.
    """
    if not device.config.makes_passes:
        return None, {}
    privacy = device.config.privacy
    if not privacy.enabled:
        return side.keep(_pass(device, network, side.server_round)), {}
    mechanism = device.mechanism
    about = {NOISE_MULTIPLIER: mechanism.noise_multiplier, NOISE_STD: mechanism.noise_std}
    before = side.memory.load(side.server_round)
    if before is not None:
        return records.from_numpy({CorrelationKey.PACKED: before["released"]}), about
    ledger = Ledger(device.store.folder, device.partition, Budget(privacy.epsilon, privacy.delta))
    if ledger.is_new and Versions(device.store, CORRELATION).rounds():
        raise CheckpointError(
            f"{device.store.folder} holds matrices that were sent and no ledger of their cost: "
            "no more are released"
        )
    current = side.server_round
    if not ledger.affords(mechanism.noise_multiplier, server_round=current):
        return None, {}
    matrix = _pass(device, network, current)
    ledger.spend(mechanism.noise_multiplier, num_examples=side.num_examples, server_round=current)
    noise = None if privacy.secure else generator(device.seed("release", current))
    return side.keep(mechanism.release(matrix, noise), matrix), about


@torch.inference_mode()
def _pass(device: Device, network: Contrastive, server_round: int) -> Tensor:
    """Both views of every own image once, in evaluation mode: no sample touches another's."""
    total = device.empty_correlation()
    noise = generator(device.seed("views of the pass", server_round))
    network.eval()
    for start in range(0, len(device.train_images), PASS_BATCH):
        images = normalise(device.train_images[start : start + PASS_BATCH])
        views = torch.cat(device.views(images, noise)).to(device.torch_device)
        with autocast(device.bf16, device.torch_device):
            features = network(views).float()
        total.add(*features.chunk(2))
    return total.result()


def _batches(device: Device, server_round: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This round's batches of two views each; a second call draws the same."""
    steps = local_steps(device)
    first = (server_round - 1) * steps
    noise = generator(device.seed("views", first))
    for chosen in batch_indices(
        len(device.train_images),
        device.config.extractor.batch_size,
        first=first,
        count=steps,
        seed=device.seed("batches"),
    ):
        views = device.views(normalise(device.train_images[chosen]), noise)
        yield views[0].to(device.torch_device), views[1].to(device.torch_device)


def test(message: Message, context: Context) -> Message:
    """Watch the received encoder: positive pairs and uniformity, and probes with labels."""
    device = device_of(context)
    network = device.contrastive()
    arrays = records.to_numpy(message.content.array_records[ARRAYS])
    records.load_into(network.state_dict(), arrays)
    server_round = int(records.config_of(message)[SERVER_ROUND])
    metrics: dict[str, float] = {NUM_EXAMPLES: len(device.train_labels)}
    metrics |= _without_labels(device, network, server_round)
    if device.config.contrast.probe != "none":
        metrics |= _probes(device, network)
    return records.reply(message, metrics=metrics)


@torch.inference_mode()
def _without_labels(device: Device, network: Contrastive, server_round: int) -> dict[str, float]:
    rng = numpy_stream(device.seed("watch", server_round))
    watched = device.train_images
    if device.config.privacy.weights:  # training images would tell more than was paid for
        watched = device.data.test.images[device.indices.test_local]
    chosen = np.sort(rng.permutation(len(watched))[:WATCHED_IMAGES])
    images = normalise(watched[chosen])
    views = device.views(images, generator(device.seed("watch views", server_round)))
    network.eval()
    with autocast(device.bf16, device.torch_device):
        features = network(torch.cat(views).to(device.torch_device)).float().cpu().numpy()
    first, second = np.split(features, 2)
    return {
        WatchKey.ALIGNMENT: representation.positive_pair_distance(first, second),
        WatchKey.UNIFORMITY: representation.uniformity(first),
    }


def _probes(device: Device, network: Contrastive) -> dict[str, float]:
    """k-NN and a linear classifier on frozen latents, of everybody's images or of own ones."""
    settings, data = device.config.contrast, device.data
    pooled = settings.probe == "pooled"
    watched = device.everyone if pooled else [device.indices]
    rng = numpy_stream(device.config.run.seed, "probe")
    train = rng.permutation(np.concatenate([indices.train for indices in watched]))
    train = np.sort(train[: settings.probe_images])
    tests = [indices.test_iid if pooled else indices.test_local for indices in watched]
    test = rng.permutation(np.unique(np.concatenate(tests)))
    test = np.sort(test[: settings.probe_images // 2])
    latents = predict(device, network.extractor, data.train.images, train).numpy()
    unseen = predict(device, network.extractor, data.test.images, test).numpy()
    known, truth = data.train.labels[train], data.test.labels[test]
    return {
        WatchKey.KNN_ACCURACY: representation.knn_accuracy(latents, known, unseen, truth),
        WatchKey.PROBE_ACCURACY: representation.probe_accuracy(latents, known, unseen, truth),
    }
