"""Who a node is: its partition, whatever Flower calls the node this time."""

from flwr.app import Context, Message

from nmoe_flower import records
from nmoe_flower.clients.device.device import device_of
from nmoe_flower.data import label_counts

__all__ = ["describe", "identify"]


def identify(message: Message, context: Context) -> Message:
    """Tell the partition id; opens no data."""
    partition = int(str(context.node_config.get("partition-id", context.node_id)))
    return records.reply(
        message,
        metrics={records.NUM_EXAMPLES: 0},
        config={records.PARTITION_ID: partition},
    )


def describe(message: Message, context: Context) -> Message:
    """Tell what this client holds: class counts, class names, the data's fingerprint."""
    device = device_of(context)
    data, indices = device.data, device.indices
    train = label_counts(data.train.labels, [indices.train], data.num_classes)[0]
    tests = label_counts(data.test.labels, [indices.test_local], data.num_classes)[0]
    return records.reply(
        message,
        metrics={
            records.NUM_EXAMPLES: len(indices.train),
            "train-counts": [int(count) for count in train],
            "test-counts": [int(count) for count in tests],
        },
        config={"classes": list(data.class_names), "fingerprint": data.fingerprint},
    )
