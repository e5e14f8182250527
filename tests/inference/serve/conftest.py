"""A small federation: certificates, and a real server on loopback."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from nmoe_flower.certificates import Authority, Identity, create_authority
from nmoe_flower.inference import Bundle, ExpertServer
from nmoe_flower.inference.protocol import SERVICE, peer_pb2


class PeerStub:
    """Calls the methods of a peer over a channel, of ``grpc`` or of ``grpc.aio``."""

    def __init__(self, channel: Any) -> None:
        def method(name: str, request: Any, reply: Any) -> Any:
            return channel.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=reply.FromString,
            )

        self.channel = channel
        self.Describe = method("Describe", peer_pb2.DescribeRequest, peer_pb2.Description)
        self.Predict = method("Predict", peer_pb2.PredictRequest, peer_pb2.PredictReply)
        self.Peers = method("Peers", peer_pb2.PeersRequest, peer_pb2.PeerList)


@pytest.fixture
def peer_stub() -> type[PeerStub]:
    return PeerStub


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
        yield PeerStub(channel)


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
