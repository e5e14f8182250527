"""The two ClientApps that are measured: of this package's blocks, and as Flower teaches it."""

from functools import lru_cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from benchmarks.rounds.kinds import kind_of
from benchmarks.rounds.model import batches, build_model, optimizer_for
from nmoe_flower import records
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, SERVER_ROUND
from nmoe_flower.training import fit

__all__ = ["ours", "stock"]

ours = ClientApp()
stock = ClientApp()


@lru_cache(maxsize=1)
def _kit(name: str, seed: int, *, channels_last: bool) -> tuple[nn.Module, SGD]:
    """A process keeps one model and loads weights in place."""
    order = torch.channels_last if channels_last else torch.preserve_format
    model = build_model(kind_of(name), seed).to(memory_format=order)
    return model, optimizer_for(model)


@ours.train()
def train(message: Message, context: Context) -> Message:
    """Take this round's steps from the weights that came."""
    name, seed = str(context.run_config["kind"]), int(context.run_config["seed"])
    kind = kind_of(name)
    last = bool(context.run_config.get("channels-last", False))
    model, optimizer = _kit(name, seed, channels_last=last)
    parameters = dict(model.named_parameters())
    records.load_into(
        parameters, records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    )
    result = fit(
        model,
        batches(
            kind,
            seed,
            int(context.node_config["partition-id"]),
            int(records.config_of(message)[SERVER_ROUND]),
        ),
        lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
        optimizer=optimizer,
    )
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: kind.images, "loss": result.loss},
        arrays={ARRAYS: records.pack(parameters)},
    )


@ours.query("initial")
def initial(message: Message, context: Context) -> Message:
    """The weights of round 0: the server needs no torch for them."""
    name, seed = str(context.run_config["kind"]), int(context.run_config["seed"])
    parameters = dict(build_model(kind_of(name), seed).named_parameters())
    return records.reply(message, metrics={}, arrays={ARRAYS: records.pack(parameters)})


@ours.query("echo")
def echo(message: Message, context: Context) -> Message:
    """What came goes back."""
    return Message(message.content, reply_to=message)


@stock.train()
def stock_train(message: Message, context: Context) -> Message:
    """The client of Flower's PyTorch quick start."""
    name, seed = str(context.run_config["kind"]), int(context.run_config["seed"])
    kind = kind_of(name)
    model = build_model(kind, seed)
    arrays: ArrayRecord = message.content["arrays"]  # type: ignore[assignment]
    model.load_state_dict(arrays.to_torch_state_dict())
    config = message.content.config_records["config"]
    partition = int(context.node_config["partition-id"])
    optimizer = optimizer_for(model)
    for images, labels in batches(kind, seed, partition, int(str(config["server-round"]))):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": kind.images}),
        }
    )
    return Message(content, reply_to=message)
