"""Small bundles, and peers that misbehave on command: real gRPC on loopback, answers as wanted."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2

from nmoe_flower.certificates import Authority, Identity, create_authority
from nmoe_flower.config import Config
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.protocol import peer_pb2
from nmoe_flower.inference.protocol.peers import PeerEntry, PeerList
from nmoe_flower.inference.protocol.wire import (
    MAX_MESSAGE_BYTES,
    SERVICE,
    decode_tensor,
    encode_tensor,
)
from nmoe_flower.models import Expert, Gate

LATENT, CLASSES = 4, 3
SMALL = {"extractor.backbone": "linear", "expert.hidden": (8,)}


class MoodyPeer:
    """One expert behind gRPC, whose ``mood`` decides what it does with a request.

    Attributes:
        mood: "right", or one of the branches of ``_reply``.
        asked: Predict requests that came in.
        version: Of its expert, as it says when it is asked.
        peer_list: What ``Peers`` answers with; None: it has no list.
    """

    def __init__(self, partition: int, expert: Expert, identity: Identity | None = None) -> None:
        self.partition = partition
        self.expert = expert
        self.mood = "right"
        self.asked = 0
        self.version = ""
        self.peer_list: Any = None
        self.port = 0
        self._identity = identity
        self._server: Any = None
        self._held: asyncio.Event = asyncio.Event()

    @property
    def entry(self) -> PeerEntry:
        name = self._identity.name if self._identity else f"peer-{self.partition}"
        return PeerEntry(name, self.partition, f"127.0.0.1:{self.port}")

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(handler)
            for name, handler in (
                ("Predict", self._predict), ("Peers", self._peers), ("Describe", self._describe),
            )
        }  # fmt: skip
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        checks = grpc.unary_unary_rpc_method_handler(self._check)
        health = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": checks})
        self._server.add_generic_rpc_handlers((generic, health))
        address = f"127.0.0.1:{self.port}"
        if self._identity is None:
            self.port = self._server.add_insecure_port(address)
        else:
            credentials = self._identity.server_credentials()
            self.port = self._server.add_secure_port(address, credentials)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def _describe(self, data: bytes, context: Any) -> bytes:
        reply = peer_pb2.Description(
            name=self.entry.name,
            partition=self.partition,
            served=self.asked,
            expert_version=self.version,
        )
        return bytes(reply.SerializeToString())

    async def _check(self, data: bytes, context: Any) -> bytes:
        status = health_pb2.HealthCheckResponse
        reply = status(status=status.NOT_SERVING if self.mood == "draining" else status.SERVING)
        return bytes(reply.SerializeToString())

    async def _peers(self, data: bytes, context: Any) -> bytes:
        if self.mood == "garbage":
            return b"\xff" * 50
        if self.peer_list is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no list")
        return bytes(self.peer_list.to_message().SerializeToString())

    async def _predict(self, data: bytes, context: Any) -> bytes:
        self.asked += 1
        request = peer_pb2.PredictRequest.FromString(data)
        latents = decode_tensor(request.latents, max_rows=10**6, columns=LATENT)
        with torch.inference_mode():
            logits = self.expert(torch.tensor(latents)).numpy()
        if self.mood == "silent":
            await self._held.wait()
        if self.mood in ("busy", "draining", "wrong-version", "denied", "broken", "cancels"):
            code = {
                "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
                "draining": grpc.StatusCode.UNAVAILABLE,
                "wrong-version": grpc.StatusCode.FAILED_PRECONDITION,
                "denied": grpc.StatusCode.PERMISSION_DENIED,
                "cancels": grpc.StatusCode.CANCELLED,
            }.get(self.mood, grpc.StatusCode.INTERNAL)
            await context.abort(code, self.mood)
        if self.mood == "raises":
            raise RuntimeError("the peer has a bug")
        return self._reply(request, logits)

    def _reply(self, request: Any, logits: np.ndarray) -> bytes:
        if self.mood == "garbage":
            return b"\xff" * 50
        if self.mood == "empty":
            return b""
        if self.mood == "huge":
            return b"\x00" * (MAX_MESSAGE_BYTES + 1)
        if self.mood == "one-row-less":
            logits = np.concatenate([logits[:-1], logits])[: max(1, len(logits) - 1)]
            logits = logits if len(logits) != request.latents.rows else np.tile(logits, (2, 1))
        if self.mood == "one-row-more":
            logits = np.concatenate([logits, logits[:1]])
        if self.mood == "one-column-more":
            logits = np.concatenate([logits, logits[:, :1]], axis=1)
        tensor = encode_tensor(logits)
        if self.mood in ("nan", "infinite"):
            logits[-1, 0] = np.nan if self.mood == "nan" else np.inf
            tensor.data = logits.astype("<f4").tobytes()
        if self.mood == "cut":
            tensor.data = tensor.data[:-3]
        if self.mood == "unknown-type":
            tensor.dtype = 9  # type: ignore[assignment]
        if self.mood == "lies-about-size":
            tensor.rows = 4_000_000_000
        request_id = "0" if self.mood == "other-request" else request.request_id
        reply = peer_pb2.PredictReply(request_id=request_id, logits=tensor)
        return bytes(reply.SerializeToString())


class Neighbourhood:
    """Moody peers for partitions 1, 2, ... and the local expert, partition 0."""

    def __init__(
        self, loop: LoopThread, size: int, keys: dict[int, Identity] | None = None
    ) -> None:
        self._loop = loop
        self.experts = [make_expert(seed) for seed in range(size + 1)]
        self.peers = {
            partition: MoodyPeer(partition, self.experts[partition], (keys or {}).get(partition))
            for partition in range(1, size + 1)
        }
        for partition in self.peers:
            self.start(partition)

    def __getitem__(self, partition: int) -> MoodyPeer:
        return self.peers[partition]

    @property
    def list(self) -> PeerList:
        return PeerList(tuple(peer.entry for peer in self.peers.values()))

    def start(self, partition: int) -> None:
        self._loop.submit(self.peers[partition].start()).result(10)

    def stop(self, partition: int) -> None:
        self._loop.submit(self.peers[partition].stop()).result(10)

    def logits(self, latents: torch.Tensor, expert_ids: torch.Tensor) -> torch.Tensor:
        """What the experts say, asked directly, one cell at a time: [B, K, C]."""
        with torch.inference_mode():
            rows = [
                torch.stack([self.experts[expert](latent[None])[0] for expert in ids.tolist()])
                for latent, ids in zip(latents, expert_ids, strict=True)
            ]
        return torch.stack(rows)


def make_expert(seed: int) -> Expert:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Expert(LATENT, CLASSES, hidden=(8,)).eval()


@pytest.fixture(scope="session")
def server_loop() -> Iterator[LoopThread]:
    loop = LoopThread("test-peers")
    yield loop
    loop.close()


@pytest.fixture
def neighbourhood(server_loop: LoopThread) -> Iterator[Callable[..., Neighbourhood]]:
    """Makes peers; all are stopped at the end."""
    made: list[Neighbourhood] = []

    def make(size: int = 3, keys: dict[int, Identity] | None = None) -> Neighbourhood:
        made.append(Neighbourhood(server_loop, size, keys))
        return made[-1]

    yield make
    for one in made:
        for partition in one.peers:
            one.stop(partition)


@pytest.fixture(scope="session")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return create_authority(tmp_path_factory.mktemp("forest"), name="forest")


@pytest.fixture(scope="session")
def member(
    forest: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Identity]:
    """Identities of the forest, each made once."""
    folder: Path = tmp_path_factory.mktemp("members")
    made: dict[str, Identity] = {}

    def issue(name: str) -> Identity:
        if name not in made:
            made[name] = forest.issue(folder, name)
        return made[name]

    return issue


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Write the bundle of one of two clients; ``seed`` decides the expert's weights."""

    def make(folder: str = "bundle", *, seed: int = 0, partition: int = 0) -> Bundle:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expert = Expert(LATENT, CLASSES, hidden=(8,))
        return Bundle.write(
            tmp_path / folder,
            partition=partition,
            config=Config.parse({**SMALL, "data.num-clients": 2}),
            classes=["a", "b", "c"],
            image_shape=(1, 2, 2),
            extractor={},
            gate=arrays(Gate(LATENT, 2)),
            expert=arrays(expert),
        )

    return make


@pytest.fixture
def bundle_of(tmp_path: Path) -> Callable[[Neighbourhood], Bundle]:
    """The bundle of partition 0: pixels of 2x2 images are the latents, the gate is drawn."""

    def make(around: Neighbourhood) -> Bundle:
        clients = len(around.experts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            gate = Gate(LATENT, clients)
            torch.nn.init.normal_(gate.head.weight)
        return Bundle.write(
            tmp_path / "bundle",
            partition=0,
            config=Config.parse({**SMALL, "data.num-clients": clients}),
            classes=["ant", "bee", "cow"],
            image_shape=(1, 2, 2),
            extractor={},
            gate=arrays(gate),
            expert=arrays(around.experts[0]),
        )

    return make


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}
