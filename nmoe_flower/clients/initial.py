"""Where a run starts: the initial weights of stage 1 and of the gate, the same on every client."""

from flwr.app import Context, Message

from nmoe_flower import records
from nmoe_flower.clients import extractor, spectral
from nmoe_flower.clients.device import device_of
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES

__all__ = ["initial"]


def initial(message: Message, context: Context) -> Message:
    """Tell the initial weights of what stage 1 trains, and those of the gate."""
    device = device_of(context)
    half = spectral if device.config.extractor.method == "fedsc" else extractor
    gate = device.gate(device.fresh_classifier().extractor.latent_dim)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(device.train_labels)},
        arrays={
            ARRAYS: records.from_numpy(half.initial(device)),
            "gate": records.pack(gate.state_dict()),
        },
    )
