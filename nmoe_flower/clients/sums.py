"""Between stages 1 and 2 at the client: sums over its latents, and nothing else of them.

They leave as they are, or, with ``privacy.enabled``, as one noisy matrix within a budget.
"""

import numpy as np
import torch
from flwr.app import Context, Message

from nmoe_flower import records
from nmoe_flower.clients.device import CLIP, Device, check_given, device_of, predict, source_of
from nmoe_flower.clients.private import MatrixRelease
from nmoe_flower.errors import CheckpointError
from nmoe_flower.models import Extractor
from nmoe_flower.privacy import (
    Budget,
    GaussianMechanism,
    labelled_latents,
    noise_multiplier_for,
    svec,
)
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, SUMS, SumsKey
from nmoe_flower.sums import Sums
from nmoe_flower.training import generator

__all__ = ["tell"]

SENT = "sums-sent"
_SOURCE = "source"


def tell(message: Message, context: Context) -> Message:
    """Tell the sums over all own training latents of the received extractor.

    Only count, mean and squares are told where ``moments`` is set.
    """
    device = device_of(context)
    network = device.classifier()
    arrays = records.to_numpy(message.content.array_records[ARRAYS])
    check_given(network, arrays)
    records.load_into(network.parts(with_head=False), arrays)
    if device.config.privacy.enabled:
        told = _released(device, network.extractor)
    else:
        latents = _latents(device, network.extractor)
        if records.config_of(message).get(SumsKey.MOMENTS):
            told = _moments(latents)
        else:
            told = Sums.of(latents, device.train_labels, device.data.num_classes).packed()
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(device.train_labels)},
        arrays={SUMS: records.from_numpy(told)},
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


def _released(device: Device, extractor: Extractor) -> dict[str, np.ndarray]:
    """The sums with noise, paid for once: what was sent is sent again, and the same bits are free.

    Raises:
        BudgetError: Sums of another extractor were paid for, and no more are.
        CheckpointError: The ledger cannot be read, or is gone while sums were sent.
    """
    source = source_of(device, extractor)
    way_out = _way_out(device)
    if device.store.has(SENT):
        if way_out.ledger.is_new:
            raise CheckpointError(
                f"{device.store.folder} holds sums that were sent and no ledger of their cost: no "
                "more are released"
            )
        sent = dict(device.store.load(SENT))
        if np.array_equal(sent.pop(_SOURCE), source):
            return sent
    correlation = way_out.mechanism.correlation()
    latents = torch.from_numpy(_latents(device, extractor))
    labels = torch.from_numpy(np.array(device.train_labels))
    correlation.add(labelled_latents(latents, labels, device.data.num_classes))
    noise = None if device.config.privacy.secure else generator(device.seed("release-of-sums"))
    server_round = 0 if device.store.has(SENT) else 1
    released = way_out.release(correlation.result(), noise, server_round=server_round)
    told: dict[str, np.ndarray] = {
        SumsKey.COUNT: np.array(len(labels)),
        SumsKey.PRIVATE: svec(released).numpy().astype(np.float32),
    }
    device.store.save(SENT, {**told, _SOURCE: source}, sync=True)
    return told


def _way_out(device: Device) -> MatrixRelease:
    privacy, size = device.config.privacy, len(device.train_labels)
    noise = noise_multiplier_for(privacy.epsilon, privacy.delta, 1, num_examples=size)
    return MatrixRelease(
        device.store.folder,
        device.partition,
        Budget(privacy.epsilon, privacy.delta),
        GaussianMechanism(noise, CLIP, size, adjacency=privacy.adjacency, secure=privacy.secure),
    )
