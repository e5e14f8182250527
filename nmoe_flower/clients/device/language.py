"""What a device of the language system has: its text, and the backbone that all adapters share."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from nmoe_flower.backbone import computes_in_bf16, configured_language
from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.clients.device.device import Device, initial_seed
from nmoe_flower.data.text import TextData, TextSplit, configured_text, own_text
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.models import AdaptedLM, Chunks
from nmoe_flower.records import GATE, SHARED, TextKey
from nmoe_flower.training import autocast, seeded

__all__ = ["Language", "language_of"]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Language:
    """A client's text, and the one copy of the backbone in this process.

    Attributes:
        device: The client.
        data: Everybody's text; this client may only touch its own windows.
        model: The frozen backbone with the adapter that was loaded last.
        digest: SHA-256 of the backbone.
    """

    device: Device
    data: TextData
    model: AdaptedLM
    digest: bytes

    @property
    def train(self) -> TextSplit:
        """This client's windows to train on."""
        return self.data.train.of_client(self.device.partition)

    @property
    def tests(self) -> dict[str, TextSplit]:
        """This client's windows by test; validation only where there is any text for it."""
        mine = self.device.partition
        found = {"local": self.data.test.of_client(mine)}
        if len(self.data.validation):
            found[VALIDATION] = self.data.validation.of_client(mine)
        return found

    def recipe(self, rate: float, start: Mapping[str, np.ndarray]) -> str:
        """What an adapter that is trained at home depends on, as a digest.

        Args:
            rate: The learning rate.
            start: Parts of the adapter that it begins as, in place of fresh ones.
        """
        config = self.device.config
        told = [self.source.tobytes().hex(), rate, self.bf16, config.run.seed]
        told += [config.adapter.model_dump(mode="json")]
        if config.expert.kind != "adapter":
            told.append(config.expert.kind)
        for name in sorted(start):
            told += [name, hashlib.sha256(start[name].tobytes()).hexdigest()]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @property
    def source(self) -> np.ndarray:
        """What hidden states of this client's text depend on, as a digest: uint8 [32]."""
        told = [self.digest.hex(), self.data.fingerprint, self.device.config.text.prefix]
        return np.frombuffer(hashlib.sha256(json.dumps(told).encode()).digest(), np.uint8)

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16."""
        return computes_in_bf16(self.device.config)

    def fresh(self, rank: int) -> Arrays:
        """A fresh adapter, the same on every client for a rank."""
        with seeded(initial_seed(self.device.config, "adapter")):
            return {name: part.numpy() for name, part in self.model.fresh(rank).items()}

    def signed(self, adapter: Arrays) -> Arrays:
        """An adapter with the hash of the backbone it is for."""
        return {**adapter, TextKey.BACKBONE: np.frombuffer(self.digest, np.uint8)}

    def keep_for_peers(self, frequencies: np.ndarray | None, shared: Arrays | None) -> None:
        """Keep what this device asks and serves with beside its adapter, if it serves.

        ``nmoe bundle --store`` makes a bundle of it.

        Args:
            frequencies: Log-probability of every token at each device, [E, V]; None: no gate of
                the run routes by them.
            shared: The adapter of all devices; None: there is none.
        """
        device = self.device
        if not device.serves:
            return
        parts: dict[str, Arrays | None] = {
            f"{GATE}-unigram": None if frequencies is None else {TextKey.FREQUENCIES: frequencies},
            SHARED: shared,
        }
        for name, arrays in parts.items():
            if arrays is None:
                device.store.drop(name)
            else:
                device.store.save(name, arrays, sync=True)
        device.note_facts(kind="text", config=device.config.flat())

    def load(self, adapter: Arrays) -> None:
        """Put an adapter to work.

        Raises:
            ReplyError: It is for another backbone.
        """
        parts = dict(adapter)
        told = parts.pop(TextKey.BACKBONE, None)
        if told is not None and told.tobytes() != self.digest:
            raise ReplyError(
                f"the adapter is for the backbone {told.tobytes().hex()[:12]}, and that of client "
                f"{self.device.partition} is {self.digest.hex()[:12]}"
            )
        self.model.load(parts)

    def means(self, split: TextSplit, chunks: Chunks) -> np.ndarray:
        """What gates of hidden states look at: mean states before each chunk, float32 [N, C, d].

        Each has norm 1, as the proof of private sums wants it.

        Args:
            split: N windows of T tokens.
            chunks: When it is decided, and from which tokens.
        """
        read = split.tokens[:, : chunks.starts[-1]]  # what follows the last decision changes none
        with autocast(self.bf16, self.device.torch_device):
            found = [chunks.means(part).astype(np.float32) for part in self.model.states(read)]
        means = np.concatenate(found)
        return np.asarray(means / np.linalg.norm(means, axis=2, keepdims=True))

    def prefix_means(self, split: TextSplit) -> np.ndarray:
        """The mean states of the prefixes of N windows, float32 [N, d]."""
        return self.means(split, Chunks(split.window, self.device.config.text.prefix))[:, 0]

    def score(self, split: TextSplit) -> np.ndarray:
        """Negative log-likelihood of all tokens but the first, by the adapter at work, [N, T - 1].

        Args:
            split: N windows of T tokens.
        """
        with autocast(self.bf16, self.device.torch_device):
            return self.model.score(split.tokens)


def language_of(device: Device) -> Language:
    """The text of a device, and the process's backbone.

    Raises:
        ConfigError: The text or the backbone cannot be opened; or the node's ``classes`` are not a
            name for each client.
    """
    data = _own_text(device) if device.folder else configured_text(device.config)
    model, digest = _shared_model(device.config, data.vocab_size)
    return Language(device, data, model, digest)


def _own_text(device: Device) -> TextData:
    """The text of a device's own folder, which is its domain, as everybody counts domains.

    Raises:
        ConfigError: The node's ``classes`` are not a name for each client.
    """
    names = device.classes or tuple(str(client) for client in range(device.num_clients))
    if len(set(names)) != device.num_clients:
        raise ConfigError(
            f"classes = {','.join(names)}: with data-path = {device.folder} they name the text of "
            f"each of {device.num_clients} clients, by their partition ids; give every node the "
            "same, or leave them out"
        )
    data = own_text(device.config, device.folder)

    def placed(split: TextSplit) -> TextSplit:
        place = np.full(len(split), device.partition)
        return replace(split, clients=place, domains=place)

    return replace(
        data,
        train=placed(data.train),
        test=placed(data.test),
        validation=placed(data.validation),
        domain_names=names,
        client_names=names,
    )


_shared_model = lru_cache(maxsize=2)(configured_language)
