"""Questions about text that are wrong, and answers that are: refused in words, replaced."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.inference.ask import PeerChannel
from nmoe_flower.inference.ask.channel import Conversation
from nmoe_flower.inference.bundle import TextExperts
from nmoe_flower.inference.protocol import encode_tensor, encode_tokens
from nmoe_flower.inference.protocol.peer_pb2 import (
    GenerateReply,
    GenerateRequest,
    ScoreReply,
    ScoreRequest,
)
from nmoe_flower.inference.serve import ServiceMetrics
from nmoe_flower.inference.serve.text_requests import ServedText, TextLimits, TextRequests

Make = Callable[..., Any]
WIDTH, CONTEXT = 32, 40
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNFIT = grpc.StatusCode.FAILED_PRECONDITION
DENIED = grpc.StatusCode.PERMISSION_DENIED
FINE = grpc.StatusCode.OK


class HungUpError(Exception):
    """What ends a handler that aborts."""


class Call:
    """What gRPC hands to a handler, without a network."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = list(messages)
        self.said: list[Any] = []
        self.code, self.text = FINE, ""

    async def read(self) -> Any:
        return self.messages.pop(0) if self.messages else grpc.aio.EOF

    async def write(self, reply: Any) -> None:
        self.said.append(reply)

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        self.code, self.text = code, text
        raise HungUpError


class Peer:
    """Handlers of device 1, without a network."""

    def __init__(self, of: Any, executor: ThreadPoolExecutor) -> None:
        self.bundle = of.bundles[1]
        self.served = ServedText(
            self.bundle,
            TextExperts(self.bundle, of.backbone),
            executor,
            limits=TextLimits(queue=4096, texts=32, mib=1024),
            on_pass=lambda rows, seconds: None,
        )
        self.requests = TextRequests(
            name="", metrics=ServiceMetrics(), max_rows=4096, max_queue=4096
        )
        self.requests.served = [self.served]

    def asks(self, kind: type, **fields: Any) -> Any:
        """A question that is right, but for what is given."""
        known = {"request_id": "a", "extractor_version": self.bundle.extractor_version}
        return kind(**{**known, "expert": 1, **fields})

    def score(self, data: bytes) -> Call:
        call = Call()

        async def ask() -> None:
            with contextlib.suppress(HungUpError):
                call.said.append(await self.requests.score(data, call))

        asyncio.run(ask())
        return self._quiet(call)

    def generate(self, *messages: bytes) -> Call:
        call = Call(*messages)

        async def ask() -> None:
            with contextlib.suppress(HungUpError):
                await self.requests.generate(None, call)

        asyncio.run(ask())
        return self._quiet(call)

    def _quiet(self, call: Call) -> Call:
        """Nothing is left behind, whatever was asked."""
        assert (self.served.sessions, self.served.waiting_rows, self.requests.open) == (0, 0, 0)
        assert not +self.requests._held
        return call


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def peer(export: Make, thread: ThreadPoolExecutor) -> Peer:
    return Peer(export(), thread)


@pytest.fixture(scope="module")
def open_peer(export: Make, thread: ThreadPoolExecutor) -> Peer:
    """Where tokens may leave their devices."""
    return Peer(export(query__send="tokens"), thread)


def states(rows: int, value: float = 0.1, width: int = WIDTH) -> Any:
    return encode_tensor(np.full((rows, width), value, np.float32), "float16")


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"hidden": states(8), "windows": 2}, FINE, ""),
        ({"hidden": states(8)}, INVALID, "8 tokens are no 0 windows"),
        ({"hidden": states(8), "windows": 3}, INVALID, "8 tokens are no 3 windows"),
        ({"hidden": states(8), "windows": 9}, INVALID, "no 9 windows"),
        ({"hidden": states(41), "windows": 1}, INVALID, "41 tokens; allowed: 1 to 40"),
        ({"hidden": states(2, width=31), "windows": 1}, INVALID, "31"),
        ({"windows": 1}, INVALID, "type"),
        ({"hidden": states(1), "windows": 1, "expert": 0}, UNFIT, "of device 0"),
        ({"hidden": states(1), "windows": 1, "expert": 2**32 - 1}, UNFIT, "of device 4294967295"),
        ({"hidden": states(1), "windows": 1, "extractor_version": "0" * 16}, UNFIT, "0000"),
        ({"hidden": states(1), "windows": 1, "expert_version": "old"}, UNFIT, "'old'"),
        ({"hidden": states(1), "windows": 1, "request_id": "x" * 129}, INVALID, "129 characters"),
        ({"tokens": encode_tokens([1, 2]), "windows": 1}, DENIED, "query.send"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(
    peer: Peer, fields: dict[str, Any], code: grpc.StatusCode, said: str
) -> None:
    call = peer.score(peer.asks(ScoreRequest, **fields).SerializeToString())
    assert (call.code, len(call.said)) == (code, int(code is FINE)), call.text
    assert said in call.text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tokens": encode_tokens([1])}, "1 tokens; allowed: 2 to 40"),
        ({"tokens": b"\1\0\0"}, "3 bytes of tokens"),
        ({"tokens": encode_tokens([1, 257])}, "token 257; allowed: 0 to 256"),
        ({"tokens": encode_tokens([1, 2]), "hidden": states(2)}, "not both"),
    ],
)
def test_what_is_wrong_with_tokens_is_said(
    open_peer: Peer, fields: dict[str, Any], said: str
) -> None:
    question = open_peer.asks(ScoreRequest, windows=1, **fields)
    call = open_peer.score(question.SerializeToString())
    assert (call.code, call.said) == (INVALID, [])
    assert said in call.text


@pytest.mark.parametrize(
    ("messages", "said", "written"),
    [
        ([{"hidden": states(3), "position": 3}], "token 3 follows 0", 0),
        ([{"hidden": states(3), "count": 2}], "token by token", 0),
        ([{"hidden": states(40), "count": 1}], "40 tokens and 1 to follow; allowed: 40", 0),
        ([{"hidden": states(3), "count": 1, "temperature": np.nan}], "temperature nan", 0),
        ([{"hidden": states(3), "count": 1, "temperature": -1}], "temperature -1", 0),
        ([{"hidden": states(3), "count": 1, "temperature": np.inf}], "temperature inf", 0),
        (
            [
                {"hidden": states(3), "count": 1},
                {"hidden": states(1), "count": 1, "position": 3, "request_id": "b"},
            ],
            "a stream is about one text",
            1,
        ),
        ([{"hidden": states(3), "count": 1}, {"hidden": states(1), "count": 1}], "0 follows 3", 1),
    ],
)
def test_what_is_wrong_with_a_text_that_goes_on_is_said(
    peer: Peer, messages: list[dict[str, Any]], said: str, written: int
) -> None:
    asked = [peer.asks(GenerateRequest, **one).SerializeToString() for one in messages]
    call = peer.generate(*asked)
    assert (call.code, len(call.said)) == (INVALID, written)
    assert said in call.text


def questions(kind: type) -> st.SearchStrategy[bytes]:
    """Noise, and questions most of whose fields are right."""
    small = st.integers(0, 9)
    fields: dict[str, st.SearchStrategy[Any]] = {
        "hidden": st.builds(
            states, st.integers(1, 45), st.sampled_from([0.1, -3e4]), st.sampled_from([32, 32, 1])
        ),
        "tokens": st.one_of(st.binary(max_size=9), st.lists(small, max_size=9).map(encode_tokens)),
        "expert": st.sampled_from([1, 1, 1, 0]),
        "windows" if kind is ScoreRequest else "position": small,
    }
    if kind is GenerateRequest:
        fields |= {"count": st.sampled_from([0, 1, 3, 2**32 - 1]), "temperature": st.floats(0, 4)}
    asked = st.fixed_dictionaries({}, optional=fields)
    return st.one_of(st.binary(max_size=40), asked)  # type: ignore[arg-type]


OF_USERS = (FINE, INVALID, UNFIT, DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED)


@settings(max_examples=40)
@given(data=st.data())
def test_nothing_that_is_sent_breaks_a_peer(open_peer: Peer, data: st.DataObject) -> None:
    """Every question is answered with finite numbers, or refused as the asker's fault."""
    kind = data.draw(st.sampled_from([ScoreRequest, GenerateRequest]))
    asked = data.draw(st.lists(questions(kind), min_size=1, max_size=3))
    told = [
        one if isinstance(one, bytes) else open_peer.asks(kind, **one).SerializeToString()
        for one in asked
    ]
    call = open_peer.score(told[0]) if kind is ScoreRequest else open_peer.generate(*told)
    assert call.code in OF_USERS, call.text
    for reply in call.said:
        if isinstance(reply, GenerateReply):
            assert np.isfinite(reply.log_probability)
            assert reply.token <= 256
        else:
            assert isinstance(reply, ScoreReply)


def test_states_that_float16_cannot_hold_travel_as_float32(
    village: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first token of a text has them in some models."""
    made = village()
    made.serve(1)
    client = made.client(fallbacks=0)
    lower = client.experts.lower
    monkeypatch.setattr(client.experts, "lower", lambda *given: 1e6 * lower(*given))
    found = client.score("klmklmkl")
    assert found.answered_by == {"1": ["peer-1"]}
    assert found.cost.up > 7 * 4 * WIDTH
    assert [piece.peer for piece in client.generate("klm", 2)] == ["peer-1"] * 2


# --- answers that are wrong ---


def spoilt(**values: Any) -> Callable[[Any], None]:
    def spoil(reply: Any) -> None:
        for name, value in values.items():
            if name in ("final", "offsets", "log_probabilities"):
                getattr(reply, name).CopyFrom(value)
            else:
                setattr(reply, name, value)

    return spoil


@pytest.mark.parametrize(
    ("send", "spoil", "reason"),
    [
        ("hidden", spoilt(final=states(1)), "shape"),
        ("hidden", spoilt(final=states(39, width=31)), "shape"),
        ("hidden", spoilt(offsets=states(1, width=256)), "shape"),
        ("hidden", spoilt(request_id="other"), "mixed-up"),
        ("tokens", spoilt(log_probabilities=states(1, width=38)), "shape"),
        ("tokens", spoilt(log_probabilities=states(2, width=39)), "shape"),
    ],
)
def test_a_wrong_answer_is_none(
    village: Make, windows: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    send: str, spoil: Callable[[Any], None], reason: str,
) -> None:  # fmt: skip
    """Whoever is next answers, and the failure is told with the peer's name."""
    made = village(query__send="tokens")
    made.serve(1)
    right = PeerChannel._call

    async def wrong(self: PeerChannel, method: str, request: bytes, timeout: float) -> bytes:
        reply = ScoreReply.FromString(await right(self, method, request, timeout))
        spoil(reply)
        return reply.SerializeToString()

    monkeypatch.setattr(PeerChannel, "_call", wrong)
    found = made.client(send=send, fallbacks=0).score_windows(windows[1:2])
    assert found.cost.failures == {f"peer-1: {reason}": 1}
    assert found.peers == {-2: ["self"]}
    assert np.isfinite(found.nats).all()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoilt(position=3), "mixed-up"),
        (spoilt(request_id="other"), "mixed-up"),
        (spoilt(token=257), "token"),
        (spoilt(log_probability=np.nan), "not-finite"),
    ],
)
def test_a_wrong_token_is_none(
    village: Make, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None], reason: str
) -> None:
    """Whoever is next writes it, and what came before stays."""
    made = village()
    made.serve(1)
    right = Conversation.hear
    heard = iter(range(9))

    async def wrong(self: Conversation, *, timeout: float) -> tuple[GenerateReply, int]:
        reply, size = await right(self, timeout=timeout)
        if next(heard) == 2:
            spoil(reply)
        return reply, size

    monkeypatch.setattr(Conversation, "hear", wrong)
    generation = made.client(fallbacks=0).generate("klmklmkl", 5)
    assert [piece.peer for piece in generation] == ["peer-1"] * 2 + ["self"] * 3
    assert generation.cost.failures == {f"peer-1: {reason}": 1}
