"""Peers that must not get in, and requests that must not hurt. The server goes on serving."""

import ast
import asyncio
import json
import logging
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import nmoe_flower.inference
from nmoe_flower.certificates import Authority, Identity, create_authority
from nmoe_flower.inference import ExpertServer, encode_tensor
from nmoe_flower.inference.protocol.peer_pb2 import PredictRequest, Tensor
from nmoe_flower.inference.protocol.wire import MAX_MESSAGE_BYTES

Fixture = Callable[..., Any]
Code = grpc.StatusCode
LATENTS = np.ones((2, 4), np.float32)


def request(server: ExpertServer, **changes: Any) -> PredictRequest:
    fields = {
        "request_id": "1",
        "extractor_version": server.bundle.extractor_version,
        "latents": encode_tensor(LATENTS),
    }
    return PredictRequest(**fields | changes)


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def still_serves(server: ExpertServer, stub: Any) -> None:
    reply = await stub.Predict(request(server), timeout=20)
    assert reply.logits.rows == 2


def count(server: ExpertServer, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(name, labels) or 0.0


# --- who does not get in ---


def stranger(folder: Path, identities: dict[str, Identity]) -> Any:
    """A certificate of another authority; it would trust ours."""
    other = create_authority(folder / "other", name="other").issue(folder / "other", "asker")
    return grpc.ssl_channel_credentials(
        root_certificates=identities["server"].authority_pem,
        private_key=(folder / "other" / "asker.key").read_bytes(),
        certificate_chain=other.certificate_pem,
    )


def self_made(folder: Path, identities: dict[str, Identity]) -> Any:
    """A certificate that a device of the federation has issued to a friend."""
    asker = identities["asker"]
    friend = Authority(asker.certificate_pem, asker._key).issue(folder, "friend")
    return grpc.ssl_channel_credentials(
        root_certificates=asker.authority_pem,
        private_key=(folder / "friend.key").read_bytes(),
        certificate_chain=friend.certificate_pem + asker.certificate_pem,
    )


def nobody(folder: Path, identities: dict[str, Identity]) -> Any:
    """TLS, but no certificate to show."""
    return grpc.ssl_channel_credentials(root_certificates=identities["server"].authority_pem)


@pytest.mark.parametrize("make", [stranger, self_made, nobody])
def test_who_is_not_of_the_federation(
    serving: Fixture, connect: Fixture, identities: Any, tmp_path: Path, make: Fixture
) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            credentials = make(tmp_path, identities)
            async with connect(server.port, None, credentials=credentials) as bad:
                assert await code_of(bad.Predict(request(server), timeout=20)) is Code.UNAVAILABLE
            await still_serves(server, stub)
            assert count(server, "nmoe_handshakes_total") >= 2
            assert count(server, "nmoe_requests_total", peer="asker") == 1

    asyncio.run(scenario())


def test_a_certificate_that_has_expired(
    serving: Fixture, connect: Fixture, authority: Authority, tmp_path: Path
) -> None:
    start = datetime.now(UTC) - timedelta(days=3)
    old = authority.issue(tmp_path, "asker", days=1, start=start)

    async def scenario() -> None:
        async with serving() as (server, stub):
            async with connect(server.port, old) as bad:
                assert await code_of(bad.Predict(request(server), timeout=20)) is Code.UNAVAILABLE
            await still_serves(server, stub)

    asyncio.run(scenario())


def test_a_server_with_the_right_certificate_and_the_wrong_name(
    serving: Fixture, connect: Fixture, identities: Any
) -> None:
    """A caller that wants ``other`` does not talk to ``server``, whatever the address says."""

    async def scenario() -> None:
        async with serving() as (server, stub):
            async with connect(server.port, identities["asker"], name="other") as bad:
                assert await code_of(bad.Predict(request(server), timeout=20)) is Code.UNAVAILABLE
            await still_serves(server, stub)

    asyncio.run(scenario())


def test_a_name_that_is_denied(serving: Fixture, connect: Fixture, identities: Any) -> None:
    async def scenario() -> None:
        async with serving(deny=["other"]) as (server, stub):
            async with connect(server.port, identities["other"]) as bad:
                code = await code_of(bad.Predict(request(server)))
                assert code is Code.PERMISSION_DENIED
            await still_serves(server, stub)
            assert count(server, "nmoe_refusals_total", reason="denied") == 1

    asyncio.run(scenario())


def test_no_encryption_against_encryption(
    serving: Fixture, connect: Fixture, identities: Any
) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            async with connect(server.port, None) as bad:
                assert await code_of(bad.Predict(request(server), timeout=20)) is Code.UNAVAILABLE
            await still_serves(server, stub)
        async with serving(secure=False) as (server, stub):
            async with connect(server.port, identities["asker"]) as bad:
                assert await code_of(bad.Predict(request(server), timeout=20)) is Code.UNAVAILABLE
            await still_serves(server, stub)

    asyncio.run(scenario())


# --- requests that are wrong ---


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ({"dtype": 0}, "dtype"),
        ({"dtype": 99}, "dtype"),
        ({"rows": 0, "data": b""}, "shape"),
        ({"rows": 9, "data": bytes(9 * 16)}, "shape"),
        ({"rows": 2**32 - 1}, "shape"),
        ({"columns": 2**32 - 1}, "shape"),
        ({"columns": 5, "data": bytes(2 * 20)}, "shape"),
        ({"data": bytes(31)}, "size"),
        ({"data": np.full(8, np.nan, "<f4").tobytes()}, "not-finite"),
        ({"data": np.full(8, np.inf, "<f4").tobytes()}, "not-finite"),
        ({"scales": [1.0, 1.0]}, "scales"),
        # Finite latents whose logits are not: 1e38 times a weight sums to infinity.
        ({"data": np.full(8, 3e38, "<f4").tobytes()}, "not-finite"),
    ],
)
def test_wrong_tensors(serving: Fixture, tensor: dict[str, Any], reason: str) -> None:
    fields = {"dtype": Tensor.FLOAT32, "rows": 2, "columns": 4, "data": bytes(32)} | tensor

    async def scenario() -> None:
        async with serving(max_batch=8) as (server, stub):
            bad, good = await asyncio.gather(
                stub.Predict(request(server, latents=Tensor(**fields))),
                stub.Predict(request(server)),  # in the same pass, if the bad one gets so far
                return_exceptions=True,
            )
            assert isinstance(bad, grpc.aio.AioRpcError)
            assert bad.code() is Code.INVALID_ARGUMENT
            assert good.logits.rows == 2
            assert count(server, "nmoe_refusals_total", reason=reason) == 1
            await still_serves(server, stub)

    asyncio.run(scenario())


def test_bytes_that_are_no_request(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            raw = stub.channel.unary_unary("/nmoe.v1.Peer/Predict")
            for data in (b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff", bytes(1000), b"\x22\xff\xff"):
                assert await code_of(raw(data)) is Code.INVALID_ARGUMENT
            assert await code_of(raw(b"")) is Code.FAILED_PRECONDITION  # an empty request
            long = request(server, request_id="x" * 129)
            assert await code_of(stub.Predict(long)) is Code.INVALID_ARGUMENT
            await still_serves(server, stub)

    asyncio.run(scenario())


def test_a_message_that_is_too_large(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            raw = stub.channel.unary_unary("/nmoe.v1.Peer/Predict")
            code = await code_of(raw(bytes(MAX_MESSAGE_BYTES + 1)))
            assert code is Code.RESOURCE_EXHAUSTED
            await still_serves(server, stub)

    asyncio.run(scenario())


def test_methods_that_do_not_exist(serving: Fixture) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            for path in ("/nmoe.v1.Peer/Steal", "/nmoe.v1.Peer/../x", "/x"):
                assert await code_of(stub.channel.unary_unary(path)(b"")) is Code.UNIMPLEMENTED
            await still_serves(server, stub)

    asyncio.run(scenario())


def test_an_error_inside_says_nothing_outside(
    serving: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(latents: Any) -> Any:
        raise RuntimeError("secret path /home/me")

    async def scenario() -> None:
        async with serving() as (server, stub):
            served = server._requests.served[0]
            expert, served._expert = served._expert, broken
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Predict(request(server))
            assert caught.value.code() is Code.INTERNAL
            assert caught.value.details() == "internal error"
            assert "secret path" in caplog.text
            served._expert = expert
            await still_serves(server, stub)

    asyncio.run(scenario())


def test_text_of_a_peer_cannot_forge_a_log_line(
    serving: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            forged = 'x\n{"event": "serving"}'
            bad = request(server, extractor_version=forged)
            assert await code_of(stub.Predict(bad)) is Code.FAILED_PRECONDITION

    asyncio.run(scenario())
    from nmoe_flower.inference.telemetry import JsonFormatter

    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert all("\n" not in line for line in lines)
    refused = [json.loads(line) for line in lines if json.loads(line)["event"] == "refused"]
    assert [(line["peer"], line["reason"]) for line in refused] == [("asker", "version")]


def test_frames_of_noise(serving: Fixture) -> None:
    """Requests with flipped bytes, over the real wire."""
    rng = np.random.default_rng(3)

    async def scenario() -> None:
        async with serving() as (server, stub):
            raw = stub.channel.unary_unary("/nmoe.v1.Peer/Predict")
            frame = request(server).SerializeToString()
            codes: Counter[Any] = Counter()
            for _ in range(300):
                changed = bytearray(frame)
                for _ in range(int(rng.integers(1, 4))):
                    changed[rng.integers(len(frame))] = rng.integers(256)
                try:
                    await raw(bytes(changed))
                    codes[Code.OK] += 1
                except grpc.aio.AioRpcError as error:
                    codes[error.code()] += 1
            assert set(codes) == {Code.OK, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION}
            await still_serves(server, stub)

    asyncio.run(scenario())


# --- too many, too slow, cut off ---


def test_a_flood(serving: Fixture) -> None:
    """Who does not fit hears so at once, while the expert is busy; afterwards nothing is held."""

    async def scenario() -> None:
        async with serving(max_batch=8, max_queue=16) as (server, stub):
            leave = threading.Event()
            server._requests.served[0].batcher._inline_rows = 0
            server._executor.submit(leave.wait, 20)  # the expert's thread has other work
            calls = [
                asyncio.ensure_future(stub.Predict(request(server), timeout=60))
                for _ in range(1000)
            ]
            # A caller may hold half of the queue, 8 rows: 4 requests of 2.
            refused, busy = [], set(calls)
            while len(refused) < 996:
                done, busy = await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
                refused += [call.exception().code() for call in done]
            assert set(refused) == {Code.RESOURCE_EXHAUSTED}
            leave.set()
            assert [reply.logits.rows for reply in await asyncio.gather(*busy)] == [2] * 4
            await still_serves(server, stub)
            assert server._requests.open == 0
            assert server._requests.waiting_rows() == 0
            assert server._requests._held["asker"] == 0

    asyncio.run(scenario())


def test_a_flood_fills_no_log(serving: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving() as (server, stub):
            bad = request(server, extractor_version="no")
            for _ in range(100):
                await code_of(stub.Predict(bad))
            assert count(server, "nmoe_refusals_total", reason="version") == 100

    asyncio.run(scenario())
    assert sum("refused" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("secure", [True, False])
def test_connections_cut_off_and_connections_that_say_nothing(
    serving: Fixture, identities: Any, tmp_path: Path, secure: bool
) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    headers = b"\x00\x00\x40\x01\x04\x00\x00\x00\x01" + bytes(10)  # says 64 bytes, brings 10

    async def scenario() -> None:
        async with serving(secure=secure) as (server, stub):
            writers = []
            for sent in (b"", b"\x16\x03\x01\x02", preface[:10], preface + headers, bytes(500)):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(sent)
                writers.append(writer)
            await still_serves(server, stub)  # while they are open
            for writer in writers:
                writer.transport.abort()
            await still_serves(server, stub)

    asyncio.run(scenario())


def test_a_member_that_hangs_up_in_the_middle_of_a_request(
    serving: Fixture, authority: Authority, tmp_path: Path
) -> None:
    """TLS and HTTP/2 as they should be, then half a request, then nothing."""
    authority.issue(tmp_path, "rude")
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    context.load_cert_chain(tmp_path / "rude.pem", tmp_path / "rude.key")
    context.set_alpn_protocols(["h2"])
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"

    async def scenario() -> None:
        async with serving() as (server, stub):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", server.port, ssl=context, server_hostname="server"
            )
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + b"\x00\x00\x40\x01\x04")
            await writer.drain()
            writer.transport.abort()
            await still_serves(server, stub)

    asyncio.run(scenario())


# --- code ---


def test_nothing_is_unpickled() -> None:
    """No module of the service can turn bytes into code."""
    forbidden = {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib", "yaml"}
    folder = Path(nmoe_flower.inference.__file__).parent
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] not in forbidden
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "np.load", "eval", "exec"}
            assert getattr(node, "arg", None) != "allow_pickle"


def test_the_log_is_quiet_about_good_requests(
    serving: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nmoe_flower.inference")

    async def scenario() -> None:
        async with serving() as (server, stub):
            for _ in range(10):
                await stub.Predict(request(server))

    asyncio.run(scenario())
    events = [getattr(record, "event", record.message) for record in caplog.records]
    assert events == ["serving", "draining", "stopped"]
