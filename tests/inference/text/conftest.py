"""A federation of three devices on a tiny random language model, whose peers can be killed."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from nmoe_flower.backbone import configured_language
from nmoe_flower.config import Config
from nmoe_flower.files import save_arrays, write_text
from nmoe_flower.inference import Bundle, ExpertServer, PeerEntry, PeerList, TextClient, export_run
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.inference.bundle import Session, TextBackbone, TextBundle, TextExperts, TextStep
from nmoe_flower.models import SmallLM, SmallSizes, token_frequencies

VOCABULARY, WINDOW, PREFIX = 257, 40, 8
# Each device writes with letters of its own, so that histograms tell them apart.
LETTERS = ("abc", "klm", "xyz")

Make = Callable[..., Any]


class Exported(NamedTuple):
    """A finished run.

    Attributes:
        run: The run's folder.
        bundles: Those of all devices.
        backbone: The one copy of it.
    """

    run: Path
    bundles: list[Bundle | TextBundle]
    backbone: TextBackbone


def exported(folder: Path, *, replicas: int = 1, gate: str = "unigram", **options: Any) -> Exported:
    """A run and its bundles in a folder."""
    run = finished_run(folder / "run", **options)
    bundles = list(export_run(run, folder / "bundles", gate=gate, replicas=replicas))
    assert isinstance(bundles[0], TextBundle)
    return Exported(run, bundles, TextBackbone.open(bundles[0]))


class Village:
    """Peers in one process, for the bundles of a run."""

    def __init__(self, of: Exported, loop: LoopThread) -> None:
        self.run, self.bundles, self.backbone = of
        self._loop = loop
        self._servers: dict[int, ExpertServer] = {}
        self._clients: list[TextClient] = []

    def experts(self, partition: int) -> TextExperts:
        bundle = self.bundles[partition]
        assert isinstance(bundle, TextBundle)
        return TextExperts(bundle, self.backbone)

    def serve(self, *partitions: int, **limits: Any) -> None:
        async def start(partition: int) -> ExpertServer:
            server = ExpertServer(
                self.bundles[partition],
                None,
                load_text=lambda bundle: TextExperts(bundle, self.backbone),
                **limits,
            )
            await server.start()
            return server

        for partition in partitions:
            self._servers[partition] = self._loop.submit(start(partition)).result(20)

    def stall(self, partition: int, tokens: int) -> None:
        """Texts that begin from now on wait for good after so many tokens: it dies while it writes.

        Where a peer goes on by itself, it may have written all before the asker has read a few.
        """

        def stalls(go_on: Callable[[TextStep], Any]) -> Callable[[TextStep], Any]:
            drawn: Counter[Session] = Counter()

            async def limited(step: TextStep) -> Any:
                if drawn[step.session] == tokens:
                    await asyncio.Event().wait()
                token = await go_on(step)
                drawn[step.session] += token is not None
                return token

            return limited

        for served in self._servers[partition]._requests.served:
            served.go_on = stalls(served.go_on)

    def kill(self, partition: int) -> None:
        """As if its process was killed: streams end, connections are refused."""
        server = self._servers.pop(partition)
        self._loop.submit(server._server.stop(None)).result(20)

    @property
    def peers(self) -> PeerList:
        return PeerList(
            tuple(
                PeerEntry(f"peer-{partition}", partition, f"127.0.0.1:{server.port}")
                for partition, server in self._servers.items()
            )
        )

    def served(self, partition: int) -> int:
        """Questions that a peer has answered."""
        return self._servers[partition]._requests.answered

    def client(self, partition: int = 0, **settings: Any) -> TextClient:
        bundle = self.bundles[partition]
        assert isinstance(bundle, TextBundle)
        made = TextClient(bundle, self.peers, experts=self.experts(partition), **settings)
        self._clients.append(made)
        return made

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for partition in list(self._servers):
            self.kill(partition)

    def nats(self, expert: int, tokens: np.ndarray) -> np.ndarray:
        """What an expert loses on windows [N, T], by the whole model in one pass."""
        self.backbone.at_work = None
        adapter = dict(self.bundles[expert].adapters()[expert])  # type: ignore[union-attr]
        adapter.pop("backbone")
        self.backbone.model.load(adapter)
        return self.backbone.model.score(tokens)

    def greedy(self, expert: int, tokens: list[int], count: int) -> list[int]:
        """How a text goes on, by the whole model, which reads all of it for each token."""
        self.backbone.at_work = None
        adapter = dict(self.bundles[expert].adapters()[expert])  # type: ignore[union-attr]
        adapter.pop("backbone")
        self.backbone.model.load(adapter)
        text = list(tokens)
        for _ in range(count):
            with torch.inference_mode():
                text.append(int(self.backbone.model.logits(torch.tensor([text]))[0, -1].argmax()))
        return text[len(tokens) :]


def finished_run(folder: Path, *, shared: bool = True, **changes: Any) -> Path:
    """The files of a run of three clients, whose adapters are drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SmallLM(SmallSizes(VOCABULARY, width=32, blocks=4, heads=2, window=WINDOW))
        for name, part in network.named_parameters():
            torch.nn.init.normal_(part, std=0.5 if "tokens" in name else 0.2)
    network.save(folder / "backbone")
    config = Config.parse(
        {
            "run.system": "language",
            "run.precision": "float32",
            "data.kind": "text",
            "data.scheme": "natural",
            "data.dataset": "./texts",
            "data.num-clients": 3,
            "text.tokenizer": "bytes",
            "text.window": WINDOW,
            "text.prefix": PREFIX,
            "text.chunk": 4,
            "text.recent": 6,
            "extractor.method": "pretrained",
            "extractor.backbone": "small-lm",
            "extractor.weights": str(folder / "backbone"),
            "adapter.rank": 2,
            "gate.methods": "unigram,unigram-chunks",
            **{key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()},
        }
    )
    write_text(folder / "config.toml", config.to_toml())
    model, digest = configured_language(config, VOCABULARY)
    signed = {"backbone": np.frombuffer(digest, np.uint8)}
    draw = np.random.default_rng(1)
    names = ["0", "1", "2", *(["fedavg"] if shared else [])]
    for name in names:
        shapes = {n: part.shape for n, part in model.fresh(2).items()}
        drawn = {n: draw.normal(0, 0.3, one).astype(np.float32) for n, one in shapes.items()}
        parts = drawn if name == "fedavg" else drawn | signed
        save_arrays(folder / "weights" / f"adapter-{name}.safetensors", parts)
    counts = np.stack(
        [np.bincount(list(letters.encode() * 50), minlength=VOCABULARY) for letters in LETTERS]
    )
    frequencies = np.stack([token_frequencies(one) for one in counts])
    save_arrays(folder / "weights" / "gate-unigram.safetensors", {"frequencies": frequencies})
    return folder


@pytest.fixture(scope="session")
def text_loop() -> Iterator[LoopThread]:
    loop = LoopThread("test-text-peers")
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Runs and their bundles, each made once."""

    @cache
    def make(**options: Any) -> Exported:
        return exported(tmp_path_factory.mktemp("text"), **options)

    return make


@pytest.fixture
def village(export: Make, text_loop: LoopThread) -> Iterator[Make]:
    """Makes federations; all peers are stopped at the end."""
    made: list[Village] = []

    def make(**options: Any) -> Village:
        made.append(Village(export(**options), text_loop))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def windows() -> np.ndarray:
    """Windows [6, T] of each device's letters in turn."""
    draw = np.random.default_rng(2)
    return np.stack(
        [draw.choice(list(LETTERS[at % 3].encode()), WINDOW) for at in range(6)]
    ).astype(np.int64)
