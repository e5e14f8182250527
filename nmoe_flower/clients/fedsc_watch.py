"""Watch the encoder of FedSC at a client: with labels, and without."""

import numpy as np
import torch
from flwr.app import Context, Message

from nmoe_flower import records, representation
from nmoe_flower.clients.device.device import Device, device_of
from nmoe_flower.clients.fedce import predict
from nmoe_flower.data import normalise
from nmoe_flower.models import Contrastive
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, SERVER_ROUND
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.training import autocast, generator

__all__ = ["test"]

TEST_IMAGES = 500


def test(message: Message, context: Context) -> Message:
    """Watch the received encoder: alignment and uniformity, and probes with labels."""
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
    chosen = np.sort(rng.permutation(len(watched))[:TEST_IMAGES])
    images = normalise(watched[chosen])
    views = device.views(images, generator(device.seed("watch views", server_round)))
    network.eval()
    with autocast(device.bf16, device.torch_device):
        features = network(torch.cat(views).to(device.torch_device)).float().cpu().numpy()
    first, second = np.split(features, 2)
    return {
        "alignment": representation.alignment(first, second),
        "uniformity": representation.uniformity(first),
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
        "knn-accuracy": representation.knn_accuracy(latents, known, unseen, truth),
        "probe-accuracy": representation.probe_accuracy(latents, known, unseen, truth),
    }
