"""What a node tells before anything is trained: who it is, what it holds, where training starts."""

from flwr.app import Context, Message

from nmoe_flower import records
from nmoe_flower.catalogue import METHODS, found
from nmoe_flower.clients import language
from nmoe_flower.clients.device import device_of
from nmoe_flower.data import label_counts
from nmoe_flower.models import PretrainedExtractor
from nmoe_flower.records import ARRAYS, GATE, HEAD, NUM_EXAMPLES, PARTITION_ID, HoldingKey, TextKey

__all__ = ["tell_holdings", "tell_initial", "tell_partition"]


def tell_partition(message: Message, context: Context) -> Message:
    """Tell the partition id, whatever Flower calls the node this time; opens no data."""
    partition = int(str(context.node_config.get(PARTITION_ID, context.node_id)))
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: 0},
        config={PARTITION_ID: partition},
    )


def tell_holdings(message: Message, context: Context) -> Message:
    """Tell what this client holds: class counts, class names, the data's fingerprint."""
    device = device_of(context)
    if device.config.run.system == "language":
        return language.tell_texts(message, context)
    data, indices = device.data, device.indices
    train = label_counts(data.train.labels, [indices.train], data.num_classes)[0]
    tests = label_counts(data.test.labels, [indices.test_local], data.num_classes)[0]
    metrics: dict[str, int | list[int]] = {
        NUM_EXAMPLES: len(indices.train),
        HoldingKey.TRAIN_COUNTS: [int(count) for count in train],
        HoldingKey.TEST_COUNTS: [int(count) for count in tests],
    }
    if len(indices.validation):
        held = label_counts(data.train.labels, [indices.validation], data.num_classes)[0]
        metrics[HoldingKey.VALIDATION_COUNTS] = [int(count) for count in held]
    told: dict[str, str | list[str]] = {
        HoldingKey.CLASSES: list(data.class_names),
        HoldingKey.FINGERPRINT: data.fingerprint,
        HoldingKey.PRECISION: "bf16" if device.bf16 else "float32",
    }
    if data.tokenised is not None:
        told[TextKey.TOKENIZER] = data.tokenised.tokenizer
    if device.config.extractor.stands_on_given and isinstance(
        extractor := device.extractor(), PretrainedExtractor
    ):
        told[HoldingKey.EXTRACTOR] = extractor.backbone.digest.hex()
    return records.reply(message, metrics=metrics, config=told)


def tell_initial(message: Message, context: Context) -> Message:
    """Tell the initial weights of what stage 1 trains, those of a head, and those of the gate."""
    device = device_of(context)
    initial = found(METHODS[device.config.extractor.method].initial)
    network = device.fresh_classifier(finished=True)
    gate = device.fresh_gate(network.extractor.latent_dim)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(device.train_labels)},
        arrays={
            ARRAYS: records.from_numpy(initial(device)),
            HEAD: records.pack(network.head.state_dict()),
            GATE: records.pack(gate.state_dict()),
        },
    )
