"""The list of peers: what is well formed, and how it rests and travels."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import WireError
from nmoe_flower.files import write_json
from nmoe_flower.inference.protocol import peer_pb2
from nmoe_flower.inference.protocol.peers import MAX_PEERS, PeerEntry, PeerList, target

FOX = PeerEntry("fox", 0, "127.0.0.1:7001", "aa11", "bb22")
OWL = PeerEntry("owl", 1, "camera.local:7002")
names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)


@st.composite
def peer_lists(draw: st.DrawFn) -> PeerList:
    who = draw(st.lists(names, unique=True, max_size=5))
    first = draw(st.integers(0, 1000))
    entries = (
        PeerEntry(name, first + place, f"10.0.0.{place}:{place + 1}", draw(names), draw(names))
        for place, name in enumerate(who)
    )
    issued = draw(st.integers(0, 2**62))
    return PeerList(
        tuple(entries), draw(st.integers(0, 2**63 - 1)), issued, issued + 1, draw(st.binary())
    )


@given(peer_lists())
def test_a_list_survives_the_wire(peers: PeerList) -> None:
    data = peers.to_message().SerializeToString()
    assert PeerList.from_message(peer_pb2.PeerList.FromString(data)) == peers


@pytest.mark.parametrize("signature", [b"", b"\x00\xff any bytes"])
def test_a_list_survives_the_file(tmp_path: Path, signature: bytes) -> None:
    peers = PeerList((OWL, FOX), 7, 100, 200, signature)
    peers.write(tmp_path / "peers.json")
    assert PeerList.load(tmp_path / "peers.json") == peers


def test_a_file_by_hand_needs_name_partition_and_address(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text('{"peers": [{"name": "owl", "partition": 1, "address": "camera.local:7002"}]}')
    assert PeerList.load(path) == PeerList((OWL,))


def test_peers_are_kept_in_the_order_of_their_experts() -> None:
    assert PeerList((OWL, FOX)).peers == (FOX, OWL)
    assert PeerList((OWL, FOX)).by_partition == {0: FOX, 1: OWL}


@pytest.mark.parametrize(
    "address",
    [
        "", "host", "host:", ":7001", "host:0", "host:65536", "host:99999", "host:-1", "host:7 1",
        "unix:/tmp/socket", "unix:///tmp/socket", "dns:///elsewhere:7001", "ipv4:10.0.0.1:7001",
        "http://host:7001", "host:7001/path", "user@host:7001", "host:7001\n", "[::1]", "::1:7001",
        "[fox]:7001", "[12345]:7001", "a b:7001", "hôst:7001", "x" * 300 + ":7001", "host:٣٣",
    ],
)  # fmt: skip
def test_only_host_and_port_are_an_address(address: str) -> None:
    with pytest.raises(WireError, match="address"):
        target(address)
    with pytest.raises(WireError, match="address"):
        PeerEntry("fox", 0, address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:7001", "ipv4:127.0.0.1:7001"),
        ("[fe80::1]:1", "ipv6:[fe80::1]:1"),
        ("localhost:65535", "dns:///localhost:65535"),
        ("vsock:7001", "dns:///vsock:7001"),  # a scheme of gRPC's stays a mere host name
    ],
)
def test_the_scheme_is_always_ours(address: str, expected: str) -> None:
    assert target(address) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""}, {"name": "Fox"}, {"name": "-fox"}, {"name": "fox/../owl"}, {"name": "f" * 64},
        {"name": 3}, {"partition": -1}, {"partition": 1 << 31}, {"partition": True},
        {"partition": "0"}, {"partition": 0.0}, {"address": None}, {"expert_version": "a b"},
        {"extractor_version": "x" * 65}, {"extractor_version": None},
    ],
)  # fmt: skip
def test_a_bad_field_is_refused(change: dict[str, Any]) -> None:
    fields = {"name": "fox", "partition": 0, "address": "h:1"} | change
    with pytest.raises(WireError, match=r"allowed|address"):
        PeerEntry(**fields)


@pytest.mark.parametrize(
    ("peers", "text"),
    [
        ((FOX, PeerEntry("fox", 1, "h:1")), "two peers have the name 'fox'"),
        ((FOX, PeerEntry("owl", 0, "h:1")), "two peers have the partition 0"),
        ((FOX, PeerEntry("owl", 1, FOX.address)), "two peers have the address '127.0.0.1:7001'"),
    ],
)
def test_nobody_is_listed_twice(peers: tuple[PeerEntry, ...], text: str) -> None:
    with pytest.raises(WireError, match=text):
        PeerList(peers)


def test_a_list_has_an_end(tmp_path: Path) -> None:
    message = peer_pb2.PeerList(peers=[peer_pb2.PeerEntry()] * (MAX_PEERS + 1))
    with pytest.raises(WireError, match=f"up to {MAX_PEERS}"):
        PeerList.from_message(message)
    write_json(tmp_path / "peers.json", {"peers": [{}] * 100_000})  # no entry is looked at
    with pytest.raises(WireError, match=f"holds 100000 peers; allowed: up to {MAX_PEERS}"):
        PeerList.load(tmp_path / "peers.json")
    with pytest.raises(WireError, match="expires at 5, issued at 5"):
        PeerList((), 0, 5, 5)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", '{"peers": {}}', '{"peers": [1]}', '{"peers": [{}]}',
        '{"peers": [], "serial": -1}', '{"peers": [], "serial": NaN}', '{"peers": [], "colour": 1}',
        '{"peers": [], "signature": "*"}', '{"peers": [], "signature": 3}', "[" * 100_000,
        '{"peers": [], "format": 2}', '{"peers": [], "serial": 1' + "0" * 5000 + "}", "\ud800",
        '{"peers": [{"name": "fox", "partition": 0, "address": "h:1", "format": 1}]}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_list_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(text, errors="surrogatepass")
    with pytest.raises(
        WireError,
        match=r"peers\.json is (no list of peers|not valid JSON|not UTF-8|nested too deep)",
    ):
        PeerList.load(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    PeerList((FOX, OWL), 1, 2, 3).write(path)
    whole = path.read_bytes()
    assert set(json.loads(whole)) == {
        "format", "serial", "issued_unix", "expires_unix", "peers", "signature",
    }  # fmt: skip
    for end in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(WireError):
            PeerList.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WireError, match=r"cannot read .*gone\.json: No such file"):
        PeerList.load(tmp_path / "gone.json")
