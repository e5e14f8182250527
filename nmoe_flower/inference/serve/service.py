"""The peer service: one device's expert, for the other devices of its federation."""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Self

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from torch import nn

from nmoe_flower.addresses import Address
from nmoe_flower.certificates import Identity
from nmoe_flower.errors import BundleError, CertificateError, ConfigError
from nmoe_flower.inference.bundle import Bundle, TextBundle, TextExperts
from nmoe_flower.inference.protocol import MAX_MESSAGE_BYTES, SERVICE, peer_handlers, peer_pb2
from nmoe_flower.inference.serve.batching import Served, expert_thread, load_expert
from nmoe_flower.inference.serve.requests import ImageRequests, ServiceMetrics
from nmoe_flower.inference.serve.text_requests import ServedText, TextLimits, TextRequests
from nmoe_flower.inference.settings import check_not_negative
from nmoe_flower.inference.telemetry import log_event

__all__ = ["ExpertServer"]

_log = logging.getLogger(__name__)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_HEALTH_NAMES = ("", SERVICE)
_FAREWELL_SECONDS = 0.5  # for replies that are on their way, and health watchers

_OVERHEAD_BYTES = 4096  # of a request beside its latents


class ExpertServer:
    """Serves one bundle over gRPC. Made inside a running event loop.

    Args:
        bundle: The bundle to serve.
        identity: Certificate and key. Only devices of the same authority get in, each known by the
            name in its certificate. None: no encryption and no names, for trials.
        address: Where to listen, ``host:port``; port 0 lets the system choose.
        max_batch: The most rows of a request, and of one pass of the network; of images only.
        max_wait_ms: Milliseconds an idle network waits for company before it starts a pass.
        max_queue: The most rows that may wait; with names, a caller may hold half of them. A
            question about text has at most half as many.
        peer_list: The signed list that ``Peers`` answers with.
        deny: Names that are refused although their certificate is good.
        keep_seconds: Seconds that the last version still answers those who ask for it after a swap.
        max_texts: The most texts that may be written at once; one pass of the network goes on with
            all of them that wait for the same adapter. With names, a caller may have half of them.
        max_text_mib: The most MiB that keys and values of these texts may fill; with names, those
            of a caller half of it.
        load: Makes the network of a bundle, latents [B, D] -> logits [B, C]: another precision, or
            another runtime.
        load_text: Puts the adapters of a bundle of text on a backbone.

    Attributes:
        bundle: The bundle that is served now.
        metrics: The counters so far.
        port: The port it listens on, once it does; 0 before.

    Raises:
        ConfigError: A limit or the address is not allowed, or a request of ``max_batch`` rows
            would be larger than the largest message.
    """

    def __init__(
        self,
        bundle: Bundle | TextBundle,
        identity: Identity | None,
        *,
        address: str = "127.0.0.1:0",
        max_batch: int = 256,
        max_wait_ms: float = 0.0,
        max_queue: int = 4096,
        peer_list: peer_pb2.PeerList | None = None,
        deny: Collection[str] = (),
        keep_seconds: float = 60.0,
        max_texts: int = 32,
        max_text_mib: float = 1024.0,
        load: Callable[[Bundle], nn.Module] = load_expert,
        load_text: Callable[[TextBundle], TextExperts] = TextExperts.open,
    ) -> None:
        counts = {"max_batch": max_batch, "max_queue": max_queue, "max_texts": max_texts}
        if min(counts.values()) < 1:
            told = ", ".join(f"{name} = {count}" for name, count in counts.items())
            raise ConfigError(f"{told}; allowed: 1 or more")
        check_not_negative(
            max_wait_ms=max_wait_ms, keep_seconds=keep_seconds, max_text_mib=max_text_mib
        )
        _check_size(bundle, max_batch)
        self.metrics = ServiceMetrics()
        self.bundle = bundle
        self.port = 0
        self._identity = identity
        self._address = Address.parse(address, any_port=True)
        self._limits = {"max_batch": max_batch, "max_queue": max_queue}
        self._text_limits = TextLimits(max_queue, max_texts, max_text_mib)
        self._max_wait = max_wait_ms / 1000
        self._keep_seconds = keep_seconds
        self._load = load
        self._load_text = load_text
        self._executor = expert_thread()
        self._swapping = asyncio.Lock()
        self._health = health.aio.HealthServicer()
        self._server: Any = None
        kind = ImageRequests if isinstance(bundle, Bundle) else TextRequests
        self._requests: ImageRequests | TextRequests = kind(
            name=identity.name if identity else "",
            metrics=self.metrics,
            max_rows=max_batch if isinstance(bundle, Bundle) else max(1, max_queue // 2),
            max_queue=max_queue,
            deny=deny,
            peer_list=peer_list,
        )
        self.metrics.queue.set_function(self._requests.waiting_rows)

    @property
    def peer_list(self) -> peer_pb2.PeerList | None:
        """The signed list that ``Peers`` answers with; set it when there is a newer one."""
        return self._requests.peer_list

    @peer_list.setter
    def peer_list(self, peer_list: peer_pb2.PeerList | None) -> None:
        self._requests.peer_list = peer_list

    def renew(self, identity: Identity) -> None:
        """Show another certificate from the next handshake on; open connections stay.

        Raises:
            CertificateError: It has another name, or this server shows none.
        """
        if self._identity is None or identity.name != self._identity.name:
            old = self._identity.name if self._identity else "no certificate"
            raise CertificateError(f"this server shows {old}, cannot go on as {identity.name}")
        self._identity = identity
        log_event(_log, logging.INFO, "renewed", expires=str(identity.expires))

    async def start(self) -> int:
        """Load the expert and listen.

        Returns:
            The port.

        Raises:
            BundleError: The expert cannot be loaded.
            ConfigError: The address cannot be listened on.
        """
        await self._take_up(self.bundle)
        self._server = grpc.aio.server(
            options=_server_options(), maximum_concurrent_rpcs=sum(self._limits.values())
        )
        requests = self._requests
        handlers = peer_handlers(
            describe=requests.describe,
            predict=requests.predict,
            peers=requests.peers,
            score=requests.score if isinstance(requests, TextRequests) else None,
            generate=requests.generate if isinstance(requests, TextRequests) else None,
        )
        self._server.add_generic_rpc_handlers((handlers,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.port = self._listen()
        await self._server.start()
        await self._set_health(_SERVING)
        log_event(_log, logging.INFO, "serving", port=self.port, **self._facts())
        if self._identity is None:
            log_event(_log, logging.WARNING, "insecure", detail="anybody may ask, and listen")
        return self.port

    async def swap(self, bundle: Bundle | TextBundle) -> None:
        """Serve ``bundle`` from now on. No request is lost.

        Requests that wait are answered by the version they were accepted for.

        Raises:
            BundleError: It is another device's, or its expert cannot be loaded. The old one goes
                on serving.
        """
        async with self._swapping:
            old = self.bundle
            if bundle.partition != old.partition:
                raise BundleError(
                    f"{bundle.folder} is the bundle of partition {bundle.partition}; "
                    f"this server is partition {old.partition}"
                )
            if type(bundle) is not type(old):
                raise BundleError(f"{bundle.folder} is of another system than what is served")
            _check_size(bundle, self._limits["max_batch"])
            await self._take_up(bundle)
            self.metrics.swaps.inc()
            log_event(_log, logging.INFO, "swapped", before=old.expert_version, **self._facts())

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests, finish those that are open, stop.

        Returns:
            Whether all were finished within ``seconds``.
        """
        self._requests.draining = True
        await self._set_health(_NOT_SERVING)
        log_event(_log, logging.INFO, "draining", open=self._requests.open)
        try:
            await asyncio.wait_for(self._requests.finished(), seconds)
            finished = True
        except TimeoutError:
            finished = False
        await self._server.stop(_FAREWELL_SECONDS)
        self._executor.shutdown(wait=False, cancel_futures=True)
        answered = self._requests.answered
        log_event(_log, logging.INFO, "stopped", finished=finished, answered=answered)
        return finished

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain(5.0)

    def _listen(self) -> int:
        try:
            _bind(self._address)  # gRPC would print a line of its own beside the error
            if self._identity is None:
                return int(self._server.add_insecure_port(str(self._address)))
            credentials = self._identity.server_credentials(on_handshake=self._handshake)
            return int(self._server.add_secure_port(str(self._address), credentials))
        except (OSError, RuntimeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is it in use?"
            raise ConfigError(f"cannot listen on {self._address}: {why}") from None

    def _handshake(self) -> Identity:
        """Called by gRPC's own threads."""
        assert self._identity is not None
        self.metrics.handshakes.inc()
        return self._identity

    async def _take_up(self, bundle: Bundle | TextBundle) -> None:
        """Load beside the old version, then switch between two requests."""
        requests = self._requests
        if isinstance(bundle, TextBundle):
            assert isinstance(requests, TextRequests)
            last = requests.served[0] if requests.served else None
            requests.take_up(await self._text(bundle, last), self._keep_seconds)
        else:
            assert isinstance(requests, ImageRequests)
            requests.take_up(await self._images(bundle), self._keep_seconds)
        self.bundle = bundle
        self.metrics.serves(bundle)

    async def _images(self, bundle: Bundle) -> Served:
        return Served(
            bundle,
            await asyncio.to_thread(self._load, bundle),
            self._executor,
            max_wait=self._max_wait,
            on_batch=self.metrics.batch,
            **self._limits,
        )

    async def _text(self, bundle: TextBundle, last: ServedText | None) -> ServedText:
        """The bundle on the backbone of the last version, if it is for that one."""
        load = self._load_text
        if last is not None and last.experts.backbone.fits(bundle):
            load = partial(TextExperts, backbone=last.experts.backbone)
        return ServedText(
            bundle,
            await asyncio.to_thread(load, bundle),
            self._executor,
            limits=self._text_limits,
            on_pass=self.metrics.batch,
        )

    async def _set_health(self, status: int) -> None:
        for name in _HEALTH_NAMES:
            await self._health.set(name, status)

    def _facts(self) -> dict[str, Any]:
        return {
            "peer": self._identity.name if self._identity else "",
            "partition": self.bundle.partition,
            "expert": self.bundle.expert_version,
            "gate": self.bundle.gate_version,
            "extractor": self.bundle.extractor_version,
        }


def _check_size(bundle: Bundle | TextBundle, max_batch: int) -> None:
    """Refuse a batch that no message could carry; of text there are none.

    Raises:
        ConfigError: ``max_batch`` float32 latents are larger than a message may be.
    """
    if isinstance(bundle, TextBundle):
        return
    size = max_batch * bundle.latent_dim * 4 + _OVERHEAD_BYTES
    if size > MAX_MESSAGE_BYTES:
        raise ConfigError(
            f"a request of max_batch = {max_batch} latents of {bundle.latent_dim} numbers has "
            f"{size} bytes; a message may have {MAX_MESSAGE_BYTES}"
        )


def _bind(address: Address) -> None:
    """Take a place to listen, and give it back.

    Raises:
        OSError: It is taken, or it is no place of this machine.
    """
    family, kind, *_, place = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    )[0]
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
        listener.bind(place)


def _server_options() -> list[tuple[str, int]]:
    """GRPC's options of a server."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", 1024),  # per connection; more are cut off by gRPC
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ]
