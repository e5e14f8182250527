"""Certificates and signed lists: whom a router believes, and how peers join and leave."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from nmoe_flower.certificates import Authority, Identity, create_authority
from nmoe_flower.errors import ConfigError, WireError
from nmoe_flower.inference.ask.breaker import Breaker
from nmoe_flower.inference.ask.router import RemoteExperts
from nmoe_flower.inference.protocol.peers import PeerEntry, PeerList
from nmoe_flower.inference.protocol.signing import DIRECTORY, sign_list

Make = Callable[..., Any]

LATENTS = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
NOW = int(time.time())


def to(expert: int) -> torch.Tensor:
    return torch.full((3, 1), expert)


@pytest.fixture
def around(neighbourhood: Make, member: Make) -> Any:
    """Three peers with certificates: fox, owl and elk."""
    return neighbourhood(3, {1: member("fox"), 2: member("owl"), 3: member("elk")})


@pytest.fixture
def stated(forest: Authority) -> Callable[..., PeerList]:
    """A list signed by the authority."""

    def make(*entries: PeerEntry, serial: int = 1, **times: int) -> PeerList:
        times = {"issued_unix": NOW, "expires_unix": NOW + 86_400} | times
        return sign_list(PeerList(entries, serial, **times), forest)

    return make


@pytest.fixture
def pool(around: Any, member: Make) -> Iterator[Make]:
    made: list[RemoteExperts] = []

    def make(peers: PeerList, **settings: Any) -> RemoteExperts:
        settings = {"identity": member("cat"), "deadline": 20.0} | settings
        made.append(RemoteExperts(peers, own=0, local=around.experts[0], **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def entries(around: Any, *partitions: int) -> list[PeerEntry]:
    return [around[partition].entry for partition in partitions]


def outcome(router: RemoteExperts, expert: int) -> str:
    _, record = router.ask(LATENTS, to(expert))
    return str(record.sent[0].outcome)


def test_members_answer_each_other(around: Any, stated: Make, pool: Make) -> None:
    router = pool(stated(*entries(around, 1, 2, 3)))
    for expert in (1, 2, 3):
        logits, record = router.ask(LATENTS, to(expert))
        assert record.sent[0].outcome == "answered"
        assert torch.allclose(logits, around.logits(LATENTS, to(expert)), atol=1e-6)


def test_a_member_under_another_name_is_not_believed(around: Any, stated: Make, pool: Make) -> None:
    """The list says the owl lives where the fox does: the fox's certificate does not name it."""
    owl = replace(around[1].entry, name="owl")
    router = pool(stated(owl))
    assert outcome(router, 1) == "certificate"
    assert around[1].asked == 0


def test_a_stranger_neither_answers_nor_asks(
    around: Any, stated: Make, pool: Make, tmp_path: Path
) -> None:
    stranger = create_authority(tmp_path, name="forest")  # the same name, other keys
    spy = stranger.issue(tmp_path, "cat")
    theirs = sign_list(PeerList(tuple(entries(around, 1)), 1, NOW, NOW + 86_400), stranger)
    router = pool(theirs, identity=spy)
    assert outcome(router, 1) == "certificate"  # it does not believe the fox
    believer = replace(spy, authority_pem=around[1]._identity.authority_pem)
    router = pool(stated(*entries(around, 1)), identity=believer)
    assert outcome(router, 1) in ("certificate", "unavailable")  # the fox does not believe it
    assert around[1].asked == 0


def test_an_expired_certificate_neither_answers_nor_asks(
    around: Any, neighbourhood: Make, stated: Make, pool: Make, forest: Authority, tmp_path: Path
) -> None:
    before = datetime.now(UTC) - timedelta(days=3)
    old = forest.issue(tmp_path, "fox", start=before, days=1)
    late = neighbourhood(1, {1: old})
    assert outcome(pool(stated(late[1].entry)), 1) == "certificate"
    asker = forest.issue(tmp_path, "cat", start=before, days=1)
    router = pool(stated(*entries(around, 1)), identity=asker)
    assert outcome(router, 1) in ("certificate", "unavailable")
    assert late[1].asked == around[1].asked == 0


def test_plain_and_encrypted_do_not_meet(
    around: Any, neighbourhood: Make, stated: Make, pool: Make
) -> None:
    router = pool(stated(*entries(around, 1)), identity=None)
    assert outcome(router, 1) == "unavailable"
    plain = neighbourhood(1)
    entry = replace(plain[1].entry, name="fox")
    assert outcome(pool(stated(entry)), 1) in ("certificate", "unavailable")
    assert around[1].asked == plain[1].asked == 0


def test_with_certificates_the_list_must_be_signed(around: Any, stated: Make, pool: Make) -> None:
    with pytest.raises(WireError, match="is not signed"):
        pool(around.list)
    with pytest.raises(WireError, match="has expired"):
        pool(stated(*entries(around, 1), issued_unix=5, expires_unix=6))


def test_peers_join_and_leave_without_a_restart(around: Any, stated: Make, pool: Make) -> None:
    router = pool(stated(*entries(around, 1, 2)))
    assert [outcome(router, e) for e in (1, 2, 3)] == ["answered", "answered", "unknown"]
    assert router.update(stated(*entries(around, 2, 3), serial=2))
    assert [outcome(router, e) for e in (1, 2, 3)] == ["unknown", "answered", "answered"]
    owl, elk = router.states()
    assert (owl.peer.name, owl.answered, elk.answered) == ("owl", 2, 1)  # the owl is still known
    assert not router.update(router.peers)


def test_a_peer_that_moves_is_found_at_its_new_address(
    around: Any, stated: Make, pool: Make
) -> None:
    router = pool(
        stated(replace(around[1].entry, address="127.0.0.1:1")),
        make_breaker=lambda: Breaker(failures=1, cooldown=1000.0, longest=1000.0),
    )
    assert outcome(router, 1) == "unavailable"
    assert outcome(router, 1) == "open"
    router.update(stated(*entries(around, 1), serial=2))
    assert outcome(router, 1) == "answered"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"serial": 4}, "replayed"),
        ({"serial": 5}, "replayed"),  # the same serial with other peers in it
        ({"serial": 6, "expires_unix": NOW - 1, "issued_unix": NOW - 9}, "expired"),
        ({"serial": 6, "issued_unix": NOW + 10**6, "expires_unix": NOW + 10**7}, "expired"),
    ],
)
def test_old_lists_change_nothing(
    around: Any, stated: Make, pool: Make, change: dict[str, int], reason: str
) -> None:
    router = pool(stated(*entries(around, 1, 2), serial=5))
    with pytest.raises(WireError) as refused:
        router.update(stated(*entries(around, 3), **change))
    assert refused.value.reason == reason
    assert [peer.partition for peer in router.peers.peers] == [1, 2]
    assert outcome(router, 1) == "answered"


def test_a_newer_list_is_learnt_from_a_peer(
    around: Any, stated: Make, pool: Make, member: Callable[[str], Identity]
) -> None:
    told: list[PeerList] = []
    router = pool(stated(*entries(around, 1, 2)), on_change=told.append)
    assert not router.refresh()  # nobody has a list
    newer = PeerList(tuple(entries(around, 1, 2, 3)), 2, NOW, NOW + 86_400)
    around[2].peer_list = sign_list(newer, member(DIRECTORY))
    assert router.refresh()
    assert outcome(router, 3) == "answered"
    assert told == [around[2].peer_list]
    assert not router.refresh()


def test_the_list_that_is_told_last_is_the_newest(around: Any, stated: Make, pool: Make) -> None:
    """Also if telling of the first takes longer than it takes for the second to come."""
    told: list[int] = []
    slow, begun = threading.Event(), threading.Event()

    def tell(peers: PeerList) -> None:
        if not begun.is_set():
            begun.set()
            assert slow.wait(20)
        told.append(peers.serial)

    router = pool(stated(*entries(around, 1)), on_change=tell)
    lists = [stated(*entries(around, 1, 2), serial=serial) for serial in (2, 3)]
    threads = [
        threading.Thread(target=router.update, args=(peers,), daemon=True) for peers in lists
    ]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    for _ in range(10_000):
        if router.peers.serial == 3:
            break
        threads[1].join(0.001)
    slow.set()
    for thread in threads:
        thread.join(20)
    assert router.peers.serial == 3
    assert told[-1] == 3


def test_a_list_that_cannot_be_passed_on_holds_all_the_same(
    around: Any, stated: Make, pool: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def full(peers: PeerList) -> None:
        raise OSError("the disk is full")

    router = pool(stated(*entries(around, 1)), on_change=full)
    with caplog.at_level(logging.ERROR, "nmoe_flower.inference"):
        assert router.update(stated(*entries(around, 1, 2), serial=2))
    assert "could not be passed on" in caplog.text
    assert outcome(router, 2) == "answered"


def test_lists_of_hostile_peers_are_refused_counted_and_named(
    around: Any, stated: Make, pool: Make, caplog: pytest.LogCaptureFixture
) -> None:
    router = pool(stated(*entries(around, 1, 2), serial=3))
    around[1].mood = "garbage"
    cases = {
        "replayed": stated(*entries(around, 3), serial=2),
        "signature": replace(stated(*entries(around, 3), serial=4), serial=5),
    }
    for reason, peers in cases.items():
        around[2].peer_list = peers
        caplog.clear()
        with caplog.at_level(logging.WARNING, "nmoe_flower.inference"):
            assert not router.refresh()
        fox, owl = router.states()
        assert fox.failures["garbage"] >= 1
        assert owl.failures[reason] == 1
        assert f'list-refused peer="owl" reason="{reason}"' in caplog.text
    assert router.peers.serial == 3
    assert outcome(router, 2) == "answered"


def test_lists_are_looked_for_in_the_background(around: Any, stated: Make, pool: Make) -> None:
    around[1].peer_list = stated(*entries(around, 1, 2), serial=2)
    changed: list[int] = []
    seen = threading.Event()

    def note(peers: PeerList) -> None:
        changed.append(peers.serial)
        seen.set()

    pool(stated(*entries(around, 1)), refresh_seconds=0.01, on_change=note)
    assert seen.wait(20)
    assert changed == [2]


def test_without_certificates_no_list_of_others_is_believed(
    around: Any, stated: Make, pool: Make
) -> None:
    router = pool(stated(*entries(around, 1)), identity=None)
    with pytest.raises(ConfigError, match="refresh needs an identity"):
        router.refresh()


def test_peers_with_another_extractor_are_not_asked(
    around: Any, stated: Make, pool: Make, caplog: pytest.LogCaptureFixture
) -> None:
    fox, owl = entries(around, 1, 2)
    with caplog.at_level(logging.WARNING, "nmoe_flower.inference"):
        router = pool(
            stated(replace(fox, extractor_version="aa"), replace(owl, extractor_version="bb")),
            extractor_version="aa",
        )
    assert [outcome(router, expert) for expert in (1, 2)] == ["answered", "unknown"]
    assert 'peer="owl" partition=2 detail="its extractor is bb, ours aa"' in caplog.text
    assert around[2].asked == 0
