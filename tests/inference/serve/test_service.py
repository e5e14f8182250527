import asyncio
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nmoe_flower.certificates import Authority
from nmoe_flower.errors import BundleError, CertificateError, ConfigError
from nmoe_flower.inference import Bundle, ExpertServer, decode_tensor, encode_tensor
from nmoe_flower.inference.protocol.peer_pb2 import (
    DescribeRequest,
    PeerEntry,
    PeerList,
    PeersRequest,
    PredictReply,
    PredictRequest,
)

Fixture = Callable[..., Any]
LATENTS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def request(bundle: Bundle, latents: Any = LATENTS, *, pin: bool = False) -> PredictRequest:
    return PredictRequest(
        request_id="7",
        extractor_version=bundle.extractor_version,
        expert_version=bundle.expert_version if pin else "",
        latents=encode_tensor(latents),
    )


def local(bundle: Bundle, latents: Any = LATENTS) -> np.ndarray[Any, Any]:
    return np.asarray(bundle.expert()(torch.from_numpy(latents)).numpy())


def logits(reply: PredictReply, rows: int = 5) -> np.ndarray[Any, Any]:
    return decode_tensor(reply.logits, max_rows=rows, columns=3)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def count(server: ExpertServer, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(name, labels) or 0.0


class Held:
    """An expert that waits for leave: while it does, requests queue up."""

    def __init__(self, server: ExpertServer) -> None:
        served = server._requests.served[0]
        self._expert, self._leave = served._expert, threading.Event()
        self.passes = 0
        served._expert = self  # type: ignore[assignment]
        served.batcher._inline_rows = 0  # what must be waited for has its thread

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        assert self._leave.wait(20)
        return self._expert(latents)

    def leave(self) -> None:
        self._leave.set()


async def until(condition: Callable[[], bool]) -> None:
    """Turn the loop until something is so; the deadline is for tests that fail."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


# --- answers ---


@pytest.mark.parametrize("secure", [True, False])
def test_logits_are_those_of_the_expert_at_home(serving: Fixture, secure: bool) -> None:
    async def scenario() -> None:
        async with serving(secure=secure) as (server, stub):
            reply = await stub.Predict(request(server.bundle))
            np.testing.assert_allclose(logits(reply), local(server.bundle), atol=1e-5)
            assert reply.request_id == "7"
            assert reply.expert_version == server.bundle.expert_version
            assert reply.compute_ms > 0
            assert reply.queue_ms >= 0

    asyncio.run(scenario())


def test_requests_at_the_same_moment_get_their_own_answers(serving: Fixture) -> None:
    batches = np.random.default_rng(1).normal(size=(40, 5, 4)).astype(np.float32)

    async def scenario() -> None:
        async with serving(max_batch=12) as (server, stub):
            ask = (stub.Predict(request(server.bundle, latents)) for latents in batches)
            replies = await asyncio.gather(*ask)
            for latents, reply in zip(batches, replies, strict=True):
                np.testing.assert_allclose(logits(reply), local(server.bundle, latents), atol=1e-5)

    asyncio.run(scenario())


def test_who_it_is(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving(max_batch=32) as (server, stub):
            await stub.Predict(request(server.bundle))
            found = await stub.Describe(DescribeRequest())
            bundle = server.bundle
            assert (found.name, found.partition, found.protocol) == ("server", 0, 1)
            assert (found.latent_dim, found.num_classes, found.num_experts) == (4, 3, 2)
            assert (found.max_rows, found.served, found.queue) == (32, 1, 0)
            assert found.expert_version == bundle.expert_version
            assert found.gate_version == bundle.gate_version
            assert found.extractor_version == bundle.extractor_version

    asyncio.run(scenario())


def test_the_list_of_peers_is_handed_on(serving: Fixture) -> None:
    known = PeerList(peers=[PeerEntry(name="x", address="h:1")], serial=3, signature=b"s")

    async def scenario() -> None:
        async with serving() as (server, stub):
            code, _ = await refusal(stub.Peers(PeersRequest()))
            assert code is grpc.StatusCode.NOT_FOUND
            server.peer_list = known
            assert await stub.Peers(PeersRequest()) == known

    asyncio.run(scenario())


# --- versions ---


def test_latents_of_another_extractor_are_refused(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            for field, value in (
                ("extractor_version", ""),
                ("extractor_version", "0" * 16),
                ("expert_version", "0" * 16),
            ):
                asked = request(server.bundle)
                setattr(asked, field, value)
                code, text = await refusal(stub.Predict(asked))
                assert code is grpc.StatusCode.FAILED_PRECONDITION
                assert server.bundle.extractor_version in text
                assert ("any expert" in text) == (field == "extractor_version")
            assert count(server, "nmoe_refusals_total", reason="version") == 3

    asyncio.run(scenario())


def test_swaps_under_load_lose_nothing_and_mix_nothing(
    serving: Fixture, make_bundle: Fixture
) -> None:
    bundles = [make_bundle(f"version-{seed}", seed=seed) for seed in range(3)]
    right = {bundle.expert_version: local(bundle) for bundle in bundles}

    async def scenario() -> None:
        async with serving(bundles[0]) as (server, stub):
            seen: list[str] = []
            stop = asyncio.Event()

            async def ask() -> None:
                while not stop.is_set():
                    reply = await stub.Predict(request(bundles[0]))
                    np.testing.assert_allclose(
                        logits(reply), right[reply.expert_version], atol=1e-5
                    )
                    seen.append(reply.expert_version)

            askers = [asyncio.ensure_future(ask()) for _ in range(4)]
            for bundle in (*bundles[1:], *bundles):
                version = bundle.expert_version
                await server.swap(bundle)
                before = len(seen)
                await until(lambda: version in seen[before:])  # noqa: B023
            stop.set()
            await asyncio.gather(*askers)  # no request failed
            assert set(seen) == set(right)
            assert count(server, "nmoe_swaps_total") == 5
            labels = {"partition": "0", "expert": version, "gate": bundle.gate_version}
            assert count(server, "nmoe_bundle", extractor=bundle.extractor_version, **labels)

    asyncio.run(scenario())


def test_requests_that_wait_are_answered_by_the_version_they_came_for(
    serving: Fixture, make_bundle: Fixture
) -> None:
    old, new = make_bundle("old"), make_bundle("new", seed=1)

    async def scenario() -> None:
        async with serving(old, keep_seconds=0.0) as (server, stub):
            held = Held(server)
            calls = [asyncio.ensure_future(stub.Predict(request(old))) for _ in range(3)]
            await until(lambda: server._requests.open == 3)
            await server.swap(new)
            await until(lambda: len(server._requests.served) == 1)
            late = asyncio.ensure_future(stub.Predict(request(old)))
            held.leave()
            for call in calls:
                reply = await call
                assert reply.expert_version == old.expert_version
                np.testing.assert_allclose(logits(reply), local(old), atol=1e-5)
            assert (await late).expert_version == new.expert_version

    asyncio.run(scenario())


def test_the_last_version_answers_for_a_while_who_asks_for_it(
    serving: Fixture, make_bundle: Fixture
) -> None:
    old, new = make_bundle("old"), make_bundle("new", seed=1)

    async def scenario() -> None:
        async with serving(old) as (server, stub):
            await server.swap(new)
            for bundle in (old, new):
                reply = await stub.Predict(request(bundle, pin=True))
                assert reply.expert_version == bundle.expert_version
            server._requests.forget(server._requests.served[0])
            code, _ = await refusal(stub.Predict(request(old, pin=True)))
            assert code is grpc.StatusCode.FAILED_PRECONDITION

    asyncio.run(scenario())


def test_a_bundle_that_is_not_right_changes_nothing(serving: Fixture, make_bundle: Fixture) -> None:
    mine, foreign, damaged = (
        make_bundle("mine"), make_bundle("foreign", partition=1), make_bundle("damaged", seed=1),
    )  # fmt: skip
    (damaged.folder / "expert.safetensors").write_bytes(b"")

    async def scenario() -> None:
        async with serving(mine) as (server, stub):
            with pytest.raises(BundleError, match="partition 1; this server is partition 0"):
                await server.swap(foreign)
            with pytest.raises(BundleError, match="damaged"):
                await server.swap(damaged)
            reply = await stub.Predict(request(mine))
            assert reply.expert_version == mine.expert_version
            assert count(server, "nmoe_swaps_total") == 0

    asyncio.run(scenario())


# --- back pressure ---


def test_a_full_queue_says_busy_at_once(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving(max_batch=5, max_queue=10) as (server, stub):
            held = Held(server)
            first = asyncio.ensure_future(stub.Predict(request(server.bundle)))
            await until(lambda: held.passes == 1)
            # 5 rows are worked on. As one name may hold 5 of 10 rows, nothing more gets in.
            code, text = await refusal(stub.Predict(request(server.bundle, LATENTS[:1])))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "busy" in text
            held.leave()
            await first
            assert (await stub.Predict(request(server.bundle))).request_id == "7"
            assert count(server, "nmoe_refusals_total", reason="busy") == 1

    asyncio.run(scenario())


def test_one_caller_cannot_take_the_whole_queue(
    serving: Fixture, connect: Fixture, identities: Any
) -> None:
    async def scenario() -> None:
        async with serving(max_batch=5, max_queue=10) as (server, stub):
            held = Held(server)
            mine = asyncio.ensure_future(stub.Predict(request(server.bundle)))
            await until(lambda: held.passes == 1)
            await refusal(stub.Predict(request(server.bundle)))
            async with connect(server.port, identities["other"]) as other:
                theirs = asyncio.ensure_future(other.Predict(request(server.bundle)))
                await until(lambda: server._requests.waiting_rows() == 5)
                held.leave()
                await asyncio.gather(mine, theirs)
            for name in ("asker", "other"):
                assert count(server, "nmoe_requests_total", peer=name) == 1

    asyncio.run(scenario())


def test_without_names_the_queue_itself_is_the_limit(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving(secure=False, max_batch=5, max_queue=10) as (server, stub):
            held = Held(server)
            calls = [asyncio.ensure_future(stub.Predict(request(server.bundle)))]
            await until(lambda: held.passes == 1)
            calls += [asyncio.ensure_future(stub.Predict(request(server.bundle))) for _ in "ab"]
            await until(lambda: server._requests.waiting_rows() == 10)
            assert count(server, "nmoe_queue_rows") == 10
            code, text = await refusal(stub.Predict(request(server.bundle, LATENTS[:1])))
            assert (code, text) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED, "busy: the queue is full",
            )  # fmt: skip
            held.leave()
            await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_a_caller_that_gives_up_leaves_nothing_behind(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            held = Held(server)
            first = asyncio.ensure_future(stub.Predict(request(server.bundle)))
            await until(lambda: held.passes == 1)
            code, _ = await refusal(stub.Predict(request(server.bundle), timeout=0.05))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: count(server, "nmoe_cancelled_total") == 1)
            held.leave()
            await first
            await until(lambda: server._requests.open == 0)
            assert held.passes == 1  # the second was never computed
            assert server._requests._held["asker"] == 0

    asyncio.run(scenario())


# --- the end ---


def test_drain_finishes_what_is_open_and_refuses_the_rest(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            held = Held(server)
            last = asyncio.ensure_future(stub.Predict(request(server.bundle)))
            await until(lambda: held.passes == 1)
            health = health_pb2_grpc.HealthStub(stub.channel)
            ask = health_pb2.HealthCheckRequest(service="nmoe.v1.Peer")
            assert (await health.Check(ask)).status == health_pb2.HealthCheckResponse.SERVING
            end = asyncio.ensure_future(server.drain(20))
            code, text = await refusal(stub.Predict(request(server.bundle)))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert text == "draining: ask another peer"
            not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await health.Check(ask)).status == not_serving
            held.leave()
            np.testing.assert_allclose(logits(await last), local(server.bundle), atol=1e-5)
            assert await end is True

    asyncio.run(scenario())


def test_drain_has_a_deadline(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            held = Held(server)
            last = asyncio.ensure_future(stub.Predict(request(server.bundle)))
            await until(lambda: held.passes == 1)
            assert await server.drain(0.05) is False
            await refusal(last)
            held.leave()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("host", "why"),
    [("127.0.0.1", "Address already in use"), ("192.0.2.1", "Cannot assign requested address")],
)
def test_where_nobody_can_listen_is_said_once(
    serving: Fixture, make_bundle: Fixture, host: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """GRPC prints nothing beside the error; 192.0.2.0/24 is of no machine (RFC 5737)."""

    async def scenario() -> None:
        async with serving() as (server, _):
            second = ExpertServer(make_bundle("second"), None, address=f"{host}:{server.port}")
            with pytest.raises(ConfigError, match=f"cannot listen on {host}:{server.port}: {why}"):
                await second.start()

    asyncio.run(scenario())
    assert "bind" not in capfd.readouterr().err


# --- settings and certificates ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch = 0"),
        ({"max_queue": 0}, "max_queue = 0"),
        ({"max_texts": 0}, "max_texts = 0"),
        ({"max_text_mib": float("nan")}, "max_text_mib is nan"),
        ({"max_wait_ms": -1}, "max_wait_ms is -1"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is nan"),
        ({"max_wait_ms": float("inf")}, "max_wait_ms is inf"),
        ({"address": "127.0.0.1"}, "the address '127.0.0.1' is not host:port"),
        ({"address": "127.0.0.1:99999"}, "the address '127.0.0.1:99999' is not host:port"),
        ({"max_batch": 300_000}, "has 4804096 bytes; a message may have 4194304"),
    ],
)
def test_limits_that_are_not_allowed(
    make_bundle: Fixture, options: dict[str, Any], message: str
) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigError, match=message):
            ExpertServer(make_bundle(), None, **options)

    asyncio.run(scenario())


def test_a_certificate_is_renewed_without_a_restart(
    serving: Fixture, connect: Fixture, authority: Authority, identities: Any, tmp_path: Path
) -> None:
    async def shown(port: int) -> int:
        pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=10)
        from cryptography import x509

        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    async def scenario() -> None:
        async with serving() as (server, stub):
            assert await shown(server.port) == identities["server"].certificate.serial_number
            renewed = authority.issue(tmp_path, "server")
            server.renew(renewed)
            assert await shown(server.port) == renewed.certificate.serial_number
            await stub.Predict(request(server.bundle))  # the open connection stays
            async with connect(server.port, identities["asker"]) as fresh:
                await fresh.Predict(request(server.bundle))
            assert count(server, "nmoe_handshakes_total") == 4
            with pytest.raises(CertificateError, match="shows server, cannot go on as other"):
                server.renew(identities["other"])

    asyncio.run(scenario())


def test_what_was_counted(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            asked = request(server.bundle)
            for _ in range(3):
                await stub.Predict(asked)
            for name, expected in {
                "nmoe_rows_total": 15,
                "nmoe_received_bytes_total": 3 * len(asked.SerializeToString()),
                "nmoe_sent_bytes_total": 3 * 5 * 3 * 4,  # requests x rows x classes x float32
                "nmoe_request_seconds_count": 3,
                "nmoe_batch_rows_sum": 15,
                "nmoe_queue_rows": 0,
            }.items():
                assert count(server, name) == expected, name
            assert count(server, "nmoe_requests_total", peer="asker") == 3

    asyncio.run(scenario())
