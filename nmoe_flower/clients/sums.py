"""Between stages 1 and 2 at the client: sums over its latents, and nothing else of them."""

import numpy as np
from flwr.app import Context, Message

from nmoe_flower import records
from nmoe_flower.clients.device import check_given, device_of, predict
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, SUMS, SumsKey
from nmoe_flower.sums import Sums

__all__ = ["tell"]


def tell(message: Message, context: Context) -> Message:
    """Tell the sums over all own training latents of the received extractor.

    Only count, mean and squares are told where ``moments`` is set.
    """
    device = device_of(context)
    network = device.classifier()
    arrays = records.to_numpy(message.content.array_records[ARRAYS])
    check_given(network, arrays)
    records.load_into(network.parts(with_head=False), arrays)
    latents = predict(device, network.extractor, device.data.train.images, device.indices.train)
    if records.config_of(message).get(SumsKey.MOMENTS):
        told = _moments(latents.numpy())
    else:
        told = Sums.of(latents.numpy(), device.train_labels, device.data.num_classes).packed()
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(device.train_labels)},
        arrays={SUMS: records.from_numpy(told)},
    )


def _moments(latents: np.ndarray) -> dict[str, np.ndarray]:
    mean = latents.mean(axis=0, dtype=np.float64)
    return {
        SumsKey.COUNT: np.array(len(latents)),
        SumsKey.MEAN: mean,
        SumsKey.SQUARES: np.square(latents - mean).sum(axis=0).astype(np.float32),
    }
