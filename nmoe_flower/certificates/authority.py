"""The authority of a federation: it says which devices belong to it."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nmoe_flower.certificates.identity import (
    Identity,
    Signer,
    check_name,
    key_pem,
    load_certificate,
    load_key,
    read_pem,
)
from nmoe_flower.errors import CertificateError
from nmoe_flower.files import write_bytes
from nmoe_flower.plurals import how_many

__all__ = ["MAX_DAYS", "Authority", "create_authority"]

MAX_DAYS = 36_500

_CLOCK_SKEW = timedelta(minutes=5)
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,252})")
_FILES = ("ca.pem", "ca.key")
_AUTHORITY_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, repr=False)
class Authority(Signer):
    """Issues the identities of one federation. Its key never needs to be on a device."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``ca.pem`` and ``ca.key``.

        Raises:
            CertificateError: A file cannot be read, or the two do not belong together.
        """
        certificate, key = (folder / name for name in _FILES)
        own = read_pem(certificate)
        authority = cls(own, load_key(key))
        if load_certificate(certificate, own).public_key() != authority._key.public_key():
            raise CertificateError(f"{key} is not the key of {certificate}")
        return authority

    def issue(
        self,
        folder: Path,
        name: str,
        *,
        hosts: Sequence[str] = ("127.0.0.1", "localhost"),
        days: int = 365,
        start: datetime | None = None,
    ) -> Identity:
        """Make an identity and write ``<name>.pem`` and ``<name>.key`` (mode 0600).

        Args:
            folder: Where to write; made if missing.
            name: The device's name. ``ca`` is taken by the authority's own files.
            hosts: Host names and addresses at which the device may also be called without its name.
            days: How many days it is valid, 1 to 36,500.
            start: The moment it begins to be valid; None: five minutes ago, for clocks that are
                behind.

        Raises:
            CertificateError: The name, a host or ``days`` is not allowed, it would outlive the
                authority, or a file cannot be written.
        """
        if check_name(name) == "ca":
            raise CertificateError("the name 'ca' is taken by the authority's own files")
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(name), *(_alternative(host) for host in hosts if host != name)]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(name, self.certificate, key, days=days, start=start)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(issuer_key, critical=False)
        )
        own = _sign(builder, self._key)
        _write(folder / f"{name}.key", key_pem(key), mode=0o600)
        _write(folder / f"{name}.pem", own, mode=0o644)
        return Identity(own, key, self.certificate_pem)


def create_authority(folder: Path, *, name: str, days: int = 3650) -> Authority:
    """Found a federation: write ``ca.pem`` and ``ca.key`` (mode 0600).

    Raises:
        CertificateError: There is an authority in the folder already, the name or ``days`` is not
            allowed, or a file cannot be written.
    """
    check_name(name)
    if any((folder / file).exists() for file in _FILES):
        raise CertificateError(f"{folder} holds an authority already")
    key = ec.generate_private_key(ec.SECP256R1())
    own_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(name, None, key, days=days, start=None)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_AUTHORITY_USAGE, critical=True)
        .add_extension(own_key, critical=False)
    )
    own = _sign(builder, key)
    _write(folder / "ca.key", key_pem(key), mode=0o600)
    _write(folder / "ca.pem", own, mode=0o644)
    return Authority(own, key)


def _builder(
    name: str,
    issuer: x509.Certificate | None,
    key: ec.EllipticCurvePrivateKey,
    *,
    days: int,
    start: datetime | None,
) -> x509.CertificateBuilder:
    if not 1 <= days <= MAX_DAYS:
        raise CertificateError(
            f"a certificate for {how_many(days, 'day')}; allowed: 1 to {MAX_DAYS}"
        )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = start or datetime.now(UTC) - _CLOCK_SKEW
    end = begin + timedelta(days=days)
    last = issuer.not_valid_after_utc if issuer else end
    if end - last > timedelta(days=1):
        raise CertificateError(
            f"a certificate for {how_many(days, 'day')} would outlive its authority, which "
            "expires on "
            f"{last:%Y-%m-%d}; allowed: up to {how_many(max(0, (last - begin).days), 'day')}"
        )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(min(end, last))
    )


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _write(path: Path, data: bytes, *, mode: int) -> None:
    write_bytes(path, data, mode=mode, raises=CertificateError)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise CertificateError(f"{host!r} is neither an address nor a host name") from None
        return x509.DNSName(host)
