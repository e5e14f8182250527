"""Texts that go on side by side at one peer: as if each were alone, and none harms another."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from nmoe_flower.errors import BundleError
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.inference.bundle import Drawn, Session, TextExperts, TextStep, Writing
from nmoe_flower.inference.protocol import encode_tokens
from nmoe_flower.inference.protocol.peer_pb2 import GenerateRequest
from nmoe_flower.inference.serve import RefusedError, ServiceMetrics, text_steps
from nmoe_flower.inference.serve.text_requests import ServedText, TextLimits, TextRequests
from nmoe_flower.inference.serve.text_steps import TextSteps

Make = Callable[..., Any]
BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED


class Call:
    """One stream, without a network: what is asked, and what came back."""

    def __init__(self, *messages: bytes, caller: str = "", stays: bool = False) -> None:
        self._messages = list(messages)
        self._caller, self._stays = caller, stays
        self.tokens: list[int] = []
        self.told: list[float] = []
        self.wrote = asyncio.Event()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_common_name": [self._caller.encode()]}

    async def read(self) -> Any:
        if self._stays and not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0) if self._messages else grpc.aio.EOF

    async def write(self, reply: Any) -> None:
        self.tokens.append(reply.token)
        self.told.append(reply.log_probability)
        self.wrote.set()

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise RefusedError(code, "aborted", text)


class Peer:
    """Handlers of device 1, whose operator lets tokens leave; counts rows of each pass."""

    def __init__(self, of: Any, executor: Any, *, name: str = "", **limits: Any) -> None:
        self.passes: list[int] = []
        self.experts = TextExperts(of.bundles[1], of.backbone)
        self.version = of.bundles[1].extractor_version
        self.served = ServedText(
            of.bundles[1],
            self.experts,
            executor,
            limits=TextLimits(**{"queue": 4096, "texts": 32, "mib": 64, **limits}),
            on_pass=lambda rows, seconds: self.passes.append(rows),
        )
        self.requests = TextRequests(
            name=name, metrics=ServiceMetrics(), max_rows=4096, max_queue=4096
        )
        self.requests.served = [self.served]

    def asks(self, text: str, count: int, **more: Any) -> bytes:
        return GenerateRequest(
            request_id="a", extractor_version=self.version, expert=1, count=count,
            tokens=encode_tokens(list(text.encode())), **more,
        ).SerializeToString()  # fmt: skip

    async def generate(self, call: Call) -> Call:
        await self.requests.generate(None, call)
        return call

    def alone(self, text: str, count: int, **more: Any) -> list[int]:
        return asyncio.run(self.generate(Call(self.asks(text, count, **more)))).tokens


@pytest.fixture
def executor() -> Any:
    with ThreadPoolExecutor(1) as thread:
        yield thread


ASKED = (
    ("klm", 9, {}),
    ("klmklmklmk", 6, {"temperature": 1.0, "seed": 5}),
    ("m", 12, {"temperature": 0.7, "seed": 6}),
    ("lkmmlk", 1, {}),
)


def test_texts_go_on_together_as_if_each_were_alone(export: Make, executor: Any) -> None:
    """Token for token in float32, whatever their lengths, counts and temperatures."""
    peer = Peer(export(query__send="tokens"), executor)
    wanted = [peer.alone(text, count, **more) for text, count, more in ASKED]
    peer.passes.clear()

    async def together() -> list[Call]:
        calls = [Call(peer.asks(text, count, **more)) for text, count, more in ASKED]
        return await asyncio.gather(*map(peer.generate, calls))

    found = asyncio.run(together())
    assert [call.tokens for call in found] == wanted
    assert [len(tokens) for tokens in wanted] == [count for _, count, _ in ASKED]
    # Beginnings are read alone, 3 + 10 + 6 rows, "m" beside others; then all that are left.
    assert sum(peer.passes) == 3 + 10 + 1 + 6 + 8 + 5 + 11 + 0
    assert len(peer.passes) < 20
    assert (peer.served.sessions, peer.served.waiting_rows) == (0, 0)


def test_whoever_leaves_or_is_refused_harms_nobody(export: Make, executor: Any) -> None:
    """One hangs up in the middle, one asks for more than the backbone reads, one joins late."""
    peer = Peer(export(query__send="tokens"), executor)
    wanted = peer.alone("klm", 30), peer.alone("mmm", 9)

    async def together() -> tuple[Call, Call, Call]:
        stays, leaves = (Call(peer.asks(text, 30)) for text in ("klm", "lll"))
        staying, leaving = (asyncio.create_task(peer.generate(one)) for one in (stays, leaves))
        await leaves.wrote.wait()
        leaving.cancel()
        too_much = Call(peer.asks("klm", 3), peer.asks("klm", 9, position=4))
        with pytest.raises(RefusedError, match="token 4 follows 5 that were read"):
            await peer.generate(too_much)
        late = await peer.generate(Call(peer.asks("mmm", 9)))
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await staying, late, leaves

    stays, late, leaves = asyncio.run(together())
    assert (stays.tokens, late.tokens) == wanted
    assert len(leaves.tokens) < 30
    assert max(peer.passes[1:]) > 1
    assert (peer.served.sessions, peer.served.waiting_rows) == (0, 0)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"texts": 1}, "busy: 1 text is open, as many as may be"),
        ({"mib": 0.02}, r"13 tokens beside 13 of other texts .*0\.02"),
        ({"queue": 2}, "busy: the queue is full"),
    ],
)  # fmt: skip
def test_more_than_a_peer_takes_is_refused_in_words(
    export: Make, executor: Any, limits: dict[str, Any], said: str
) -> None:
    """A token of this model keeps 2 x 4 x 32 numbers of four bytes, so that 0.02 MiB are 20."""
    peer = Peer(export(query__send="tokens"), executor, **limits)

    async def both() -> list[Any]:
        calls = [Call(peer.asks("klm", 10)) for _ in range(2)]
        return await asyncio.gather(*map(peer.generate, calls), return_exceptions=True)

    *good, refused = sorted(asyncio.run(both()), key=lambda one: isinstance(one, Exception))
    assert isinstance(refused, RefusedError)
    assert refused.code is BUSY
    with pytest.raises(RefusedError, match=said):
        raise refused
    if "queue" not in limits:
        assert [call.tokens for call in good] == [peer.alone("klm", 10)]
    assert (peer.served.sessions, peer.served.waiting_rows) == (0, 0)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"texts": 5}, "busy: 2 texts are open for cat, as many as one caller may have"),
        ({"mib": 0.06}, r"13 tokens beside 26 of other texts of cat .*allowed: 0\.03"),
    ],
)
def test_one_caller_has_half_of_the_texts_and_others_still_get_in(
    export: Make, executor: Any, limits: dict[str, Any], said: str
) -> None:
    """Three texts of 13 tokens: 0.03 MiB are 30 of this model."""
    peer = Peer(export(query__send="tokens"), executor, name="owl", **limits)
    asked = peer.asks("klm", 10)

    async def scenario() -> None:
        held = [Call(asked, caller="cat", stays=True) for _ in range(2)]
        tasks = [asyncio.create_task(peer.generate(one)) for one in held]
        for call in held:
            await call.wrote.wait()
        for _ in range(2):  # a refusal leaves nothing behind
            with pytest.raises(RefusedError, match=said) as refused:
                await peer.generate(Call(asked, caller="cat"))
            assert refused.value.code is BUSY
        other = await peer.generate(Call(asked, caller="elk"))
        assert len(other.tokens) == 10
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert len((await peer.generate(Call(asked, caller="cat"))).tokens) == 10
        tasks[1].cancel()
        await asyncio.wait(tasks)

    asyncio.run(scenario())
    assert (peer.served.sessions, peer.served.waiting_rows) == (0, 0)


def test_askers_over_the_network_get_what_each_would_alone(
    village: Make, text_loop: LoopThread
) -> None:
    """Hidden states of three askers, each with a connection of its own."""
    made = village()
    made.serve(1, max_texts=3)
    clients = [made.client(fallbacks=0) for _ in range(3)]
    texts = ("klm", "kkllmm", "mlkmlkmlkm")
    wanted = [made.greedy(1, list(text.encode()), 12) for text in texts]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda one, text: list(one.generate(text, 12)), clients, texts))
    assert [[piece.token for piece in pieces] for pieces in found] == wanted
    assert {piece.peer for pieces in found for piece in pieces} == {"peer-1"}


@pytest.mark.parametrize("send", ["hidden", "tokens"])
def test_askers_of_a_peer_that_dies_all_go_on_elsewhere(village: Make, send: str) -> None:
    made = village(replicas=2, query__send="tokens")
    made.serve(1, 2)
    made.stall(1, tokens=4)
    texts = ("klmklm", "mkm")
    wanted = [made.greedy(1, list(text.encode()), 9) for text in texts]
    clients = [made.client(send=send, encoding="float32") for _ in texts]
    generations = [one.generate(text, 9) for one, text in zip(clients, texts, strict=True)]
    for place, _ in enumerate(zip(*generations, strict=True)):
        if place == 3:
            made.kill(1)
    for generation, tokens in zip(generations, wanted, strict=True):
        assert [piece.token for piece in generation.pieces] == tokens
        writers = [piece.peer for piece in generation.pieces]
        assert writers == ["peer-1"] * 4 + ["peer-2"] * 5


# --- who goes on with whom ---


class Worker:
    """Computes when it is told to; remembers what was computed together."""

    def __init__(self, *, most: int = 32) -> None:
        self.passes: list[list[Session]] = []
        self.jobs: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.steps = TextSteps(self._compute, self, most=most, on_pass=lambda *_: None)  # type: ignore[arg-type]
        self.fails = False

    def _compute(self, steps: Sequence[TextStep]) -> list[Drawn | None]:
        self.passes.append([step.session for step in steps])
        if self.fails:
            raise BundleError("broken")
        return [None if step.how is None else Drawn(len(self.passes), 0.0) for step in steps]

    def submit(self, work: Callable[..., Any], *given: Any) -> Future[Any]:
        self.jobs.append((Future(), lambda: work(*given)))
        return self.jobs[-1][0]

    async def work(self) -> None:
        """Let everybody ask, then compute one pass."""
        await turns()
        future, job = self.jobs.pop(0)
        try:
            future.set_result(job())
        except BundleError as error:
            future.set_exception(error)
        await turns()

    def ask(self, session: Session, rows: int = 1) -> "asyncio.Task[Drawn | None]":
        step = TextStep(session, np.zeros(rows, np.int64), Writing())
        return asyncio.create_task(self.steps.go_on(step))  # type: ignore[arg-type]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_pass_takes_the_oldest_and_all_that_fit_beside_it() -> None:
    async def run() -> None:
        worker = Worker(most=3)
        a, b, c, d, other, long = (Session(1 if at != 4 else 2) for at in range(6))
        asked = [worker.ask(a)]
        await turns()
        asked += [worker.ask(one) for one in (b, other, c)]
        asked += [worker.ask(long, rows=7), worker.ask(d), worker.ask(a)]
        gone = worker.ask(Session(1))
        await turns()
        gone.cancel()
        for _ in range(4):
            await worker.work()
        assert worker.passes == [[a], [b, c, d], [other], [long]]
        await worker.work()
        assert worker.passes[4:] == [[a]]
        assert worker.steps.waiting_rows == 0
        assert [one.result() for one in asked if not one.cancelled()] == [
            Drawn(at, 0.0) for at in (1, 2, 3, 2, 4, 2, 5)
        ]

    asyncio.run(run())


def test_a_pass_that_fails_ends_its_own_texts_alone() -> None:
    async def run() -> None:
        worker = Worker()
        first = worker.ask(a := Session(1))
        await turns()
        later = worker.ask(b := Session(1))
        worker.fails = True
        await worker.work()
        worker.fails = False
        await worker.work()
        assert worker.passes == [[a], [b]]
        with pytest.raises(BundleError, match="broken"):
            await first
        assert await later == Drawn(2, 0.0)

    asyncio.run(run())


def test_a_free_worker_waits_for_those_that_are_about_to_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pass takes 1,000 s here; both askers take 10 s, then one 600 s: it is not waited for."""
    now = 0.0
    monkeypatch.setattr(text_steps.time, "perf_counter", lambda: now)

    async def run() -> None:
        nonlocal now
        worker = Worker()
        compute = worker._compute

        def slow(steps: Sequence[TextStep]) -> list[Drawn | None]:
            nonlocal now
            now += 1000
            return compute(steps)

        worker.steps._compute = slow
        a, b = Session(1), Session(1)

        async def again(session: Session, pause: float) -> None:
            nonlocal now
            now += pause
            worker.ask(session)
            await turns()

        await again(a, 0)
        await again(b, 0)
        await worker.work()  # a; b comes meanwhile
        await again(a, 10)
        await worker.work()  # b
        assert worker.passes == [[a], [b]]
        await again(b, 10)
        await worker.work()  # a, as nothing was known of b
        assert not worker.jobs  # a is worth waiting for
        await again(a, 10)
        await worker.work()
        assert worker.passes[2:] == [[a], [b, a]]
        await again(b, 10)
        assert not worker.jobs
        worker.steps.leave(a)
        await worker.work()
        assert worker.passes[4:] == [[b]]
        await again(a, 600)
        await worker.work()
        await again(b, 600)
        await worker.work()
        await again(a, 10)
        assert worker.jobs  # b takes more than half a pass

    asyncio.run(run())
