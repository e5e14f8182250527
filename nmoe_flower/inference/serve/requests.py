"""What a peer does with a request: admit it or refuse it, queue it, answer it, count it."""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any, NoReturn, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import WireError
from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.protocol.logs import RefusalLog
from nmoe_flower.inference.protocol.peer_pb2 import (
    Description,
    PeerList,
    PredictReply,
    PredictRequest,
)
from nmoe_flower.inference.protocol.rpc import RefusedError
from nmoe_flower.inference.protocol.wire import (
    MAX_ID,
    PROTOCOL,
    decode_tensor,
    encode_tensor,
    parse,
)
from nmoe_flower.inference.serve.batching import Answer
from nmoe_flower.inference.serve.metrics import ServiceMetrics
from nmoe_flower.inference.serve.served import Served

__all__ = ["ANONYMOUS", "Requests"]

ANONYMOUS = "anonymous"  # whoever asks a server without certificates

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Requests:
    """The three methods of a peer, as handlers of gRPC that take bytes.

    Args:
        name: Of this peer, as its certificate says; empty without certificates.
        metrics: What is counted.
        max_rows: The most rows of a request.
        max_queue: The most rows that may wait; with names, a caller may hold half of them.
        deny: Callers that are refused.
        peer_list: What ``peers`` answers with.

    Attributes:
        served: The versions that answer, newest first.
        draining: Whether new latents are refused.
        answered: Predictions answered so far.
    """

    def __init__(
        self,
        *,
        name: str,
        metrics: ServiceMetrics,
        max_rows: int,
        max_queue: int,
        deny: Collection[str] = (),
        peer_list: PeerList | None = None,
    ) -> None:
        self.served: list[Served] = []
        self.draining = False
        self.answered = 0
        self.peer_list = peer_list
        self._name = name
        self._metrics = metrics
        self._max_rows = max_rows
        self._most_held = max(max_queue // 2, max_rows) if name else math.inf
        self._deny = frozenset(deny)
        self._held: Counter[str] = Counter()  # rows per caller
        self._open = 0
        self._none_open = asyncio.Event()
        self._refused = RefusalLog(_log)

    @property
    def bundle(self) -> Bundle:
        """What is served now."""
        return self.served[0].bundle

    @property
    def open(self) -> int:
        """Requests that are being answered."""
        return self._open

    def waiting_rows(self) -> int:
        """Latents that wait for their batch."""
        return sum(served.batcher.waiting_rows for served in self.served)

    async def finished(self) -> None:
        """Wait until no request is open."""
        while self._open:
            self._none_open.clear()
            await self._none_open.wait()

    async def describe(self, data: bytes, context: Any) -> Description:
        """Who this is, which versions it serves, how busy it is."""

        async def answer(caller: str) -> Description:
            bundle = self.bundle
            return Description(
                name=self._name,
                partition=bundle.partition,
                expert_version=bundle.expert_version,
                gate_version=bundle.gate_version,
                extractor_version=bundle.extractor_version,
                latent_dim=bundle.latent_dim,
                num_classes=len(bundle.classes),
                num_experts=bundle.num_clients,
                queue=self.waiting_rows(),
                served=self.answered,
                protocol=PROTOCOL,
                max_rows=self._max_rows,
            )

        return await self._guarded(answer, context)

    async def peers(self, data: bytes, context: Any) -> PeerList:
        """The newest signed list this device knows."""

        async def answer(caller: str) -> PeerList:
            if self.peer_list is None:
                raise RefusedError(
                    grpc.StatusCode.NOT_FOUND, "no-list", "this peer knows no list of peers"
                )
            return self.peer_list

        return await self._guarded(answer, context)

    async def predict(self, data: bytes, context: Any) -> PredictReply:
        """The logits of some latents."""
        return await self._guarded(lambda caller: self._predict(data, caller), context)

    async def _guarded(self, answer: Callable[[str], Awaitable[T]], context: Any) -> T:
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
            self._metrics.cancelled.inc()
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
        self._metrics.refusals.labels(refusal.reason).inc()
        self._refused(caller, refusal.reason, str(refusal))
        await context.abort(refusal.code, str(refusal))
        raise AssertionError("abort raises")

    def _caller(self, context: Any) -> str:
        if not self._name:
            return ANONYMOUS
        names = context.auth_context().get("x509_common_name") or [b""]
        return str(names[0], "utf-8", "replace")

    async def _predict(self, data: bytes, caller: str) -> PredictReply:
        started = time.perf_counter()
        self._metrics.received.inc(len(data))
        if self.draining:
            raise RefusedError(
                grpc.StatusCode.UNAVAILABLE, "draining", "draining: ask another peer"
            )
        request = parse(PredictRequest, data)
        if len(request.request_id) > MAX_ID:
            raise WireError("request-id", f"a request id of {len(request.request_id)} characters")
        served = self._version_for(request)
        latents = decode_tensor(
            request.latents, max_rows=self._max_rows, columns=served.bundle.latent_dim
        )
        found = await self._queued(served, caller, latents)
        logits = encode_tensor(found.logits)
        self.answered += 1
        self._metrics.answered(
            caller,
            rows=len(latents),
            size=len(logits.data),
            seconds=time.perf_counter() - started,
        )
        return PredictReply(
            request_id=request.request_id,
            expert_version=served.bundle.expert_version,
            logits=logits,
            queue_ms=1000 * found.queue_seconds,
            compute_ms=1000 * found.compute_seconds,
        )

    def _version_for(self, request: PredictRequest) -> Served:
        for served in self.served:
            if served.fits(request):
                return served
        raise RefusedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "version",
            f"this peer serves expert {self.bundle.expert_version} of extractor "
            f"{self.bundle.extractor_version}, asked was expert "
            f"{request.expert_version[:MAX_ID]!r} of extractor "
            f"{request.extractor_version[:MAX_ID]!r}",
        )

    async def _queued(
        self, served: Served, caller: str, latents: npt.NDArray[np.float32]
    ) -> Answer:
        rows, busy = len(latents), grpc.StatusCode.RESOURCE_EXHAUSTED
        if self._held[caller] + rows > self._most_held:
            raise RefusedError(busy, "busy", f"busy: {caller} fills its half of the queue")
        answer = served.batcher.submit(latents)
        if answer is None:
            raise RefusedError(busy, "busy", "busy: the queue is full")
        self._held[caller] += rows
        try:
            return await answer
        finally:
            self._held[caller] -= rows
