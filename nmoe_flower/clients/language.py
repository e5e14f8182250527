"""The language system at the client: adapters of a frozen language model, and how they train."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message

from nmoe_flower import records
from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.clients.device import Device, Language, device_of, language_of
from nmoe_flower.clients.private import told_frequencies
from nmoe_flower.data.text import TextSplit
from nmoe_flower.errors import ReplyError
from nmoe_flower.records import (
    ARRAYS,
    EXPERT,
    GATE,
    LEARNING_RATE,
    LOSS,
    MOMENTS,
    NUM_EXAMPLES,
    SERVER_ROUND,
    HoldingKey,
    TextKey,
)
from nmoe_flower.training import batch_indices, fit, fit_along_cosine

__all__ = [
    "initial",
    "load_shared",
    "tell_texts",
    "test",
    "train_adapter",
    "train_expert",
    "train_shared",
]

Arrays = dict[str, np.ndarray]
FIRST, SECOND = MOMENTS
TRIED = "tried"
_RECIPE, _WORTH = "recipe", "worth"


def tell_texts(message: Message, context: Context) -> Message:
    """Tell how much text of which domain this client holds, and what reads it."""
    language = language_of(device_of(context))
    data, train, tests = language.data, language.train, language.tests
    count = len(data.domain_names)

    def counted(split: TextSplit) -> list[int]:
        return [int(n) for n in np.bincount(split.domains, minlength=count)]

    metrics: dict[str, int | list[int]] = {
        NUM_EXAMPLES: len(train),
        HoldingKey.TRAIN_COUNTS: counted(train),
        HoldingKey.TEST_COUNTS: counted(tests["local"]),
    }
    if VALIDATION in tests:
        metrics[HoldingKey.VALIDATION_COUNTS] = counted(tests[VALIDATION])
    return records.reply(
        message,
        metrics=metrics,
        config={
            HoldingKey.CLASSES: list(data.domain_names),
            HoldingKey.FINGERPRINT: data.fingerprint,
            HoldingKey.EXTRACTOR: language.digest.hex(),
            HoldingKey.PRECISION: "bf16" if language.bf16 else "float32",
            TextKey.TOKENIZER: data.tokenizer_hash,
        },
    )


def initial(message: Message, context: Context) -> Message:
    """Tell a fresh adapter of the rank that is asked for: the same on every client."""
    language = language_of(device_of(context))
    rank = int(records.config_of(message)[TextKey.RANK])
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(language.train)},
        arrays={ARRAYS: records.from_numpy(language.fresh(rank))},
    )


def train_expert(message: Message, context: Context) -> Message:
    """Train this client's adapter at home; it leaves only if ``expert.sharing`` says so.

    It begins as the averaged adapter that comes along, or as a fresh one. Of several learning rates
    the one is kept whose adapter predicts the client's own validation text best.
    """
    device = device_of(context)
    language, settings = language_of(device), device.config.adapter
    came = records.of_kind(message.content, ArrayRecord)
    start = records.to_numpy(came[ARRAYS]) if ARRAYS in came else {}
    rates, found = settings.learning_rates, []
    for rate in rates:
        name = f"{TRIED}-{rate:g}"
        recipe = language.recipe(rate, start)
        tried = _tried(device, name, recipe)
        if tried is None:
            language.load({**language.fresh(settings.rank_of(device.partition)), **start})
            loss = train_adapter(language, rate, settings.steps)
            worth = _nats(language, language.tests[VALIDATION])[0] if len(rates) > 1 else 0.0
            tried = _Tried(worth, loss, language.model.state())
            if len(rates) > 1:
                tried.keep(device, name, recipe)
        found.append((tried, rate))
    best, rate = min(found, key=lambda one: one[0].worth)
    adapter, loss = best.adapter, best.loss
    signed = language.signed(adapter)
    device.store.save(EXPERT, signed, sync=device.serves)
    for one in rates:
        device.store.drop(f"{TRIED}-{one:g}")
    arrays: dict[str, ArrayRecord] = {}
    if device.config.expert.sharing == "weights":
        arrays[EXPERT] = records.from_numpy(signed)
        if device.config.gate.asks_frequencies:
            seen = told_frequencies(device, language.train.tokens, language.data.vocab_size)
            arrays[GATE] = records.from_numpy({TextKey.FREQUENCIES: seen})
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(language.train), LOSS: loss, TextKey.RATE: rate},
        arrays=arrays,
    )


@dataclass(frozen=True)
class _Tried:
    """An adapter that was trained at one of several learning rates.

    Attributes:
        worth: Nats of the validation text.
        loss: Mean loss while it was trained.
        adapter: The parts of the adapter.
    """

    worth: float
    loss: float
    adapter: Arrays

    def keep(self, device: Device, name: str, recipe: str) -> None:
        """Write it down: a device that stops at the next rate need not train this one again."""
        told = np.array([self.worth, self.loss])
        recipe_told = np.frombuffer(bytes.fromhex(recipe), np.uint8)
        device.store.save(name, {**self.adapter, _RECIPE: recipe_told, _WORTH: told})


def _tried(device: Device, name: str, recipe: str) -> _Tried | None:
    """What was written down, if it was trained in the same way."""
    if not device.store.has(name):
        return None
    kept = dict(device.store.load(name))
    worth, loss = (float(value) for value in kept.pop(_WORTH))
    return _Tried(worth, loss, kept) if kept.pop(_RECIPE).tobytes().hex() == recipe else None


def train_shared(message: Message, context: Context) -> Message:
    """Take this round's steps with the adapter of all clients, or with those parts that came.

    Parts that do not come (A, where it stays as it was drawn) are as in a fresh adapter. AdamW's
    moments are taken on where they come, too.
    """
    device = device_of(context)
    language, settings = language_of(device), device.config.adapter
    told = records.config_of(message)
    current, rate = int(told[SERVER_ROUND]), float(told[LEARNING_RATE])
    received = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    parts = load_shared(language, received)
    learners = {n: p for n, p in language.model.learners().items() if n in parts}
    optimizer = torch.optim.AdamW(learners.values(), lr=rate, weight_decay=settings.weight_decay)
    first = (current - 1) * settings.local_steps
    for name, part in learners.items():
        if FIRST + name in received:
            optimizer.state[part] = {
                "step": torch.tensor(float(first)),
                "exp_avg": torch.from_numpy(received[FIRST + name].copy()),
                "exp_avg_sq": torch.from_numpy(received[SECOND + name].copy()),
            }
    batches = _batches(language, first, settings.local_steps)
    result = fit(
        language.model, batches, lambda rows: _loss(language, rows),
        optimizer=optimizer, bf16=language.bf16,
    )  # fmt: skip
    sent = {name: part.detach().cpu().numpy() for name, part in learners.items()}
    for name, part in learners.items():
        if FIRST + name in received:
            sent[FIRST + name] = optimizer.state[part]["exp_avg"].cpu().numpy()
            sent[SECOND + name] = optimizer.state[part]["exp_avg_sq"].cpu().numpy()
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(language.train), LOSS: result.loss},
        arrays={ARRAYS: records.from_numpy({name: sent[name] for name in received})},
    )


def test(message: Message, context: Context) -> Message:
    """How well the adapter of all clients predicts this client's validation text."""
    language = language_of(device_of(context))
    load_shared(language, records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS]))
    split = language.tests[VALIDATION]
    nats, size = _nats(language, split)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(split), TextKey.NATS: nats, TextKey.BYTES: size},
    )


def load_shared(language: Language, received: Mapping[str, np.ndarray]) -> list[str]:
    """Put a shared adapter to work; returns the names of the parts that came.

    Args:
        language: The client's.
        received: Parts of the adapter and of AdamW's moments; what is missing is as in a fresh one.

    Raises:
        ReplyError: There is no part B, or a part does not fit.
    """
    parts = {n: v for n, v in received.items() if not n.startswith(MOMENTS)}
    missing = [name for name in parts if name.endswith(".B")]
    if not missing:
        raise ReplyError("the adapter has no part that ends in .B")
    rank = parts[missing[0]].shape[1]
    language.load({**language.fresh(rank), **parts})
    return list(parts)


def train_adapter(language: Language, rate: float, steps: int) -> float:
    """Train the adapter at work on the client's own text, along a cosine; returns the mean loss.

    Args:
        language: The client's.
        rate: AdamW's peak.
        steps: How many steps.
    """
    return fit_along_cosine(
        language.model,
        _batches(language, 0, steps),
        lambda rows: _loss(language, rows),
        parameters=language.model.learners().values(),
        learning_rate=rate,
        weight_decay=language.device.config.adapter.weight_decay,
        steps=steps,
        bf16=language.bf16,
    ).loss


def _batches(language: Language, first: int, count: int) -> Iterator[np.ndarray]:
    """Rows of the client's training windows, the same for every way of training."""
    yield from batch_indices(
        len(language.train),
        language.device.config.adapter.batch_size,
        first=first,
        count=count,
        seed=language.device.seed("adapter"),
    )


def _loss(language: Language, rows: np.ndarray) -> torch.Tensor:
    """Mean loss of the scored tokens of some training windows."""
    split = language.train.take(rows)
    place = language.device.torch_device
    tokens = torch.from_numpy(split.tokens.astype(np.int64)).to(place)
    mask = torch.from_numpy(split.scored()).to(place)
    return language.model.losses(tokens)[mask].mean()


def _nats(language: Language, split: TextSplit) -> tuple[float, float]:
    """Nats of all scored tokens of a split by the adapter at work, and their bytes."""
    prefix = language.device.config.text.prefix
    lost = language.score(split) * split.scored(prefix)
    return float(lost.sum(dtype=np.float64)), float(split.scored_bytes(prefix).sum())
