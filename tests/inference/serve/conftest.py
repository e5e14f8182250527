"""A small federation: bundles, certificates, and a real server on loopback."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import torch

from nmoe_flower.certificates import Authority, Identity, create_authority
from nmoe_flower.config import Config
from nmoe_flower.inference import Bundle, ExpertServer, PeerStub
from nmoe_flower.models import Expert, Gate

LATENT_DIM, CLASSES, CLIENTS = 4, 3, 2
CONFIG = Config.parse(
    {"extractor.backbone": "linear", "expert.hidden": (8,), "data.num-clients": CLIENTS}
)


def state(module: torch.nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Write the bundle of a client; ``seed`` decides the expert's weights."""

    def make(folder: str = "bundle", *, seed: int = 0, partition: int = 0) -> Bundle:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expert = Expert(LATENT_DIM, CLASSES, hidden=(8,))
        return Bundle.write(
            tmp_path / folder,
            partition=partition,
            config=CONFIG,
            classes=["a", "b", "c"],
            image_shape=(1, 2, 2),
            extractor={},
            gate=state(Gate(LATENT_DIM, CLIENTS)),
            expert=state(expert),
        )

    return make


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return create_authority(tmp_path_factory.mktemp("authority"), name="federation")


@pytest.fixture(scope="session")
def identities(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Identity]:
    folder = tmp_path_factory.mktemp("devices")
    return {name: authority.issue(folder, name) for name in ("server", "asker", "other")}


@asynccontextmanager
async def connected(
    port: int, identity: Identity | None, *, name: str = "server", credentials: Any = None
) -> AsyncIterator[PeerStub]:
    address = f"127.0.0.1:{port}"
    # A pool of its own: a refused connection of one test must not slow down the next.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", name)]
    if credentials is None and identity is not None:
        credentials = identity.channel_credentials()
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=options[:1])
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    async with channel:
        stub = PeerStub(channel)
        stub.channel = channel  # type: ignore[attr-defined]
        yield stub


@pytest.fixture
def connect() -> Callable[..., AbstractAsyncContextManager[PeerStub]]:
    return connected


@pytest.fixture
def serving(
    make_bundle: Callable[..., Bundle], identities: dict[str, Identity]
) -> Callable[..., AbstractAsyncContextManager[tuple[ExpertServer, PeerStub]]]:
    """Start a server named ``server``, and a stub of the device ``asker``."""

    @asynccontextmanager
    async def serve(
        bundle: Bundle | None = None, *, secure: bool = True, **options: Any
    ) -> AsyncIterator[tuple[ExpertServer, PeerStub]]:
        bundle = make_bundle() if bundle is None else bundle
        server = ExpertServer(bundle, identities["server"] if secure else None, **options)
        port = await server.start()
        try:
            async with connected(port, identities["asker"] if secure else None) as stub:
                yield server, stub
        finally:
            await server.drain(1.0)

    return serve
