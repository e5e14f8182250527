"""Sums over a client's latents, and nothing else of them: between stages 1 and 2, or for text.

A latent of text is the mean hidden state of a window's prefix, and its class the window's domain.
Sums leave as they are, or, with ``privacy.enabled``, as one noisy matrix within a budget.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message

from nmoe_flower import records
from nmoe_flower.clients.device import (
    CLIP,
    Device,
    Language,
    check_given,
    device_of,
    language_of,
    predict,
    source_of,
)
from nmoe_flower.clients.private import OF_SUMS, MatrixRelease
from nmoe_flower.errors import CheckpointError
from nmoe_flower.models import Extractor
from nmoe_flower.privacy import (
    Budget,
    GaussianMechanism,
    labelled_latents,
    noise_multiplier_for,
    svec,
)
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, STANDARD_PART, SUMS, SumsKey
from nmoe_flower.sums import Sums
from nmoe_flower.training import generator

__all__ = ["tell"]

SENT = "sums-sent"
_SOURCE = "source"


@dataclass(frozen=True)
class _Seen:
    """What sums are over.

    Attributes:
        latents: Computes them, float32 [n, D].
        labels: The class of each, [n].
        num_classes: How many classes there are, C.
        source: What latents depend on, as a digest, uint8 [32].
    """

    latents: Callable[[], np.ndarray]
    labels: np.ndarray
    num_classes: int
    source: np.ndarray


def tell(message: Message, context: Context) -> Message:
    """Tell the sums over all own training latents of the received, or given, extractor.

    Only count, mean and squares are told where ``moments`` is set.
    """
    device = device_of(context)
    of_text = device.config.run.system == "language"
    seen = _of_text(language_of(device)) if of_text else _of_images(device, message)
    if device.config.privacy.enabled:
        told = _released(device, seen)
    elif records.config_of(message).get(SumsKey.MOMENTS):
        told = _moments(seen.latents())
    else:
        told = Sums.of(seen.latents(), seen.labels, seen.num_classes).packed()
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(seen.labels)},
        arrays={SUMS: records.from_numpy(told)},
    )


def _of_images(device: Device, message: Message) -> _Seen:
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    finished = any(name.startswith(STANDARD_PART) for name in arrays)
    network = device.finished_classifier() if finished else device.classifier()
    check_given(network, arrays)
    records.load_into(network.parts(with_head=False), arrays)
    return _Seen(
        lambda: _latents(device, network.extractor),
        device.train_labels,
        device.data.num_classes,
        source_of(device, network.extractor),
    )


def _of_text(language: Language) -> _Seen:
    train = language.train
    return _Seen(
        lambda: language.prefix_means(train),
        train.domains,
        len(language.data.domain_names),
        language.source,
    )


def _latents(device: Device, extractor: Extractor) -> np.ndarray:
    return predict(device, extractor, device.data.train.images, device.indices.train).numpy()


def _moments(latents: np.ndarray) -> dict[str, np.ndarray]:
    mean = latents.mean(axis=0, dtype=np.float64)
    return {
        SumsKey.COUNT: np.array(len(latents)),
        SumsKey.MEAN: mean,
        SumsKey.SQUARES: np.square(latents - mean).sum(axis=0).astype(np.float32),
    }


def _released(device: Device, seen: _Seen) -> dict[str, np.ndarray]:
    """The sums with noise, paid for once: what was sent is sent again, and the same bits are free.

    Raises:
        BudgetError: Sums of another extractor were paid for, and no more are.
        CheckpointError: The ledger cannot be read, or is gone while sums were sent.
    """
    way_out = _way_out(device, len(seen.labels))
    if device.store.has(SENT):
        if way_out.ledger.is_new:
            raise CheckpointError(
                f"{device.store.folder} holds sums that were sent and no ledger of their cost: no "
                "more are released"
            )
        sent = dict(device.store.load(SENT))
        if np.array_equal(sent.pop(_SOURCE), seen.source):
            return sent
    correlation = way_out.mechanism.correlation()
    latents, labels = torch.from_numpy(seen.latents()), torch.from_numpy(np.array(seen.labels))
    correlation.add(labelled_latents(latents, labels, seen.num_classes))
    noise = None if device.config.privacy.secure else generator(device.seed("release-of-sums"))
    server_round = 0 if device.store.has(SENT) else OF_SUMS
    released = way_out.release(correlation.result(), noise, server_round=server_round)
    told: dict[str, np.ndarray] = {
        SumsKey.COUNT: np.array(len(labels)),
        SumsKey.PRIVATE: svec(released).numpy().astype(np.float32),
    }
    device.store.save(SENT, {**told, _SOURCE: seen.source}, sync=True)
    return told


def _way_out(device: Device, size: int) -> MatrixRelease:
    privacy = device.config.privacy
    noise = noise_multiplier_for(
        privacy.epsilon, privacy.delta, privacy.single_releases, num_examples=size
    )
    return MatrixRelease(
        device.store.folder,
        device.partition,
        Budget(privacy.epsilon, privacy.delta),
        GaussianMechanism(noise, CLIP, size, adjacency=privacy.adjacency, secure=privacy.secure),
    )
