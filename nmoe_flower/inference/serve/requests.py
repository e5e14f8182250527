"""What a peer does with a request: admit it or refuse it, queue it, answer it, count it."""

import asyncio
import collections
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nmoe_flower.errors import WireError
from nmoe_flower.inference.bundle import Bundle, TextBundle
from nmoe_flower.inference.protocol import (
    MAX_ID,
    PROTOCOL,
    decode_tensor,
    encode_tensor,
    parse,
    peer_pb2,
)
from nmoe_flower.inference.serve.batching import BatchResult, Served
from nmoe_flower.inference.telemetry import SECONDS, RefusalLog

__all__ = ["ANONYMOUS", "Answering", "ImageRequests", "RefusedError", "Requests", "ServiceMetrics"]

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

ANONYMOUS = "anonymous"  # whoever asks a server without certificates

T = TypeVar("T")

_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request that gets no answer, inside the server: becomes a status on the wire.

    Attributes:
        code: The gRPC status.
        reason: One word for the counters and the log.
    """

    def __init__(self, code: grpc.StatusCode, reason: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason


class ServiceMetrics:
    """The counters of one peer service.

    Attributes:
        registry: The registry that an exporter reads.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "nmoe_requests", "Predict requests by caller", ["peer"], registry=registry
        )
        self.refusals = Counter(
            "nmoe_refusals", "Requests refused, by reason", ["reason"], registry=registry
        )
        self.cancelled = Counter("nmoe_cancelled", "Requests the caller gave up", registry=registry)
        self.handshakes = Counter(
            "nmoe_handshakes", "TLS handshakes begun, refused ones too", registry=registry
        )
        self.rows = Counter("nmoe_rows", "Latents answered", registry=registry)
        self.received = Counter("nmoe_received_bytes", "Of requests", registry=registry)
        self.sent = Counter("nmoe_sent_bytes", "Of logits", registry=registry)
        self.swaps = Counter("nmoe_swaps", "New bundles taken", registry=registry)
        self.seconds = Histogram(
            "nmoe_request_seconds",
            "From the request's arrival to its answer",
            buckets=SECONDS,
            registry=registry,
        )
        self.compute = Histogram(
            "nmoe_batch_seconds", "Of one pass", buckets=SECONDS, registry=registry
        )
        self.batch_rows = Histogram(
            "nmoe_batch_rows", "Latents in one pass", buckets=_ROWS, registry=registry
        )
        self.queue = Gauge("nmoe_queue_rows", "Latents that wait", registry=registry)
        self._bundle = Gauge(
            "nmoe_bundle",
            "1 for what is served",
            ["partition", "expert", "gate", "extractor"],
            registry=registry,
        )

    def answered(self, caller: str, *, rows: int, size: int, seconds: float) -> None:
        """Count one answer of ``rows`` logits in ``size`` bytes."""
        self.requests.labels(caller).inc()
        self.rows.inc(rows)
        self.sent.inc(size)
        self.seconds.observe(seconds)

    def batch(self, rows: int, seconds: float) -> None:
        """Count one pass of the network."""
        self.batch_rows.observe(rows)
        self.compute.observe(seconds)

    def serves(self, bundle: Bundle | TextBundle) -> None:
        """Show the versions of ``bundle`` and no others."""
        self._bundle.clear()
        self._bundle.labels(
            str(bundle.partition),
            bundle.expert_version,
            bundle.gate_version,
            bundle.extractor_version,
        ).set(1)


class Answering(Protocol):
    """A version of a bundle that answers."""

    @property
    def bundle(self) -> Bundle | TextBundle:
        """What it was loaded from."""

    @property
    def waiting_rows(self) -> int:
        """How much waits for its turn."""


S = TypeVar("S", bound=Answering)


class Requests(Generic[S]):
    """What peers of all kinds do with requests, as handlers of gRPC that take bytes.

    Args:
        name: This peer's name, as its certificate says; empty without certificates.
        metrics: The counters to keep.
        max_rows: The most rows of a request.
        max_queue: The most rows that may wait; with names, a caller may hold half of them.
        deny: Names of callers that are refused.
        peer_list: The signed list that ``peers`` answers with; None: it has none.

    Attributes:
        served: The versions that answer, newest first.
        metrics: The counters.
        max_rows: The most rows of a request.
        draining: Whether new questions are refused.
        answered: Questions answered so far.
    """

    def __init__(
        self,
        *,
        name: str,
        metrics: ServiceMetrics,
        max_rows: int,
        max_queue: int,
        deny: Collection[str] = (),
        peer_list: peer_pb2.PeerList | None = None,
    ) -> None:
        self.served: list[S] = []
        self.draining = False
        self.answered = 0
        self.peer_list = peer_list
        self._name = name
        self.metrics = metrics
        self.max_rows = max_rows
        self._most_held = max(max_queue // 2, max_rows) if self.named else math.inf
        self._deny = frozenset(deny)
        self._held: collections.Counter[str] = collections.Counter()  # rows per caller
        self._open = 0
        self._none_open = asyncio.Event()
        self._refused = RefusalLog(_log)

    @property
    def named(self) -> bool:
        """Whether callers have names, of which each may take a half."""
        return bool(self._name)

    @property
    def bundle(self) -> Bundle | TextBundle:
        """What is served now."""
        return self.served[0].bundle

    def take_up(self, served: S, keep_seconds: float) -> None:
        """Answer with ``served`` from now on; what waits at the last version is still answered.

        Args:
            served: The new version.
            keep_seconds: Seconds that the version before it still answers those who ask for it.
        """
        self.served = [served, *self.served[:1]]
        asyncio.get_running_loop().call_later(keep_seconds, self.forget, served)

    def forget(self, served: S) -> None:
        """Drop what came before ``served``, if that is still the newest version."""
        if self.served[0] is served:
            self.served = [served]

    @property
    def open(self) -> int:
        """Requests that are being answered."""
        return self._open

    def waiting_rows(self) -> int:
        """Latents that wait for their batch."""
        return sum(served.waiting_rows for served in self.served)

    async def finished(self) -> None:
        """Wait until no request is open."""
        while self._open:
            self._none_open.clear()
            await self._none_open.wait()

    async def describe(self, data: bytes, context: Any) -> peer_pb2.Description:
        """Who this is, which versions it serves, how busy it is."""

        async def answer(caller: str) -> peer_pb2.Description:
            bundle = self.bundle
            return peer_pb2.Description(
                name=self._name,
                partition=bundle.partition,
                expert_version=bundle.expert_version,
                gate_version=bundle.gate_version,
                extractor_version=bundle.extractor_version,
                latent_dim=bundle.latent_dim,
                num_classes=bundle.num_classes,
                num_experts=bundle.num_clients,
                queue=self.waiting_rows(),
                served=self.answered,
                protocol=PROTOCOL,
                max_rows=self.max_rows,
            )

        return await self.guarded(answer, context)

    async def peers(self, data: bytes, context: Any) -> peer_pb2.PeerList:
        """The newest signed list this device knows."""

        async def answer(caller: str) -> peer_pb2.PeerList:
            if self.peer_list is None:
                raise RefusedError(
                    grpc.StatusCode.NOT_FOUND, "no-list", "this peer knows no list of peers"
                )
            return self.peer_list

        return await self.guarded(answer, context)

    async def guarded(self, answer: Callable[[str], Awaitable[T]], context: Any) -> T:
        """Turn refusals and errors into statuses; nothing about an internal error leaves."""
        caller = self._caller(context)
        self._open += 1
        try:
            if caller in self._deny:
                raise RefusedError(
                    grpc.StatusCode.PERMISSION_DENIED, "denied", f"{caller} is denied here"
                )
            return await answer(caller)
        except WireError as error:
            refusal = RefusedError(grpc.StatusCode.INVALID_ARGUMENT, error.reason, str(error))
        except RefusedError as error:
            refusal = error
        except asyncio.CancelledError:
            self.metrics.cancelled.inc()
            raise
        except Exception:
            _log.exception("a request of %s failed", caller)
            refusal = RefusedError(grpc.StatusCode.INTERNAL, "internal", "internal error")
        finally:
            self._open -= 1
            if not self._open:
                self._none_open.set()
        return await self._refuse(caller, refusal, context)

    async def _refuse(self, caller: str, refusal: RefusedError, context: Any) -> NoReturn:
        self.metrics.refusals.labels(refusal.reason).inc()
        self._refused(caller, refusal.reason, str(refusal))
        await context.abort(refusal.code, str(refusal))
        raise AssertionError("abort raises")

    def _caller(self, context: Any) -> str:
        if not self.named:
            return ANONYMOUS
        names = context.auth_context().get("x509_common_name") or [b""]
        return str(names[0], "utf-8", "replace")

    def check_open(self) -> None:
        """Refuse new questions once the peer is draining."""
        if self.draining:
            raise RefusedError(
                grpc.StatusCode.UNAVAILABLE, "draining", "draining: ask another peer"
            )

    def version_for(self, fits: Callable[[S], bool], extractor: str, expert: str) -> S:
        """The newest version that answers a question.

        Args:
            fits: Whether a version does.
            extractor: What the question says it was made by, for the error.
            expert: The version it asks for, for the error.
        """
        for served in self.served:
            if fits(served):
                return served
        asked = f"expert {expert[:MAX_ID]!r}" if expert else "any expert"
        raise RefusedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "version",
            f"this peer serves expert {self.bundle.expert_version} of extractor "
            f"{self.bundle.extractor_version}, asked was {asked} of extractor "
            f"{extractor[:MAX_ID]!r}",
        )

    @contextlib.contextmanager
    def held(self, caller: str, rows: int) -> Iterator[None]:
        """Count rows of a caller while they wait; with names, it may hold half of the queue.

        Args:
            caller: Name of the device that sent them.
            rows: How many.
        """
        if self._held[caller] + rows > self._most_held:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "busy",
                f"busy: {caller} fills its half of the queue",
            )
        self._held[caller] += rows
        try:
            yield
        finally:
            self._held[caller] -= rows


class ImageRequests(Requests[Served]):
    """What a peer does with latents of images."""

    async def predict(self, data: bytes, context: Any) -> peer_pb2.PredictReply:
        """The logits of some latents."""
        return await self.guarded(lambda caller: self._predict(data, caller), context)

    async def _predict(self, data: bytes, caller: str) -> peer_pb2.PredictReply:
        started = time.perf_counter()
        self.metrics.received.inc(len(data))
        self.check_open()
        request = parse(peer_pb2.PredictRequest, data)
        if len(request.request_id) > MAX_ID:
            raise WireError("request-id", f"a request id of {len(request.request_id)} characters")
        served = self.version_for(
            lambda one: one.fits(request), request.extractor_version, request.expert_version
        )
        latents = decode_tensor(
            request.latents, max_rows=self.max_rows, columns=served.bundle.latent_dim
        )
        found = await self._queued(served, caller, latents)
        logits = encode_tensor(found.logits)
        self.answered += 1
        self.metrics.answered(
            caller,
            rows=len(latents),
            size=len(logits.data),
            seconds=time.perf_counter() - started,
        )
        return peer_pb2.PredictReply(
            request_id=request.request_id,
            expert_version=served.bundle.expert_version,
            logits=logits,
            queue_ms=1000 * found.queue_seconds,
            compute_ms=1000 * found.compute_seconds,
        )

    async def _queued(
        self, served: Served, caller: str, latents: npt.NDArray[np.float32]
    ) -> BatchResult:
        with self.held(caller, len(latents)):
            answer = served.batcher.submit(latents)
            if answer is None:
                busy = grpc.StatusCode.RESOURCE_EXHAUSTED
                raise RefusedError(busy, "busy", "busy: the queue is full")
            return await answer
