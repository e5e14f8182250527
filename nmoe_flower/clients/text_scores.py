"""Text at the client: every expert and control scores it, and every gate mixes what they say."""

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, Context, Message

from nmoe_flower import records
from nmoe_flower.catalogue import AVERAGED, CHUNKS, GATES, TEXT_GATES
from nmoe_flower.clients.device import Language, device_of, language_of
from nmoe_flower.clients.language import load_shared
from nmoe_flower.data.text import TextSplit
from nmoe_flower.models import (
    Chunks,
    at_home,
    best_of,
    posterior_routes,
    state_scores,
    text_routes,
    token_scores,
    unigram_scores,
)
from nmoe_flower.records import (
    ANSWERS,
    ARRAYS,
    EXPERT,
    GATE,
    NUM_EXAMPLES,
    SHARED,
    TEXT,
    LinearKey,
    Score,
    TextKey,
)

__all__ = ["score"]

Arrays = dict[str, np.ndarray]
_ROUTING_TEXT = {name: entry for name, entry in {**GATES, **TEXT_GATES}.items() if entry.of_text}


def score(message: Message, context: Context) -> Message:
    """Score this client's tests by every expert and control, mix them by every gate.

    The scores [N, E, T - 1] are kept: gates cost nothing more.
    """
    device = device_of(context)
    language = language_of(device)
    came = {
        name: records.to_numpy(record)
        for name, record in records.of_kind(message.content, ArrayRecord).items()
    }
    experts = records.by_owner(came.get(EXPERT, {})) or {
        str(device.partition): device.store.load(EXPERT)
    }
    shared = records.by_owner(came.get(SHARED, {}))
    told = came.get(ARRAYS, {})
    averaged = next((shared[name] for name in AVERAGED if name in shared), None)
    language.keep_for_peers(told.get(TextKey.FREQUENCIES), averaged)
    shared |= _untrained(language, list(experts.values()))
    gates = records.by_owner(came.get(GATE, {}))
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
            load_shared(language, adapter)
            alone[control] = language.score(split)
        answers = TestedText(language, name, split, nats, [int(e) for e in experts], told, gates)
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
        gates: ``weight`` [E, d] and ``bias`` [E] of each gate of hidden states.
    """

    def __init__(
        self,
        language: Language,
        test: str,
        split: TextSplit,
        nats: np.ndarray,
        experts: Sequence[int],
        told: Mapping[str, np.ndarray],
        gates: Mapping[str, Arrays],
    ) -> None:
        self.language, self.test, self.split, self.nats = language, test, split, nats
        self.experts, self.told, self.gates = list(experts), told, gates
        self._means: dict[Chunks, np.ndarray] = {}
        text = language.device.config.text
        self.whole = Chunks(split.window, text.prefix)
        self.chunks = Chunks(split.window, text.prefix, text.chunk, text.recent)
        self.tokens = Chunks(split.window, text.prefix, every=1)
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
        device, experts = self.language.device, self.experts
        # a client that has its own expert alone asks nobody
        methods = device.config.text_gates if len(experts) > 1 else ("local",)
        found = {}
        if "local" in methods:
            each = range(len(experts))
            own = np.eye(device.num_clients)[experts]
            found["local"] = ([self.nats[:, at] for at in each], own)
        for gate in (name for name in methods if name not in ("local", "domain", "oracle")):
            chunks, asked = self._asked(gate)
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

    def _asked(self, gate: str) -> tuple[Chunks, list[tuple[np.ndarray, np.ndarray]]]:
        """When a gate decides; and whom it asks each time, with their shares, [N, C, K].

        They are told once, or where scores lean home for each client that asks.
        """
        device = self.language.device
        top_k = min(device.config.asked_for_text(gate), len(self.experts))
        entry = _ROUTING_TEXT[gate]
        chunks = self.tokens if entry.blends else self.chunks if entry.chunks else self.whole
        bias, candidates = device.config.gate.home_bias, device.config.text.candidates
        cheap, *costly = self._scores(gate, chunks)
        found = []
        for at in range(len(self.experts)) if bias else (0,):
            scores = at_home(cheap, at, bias)
            if entry.blends:
                found.append(
                    posterior_routes(self.nats, scores, chunks, top_k, own_id=at, bias=bias)
                )
                continue
            if costly:
                scores = best_of(at_home(costly[0], at, bias), scores, candidates)
            found.append(text_routes(scores, top_k))
        return chunks, found

    def _scores(self, gate: str, chunks: Chunks) -> list[np.ndarray]:
        """The experts' scores before each chunk: cheap ones, and costly ones if there are any."""
        entry = _ROUTING_TEXT[gate]
        if entry.states:
            if chunks not in self._means:
                self._means[chunks] = self.language.means(self.split, chunks)
            arrays = self.gates[gate.removesuffix(CHUNKS)]
            return [
                state_scores(self._means[chunks], arrays[LinearKey.WEIGHT], arrays[LinearKey.BIAS])
            ]
        found = []
        frequencies = self.told.get(TextKey.FREQUENCIES)
        if frequencies is not None:
            cheap = unigram_scores(self.split.tokens, frequencies)
            # whoever is to be weighed at each token is chosen once: it reads from the beginning
            found.append((self.whole if entry.blends else chunks).scores(cheap))
        if not entry.frequencies and not (entry.blends and found):
            likely = chunks.scores(token_scores(self.nats))
            found = [*(found or [likely]), likely]
        return found

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
