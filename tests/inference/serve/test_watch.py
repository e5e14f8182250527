import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower.certificates import Authority, Identity
from nmoe_flower.errors import WireError
from nmoe_flower.inference import Bundle, ExpertServer, Sources, SourceWatch
from nmoe_flower.inference.protocol.peer_pb2 import PeersRequest
from nmoe_flower.inference.protocol.peers import PeerEntry, PeerList
from nmoe_flower.inference.protocol.signing import sign_list

MakeBundle = Callable[..., Bundle]
Serving = Callable[..., Any]


def listed(serial: int, *, seconds_left: int = 3600, partition: int = 0) -> PeerList:
    now = int(time.time())
    entry = PeerEntry("server", partition, "127.0.0.1:7600")
    return PeerList((entry,), serial, now - 1000, now + seconds_left)


@pytest.fixture
def sources(tmp_path: Path, make_bundle: MakeBundle, authority: Authority) -> Sources:
    """Bundle, keys and a signed list of a device named ``server``."""
    authority.issue(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    sign_list(listed(1), authority).write(tmp_path / "peers.json")
    keys = tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem"
    return Sources(make_bundle().folder, keys, tmp_path / "peers.json")


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "event", "") for record in caplog.records]


def test_what_has_changed_is_taken_up(
    serving: Serving,
    sources: Sources,
    make_bundle: MakeBundle,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "nmoe_flower.inference")

    async def scenario() -> None:
        async with serving(sources.load_bundle()) as (server, stub):
            watch = SourceWatch(server, sources)
            await watch.look()
            assert events(caplog) == ["serving"]  # nothing has changed

            new = make_bundle(seed=1)
            await watch.look()
            assert server.bundle.expert_version == new.expert_version
            assert sources.peers is not None
            sign_list(listed(2), authority).write(sources.peers)
            await watch.look()
            assert (await stub.Peers(PeersRequest())).serial == 2
            sign_list(listed(3, partition=1), authority).write(sources.peers)
            await watch.look()
            assert events(caplog)[-1] == "not-taken-up"  # it serves another expert than that
            assert (await stub.Peers(PeersRequest())).serial == 2
            assert sources.keys is not None
            authority.issue(sources.keys[0].parent, "server")
            await watch.look()
            assert events(caplog)[1:] == ["swapped", "peer-list", "not-taken-up", "renewed"]
            await watch.look()
            assert len(events(caplog)) == 5

    asyncio.run(scenario())


def test_what_cannot_be_read_changes_nothing_and_is_told(
    serving: Serving,
    sources: Sources,
    make_bundle: MakeBundle,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with serving(sources.load_bundle()) as (server, _):
            watch = SourceWatch(server, sources)
            before = server.bundle.expert_version
            good = sources.bundle.with_name("good")
            shutil.copytree(sources.bundle, good)
            (sources.bundle / "bundle.json").write_text("{")
            assert sources.keys is not None
            assert sources.peers is not None
            sources.keys[0].unlink()
            listed(3).write(sources.peers)  # not signed
            await watch.look()
            assert server.bundle.expert_version == before
            assert server.peer_list is None
            told = [r.fields["what"] for r in caplog.records if hasattr(r, "fields")]
            assert told[-3:] == ["bundle", "identity", "peers"]
            await watch.look()
            assert len(caplog.records) == 3  # not told again before it changes again

            make_bundle(seed=1)
            authority.issue(sources.keys[0].parent, "server")
            await watch.look(again=True)
            assert server.bundle.expert_version != before

    asyncio.run(scenario())


def test_a_list_must_be_signed_and_in_date_when_there_is_an_authority(
    sources: Sources, authority: Authority, identities: dict[str, Identity]
) -> None:
    identity = sources.load_identity()
    assert identity is not None
    assert identity.name == "server"
    found = sources.load_peers(identity)
    assert found is not None
    assert found.serial == 1
    assert sources.peers is not None
    listed(1).write(sources.peers)
    with pytest.raises(WireError, match="not signed by the authority"):
        sources.load_peers(identity)
    assert sources.load_peers(None) is not None  # a first try, without certificates
    sign_list(listed(1, seconds_left=-1), authority).write(sources.peers)
    with pytest.raises(WireError, match="has expired"):
        sources.load_peers(identity)


def test_sources_may_be_few(make_bundle: MakeBundle) -> None:
    sources = Sources(make_bundle().folder)
    assert sources.load_identity() is None
    assert sources.load_peers(None) is None

    async def scenario() -> None:
        server = ExpertServer(sources.load_bundle(), None)
        await server.start()
        await SourceWatch(server, sources).look(again=True)
        await server.drain(1.0)

    asyncio.run(scenario())
