"""The classifier a client is sent, its private head, and the latents of its images under it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor, nn

from nmoe_flower import records
from nmoe_flower.clients.device.device import Device
from nmoe_flower.clients.device.raw_latents import lower_rows, raw_latents
from nmoe_flower.clients.device.store import Versions
from nmoe_flower.data import normalise
from nmoe_flower.errors import CheckpointError
from nmoe_flower.models import (
    AdaptedExtractor,
    Classifier,
    Extractor,
    PretrainedExtractor,
    standardised,
)
from nmoe_flower.records import ARRAYS, HEAD, HOLDOUT, LATENTS, STANDARD
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.training import autocast

__all__ = [
    "check_given",
    "in_passes",
    "keep_head",
    "latents_of",
    "latents_of_tests",
    "load_classifier",
    "predict",
    "received_classifier",
    "said_to",
    "source_of",
]

_PASS = 500  # images
# A quarter of the memory; and where malloc is not told to keep its pages, as workers tell it, those
# of large maps are given back and taken anew in every layer, which takes a fifth longer.
_PASS_OF_CPU = 125
SOURCE = "source"
_OF_TESTS = "test-latents"
# Beside images and weights: who holds which of them, the network, and what is held out for gates.
_SECTIONS = ("data", "extractor")
_KEYS = ("run.seed", "run.device", "run.precision", "gate.holdout", "gate.folds")


def load_classifier(
    device: Device, network: Classifier, arrays: Mapping[str, np.ndarray], *, before: int
) -> None:
    """Load received weights; a private head comes from the store, as it was before a round.

    So does the standardisation of adapted latents where it did not come along.

    Raises:
        ReplyError: They do not fit, or are of another given extractor than this device has.
    """
    check_given(network, arrays)
    shared = device.config.extractor.shares_head or any(n.startswith("head.") for n in arrays)
    records.load_into(network.parts(with_head=shared), _stood_by(device, network) | dict(arrays))
    if shared:
        return
    rounds = [r for r in _heads(device).rounds() if r < before]
    head = _heads(device).load(max(rounds)) if rounds else None
    if head is None:
        finished = network is device.finished_classifier()  # whose latents may be components
        fresh = device.fresh_classifier(finished=finished).head.state_dict()
        head = {name: tensor.numpy() for name, tensor in fresh.items()}
    records.load_into(network.head.state_dict(), head)


def _stood_by(device: Device, network: Classifier) -> dict[str, np.ndarray]:
    """What of an adapted extractor does not travel while it is trained; nothing of another."""
    if not isinstance(network.extractor, AdaptedExtractor):
        return {}
    found = {"extractor.hash": network.extractor.hash.cpu().numpy()}
    if device.store.has(STANDARD):
        found |= device.store.load(STANDARD)
    return found


def check_given(network: Classifier, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse another given extractor than this device has.

    Raises:
        ReplyError: The hash that was received is not that of this device's backbone.
    """
    if isinstance(network.extractor, PretrainedExtractor):
        network.extractor.check(arrays, prefix="extractor.")


def keep_head(device: Device, network: Classifier, server_round: int, kept: Sequence[int]) -> None:
    """Keep the head after this round, and as it was after each round in ``kept``."""
    head = {name: tensor.cpu().numpy() for name, tensor in network.head.state_dict().items()}
    _heads(device).save(server_round, head)
    _heads(device).prune(server_round, kept)


def _heads(device: Device) -> Versions:
    return Versions(device.store, HEAD)


def received_classifier(
    device: Device, message: Message
) -> tuple[Classifier, dict[str, np.ndarray]]:
    """The classifier that the stage head left, loaded, and its arrays as they came."""
    network = device.finished_classifier()
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    load_classifier(device, network, arrays, before=1 << 31)
    return network, arrays


def in_passes(device: Device, indices: np.ndarray) -> Iterator[np.ndarray]:
    """Indices [n] in parts that one pass of a network takes without gradients."""
    size = _PASS_OF_CPU if device.torch_device.type == "cpu" else _PASS
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


@torch.inference_mode()
def predict(device: Device, network: nn.Module, images: np.ndarray, indices: np.ndarray) -> Tensor:
    """Run a network over images without augmentation: float32 on the CPU, rows as ``indices``.

    What a given extractor says, or says below its adapters, comes from the data cache, where it is
    kept for all runs.
    """
    network.eval()
    outputs = []
    if isinstance(network, AdaptedExtractor):
        return _adapted(device, network, images, indices)
    if isinstance(network, PretrainedExtractor):
        raw = torch.from_numpy(raw_latents(device, network, images, indices))
        for start in range(0, len(raw), _PASS):
            part = raw[start : start + _PASS].to(device.torch_device)
            outputs.append(standardised(network, part).float().cpu())
        return torch.cat(outputs)
    for rows in in_passes(device, indices):
        batch = normalise(images[rows]).to(device.torch_device)
        with autocast(device.bf16, device.torch_device):
            outputs.append(network(batch).float().cpu())
    return torch.cat(outputs)


@torch.inference_mode()
def said_to(device: Device, network: nn.Module, latents: np.ndarray) -> Tensor:
    """What a network says to latents [n, D], without gradients: float32 on the CPU, [n, ...]."""
    found: Tensor = network.eval()(device.tensor(latents)).float().cpu()
    return found


def _adapted(
    device: Device, extractor: AdaptedExtractor, images: np.ndarray, indices: np.ndarray
) -> Tensor:
    """Latents [n, D] under adapters; what lies below these comes from the data cache."""
    outputs = []
    sides = (False, True) if extractor.backbone.mirror else (False,)
    for chosen in in_passes(device, indices):
        found = []
        for mirrored in sides:
            rows = torch.from_numpy(
                lower_rows(device, extractor, images, chosen, mirrored=mirrored)
            ).to(device.torch_device)
            with autocast(device.bf16, device.torch_device):
                found.append(extractor.upper(rows).float())
        outputs.append(standardised(extractor, torch.stack(found).mean(dim=0)).cpu())
    return torch.cat(outputs)


def latents_of(device: Device, extractor: Extractor) -> dict[str, np.ndarray]:
    """Latents and labels of the training images (all, and those of the gate) and all tests.

    The gate trains on a hold-out that the expert does not see; with ``gate.folds`` both train on
    everything, see ``clients/expert.py: _out_of_fold``. Those in the store are taken if they come
    from this extractor, these images and the settings they depend on, whichever run left them;
    otherwise they are computed and kept. Those of tests are there if stage 1 ended with a test.
    """
    source = source_of(device, extractor)
    kept = _kept(device, LATENTS, source)
    if kept is None:
        kept = _of_training(device, extractor) | {SOURCE: source}
        kept |= _kept(device, _OF_TESTS, source) or _of_tests(device, extractor)
        device.store.save(LATENTS, kept)
        device.store.drop(_OF_TESTS)
    return kept


def latents_of_tests(device: Device, extractor: Extractor) -> dict[str, np.ndarray]:
    """Latents [n, D] of all tests, by test; they are kept for stage 2, until others are."""
    found = _of_tests(device, extractor)
    device.store.save(_OF_TESTS, found | {SOURCE: source_of(device, extractor)})
    return found


def _kept(device: Device, name: str, source: np.ndarray) -> dict[str, np.ndarray] | None:
    """What the store has under a name, if it is from this source."""
    with suppress(CheckpointError):  # none were kept, or the file is damaged
        kept = device.store.load(name)
        if np.array_equal(kept.get(SOURCE, ()), source):
            return kept
    return None


def _of_tests(device: Device, extractor: Extractor) -> dict[str, np.ndarray]:
    return {
        name: predict(device, extractor, test.split.images, test.rows).numpy()
        for name, test in device.tests.items()
    }


def _of_training(device: Device, extractor: Extractor) -> dict[str, np.ndarray]:
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
    return {
        "train": train,
        "train-labels": labels,
        "kept": kept,
        HOLDOUT: train[held],
        "holdout-labels": labels[held],
        **{f"{name}-labels": test.labels for name, test in device.tests.items()},
    }


def source_of(device: Device, extractor: Extractor) -> np.ndarray:
    """What latents depend on, as a digest: uint8 [32]."""
    settings = {
        key: value
        for key, value in device.config.flat().items()
        if key in _KEYS or key.partition(".")[0] in _SECTIONS
    }
    told = [device.data.fingerprint, device.folder, settings]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(extractor.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
