"""One caller's connection to one peer: opened late, bounded in time and size, believing nothing."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from nmoe_flower.certificates import Identity
from nmoe_flower.errors import WireError
from nmoe_flower.inference.ask.query import Floats
from nmoe_flower.inference.protocol import (
    MAX_MESSAGE_BYTES,
    SERVICE,
    Encoding,
    PeerEntry,
    PeerList,
    decode_tensor,
    encode_tensor,
    is_version,
    parse,
    peer_pb2,
    target,
)

__all__ = ["Channel", "Conversation", "PackedQuery", "PeerChannel", "Received"]

M = TypeVar("M")

_REASONS = {
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
    grpc.StatusCode.FAILED_PRECONDITION: "version",
    grpc.StatusCode.INVALID_ARGUMENT: "refused",
    grpc.StatusCode.PERMISSION_DENIED: "denied",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "busy",
    grpc.StatusCode.UNAUTHENTICATED: "denied",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.UNIMPLEMENTED: "protocol",
    grpc.StatusCode.NOT_FOUND: "no-list",
}
# What gRPC says of a connection that failed because of a certificate.
_CERTIFICATE_SIGNS = ("handshake", "certificate", "Hostname Verification")
_TOO_LARGE = "larger than max"


class PackedQuery(NamedTuple):
    """A question, ready to be sent: ``rows`` latents."""

    request_id: str
    rows: int
    data: bytes


class Received(NamedTuple):
    """Logits [n, C] and the size of the message they came in."""

    logits: Floats
    bytes_down: int


class Channel(Protocol):
    """What the router needs of a connection."""

    def pack(self, latents: Floats) -> PackedQuery:
        """A question for the logits of latents [n, D], all finite."""
        ...

    async def predict(self, question: PackedQuery, *, num_classes: int, timeout: float) -> Received:
        """The logits, or a `WireError`."""
        ...

    async def peers(self, *, timeout: float) -> PeerList:
        """The list of peers that the peer knows, or a `WireError`."""
        ...

    async def renew(self) -> None:
        """Forget the connection, so that the next call tries a new one at once."""
        ...

    async def close(self) -> None:
        """Stop; calls on their way end with an error."""
        ...


class PeerChannel:
    """Calls a peer over gRPC; belongs to the event loop of its first call.

    Args:
        peer: The peer to call.
        identity: The caller's; the peer must show a certificate with its name, of the same
            authority. None: without encryption, anybody may be at the other end.
        extractor_version: Version of the extractor that made the latents; a peer refuses those of
            another.
        encoding: How the latents travel.
    """

    def __init__(
        self,
        peer: PeerEntry,
        identity: Identity | None,
        *,
        extractor_version: str = "",
        encoding: Encoding = "float32",
    ) -> None:
        self._peer = peer
        self._identity = identity
        self._extractor_version = extractor_version
        self._encoding = encoding
        self._numbers = count(1)
        self._channel: Any = None
        self._calls: Counter[Any] = Counter()  # on their way, texts too, per gRPC channel
        self._closed = False

    def pack(self, latents: Floats) -> PackedQuery:
        """A question for the logits of latents [n, D].

        Raises:
            WireError: A latent is not finite, or too large for the encoding.
        """
        request = peer_pb2.PredictRequest(
            request_id=str(next(self._numbers)),
            extractor_version=self._extractor_version,
            latents=encode_tensor(latents, self._encoding),
        )
        return PackedQuery(request.request_id, len(latents), request.SerializeToString())

    async def predict(self, question: PackedQuery, *, num_classes: int, timeout: float) -> Received:
        """The logits [n, C] of n latents.

        Raises:
            WireError: The peer did not answer, or not with n rows of C finite numbers to this very
                question. The reason is one word, the text says what is wrong.
        """
        data = await self._call(f"/{SERVICE}/Predict", question.data, timeout)
        reply = parse(peer_pb2.PredictReply, data)
        if reply.request_id != question.request_id:
            raise WireError("mixed-up", "the answer is to another request")
        logits = decode_tensor(reply.logits, max_rows=question.rows, columns=num_classes)
        if len(logits) != question.rows:
            raise WireError("shape", f"{len(logits)} rows of logits for {question.rows} latents")
        return Received(logits, len(data))

    async def score(
        self, question: peer_pb2.ScoreRequest, *, timeout: float
    ) -> tuple[peer_pb2.ScoreReply, int]:
        """What an adapter makes of windows of text, and the size of the message it came in.

        Raises:
            WireError: The peer did not answer, or not this very question.
        """
        data = await self._call(f"/{SERVICE}/Score", question.SerializeToString(), timeout)
        reply = parse(peer_pb2.ScoreReply, data)
        if reply.request_id != question.request_id:
            raise WireError("mixed-up", "the answer is to another request")
        return reply, len(data)

    def converse(self) -> "Conversation":
        """Begin a text that goes on at the peer; it is on its way until it is closed.

        Raises:
            WireError: This channel is closed.
        """
        channel = self._take()
        call = channel.stream_stream(f"/{SERVICE}/Generate")()
        return Conversation(call, partial(self._give_back, channel))

    async def describe(self, *, timeout: float) -> peer_pb2.Description:
        """Who the peer says it is.

        Raises:
            WireError: It did not answer, it is not the partition that the list says, or its
                versions are none.
        """
        data = await self._call(f"/{SERVICE}/Describe", b"", timeout)
        description = parse(peer_pb2.Description, data)
        if description.partition != self._peer.partition:
            raise WireError(
                "partition",
                f"{self._peer.name} serves partition {description.partition}, the list says "
                f"{self._peer.partition}",
            )
        said = (
            description.expert_version,
            description.gate_version,
            description.extractor_version,
        )
        if not all(map(is_version, said)):
            raise WireError("garbage", f"{self._peer.name} says it serves the versions {said}")
        return description

    async def peers(self, *, timeout: float) -> PeerList:
        """The list of peers that the peer knows; its signature is not checked here.

        Raises:
            WireError: The peer did not answer, has no list, or the list is not well formed.
        """
        data = await self._call(f"/{SERVICE}/Peers", b"", timeout)
        return PeerList.from_message(parse(peer_pb2.PeerList, data))

    async def serving(self, *, timeout: float) -> bool:
        """Whether the peer's health service says that it takes requests.

        Raises:
            WireError: The peer did not answer.
        """
        request = health_pb2.HealthCheckRequest(service=SERVICE).SerializeToString()
        data = await self._call("/grpc.health.v1.Health/Check", request, timeout)
        status = parse(health_pb2.HealthCheckResponse, data).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)

    async def renew(self) -> None:
        """Forget the connection, so that the next call tries a new one at once.

        Calls and texts on their way may still end well on the old one.
        """
        old, self._channel = self._channel, None
        if old is not None and not self._calls[old]:
            await old.close()

    async def close(self) -> None:
        """Stop; calls and texts on their way end with reason ``closed``."""
        self._closed = True
        channels = {self._channel, *self._calls} - {None}
        self._channel = None
        for channel in channels:
            await channel.close()

    async def _call(self, method: str, request: bytes, timeout: float) -> bytes:
        channel = self._take()
        try:
            with _failures():
                data: bytes = await channel.unary_unary(method)(request, timeout=timeout)
        finally:
            await self._give_back(channel)
        return data

    def _take(self) -> Any:
        """The connection, which stays open until it is given back."""
        if self._closed:
            raise WireError("closed", f"the channel to {self._peer.name} is closed")
        if self._channel is None:
            self._channel = self._open()
        self._calls[self._channel] += 1
        return self._channel

    async def _give_back(self, channel: Any) -> None:
        self._calls[channel] -= 1
        if not self._calls[channel]:
            del self._calls[channel]
            if channel is not self._channel:
                await channel.close()

    def _open(self) -> Any:
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 5000),
            ("grpc.use_local_subchannel_pool", 1),  # a renewed channel does not wait for an old one
            ("grpc.enable_http_proxy", 0),  # peers are asked, not a proxy in between
            ("grpc.enable_retries", 0),  # what to do instead is the router's business
            ("grpc.service_config_disable_resolution", 1),
        ]
        if self._identity is None:
            return grpc.aio.insecure_channel(target(self._peer.address), options)
        options.append(("grpc.ssl_target_name_override", self._peer.name))
        credentials = self._identity.channel_credentials()
        return grpc.aio.secure_channel(target(self._peer.address), credentials, options)


class Conversation:
    """A text that goes on at a peer, which keeps its keys and values; made by `PeerChannel`.

    Args:
        call: The stream.
        on_close: Awaited once, when it is closed.
    """

    def __init__(self, call: Any, on_close: Callable[[], Awaitable[None]]) -> None:
        self._call = call
        self._on_close: Callable[[], Awaitable[None]] | None = on_close

    async def say(self, question: peer_pb2.GenerateRequest) -> int:
        """Tell the peer what follows; returns the size of the message.

        Raises:
            WireError: The peer is gone, has refused what was said before, or the connection was
                closed here.
        """
        data = question.SerializeToString()
        try:
            with _failures():
                await self._call.write(data)
        except asyncio.InvalidStateError:  # the call is over
            raise await self._ended() from None
        return len(data)

    async def hear(self, *, timeout: float) -> tuple[peer_pb2.GenerateReply, int]:
        """The next token, and the size of the message it came in.

        Raises:
            WireError: None came in time, the peer is gone, it has refused, or the connection was
                closed here.
        """
        try:
            with _failures():
                data = await asyncio.wait_for(self._call.read(), timeout)
        except TimeoutError:
            raise WireError("deadline", f"no token came within {timeout:g} s") from None
        if data is grpc.aio.EOF:
            raise await self._ended()
        return parse(peer_pb2.GenerateReply, data), len(data)

    async def close(self) -> None:
        """Hang up; more than once is fine."""
        self._call.cancel()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            await on_close()

    async def _ended(self) -> WireError:
        code, text = await self._call.code(), await self._call.details()
        return WireError(_reason(code, text or ""), f"{code.name}: {text or 'the peer hung up'}")


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turn what gRPC raises into a `WireError`; a task that is cancelled itself ends as ever."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        code, text = error.code(), error.details() or ""
        raise WireError(_reason(code, text), f"{code.name}: {text}") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise WireError("closed", "the connection was closed here") from None


def _reason(code: grpc.StatusCode, text: str) -> str:
    if code is grpc.StatusCode.UNAVAILABLE and any(sign in text for sign in _CERTIFICATE_SIGNS):
        return "certificate"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in text:
        return "size"
    return _REASONS.get(code, "failed")
