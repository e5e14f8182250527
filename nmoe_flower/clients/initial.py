"""Where a run starts: initial weights of stage 1, head and gate, the same on every client."""

from flwr.app import Context, Message

from nmoe_flower import records
from nmoe_flower.clients import fedce, fedsc
from nmoe_flower.clients.device.device import device_of
from nmoe_flower.records import ARRAYS, HEAD, NUM_EXAMPLES

__all__ = ["initial"]


def initial(message: Message, context: Context) -> Message:
    """Tell the initial weights of what stage 1 trains, those of a head, and those of the gate."""
    device = device_of(context)
    half = fedsc if device.config.extractor.method == "fedsc" else fedce
    network = device.fresh_classifier()
    gate = device.gate(network.extractor.latent_dim)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(device.train_labels)},
        arrays={
            ARRAYS: records.from_numpy(half.initial(device)),
            HEAD: records.pack(network.head.state_dict()),
            "gate": records.pack(gate.state_dict()),
        },
    )
