"""Hosts and ports, read in one place."""

import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower import addresses
from nmoe_flower.addresses import Address, free_ports
from nmoe_flower.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7600", "127.0.0.1", 7600),
        ("camera-1.local:1", "camera-1.local", 1),
        ("[::1]:65535", "::1", 65535),
        ("[2001:DB8:0:0::1]:8000", "2001:db8::1", 8000),  # the one short form
        ("x:80", "x", 80),
        ("LAB.Example:80", "lab.example", 80),  # a name in capitals is the same name
        ("[::ffff:10.0.0.1]:80", "10.0.0.1", 80),
        ("[::FFFF:7f00:1]:80", "127.0.0.1", 80),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    found = Address.parse(text)
    assert (found.host, found.port) == (host, port)
    assert Address.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "127.0.0.1", "host", "host:", ":80", "host:0", "host:65536", "host:99999",
        "host:-1", "host:7o00", "host:+80", "host: 80", "host:80 ", " host:80", "host:٨٠",
        "host:080000", "a:b:1", "::1", "::1:8000", "[::1]", "[::1]8000", "[fe80::1%eth0]:1",
        "[127.0.0.1]:1", "[]:1", "[x]:1", "256.1.1.1:1", "127.0.0:1", "1.2.3.4.5:1", "12345:1",
        "a..b:1", ".a:1", "a.:1", "-a:1", "a-:1", "a_b:1", "a/b:1", "http://a:1", "unix:/tmp/x",
        "hôst:1", "host:1\n", "ho\0st:1", "*:80", "0x7f.1:1",
        "a" * 64 + ":1", "a." * 127 + "a:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("is not host:port; allowed: a name, an IPv4")):
        Address.parse(text)


def test_a_port_may_be_left_out_where_there_is_one_to_take() -> None:
    assert Address.parse("host", port=7600) == Address("host", 7600)
    assert Address.parse("[::2]", port=7600) == Address("::2", 7600)
    assert Address.parse("host:1", port=7600) == Address("host", 1)
    assert Address.parse("host:0", any_port=True).port == 0
    with pytest.raises(ConfigError, match=r"a port in 1\.\.65535"):
        Address.parse("host:0", port=7600)
    with pytest.raises(ConfigError, match=r"'::1' is not host or host:port.*in brackets"):
        Address.parse("::1", port=7600)


def test_local_addresses_are_known() -> None:
    for text in ("127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"):
        assert Address.parse(text).is_loopback
    for text in ("0.0.0.0:1", "[::]:1", "127.example:1", "10.0.0.1:1"):
        assert not Address.parse(text).is_loopback


def test_what_one_machine_cannot_be_found_at_is_known() -> None:
    for text in ("10.0.0.1:1", "lab:1", "[2001:db8::1]:1", "127.0.0.1:1"):
        assert Address.parse(text).is_one_machine
    for text in ("0.0.0.0:1", "[::]:1", "224.0.0.1:1", "[ff02::1]:1", "255.255.255.255:1"):
        assert not Address.parse(text).is_one_machine


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        found = Address.parse(text, port=7600)
    except ConfigError:
        return
    assert Address.parse(str(found)) == found
    assert 1 <= found.port <= 65535


def test_free_ports_are_different_and_the_system_gives_them_to_nobody() -> None:
    """Else one could be taken before the program that it is meant for has started."""
    found = free_ports(20)
    assert len(set(found)) == 20
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert max(found) < other.getsockname()[1]


def test_a_port_on_which_somebody_listens_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sorted(free_ports(2))
    monkeypatch.setattr(addresses, "_OURS", range(first, second + 1, second - first))
    with socket.create_server(("127.0.0.1", first)):
        assert free_ports(1) == [second]
        with pytest.raises(OSError, match="2 ports are wanted; 1 of 2 are free"):
            free_ports(2)
