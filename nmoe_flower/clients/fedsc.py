"""Stage 1 at the client, without labels: FedSC on own images (strategies/fedsc.py)."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from nmoe_flower import records, representation
from nmoe_flower.clients.device import Device, device_of, latents_of_tests, predict
from nmoe_flower.clients.fedsc_matrices import matrices_of
from nmoe_flower.clients.plugin import Contrast
from nmoe_flower.clients.weights import (
    LocalTask,
    batches,
    local_optimizer,
    local_steps,
    weights_of,
)
from nmoe_flower.data import normalise
from nmoe_flower.losses import sample_spectral, unit_ball
from nmoe_flower.models import Contrastive
from nmoe_flower.records import (
    ARRAYS,
    CORRELATION,
    KEPT_ROUNDS,
    NUM_EXAMPLES,
    SERVER_ROUND,
    WatchKey,
)
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.training import autocast, generator

__all__ = ["correlate", "initial", "test", "train"]

PASS_BATCH = 250
VIEWS = "views"  # the stream of augmentation
WATCHED_IMAGES = 500
WATCHES_FOR_ALL = 0  # the client that is asked first: it takes longest


def initial(device: Device) -> dict[str, np.ndarray]:
    """The initial encoder and projector: the same on every client of a seed."""
    network = device.fresh_contrastive()
    return {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}


def train(message: Message, context: Context) -> Message:
    """Train the received weights against the others' correlation; return them and the own one."""
    device, network, side = _begin(message, context)
    sent, metrics = _release(device, network, side) if side.wanted else (None, {})
    optimizer = local_optimizer(device, network, message)
    metrics |= weights_of(device).train(_task(device, network, side), optimizer, message)
    if side.wanted and sent is None and not device.config.makes_passes:
        matrix = side.matrix()
        sent = None if matrix is None else side.keep(matrix)
    return _reply(message, side, {ARRAYS: records.pack(network.state_dict())}, metrics, sent)


def _task(device: Device, network: Contrastive, side: Contrast) -> LocalTask:
    """To train the encoder on two views of this client's images.

    Before there is a mean matrix nothing would hold the features of single samples apart: they have
    no loss of their own then.
    """
    mean, weight = side.mean, device.config.contrast.weight

    def loss(views: tuple[Tensor, ...]) -> Tensor:
        return side.loss(*network(torch.cat(views)).chunk(2))

    def losses(views: tuple[Tensor, ...]) -> Tensor:
        assert mean is not None
        z1, z2 = unit_ball(network(torch.cat(views))).chunk(2)
        return sample_spectral(z1, z2, mean, weight=weight)

    return LocalTask(
        network=network,
        draw=partial(_views, device),
        loss=loss,
        losses=None if mean is None else losses,
        augmentation=VIEWS,
        views=2,
    )


def correlate(message: Message, context: Context) -> Message:
    """The first phase of a two-phase round: the own matrix at the received weights."""
    device, network, side = _begin(message, context)
    sent, metrics = _release(device, network, side)
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
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    records.load_into(network.state_dict(), arrays)
    contrast = device.config.contrast
    side = Contrast(
        message,
        matrices_of(device).memory(records.config_of(message).get(KEPT_ROUNDS)),
        num_examples=len(device.train_labels),
        weight=contrast.weight,
        unbiased=contrast.unbiased,
        running=contrast.running,
        alone=contrast.share == "own",
    )
    return device, network, side


def _release(
    device: Device, network: Contrastive, side: Contrast
) -> tuple[ArrayRecord | None, dict[str, float]]:
    """The matrix of a pass over all own images, packed to be sent, and what is told of it.

    None if matrices are made from batches, or if a budget is spent.
    """
    if not device.config.makes_passes:
        return None, {}
    return matrices_of(device).send(side, lambda: _pass(device, network, side.server_round))


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


def _views(device: Device, chosen: np.ndarray, noise: torch.Generator) -> tuple[Tensor, ...]:
    """Two views of some own images."""
    views = device.views(normalise(device.train_images[chosen]), noise)
    return tuple(view.to(device.torch_device) for view in views)


def _batches(device: Device, server_round: int) -> Iterator[tuple[Tensor, ...]]:
    """This round's batches of two views each; a second call draws the same."""
    steps = local_steps(device)
    return batches(
        device,
        partial(_views, device),
        augmentation=VIEWS,
        first=(server_round - 1) * steps,
        count=steps,
    )


def test(message: Message, context: Context) -> Message:
    """Watch the received encoder: positive pairs and uniformity, and probes with labels.

    Probes on everybody's images are the work of one client, and the others measure nothing. After
    the last round all keep the latents of their tests, for stage 2.
    """
    device = device_of(context)
    network = device.contrastive()
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    records.load_into(network.state_dict(), arrays)
    server_round = int(records.config_of(message)[SERVER_ROUND])
    probe = device.config.contrast.probe
    if server_round == device.config.extractor.rounds:
        latents_of_tests(device, network.extractor)
    if probe == "pooled" and device.partition != WATCHES_FOR_ALL:
        return records.reply(message, metrics={NUM_EXAMPLES: 0})
    metrics: dict[str, float] = {NUM_EXAMPLES: len(device.train_labels)}
    metrics |= _without_labels(device, network, server_round)
    if probe != "none":
        metrics |= _probes(device, network)
    return records.reply(message, metrics=metrics)


@torch.inference_mode()
def _without_labels(device: Device, network: Contrastive, server_round: int) -> dict[str, float]:
    rng = numpy_stream(device.seed("watch", server_round))
    watched = weights_of(device).watched
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
