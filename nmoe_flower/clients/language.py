"""The language system at the client: adapters of a frozen language model, and their scores."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message

from nmoe_flower import records
from nmoe_flower.catalogue import TEXT_GATES, VALIDATION
from nmoe_flower.clients.device import Language, device_of, language_of
from nmoe_flower.clients.private import told_frequencies
from nmoe_flower.data.text import TextSplit
from nmoe_flower.errors import ReplyError
from nmoe_flower.models import (
    Chunks,
    at_home,
    best_of,
    text_routes,
    token_scores,
    unigram_scores,
)
from nmoe_flower.records import (
    ANSWERS,
    ARRAYS,
    EXPERT,
    GATE,
    LEARNING_RATE,
    LOSS,
    MOMENTS,
    NUM_EXAMPLES,
    SERVER_ROUND,
    SHARED,
    TEXT,
    HoldingKey,
    Score,
    TextKey,
)
from nmoe_flower.training import batch_indices, fit

__all__ = ["initial", "score", "tell_texts", "test", "train_expert", "train_shared"]

Arrays = dict[str, np.ndarray]
FIRST, SECOND = MOMENTS


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

    Of several learning rates the one is kept whose adapter predicts the client's own validation
    text best.
    """
    device = device_of(context)
    language, settings = language_of(device), device.config.adapter
    fresh = language.fresh(settings.rank_of(device.partition))
    rates, found = settings.learning_rates, []
    for rate in rates:
        language.load(fresh)
        loss = _steps(language, rate, first=0, count=settings.steps, of=settings.steps)
        worth = 0.0
        if len(rates) > 1:
            worth = _nats(language, language.tests[VALIDATION])[0]
        found.append((worth, rate, loss, language.model.state()))
    _, rate, loss, adapter = min(found, key=lambda one: one[0])
    signed = language.signed(adapter)
    device.store.save(EXPERT, signed, sync=device.serves)
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


def train_shared(message: Message, context: Context) -> Message:
    """Take this round's steps with the adapter of all clients, or with those parts that came.

    Parts that do not come (A, where it stays as it was drawn) are as in a fresh adapter. AdamW's
    moments are taken on where they come, too.
    """
    device = device_of(context)
    language, settings = language_of(device), device.config.adapter
    told = records.config_of(message)
    current, rate = int(told[SERVER_ROUND]), float(told[LEARNING_RATE])
    received = records.to_numpy(message.content.array_records[ARRAYS])
    parts = _load_shared(language, received)
    learners = {n: p for n, p in language.model.learners().items() if n in parts}
    optimizer = _adamw(language, list(learners.values()), rate)
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
    _load_shared(language, records.to_numpy(message.content.array_records[ARRAYS]))
    split = language.tests[VALIDATION]
    nats, size = _nats(language, split)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(split), TextKey.NATS: nats, TextKey.BYTES: size},
    )


def score(message: Message, context: Context) -> Message:
    """Score this client's tests by every expert and control, mix them by every gate.

    The scores [N, E, T - 1] are kept: gates cost nothing more.
    """
    device = device_of(context)
    language = language_of(device)
    content = message.content.array_records
    experts = _by_owner(content.get(EXPERT)) or {str(device.partition): device.store.load(EXPERT)}
    shared = _by_owner(content.get(SHARED)) | _untrained(language, list(experts.values()))
    told = records.to_numpy(content[ARRAYS]) if ARRAYS in content else {}
    kept: Arrays = {}
    sums: Arrays = {}
    for name, split in language.tests.items():
        by_expert = []
        for adapter in experts.values():
            language.load(adapter)
            by_expert.append(language.score(split))
        nats = np.stack(by_expert, axis=1)
        kept[name] = nats
        alone = {}
        for control, adapter in shared.items():
            _load_shared(language, adapter)
            alone[control] = language.score(split)
        answers = TestedText(language, name, split, nats, [int(e) for e in experts], told)
        sums |= answers.sums(alone)
    device.store.save(ANSWERS, kept)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(language.train)},
        arrays={TEXT: records.from_numpy(sums)},
    )


class TestedText:
    """One test of one client: what every expert said, and what gates make of it.

    Args:
        language: The client's.
        test: Name of the test.
        split: N windows of T tokens.
        nats: What each of the experts lost on them, [N, E, T - 1].
        experts: Ids of the experts, in order.
        told: What gates need, from the server.
    """

    def __init__(
        self,
        language: Language,
        test: str,
        split: TextSplit,
        nats: np.ndarray,
        experts: Sequence[int],
        told: Mapping[str, np.ndarray],
    ) -> None:
        self.language, self.test, self.split, self.nats = language, test, split, nats
        self.experts, self.told = list(experts), told
        text = language.device.config.text
        self.whole = Chunks(split.window, text.prefix)
        self.chunks = Chunks(split.window, text.prefix, text.chunk, text.recent)
        self.mask = split.scored(text.prefix)
        self.sizes = split.scored_bytes(text.prefix)

    def sums(self, alone: Mapping[str, np.ndarray]) -> Arrays:
        """By ``<gate>/<test>``: nats of each domain [A, D], routes to each expert [A, E].

        A is 1 where all clients would ask the same experts, else the number of those that ask.
        """
        found: Arrays = {
            f"{self.test}/{TextKey.BYTES}": self._by_domain(self.sizes),
            f"{self.test}/{TextKey.TOKENS}": self._by_domain(self.mask.sum(axis=1)),
        }
        controls = self.language.device.config.adapter.controls
        for name, lost in alone.items():
            found[f"control:{name}/{self.test}/{TextKey.NATS}"] = self._domains([lost])
        if "uniform" in controls and len(self.experts) > 1:
            count = len(self.experts)
            ids = np.broadcast_to(np.arange(count), (len(self.nats), 1, count))
            mixed = self.whole.loss(self.nats, ids, np.full(ids.shape, 1 / count))
            found[f"control:uniform/{self.test}/{TextKey.NATS}"] = self._domains([mixed])
        for gate, (asked, routes) in self._gates().items():
            found[f"{gate}/{self.test}/{TextKey.NATS}"] = self._domains(asked)
            found[f"{gate}/{self.test}/{Score.ROUTING}"] = routes
        return found

    def _gates(self) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
        """What each configured gate loses, once or for each client that asks; and its routes."""
        device, experts, methods = self.language.device, self.experts, self._methods
        settings, found = device.config.gate, {}
        if "local" in methods:
            each = range(len(experts))
            own = np.eye(device.num_clients)[experts]
            found["local"] = ([self.nats[:, at] for at in each], own)
        for gate in (name for name in methods if name in TEXT_GATES):
            chunks, decisions = self._decisions(gate)
            asked = [text_routes(scores, settings.top_k) for scores in decisions]
            found[gate] = (
                [chunks.loss(self.nats, ids, weights) for ids, weights in asked],
                np.stack([_routes(ids, device.num_clients) for ids, _ in asked]),
            )
        told = {}
        if "oracle" in methods:
            summed = (self.nats * self.mask[:, None]).sum(axis=2)
            told["oracle"] = summed.argmin(axis=1)
        if "domain" in methods:
            owners = self.told[TextKey.DOMAINS]
            told["domain"] = _told_domain(owners, self.split.domains, device.partition)
        for gate, ids in told.items():
            lost = self.nats[np.arange(len(ids)), ids]
            found[gate] = ([lost], _routes(ids, device.num_clients)[None])
        return found

    def _decisions(self, gate: str) -> tuple[Chunks, list[np.ndarray]]:
        """When a gate decides, and the experts' scores each time, [N, C, E].

        Scores are told once, or where they lean home for each client that asks.
        """
        device = self.language.device
        chunks = self.chunks if TEXT_GATES[gate].chunks else self.whole
        bias, candidates = device.config.gate.home_bias, device.config.text.candidates
        frequencies = self.told.get(TextKey.FREQUENCIES)
        cheap = scores = None
        if frequencies is not None:
            cheap = chunks.scores(unigram_scores(self.split.tokens, frequencies))
        if not TEXT_GATES[gate].frequencies:
            scores = chunks.scores(token_scores(self.nats))
        found = []
        for at in range(len(self.experts)) if bias else (0,):
            parts = [at_home(part, at, bias) for part in (cheap, scores) if part is not None]
            found.append(
                best_of(parts[-1], parts[0], candidates) if scores is not None else parts[0]
            )
        return chunks, found

    @property
    def _methods(self) -> tuple[str, ...]:
        """A client that has its own expert alone asks nobody."""
        methods: tuple[str, ...] = self.language.device.config.gate.methods
        return methods if len(self.experts) > 1 else ("local",)

    def _domains(self, lost: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([self._by_domain((one * self.mask).sum(axis=1)) for one in lost])

    def _by_domain(self, values: np.ndarray) -> np.ndarray:
        count = len(self.language.data.domain_names)
        return np.bincount(self.split.domains, weights=values, minlength=count)


def _told_domain(owners: np.ndarray, domains: np.ndarray, own_id: int) -> np.ndarray:
    """The expert of each window's domain: the own one if it is of it, else the first, [N]."""
    first = {int(d): e for e, d in reversed(list(enumerate(owners)))}
    first[int(owners[own_id])] = own_id
    return np.array([first.get(int(domain), own_id) for domain in domains], np.int64)


def _routes(ids: np.ndarray, experts: int) -> np.ndarray:
    return np.asarray(np.bincount(ids.ravel(), minlength=experts) / max(ids.size, 1))


def _by_owner(record: ArrayRecord | None) -> dict[str, Arrays]:
    """Split ``{"3/<part>": ...}`` into one adapter per owner, in order."""
    states: dict[str, Arrays] = {}
    for key, value in (records.to_numpy(record) if record is not None else {}).items():
        owner, _, name = key.partition("/")
        states.setdefault(owner, {})[name] = value
    return states


def _untrained(language: Language, experts: Sequence[Arrays]) -> dict[str, Arrays]:
    """Adapters of controls that nobody trains: none at all, and the mean of all experts."""
    settings = language.device.config.adapter
    found = {}
    if "frozen" in settings.controls:
        found["frozen"] = language.fresh(1)
    if "soup" in settings.controls and len(experts) > 1:
        found["soup"] = _soup(experts)
    return found


def _soup(experts: Sequence[Arrays]) -> Arrays:
    """The mean of each part; smaller ranks are filled up with zeros, which changes no expert."""
    found = {}
    for name in experts[0]:
        if name == TextKey.BACKBONE:
            continue
        parts = [expert[name] for expert in experts]
        shape = tuple(max(sides) for sides in zip(*(part.shape for part in parts), strict=True))
        total = np.zeros(shape, np.float64)
        for part in parts:
            total[tuple(slice(side) for side in part.shape)] += part
        found[name] = (total / len(parts)).astype(np.float32)
    return found


def _load_shared(language: Language, received: Mapping[str, np.ndarray]) -> list[str]:
    """Put a shared adapter to work; returns the names of the parts that came."""
    parts = {n: v for n, v in received.items() if not n.startswith(MOMENTS)}
    missing = [name for name in parts if name.endswith(".B")]
    if not missing:
        raise ReplyError("the adapter has no part that ends in .B")
    rank = parts[missing[0]].shape[1]
    language.load({**language.fresh(rank), **parts})
    return list(parts)


def _steps(language: Language, rate: float, *, first: int, count: int, of: int) -> float:
    """Train the adapter at work along a cosine over ``of`` steps; returns the mean loss."""
    optimizer = _adamw(language, list(language.model.learners().values()), rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=of)

    def batches() -> Iterator[np.ndarray]:
        for rows in _batches(language, first, count):
            yield rows
            decay.step()

    result = fit(
        language.model,
        batches(),
        lambda rows: _loss(language, rows),
        optimizer=optimizer,
        bf16=language.bf16,
    )
    return result.loss


def _adamw(language: Language, parts: list[torch.nn.Parameter], rate: float) -> torch.optim.AdamW:
    decay = language.device.config.adapter.weight_decay
    return torch.optim.AdamW(parts, lr=rate, weight_decay=decay)


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
