"""Between stages 1 and 2 at the client: latents to keep, and a step of a shared head on them."""

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message

from nmoe_flower import records
from nmoe_flower.clients.device import device_of, latents_of, received_classifier
from nmoe_flower.losses import labelled_loss
from nmoe_flower.records import ARRAYS, LATENTS, LEARNING_RATE, LOSS, NUM_EXAMPLES, SERVER_ROUND
from nmoe_flower.training import RowBatches, SharedLoss, batch_indices, fit, sgd

__all__ = ["cache_latents", "train"]


def cache_latents(message: Message, context: Context) -> Message:
    """Keep the latents of the received extractor, for what trains on them."""
    device = device_of(context)
    network, _ = received_classifier(device, message)
    latents_of(device, network.extractor)
    return records.reply(message, metrics={NUM_EXAMPLES: len(device.train_labels)})


def train(message: Message, context: Context) -> Message:
    """Take this round's step with the received head; the extractor is frozen, latents are kept."""
    device = device_of(context)
    settings = records.config_of(message)
    latents = device.store.load(LATENTS)
    rows, labels = latents["train"], latents["train-labels"]
    head = device.head(rows.shape[1])
    records.load_into(
        head.state_dict(), records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    )
    (chosen,) = batch_indices(
        len(labels),
        device.config.head.batch_size,
        first=int(settings[SERVER_ROUND]) - 1,
        count=1,
        seed=device.seed("head-batches"),
    )
    inputs = torch.from_numpy(rows[chosen]).to(device.torch_device)
    truth = torch.from_numpy(labels[chosen]).to(device.torch_device)
    result = fit(
        head,
        RowBatches((inputs, truth), [np.arange(len(truth))]),
        SharedLoss(labelled_loss, head),
        optimizer=sgd(head, learning_rate=float(settings[LEARNING_RATE])),
    )
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(labels), LOSS: result.loss},
        arrays={ARRAYS: records.pack(head.state_dict())},
    )
