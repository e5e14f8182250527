"""Where a program listens or is found: a host and a port, read in one way everywhere."""

import contextlib
import ipaddress
import random
import re
import socket
from dataclasses import dataclass
from typing import Self

from nmoe_flower.errors import ConfigError

__all__ = ["MAX_PORT", "Address", "free_ports"]

MAX_PORT = (1 << 16) - 1

# Below those that a system gives to whoever asks for any: from 32768 on Linux, 49152 elsewhere.
_OURS = range(20_000, 32_768)

_SPLIT = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([^:]*))?")
_LABEL = re.compile(r"[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?")
_LONGEST_NAME = 253
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


@dataclass(frozen=True)
class Address:
    """A host and a port.

    Attributes:
        host: A name in small letters, an IPv4 address, or an IPv6 address (without brackets), each
            in its one short form; IPv4 within IPv6 is IPv4.
        port: 1 to 65535; 0 where the system may choose.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, port: int | None = None, any_port: bool = False) -> Self:
        """Read ``host:port``; an IPv6 address stands in brackets.

        Args:
            text: What somebody wrote.
            port: Stands in for a port that is left out; None: it may not be left out.
            any_port: Port 0 is allowed, too: the system chooses.

        Raises:
            ConfigError: It is no such address.

        >>> Address.parse("camera-1.local", port=7600)
        Address(host='camera-1.local', port=7600)
        >>> str(Address.parse("LAB.Example:80")), str(Address.parse("[::ffff:10.0.0.1]:80"))
        ('lab.example:80', '10.0.0.1:80')
        >>> str(Address.parse("[::1]:7600"))
        '[::1]:7600'
        """
        form = "host:port" if port is None else "host or host:port"
        least = 0 if any_port else 1
        match = _SPLIT.fullmatch(text)
        given = match[2] if match else None
        if given is None and port is not None:
            given = str(port)
        host = _host(match[1]) if match else ""
        if not host or given is None or not _is_port(given, least):
            raise ConfigError(
                f"the address {text[:80]!r} is not {form}; allowed: a name, an IPv4 address, or "
                f"an IPv6 address in brackets, with a port in {least}..{MAX_PORT}; a name has "
                "letters, digits, '-' and, between its parts, '.'"
            )
        return cls(host, int(given))

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address."""
        return ":" in self.host

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine to itself."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_one_machine(self) -> bool:
        """Whether the host can be somebody's; others are for listening, or for many at once."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return not (address.is_unspecified or address.is_multicast or address == _BROADCAST)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on at this moment.

    For programs that are started with their port. They lie below those that a system gives to
    outgoing connections and to listeners without a port of their own, so that none of these takes
    one before the program has started.

    Args:
        count: How many, at least 1.

    Returns:
        ``count`` different ports, in no order.

    Raises:
        OSError: Fewer are free.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.SystemRandom().sample(_OURS, len(_OURS)):
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"{count} ports are wanted; {len(found)} of {len(_OURS)} are free")


def _is_port(text: str, least: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and least <= int(text) <= MAX_PORT


def _host(text: str) -> str:
    """The host that ``text`` names, without brackets; empty if it names none."""
    if text.startswith("["):
        try:
            address = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            return ""
        return "" if address.scope_id else str(address.ipv4_mapped or address)
    labels = text.split(".")
    if labels[-1].isdigit():  # a name's last part is never a number: this is an address, or wrong
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            return ""
    fits = len(text) <= _LONGEST_NAME and all(_LABEL.fullmatch(label) for label in labels)
    return text.lower() if fits else ""  # capitals make no other machine
