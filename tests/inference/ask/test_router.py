"""Remote experts over loopback: right answers, and what happens when peers misbehave."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from nmoe_flower.errors import ConfigError
from nmoe_flower.inference.ask.breaker import Breaker
from nmoe_flower.inference.ask.channel import PackedQuery, PeerChannel
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.inference.ask.record import CallRecord
from nmoe_flower.inference.ask.router import RemoteExperts
from nmoe_flower.inference.protocol.peers import PeerEntry, PeerList
from nmoe_flower.models import NMoE, Routing, combine

DEADLINE = 20.0  # never reached, unless a test wants it
LATENTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
SCORES = torch.tensor([0.0, 3.0, 2.0, 1.0]).expand(7, 4)  # the ranking is 1, 2, 3, 0
ONE = torch.ones(7, 1, dtype=torch.int64)
MIXED = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 1], [1, 0], [2, 0], [3, 2]])

Make = Callable[..., Any]


@pytest.fixture
def pool(neighbourhood: Make) -> Iterator[Make]:
    """Makes a router among a neighbourhood's peers; closed at the end."""
    made: list[RemoteExperts] = []

    def make(around: Any, **settings: Any) -> RemoteExperts:
        settings = {"deadline": DEADLINE, "ranking": lambda latents: SCORES} | settings
        peers = settings.pop("peers", around.list)
        made.append(RemoteExperts(peers, own=0, local=around.experts[0], **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def outcomes(record: CallRecord) -> list[tuple[str, str, str]]:
    return [(sent.peer, sent.why, sent.outcome) for sent in record.sent]


def test_logits_equal_those_of_the_experts_themselves(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood()
    logits, record = pool(around).ask(LATENTS, MIXED)
    assert torch.allclose(logits, around.logits(LATENTS, MIXED), atol=1e-6, rtol=0)
    assert record.answered_by.tolist() == MIXED.tolist()
    assert [around[i].asked for i in (1, 2, 3)] == [1, 1, 1]  # one message per peer
    assert sorted(outcomes(record)) == [(f"peer-{i}", "chosen", "answered") for i in (1, 2, 3)]
    assert all(sent.bytes_up > 0 and sent.bytes_down > 0 for sent in record.sent)
    assert record.bytes_up > 10 * 4 * 4  # 10 remote cells of 4 floats


def test_the_mixture_is_the_same_as_with_local_experts(neighbourhood: Make, pool: Make) -> None:
    """The pool stands behind ``NMoE`` like any other."""
    around = neighbourhood()

    class Fixed:
        def route(self, latents: torch.Tensor, *, generator: Any = None) -> Routing:
            return Routing(MIXED, torch.tensor([[0.7, 0.3]]).expand(7, 2))

    answer = NMoE(torch.nn.Identity(), Fixed(), pool(around)).mixture(LATENTS)
    expected = combine(around.logits(LATENTS, MIXED), torch.tensor([[0.7, 0.3]]).expand(7, 2))
    assert answer.answered.all()
    assert torch.allclose(answer.probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("encoding", ["float16", "int8"])
def test_shorter_encodings_cost_less_and_change_little(
    neighbourhood: Make, pool: Make, encoding: str
) -> None:
    around = neighbourhood()
    logits, short = pool(around, encoding=encoding).ask(LATENTS, ONE)
    assert torch.allclose(logits, around.logits(LATENTS, ONE), atol=0.05)
    assert not torch.equal(logits, around.logits(LATENTS, ONE))
    _, long = pool(around).ask(LATENTS, ONE)
    assert short.bytes_up < long.bytes_up


WRONG = {
    "nan": "not-finite",
    "infinite": "not-finite",
    "one-row-less": "shape",
    "one-row-more": "shape",
    "one-column-more": "shape",
    "lies-about-size": "shape",
    "cut": "size",
    "unknown-type": "dtype",
    "garbage": "garbage",
    "empty": "mixed-up",
    "other-request": "mixed-up",
    "huge": "size",
    "busy": "busy",
    "draining": "unavailable",
    "wrong-version": "version",
    "denied": "denied",
    "broken": "failed",
    "cancels": "cancelled",
    "raises": "failed",
}


def test_a_wrong_answer_is_masked_counted_and_named(
    neighbourhood: Make, pool: Make, caplog: pytest.LogCaptureFixture
) -> None:
    around = neighbourhood()
    router = pool(around, make_breaker=lambda: Breaker(failures=1000))
    expected = around.logits(LATENTS, torch.full((7, 1), 2))
    for times, (mood, reason) in enumerate(WRONG.items(), start=1):
        caplog.clear()
        around[1].mood = mood
        with caplog.at_level(logging.WARNING, "nmoe_flower.inference"):
            logits, record = router.ask(LATENTS, ONE)
        assert torch.allclose(logits, expected, atol=1e-6), mood
        assert outcomes(record) == [
            ("peer-1", "chosen", reason), ("peer-2", "next-best", "answered"),
        ], mood  # fmt: skip
        assert record.summary()["next_best"] == 7
        assert min(sent.bytes_up for sent in record.sent) > 7 * 4 * 4  # both were sent
        state = router.states()[0]
        assert sum(state.failures.values()) == times
        if state.failures[reason] == 1:
            assert f'peer="peer-1" partition=1 reason="{reason}"' in caplog.text
    around[1].mood = "right"
    _, record = router.ask(LATENTS, ONE)
    assert record.answered_by.tolist() == ONE.tolist()


def test_a_flood_of_failures_is_not_a_flood_of_lines(
    neighbourhood: Make, pool: Make, caplog: pytest.LogCaptureFixture
) -> None:
    around = neighbourhood(1)
    router = pool(around, make_breaker=lambda: Breaker(failures=1000))
    around[1].mood = "garbage"
    with caplog.at_level(logging.WARNING, "nmoe_flower.inference"):
        for _ in range(20):
            router(LATENTS, ONE)
    assert router.states()[0].failures == {"garbage": 20}
    assert [line.split("times=")[1] for line in caplog.messages] == ["1", "2", "4", "8", "16"]


def test_with_several_experts_the_silent_are_left_out(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood()
    around[1].mood = "nan"
    logits, record = pool(around).ask(LATENTS, MIXED)
    lost = MIXED == 1
    assert logits[lost].isnan().all()
    expected = around.logits(LATENTS, MIXED)[~lost]
    assert torch.allclose(logits[~lost], expected, atol=1e-6)
    assert record.summary()["silent"] == int(lost.sum())
    assert record.summary()["next_best"] == record.summary()["local"] == 0


def test_the_mixture_is_taken_over_those_that_answered(neighbourhood: Make, pool: Make) -> None:
    """Weights 0.5, 0.3 and 0.2; the first is silent, so 0.6 and 0.4 are left."""
    around = neighbourhood()
    around[1].mood = "garbage"
    ids = torch.tensor([[1, 2, 3]]).expand(7, 3)

    class Fixed:
        def route(self, latents: torch.Tensor, *, generator: Any = None) -> Routing:
            return Routing(ids, torch.tensor([[0.5, 0.3, 0.2]]).expand(7, 3))

    answer = NMoE(torch.nn.Identity(), Fixed(), pool(around)).mixture(LATENTS)
    shares = around.logits(LATENTS, ids).softmax(dim=2)
    expected = 0.6 * shares[:, 1] + 0.4 * shares[:, 2]
    assert answer.answered.tolist() == [[False, True, True]] * 7
    assert torch.allclose(answer.probabilities, expected, atol=1e-6)


def test_when_nobody_answers_the_local_expert_does(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood()
    for i in (1, 2, 3):
        around[i].mood = "garbage"
    logits, record = pool(around).ask(LATENTS, ONE)
    assert torch.allclose(logits, around.logits(LATENTS, torch.zeros_like(ONE)), atol=1e-6)
    assert record.summary()["local"] == 7
    assert [sent.why for sent in record.sent] == ["chosen", "next-best", "next-best"]


def test_without_a_ranking_the_local_expert_follows_at_once(
    neighbourhood: Make, pool: Make
) -> None:
    around = neighbourhood()
    around[1].mood = "garbage"
    _, record = pool(around, ranking=None).ask(LATENTS, ONE)
    assert record.answered_by.tolist() == [[0]] * 7
    assert around[2].asked == 0


def test_a_peer_that_never_answers_is_given_up_at_the_deadline(
    neighbourhood: Make, pool: Make
) -> None:
    around = neighbourhood()
    around[1].mood = "silent"
    router = pool(around, deadline=0.4)
    logits, record = router.ask(LATENTS, ONE)
    assert torch.allclose(logits, around.logits(LATENTS, torch.zeros_like(ONE)), atol=1e-6)
    assert outcomes(record) in (
        [("peer-1", "chosen", "unfinished")],
        [("peer-1", "chosen", "deadline")],
        [("peer-1", "chosen", "deadline"), ("peer-2", "next-best", "unfinished")],
    )
    assert record.ms >= 400


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n\r\nhello", b"\x00" * 5000])
def test_what_does_not_even_speak_grpc_is_no_answer(
    neighbourhood: Make, pool: Make, server_loop: LoopThread, sent: bytes
) -> None:
    """Something that takes connections, says ``sent`` and hangs up."""
    around = neighbourhood()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    server = server_loop.submit(asyncio.start_server(hang_up, "127.0.0.1", 0)).result(10)
    try:
        port = server.sockets[0].getsockname()[1]
        wrong = PeerEntry("peer-1", 1, f"127.0.0.1:{port}")
        peers = PeerList((wrong, around[2].entry, around[3].entry))
        _, record = pool(around, peers=peers).ask(LATENTS, ONE)
    finally:
        server_loop.submit(close(server)).result(10)
    assert outcomes(record) == [
        ("peer-1", "chosen", "unavailable"), ("peer-2", "next-best", "answered"),
    ]  # fmt: skip


async def close(server: asyncio.Server) -> None:
    server.close()


def test_a_peer_that_hangs_up_on_a_query_is_replaced(neighbourhood: Make, pool: Make) -> None:
    """The query has reached it, and then it is gone."""
    around = neighbourhood()
    around[1].mood = "silent"
    router = pool(around)
    answers: list[CallRecord] = []
    query = threading.Thread(
        target=lambda: answers.append(router.ask(LATENTS, ONE)[1]), daemon=True
    )
    query.start()
    wait_until(lambda: around[1].asked == 1)
    around.stop(1)
    query.join(DEADLINE)
    assert outcomes(answers[0])[0][:2] == ("peer-1", "chosen")
    assert outcomes(answers[0])[0][2] in ("unavailable", "cancelled")
    assert answers[0].answered_by.tolist() == [[2]] * 7


def test_a_slow_peer_is_hedged(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood()
    around[1].mood = "silent"
    logits, record = pool(around, hedge_after=0.05).ask(LATENTS, ONE)
    assert torch.allclose(logits, around.logits(LATENTS, torch.full((7, 1), 2)), atol=1e-6)
    assert outcomes(record) == [
        ("peer-2", "hedge", "answered"), ("peer-1", "chosen", "unfinished"),
    ]  # fmt: skip
    assert record.ms < 1000 * DEADLINE


def test_nobody_is_hedged_who_is_quick(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood()
    _, record = pool(around, hedge_after=DEADLINE / 2).ask(LATENTS, ONE)
    assert outcomes(record) == [("peer-1", "chosen", "answered")]


def test_who_is_down_is_not_asked_until_it_is_back(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood()
    router = pool(around, make_breaker=lambda: Breaker(failures=2, cooldown=0.01, longest=0.05))
    around.stop(1)
    for _ in range(2):
        _, record = router.ask(LATENTS, ONE)
        assert outcomes(record)[0] == ("peer-1", "chosen", "unavailable")
    _, record = router.ask(LATENTS, ONE)
    assert outcomes(record) == [("peer-1", "chosen", "open"), ("peer-2", "next-best", "answered")]
    around.start(1)  # on the same port
    wait_until(lambda: router.states()[0].breaker == "closed")
    asked = around[1].asked
    assert asked >= 1  # the probe, not a query, found it
    _, record = router.ask(LATENTS, ONE)
    assert record.answered_by.tolist() == ONE.tolist()


def test_a_probe_that_is_answered_wrongly_keeps_it_closed_off(
    neighbourhood: Make, pool: Make
) -> None:
    """Being reachable is not enough: the peer must give a right answer."""
    around = neighbourhood()
    router = pool(around, make_breaker=lambda: Breaker(failures=1, cooldown=0.01, longest=0.02))
    around[1].mood = "nan"
    router.ask(LATENTS, ONE)
    before = around[1].asked
    wait_until(lambda: around[1].asked >= before + 3)
    assert router.states()[0].breaker != "closed"
    assert router.states()[0].answered == 0
    around[1].mood = "right"
    wait_until(lambda: router.states()[0].breaker == "closed")


def test_healthy_peers_are_preferred_if_scores_are_close(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood()
    close = torch.tensor([0.0, 3.0, 2.9, 1.0]).expand(7, 4)
    router = pool(
        around, ranking=lambda latents: close, prefer_margin=0.5,
        make_breaker=lambda: Breaker(failures=1, cooldown=DEADLINE),
    )  # fmt: skip
    _, record = router.ask(LATENTS, ONE)
    assert (record.moved, record.answered_by.tolist()) == (0, ONE.tolist())
    around[1].mood = "garbage"
    router.ask(LATENTS, ONE)
    _, record = router.ask(LATENTS, ONE)
    assert record.moved == 7
    assert outcomes(record) == [("peer-2", "chosen", "answered")]
    assert record.summary()["next_best"] == 0


def test_an_expert_nobody_has_is_replaced(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood(2)
    _, record = pool(around).ask(LATENTS, torch.full((7, 1), 3))
    assert outcomes(record) == [("", "chosen", "unknown"), ("peer-1", "next-best", "answered")]


def test_latents_that_are_no_numbers_stay_at_home(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood()
    latents = LATENTS.clone()
    latents[2, 1], latents[4, 0] = float("nan"), float("inf")
    latents[5, 3] = 1e6  # float16 ends at 65504
    logits, record = pool(around, encoding="float16").ask(latents, ONE)
    assert record.answered_by[:, 0].tolist() == [1, 1, -1, 1, -1, 0, 1]
    assert logits[[2, 4]].isnan().all()
    assert [sent.rows for sent in record.sent] == [4]


def test_large_batches_go_out_in_parts(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood(1)
    latents = torch.randn(600, 4, generator=torch.Generator().manual_seed(2))
    ids = torch.ones(600, 1, dtype=torch.int64)
    logits, record = pool(around, ranking=None).ask(latents, ids)
    assert [sent.rows for sent in record.sent] != [600]
    assert sum(sent.rows for sent in record.sent) == 600
    assert torch.allclose(logits, around.logits(latents, ids), atol=1e-6)


def test_nothing_is_asked_for_an_empty_batch(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood(1)
    logits, record = pool(around, ranking=None).ask(LATENTS[:0], ONE[:0])
    assert logits.shape == (0, 1, 3)
    assert record.summary()["rows"] == 0


def test_a_loop_that_is_stuck_holds_nobody_up(neighbourhood: Make, pool: Make) -> None:
    """The thread of the network has no time: this thread answers alone, when it is too late."""
    around = neighbourhood(1)
    free = threading.Event()

    class Stuck(PeerChannel):
        def pack(self, latents: Any) -> PackedQuery:
            assert free.wait(DEADLINE)
            return super().pack(latents)

    router = pool(around, ranking=None, deadline=0.05, open_channel=lambda peer: Stuck(peer, None))
    ids = torch.tensor([[0, 1]] * 3 + [[1, 2]] * 4)
    logits, record = router.ask(LATENTS, ids)
    free.set()
    assert record.answered_by.tolist() == [[0, -1]] * 7
    own = around.logits(LATENTS, torch.zeros_like(ONE))
    assert torch.allclose(logits[:, :1], own, atol=1e-6)
    assert logits[:, 1].isnan().all()


def test_threads_may_share_a_router(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood()
    router = pool(around)
    right: list[bool] = []

    def query(expert: int) -> None:
        ids = torch.full((7, 1), expert)
        for _ in range(5):
            logits, record = router.ask(LATENTS, ids)
            right.append(torch.allclose(logits, around.logits(LATENTS, ids), atol=1e-6))
            right.append(record.expert_ids.tolist() == ids.tolist())

    threads = [
        threading.Thread(target=query, args=(expert,), daemon=True) for expert in (0, 1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 40


def test_gradients_are_not_asked_for(neighbourhood: Make, pool: Make) -> None:
    around = neighbourhood(1)
    latents = LATENTS.clone().requires_grad_()
    assert not pool(around, ranking=None)(latents, ONE).requires_grad


def test_a_closed_router_says_so(neighbourhood: Make, pool: Make) -> None:
    router = pool(neighbourhood(1), ranking=None)
    router(LATENTS, ONE)
    router.close()
    router.close()
    with pytest.raises(ConfigError, match="closed"):
        router(LATENTS, ONE)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"deadline": 0.0}, "deadline is 0.0"),
        ({"deadline": float("nan")}, "deadline is nan"),
        ({"hedge_after": -1.0}, "hedge_after is -1.0"),
        ({"fallbacks": -1}, "fallbacks is -1"),
        ({"prefer_margin": -0.5}, "prefer_margin is -0.5"),
        ({"prefer_margin": 1.0, "ranking": None}, "prefer_margin needs ranking"),
        ({"encoding": "int4"}, "encoding is 'int4'; allowed: float32, float16, int8"),
        ({"refresh_seconds": 1.0}, "refresh_seconds needs an identity"),
    ],
)
def test_settings_without_sense_are_refused(
    neighbourhood: Make, pool: Make, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        pool(neighbourhood(0), **settings)


@pytest.mark.parametrize(
    ("latents", "ids", "text"),
    [
        (LATENTS[:, :3], ONE, r"latents must be \[B, 4\]"),
        (LATENTS, ONE[:3], r"expert_ids \[B, K\]"),
        (LATENTS, ONE[:, 0], r"expert_ids \[B, K\]"),
        (LATENTS, ONE * 4, "expert ids must be in 0..3, got 4"),
        (LATENTS, -ONE, "expert ids must be 0 or more, got -1"),
        (LATENTS[:2], ONE[:2], r"ranking must give \[2, E\], got shape \(7, 4\)"),
    ],
)
def test_queries_without_sense_are_refused(
    neighbourhood: Make, pool: Make, latents: torch.Tensor, ids: torch.Tensor, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        pool(neighbourhood(0))(latents, ids)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Look again whenever a moment has passed; never longer than ``seconds``."""
    moment = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        moment.wait(0.005)
    raise AssertionError("it did not happen in time")
