"""The latents of a client's images under the frozen extractor: computed once, kept in the store."""

import hashlib
import json
from contextlib import suppress

import numpy as np
from flwr.app import Context, Message

from nmoe_flower import records
from nmoe_flower.clients.device.device import Device, device_of
from nmoe_flower.clients.fedce import load_classifier, predict
from nmoe_flower.errors import CheckpointError
from nmoe_flower.models import Classifier, Extractor
from nmoe_flower.records import ARRAYS, LATENTS, NUM_EXAMPLES
from nmoe_flower.seeds import numpy_stream

__all__ = ["cache", "latents_of", "received_classifier"]

SOURCE = "source"


def cache(message: Message, context: Context) -> Message:
    """Keep the latents of the received extractor, for what trains on them."""
    device = device_of(context)
    network, _ = received_classifier(device, message)
    latents_of(device, network.extractor)
    return records.reply(message, metrics={NUM_EXAMPLES: len(device.train_labels)})


def received_classifier(
    device: Device, message: Message
) -> tuple[Classifier, dict[str, np.ndarray]]:
    """The classifier of a message, loaded, and its arrays as they came."""
    network = device.classifier()
    arrays = records.to_numpy(message.content.array_records[ARRAYS])
    load_classifier(device, network, arrays, before=1 << 31)
    return network, arrays


def latents_of(device: Device, extractor: Extractor) -> dict[str, np.ndarray]:
    """Latents and labels of the training images (all, and those of the gate) and both tests.

    The gate trains on a hold-out that the expert does not see; with ``gate.folds`` both train on
    everything, see ``clients/expert.py: _out_of_fold``. Those in the store are taken if they come
    from this extractor, these images and this configuration; otherwise they are computed and kept.
    """
    source = _source(device, extractor)
    with suppress(CheckpointError):  # none were kept, or the file is damaged
        kept = device.store.load(LATENTS)
        if np.array_equal(kept.get(SOURCE, ()), source):
            return kept
    latents = _computed(device, extractor) | {SOURCE: source}
    device.store.save(LATENTS, latents)
    return latents


def _computed(device: Device, extractor: Extractor) -> dict[str, np.ndarray]:
    data, indices, settings = device.data, device.indices, device.config.gate
    size = len(indices.train)
    order = numpy_stream(device.seed("holdout")).permutation(size)
    held = np.sort(order[: max(1, round(settings.holdout * size))])
    kept = np.setdiff1d(np.arange(size), held)
    if settings.folds:
        held = kept = np.arange(size)
    elif not len(kept):
        kept = held
    train = predict(device, extractor, data.train.images, indices.train).numpy()
    labels = device.train_labels
    tests = {
        name: predict(device, extractor, data.test.images, chosen).numpy()
        for name, chosen in (("local", indices.test_local), ("iid", indices.test_iid))
    }
    return {
        "train": train,
        "train-labels": labels,
        "kept": kept,
        "holdout": train[held],
        "holdout-labels": labels[held],
        "local-labels": np.asarray(data.test.labels[indices.test_local]),
        "iid-labels": np.asarray(data.test.labels[indices.test_iid]),
        **tests,
    }


def _source(device: Device, extractor: Extractor) -> np.ndarray:
    """What latents depend on, as a digest: uint8 [32]."""
    told = [device.data.fingerprint, device.folder, device.config.flat()]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(extractor.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
