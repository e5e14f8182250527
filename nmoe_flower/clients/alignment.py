"""The alignment system at the client: train the assigned experts (strategies/alignment.py)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor
from torch.nn import functional as F

from nmoe_flower import metrics, records
from nmoe_flower.catalogue import ALIGNMENT_GATES
from nmoe_flower.clients.device import AlignmentClient, device_of, fresh_mixture
from nmoe_flower.clients.plugin import Trained, answer_assigned
from nmoe_flower.data import normalise
from nmoe_flower.losses import load_balance_global
from nmoe_flower.models import alignment_loss, mixed
from nmoe_flower.records import (
    ARRAYS,
    NUM_EXAMPLES,
    SERVER_ROUND,
    STATISTICS,
    AlignmentKey,
    FeedbackKey,
    Score,
    StatisticsKey,
)
from nmoe_flower.training import batch_indices, fit, generator

__all__ = ["keep_given", "probe", "tell_mixture", "test", "train"]


def tell_mixture(message: Message, context: Context) -> Message:
    """The initial mixture, the same on every client of a seed; and what training it costs."""
    device = device_of(context)
    client = AlignmentClient(device)
    data = device.data
    fresh = fresh_mixture(device.config, data.image_shape, data.num_classes)
    expert = sum(p.numel() for p in fresh.experts["0"].parameters())
    arrays = {n: t for n, t in fresh.state_dict().items() if n in client.travelling()}
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(device.train_labels), AlignmentKey.EXPERT_PARAMETERS: expert},
        arrays={ARRAYS: records.pack(arrays)},
    )


def keep_given(message: Message, context: Context) -> Message:
    """Keep the extractor of stage 1, which stays as it is."""
    client = AlignmentClient(device_of(context))
    client.keep_extractor(records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS]))
    return records.reply(message, metrics={NUM_EXAMPLES: len(client.device.train_labels)})


def train(message: Message, context: Context) -> Message:
    """Train the assigned experts, with the gate limited to them; tell how they did."""
    client = AlignmentClient(device_of(context))
    told = records.config_of(message)
    server_round, held = int(told[SERVER_ROUND]), [int(e) for e in told[FeedbackKey.EXPERTS]]
    gate = ALIGNMENT_GATES[client.device.config.alignment.gate]
    if gate.stays:
        client.load_gate(before=server_round)
    loads = torch.tensor([float(share) for share in told.get(AlignmentKey.LOADS, ())])
    answer = answer_assigned(
        message, client.network, lambda _: _train(client, held, server_round, loads)
    )
    if gate.stays:
        client.save_gate(server_round, told.get(records.KEPT_ROUNDS, ()))
    if gate.solved:
        wanted = bool(told[StatisticsKey.WANT_MOMENT])
        answer.content[STATISTICS] = _statistics(client, held, wanted)
        answer.content[ARRAYS] = _without_gate(records.of_kind(answer.content, ArrayRecord)[ARRAYS])
    return answer


def _train(
    client: AlignmentClient, held: Sequence[int], server_round: int, loads: Tensor
) -> Trained:
    device, settings = client.device, client.device.config.alignment
    learners, kept = client.learners(held), client.split[0]
    labels = torch.from_numpy(device.train_labels).to(device.torch_device)
    latents = None if client.is_trained else client.latents("train")
    noise = generator(device.seed("aligned-augment", server_round))
    network, steps = client.network, settings.local_steps

    def batches() -> Iterator[np.ndarray]:
        first = (server_round - 1) * steps
        yield from (
            kept[chosen]
            for chosen in batch_indices(
                len(kept),
                settings.batch_size,
                first=first,
                count=steps,
                seed=device.seed("aligned-batches"),
            )
        )

    def batch_loss(chosen: np.ndarray) -> Tensor:
        if latents is None:
            images = device.augment(normalise(device.train_images[chosen]), noise)
            rows = network.extractor(images.to(device.torch_device))
        else:
            rows = latents[chosen]
        scores = network.gate(rows)
        answers = network.answers(rows, held).float()
        loss = alignment_loss(scores, answers, labels[chosen], held, anchor=settings.anchor)
        if settings.balance and len(loads) and bool(loads.sum() > 0):
            balance = load_balance_global(scores.softmax(dim=1), loads.to(scores.device))
            loss = loss + settings.balance * balance
        return loss

    result = fit(
        learners,
        batches(),
        batch_loss,
        optimizer=client.optimizer(learners),
        bf16=device.bf16 and client.is_trained,
    )
    losses, shares = _judge(client, held)
    seen = min(settings.batch_size, len(kept)) * steps
    return Trained(
        loss=result.loss,
        num_examples=len(labels),
        losses={str(expert): loss for expert, loss in zip(held, losses, strict=True)},
        samples={str(expert): seen for expert in held},  # every batch runs through all of them
        shares=shares,
    )


@torch.inference_mode()
def _judge(client: AlignmentClient, held: Sequence[int]) -> tuple[list[float], list[float]]:
    """On held-out images: loss of each held expert, and the gate's shares over all experts."""
    device, rows = client.device, client.split[1]
    labels = torch.from_numpy(device.train_labels[rows]).to(device.torch_device)
    whole = client.extracted("train") if client.is_trained else client.latents("train")
    latents = whole.to(device.torch_device)[rows]
    scores, answers = client.network.gate(latents), client.network.answers(latents, held)
    losses = [float(F.cross_entropy(answers[:, at], labels)) for at in range(len(held))]
    return losses, _shares(scores)


def _shares(scores: Tensor) -> list[float]:
    """Share of the rows that goes to each column; equal scores, as of a fresh gate, share a row."""
    best = (scores == scores.amax(dim=1, keepdim=True)).double()
    shares: list[float] = (best / best.sum(dim=1, keepdim=True)).mean(dim=0).tolist()
    return shares


@torch.inference_mode()
def _statistics(client: AlignmentClient, held: Sequence[int], want_moment: bool) -> ArrayRecord:
    """Sums of the gate's inputs per held expert, each sample shared out by responsibility."""
    device, kept = client.device, client.split[0]
    latents = client.latents("train")[kept]
    labels = torch.from_numpy(device.train_labels[kept]).to(device.torch_device)
    inputs = F.layer_norm(latents, latents.shape[1:])
    inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    if len(held) == 1:
        parts = inputs.new_ones(len(inputs), 1)
    else:
        logits = client.network.answers(latents, held)
        fits = logits.log_softmax(dim=2)[torch.arange(len(labels)), :, labels]
        gate = client.network.gate(latents)[:, list(held)].log_softmax(dim=1)
        parts = (gate + fits).softmax(dim=1)
    sums = torch.cat([parts.T @ inputs, parts.sum(dim=0)[:, None]], dim=1)
    arrays: dict[str, Tensor] = {StatisticsKey.SUMS: sums}
    if want_moment:
        upper = torch.triu_indices(inputs.shape[1], inputs.shape[1])
        arrays[StatisticsKey.MOMENT] = (inputs.T @ inputs)[upper[0], upper[1]]
    return records.pack(arrays)


def _without_gate(record: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({name: a for name, a in record.items() if not name.startswith("gate.")})


@torch.inference_mode()
def probe(message: Message, context: Context) -> Message:
    """A newcomer's cold start: where the gate would send its samples; no expert is needed."""
    client = AlignmentClient(device_of(context))
    _load(client, message)
    rows = client.split[1]
    whole = client.extracted("train") if client.is_trained else client.latents("train")
    scores = client.network.gate(whole.to(client.device.torch_device)[rows])
    return records.reply(
        message, metrics={NUM_EXAMPLES: len(rows), FeedbackKey.SHARES: _shares(scores)}
    )


@torch.inference_mode()
def test(message: Message, context: Context) -> Message:
    """All tests by the received experts: all of them, or those placed on this client."""
    client = AlignmentClient(device_of(context))
    device, network = client.device, client.network
    _load(client, message)
    told = records.config_of(message)
    if device.config.alignment.gate == "local":
        client.load_gate(before=int(told[SERVER_ROUND]) + 1)
    held = [int(e) for e in told.get(FeedbackKey.EXPERTS, range(len(network.experts)))]
    found: dict[str, float | list[float]] = {NUM_EXAMPLES: len(device.train_labels)}
    for name, portion in device.tests.items():
        labels = portion.labels
        latents = client.extracted(name) if client.is_trained else client.latents(name)
        rows = latents.to(device.torch_device)
        probabilities, asked = mixed(
            network.gate(rows)[:, held],
            rows,
            [network.expert(expert) for expert in held],
            top_k=device.config.alignment.top_k,
        )
        probs = probabilities.cpu().numpy()
        found[f"{Score.ACCURACY}-{name}"] = metrics.accuracy(probs, labels)
        if told.get(AlignmentKey.FINAL):
            found[f"{Score.BALANCED_ACCURACY}-{name}"] = metrics.balanced_accuracy(probs, labels)
            found[f"{Score.MACRO_F1}-{name}"] = metrics.macro_f1(probs, labels)
            ids = np.asarray(held)[asked.cpu().numpy()]
            counts = np.bincount(ids.ravel(), minlength=len(network.experts))
            found[f"{Score.ROUTING}-{name}"] = [float(share) for share in counts / ids.size]
    return records.reply(message, metrics=found)


def _load(client: AlignmentClient, message: Message) -> None:
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    state = client.network.state_dict()
    records.load_into({name: state[name] for name in arrays}, arrays)
