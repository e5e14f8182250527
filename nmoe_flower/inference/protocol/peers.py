"""The list of peers: who holds which expert, and at which address.

A list travels as a protobuf message and rests as JSON. Whatever comes from outside is checked by
`PeerEntry` and `PeerList` themselves: an object that exists is well formed. Who signed it is the
business of ``signing``.
"""

import base64
import binascii
import re
from collections import Counter
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from nmoe_flower.addresses import Address
from nmoe_flower.certificates import is_name
from nmoe_flower.errors import BundleError, ConfigError, WireError
from nmoe_flower.files import read_json, write_json
from nmoe_flower.inference.protocol import peer_pb2

__all__ = ["MAX_PEERS", "PeerEntry", "PeerList", "is_version", "target"]

MAX_PEERS = 10_000
_FORMAT = 1
_MOST_BYTES = 16 << 20
_LAST = (1 << 63) - 1
_LIST_FIELDS = ("peers", "serial", "issued_unix", "expires_unix", "signature", "format")
_ENTRY_FIELDS = ("name", "partition", "address", "expert_version", "extractor_version",
                 "embedding", "projection_version")  # fmt: skip
_LATER_FIELDS = ("embedding", "projection_version")  # not signed where empty, as in older lists
_NUMBER_BYTES, _MOST_NUMBERS = 4, 4096
_VERSION = re.compile(r"[0-9A-Za-z._-]{0,64}")


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """One device.

    Attributes:
        name: The name in the device's certificate.
        partition: The id of the device's expert in the gate, 0 or more.
        address: ``host:port``; host is a name, an IPv4 address or an IPv6 address in brackets.
        expert_version: The version of the device's expert; empty: any.
        extractor_version: The version of the latents the expert understands; empty: not known.
        embedding: What a gate with ``gate.form = metric`` knows the expert by, float32,
            little-endian; empty: none.
        projection_version: The version of the projection the embedding was made with; empty: any.

    Raises:
        WireError: A field is not allowed.
    """

    name: str
    partition: int
    address: str
    expert_version: str = ""
    extractor_version: str = ""
    embedding: bytes = b""
    projection_version: str = ""

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise _bad(f"a peer's name is {self.name!r}; allowed: 1 to 63 of a-z, 0-9 and '-'")
        _check_number(f"partition of {self.name}", self.partition, (1 << 31) - 1)
        _host(self.address)
        size = len(self.embedding) if isinstance(self.embedding, bytes) else -1
        if size % _NUMBER_BYTES or not 0 <= size <= _NUMBER_BYTES * _MOST_NUMBERS:
            raise _bad(
                f"the embedding of {self.name} has {size} bytes; allowed: 4 for each of up to "
                f"{_MOST_NUMBERS} numbers"
            )
        for version in (self.expert_version, self.extractor_version, self.projection_version):
            if not is_version(version):
                raise _bad(
                    f"a version of {self.name} is {version!r}; allowed: 64 letters or digits"
                )


@dataclass(frozen=True, slots=True)
class PeerList:
    """Everybody who answers, as one signer stated it at one moment.

    Attributes:
        peers: The entries, sorted by partition; no name, partition or address occurs twice.
        serial: A number that grows with every list of a federation: the higher one holds.
        issued_unix: When it was signed, in seconds since 1970.
        expires_unix: From when on it is worth nothing, in seconds since 1970.
        signature: What ``signing`` makes and checks; empty: nobody signed it.

    Raises:
        WireError: A field is not allowed.

    >>> PeerList((PeerEntry("fox", 1, "10.0.0.2:7001"),)).by_partition[1].name
    'fox'
    """

    peers: tuple[PeerEntry, ...]
    serial: int = 0
    issued_unix: int = 0
    expires_unix: int = _LAST
    signature: bytes = b""

    def __post_init__(self) -> None:
        _check_size(self.peers)
        for field in ("name", "partition", "address"):
            counts = Counter(getattr(peer, field) for peer in self.peers)
            if len(counts) != len(self.peers):
                twice = next(value for value, count in counts.items() if count > 1)
                raise _bad(f"two peers have the {field} {twice!r}")
        for name in ("serial", "issued_unix", "expires_unix"):
            _check_number(name, getattr(self, name), _LAST)
        if self.expires_unix <= self.issued_unix:
            raise _bad(f"the list expires at {self.expires_unix}, issued at {self.issued_unix}")
        ordered = tuple(sorted(self.peers, key=lambda peer: peer.partition))
        object.__setattr__(self, "peers", ordered)

    @property
    def by_partition(self) -> dict[int, PeerEntry]:
        """The peers by the id of their expert."""
        return {peer.partition: peer for peer in self.peers}

    def check_holder(self, name: str, partition: int, bundle: Path) -> None:
        """Whether the device with this certificate may hold this bundle; if not listed, it may.

        Raises:
            BundleError: The list has the device with another partition than the bundle's.
        """
        for peer in self.peers:
            if peer.name == name and peer.partition != partition:
                raise BundleError(
                    f"{bundle} is the bundle of partition {partition}; in the list of peers "
                    f"{name} has partition {peer.partition}"
                )

    @classmethod
    def from_message(cls, message: peer_pb2.PeerList) -> Self:
        """Read what a peer sent.

        Raises:
            WireError: A field is not allowed.
        """
        _check_size(message.peers)
        peers = tuple(
            PeerEntry(
                p.name,
                p.partition,
                p.address,
                p.expert_version,
                p.extractor_version,
                p.embedding,
                p.projection_version,
            )
            for p in message.peers
        )
        return cls(
            peers, message.serial, message.issued_unix, message.expires_unix, message.signature
        )

    def to_message(self) -> peer_pb2.PeerList:
        """What travels."""
        return peer_pb2.PeerList(
            peers=[
                peer_pb2.PeerEntry(**{name: getattr(peer, name) for name in _ENTRY_FIELDS})
                for peer in self.peers
            ],
            serial=self.serial,
            issued_unix=self.issued_unix,
            expires_unix=self.expires_unix,
            signature=self.signature,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read ``peers.json``. Only ``peers`` with name, partition and address must be there.

        Raises:
            WireError: The file is missing, cut, too large, or a field is not allowed.
        """
        try:
            value = read_json(path, what="the list of peers", most=_MOST_BYTES)
        except ConfigError as error:
            raise _bad(str(error)) from None
        try:
            return cls._from_json(value)
        except WireError as error:
            raise _bad(f"{path} is no list of peers: {error}") from None

    def write(self, path: Path) -> None:
        """Write ``peers.json``, atomically.

        Raises:
            NMoEError: The file cannot be written.
        """
        signature = base64.b64encode(self.signature).decode("ascii")
        write_json(path, {"format": _FORMAT, **self.facts(), "signature": signature})

    def facts(self) -> dict[str, Any]:
        """All but the signature, as plain values: what is signed and what the file holds."""
        return {
            "serial": self.serial,
            "issued_unix": self.issued_unix,
            "expires_unix": self.expires_unix,
            "peers": [_plain(peer) for peer in self.peers],
        }

    @classmethod
    def _from_json(cls, value: Any) -> Self:
        given = _fields(value, _LIST_FIELDS, least=1)
        if given.pop("format", _FORMAT) != _FORMAT:
            raise _bad(f"its format is {value['format']!r}; allowed: {_FORMAT}")
        if not isinstance(given["peers"], list):
            raise _bad(f"'peers' is {type(given['peers']).__name__}; allowed: a list")
        _check_size(given["peers"])
        entries = (_fields(entry, _ENTRY_FIELDS, least=3) for entry in given["peers"])
        given["peers"] = tuple(
            PeerEntry(**{**entry, "embedding": _bytes(entry, "embedding")}) for entry in entries
        )
        given["signature"] = _bytes(given, "signature")
        return cls(**given)


def is_version(value: object) -> bool:
    """Whether a version may look so: up to 64 letters, digits, ".", "_" and "-".

    >>> is_version("0c9e51d2"), is_version("0c 9e"), is_version(7)
    (True, False, False)
    """
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def target(address: str) -> str:
    """The gRPC target of an address. No other scheme of gRPC's can be smuggled in.

    Raises:
        WireError: It is not ``host:port`` with a port in 1..65535.

    >>> target("camera-3.local:7001"), target("[::1]:7001")
    ('dns:///camera-3.local:7001', 'ipv6:[::1]:7001')
    >>> target("unix:7001")
    'dns:///unix:7001'
    """
    host = _host(address)
    try:
        return f"ipv{ip_address(host).version}:{address}"
    except ValueError:
        return f"dns:///{address}"


def _check_size(peers: Sized) -> None:
    """Refuse a list that is too long, before its entries are looked at."""
    if len(peers) > MAX_PEERS:
        raise _bad(f"the list holds {len(peers)} peers; allowed: up to {MAX_PEERS}")


def _host(address: str) -> str:
    """The host of an address, which must be ``host:port``."""
    try:
        return Address.parse(address if isinstance(address, str) else repr(address)).host
    except ConfigError as error:
        raise _bad(f"a peer's address: {error}") from None


def _fields(value: Any, allowed: tuple[str, ...], *, least: int = 0) -> dict[str, Any]:
    """A JSON object that has the first ``least`` of the ``allowed`` keys, and no others."""
    if not isinstance(value, Mapping):
        raise _bad(f"an object is expected, got {type(value).__name__}")
    unknown = sorted(value.keys() - set(allowed))
    if unknown:
        raise _bad(f"unknown key {unknown[0]!r}; allowed: {', '.join(allowed)}")
    missing = [name for name in allowed[:least] if name not in value]
    if missing:
        raise _bad(f"{missing[0]!r} is missing")
    return dict(value)


def _plain(peer: PeerEntry) -> dict[str, Any]:
    """An entry as it is signed: bytes as base64, and without later fields that are empty."""
    found = {name: getattr(peer, name) for name in _ENTRY_FIELDS}
    found["embedding"] = base64.b64encode(peer.embedding).decode("ascii")
    return {name: one for name, one in found.items() if one or name not in _LATER_FIELDS}


def _bytes(values: Mapping[str, Any], name: str) -> bytes:
    """A text of base64 as bytes; empty if it is not there."""
    try:
        return base64.b64decode(values.get(name, ""), validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise _bad(f"its {name} is not base64") from None


def _check_number(name: str, value: Any, last: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= last:
        raise _bad(f"{name} is {value!r}; allowed: a whole number in 0..{last}")


def _bad(text: str) -> WireError:
    return WireError("peers", text)
