"""Who is who: a federation's authority, and an identity (certificate and key) per device.

Keys are EC P-256, files are PEM. A device is known by the name in its certificate: it is the
common name and a DNS name, so that a caller can ask for it whatever the address is.
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nmoe_flower.errors import CertificateError

__all__ = ["Authority", "Identity", "check_name", "create_authority", "verify_signature"]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_CLOCK_SKEW = timedelta(minutes=5)
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


def check_name(name: str) -> str:
    """Return ``name`` if a device may be called so.

    Raises:
        CertificateError: It is not made of 1 to 63 of a-z, 0-9 and "-", or begins with "-".

    >>> check_name("camera-3")
    'camera-3'
    """
    if not _NAME.fullmatch(name):
        raise CertificateError(
            f"the name {name!r} is not allowed: 1 to 63 of a-z, 0-9 and '-', no '-' first"
        )
    return name


@dataclass(frozen=True)
class _Signer:
    """A certificate and its private key."""

    certificate_pem: bytes = field(repr=False)
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate_pem)

    @property
    def name(self) -> str:
        """The common name."""
        return _common_name(self.certificate)

    @property
    def expires(self) -> datetime:
        """When the certificate ends, in UTC."""
        return self.certificate.not_valid_after_utc

    def sign(self, data: bytes) -> bytes:
        """A signature (ECDSA, SHA-256) that `verify_signature` checks."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))


@dataclass(frozen=True)
class Identity(_Signer):
    """What one device shows and signs with.

    Attributes:
        certificate_pem: Its certificate.
        authority_pem: The authority whose devices it trusts.
    """

    authority_pem: bytes = field(repr=False)

    @classmethod
    def load(cls, certificate: Path, key: Path, authority: Path) -> Self:
        """Read three PEM files: the device's certificate and key, the authority's certificate.

        Raises:
            CertificateError: A file cannot be read, the key belongs to another certificate,
                another authority issued it, its name is not allowed, or it is out of date.
        """
        pem, authority_pem = _read(certificate), _read(authority)
        identity = cls(pem, _load_key(key), authority_pem)
        own = _load_certificate(certificate, pem)
        if own.public_key() != identity._key.public_key():
            raise CertificateError(f"{key} is not the key of {certificate}")
        try:
            own.verify_directly_issued_by(_load_certificate(authority, authority_pem))
        except (InvalidSignature, ValueError, TypeError):
            raise CertificateError(f"{certificate} was not issued by {authority}") from None
        check_name(_common_name(own))
        _check_dates(certificate, own)
        return identity

    def server_credentials(self) -> Any:
        """GRPC credentials of a server that lets in only devices of the authority."""
        import grpc

        return grpc.ssl_server_credentials(
            [(self._key_pem(), self.certificate_pem)],
            root_certificates=self.authority_pem,
            require_client_auth=True,
        )

    def channel_credentials(self) -> Any:
        """GRPC credentials of a caller; it must name whom it calls.

        Pass ``("grpc.ssl_target_name_override", name)`` among the channel's options.
        """
        import grpc

        return grpc.ssl_channel_credentials(
            root_certificates=self.authority_pem,
            private_key=self._key_pem(),
            certificate_chain=self.certificate_pem,
        )

    def _key_pem(self) -> bytes:
        return _key_pem(self._key)


@dataclass(frozen=True)
class Authority(_Signer):
    """Issues the identities of one federation. Its key never needs to be on a device."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``ca.pem`` and ``ca.key``.

        Raises:
            CertificateError: A file cannot be read, or the two do not belong together.
        """
        pem = _read(folder / "ca.pem")
        authority = cls(pem, _load_key(folder / "ca.key"))
        if _load_certificate(folder / "ca.pem", pem).public_key() != authority._key.public_key():
            raise CertificateError(f"{folder / 'ca.key'} is not the key of {folder / 'ca.pem'}")
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
            name: Of the device. ``ca`` is taken by the authority's own files.
            hosts: Host names and addresses at which it may also be called without its name.
            days: How long it is valid.
            start: From when on; None: from now on.

        Raises:
            CertificateError: The name or a host is not allowed, or a file cannot be written.
        """
        if check_name(name) == "ca":
            raise CertificateError("the name 'ca' is taken by the authority's own files")
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(name), *(_alternative(host) for host in hosts if host != name)]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(name, self.certificate.subject, key, days=days, start=start)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_id(self._key), critical=False)
        )
        pem = _pem(builder.sign(self._key, hashes.SHA256()))
        _write(folder / f"{name}.key", _key_pem(key), mode=0o600)
        _write(folder / f"{name}.pem", pem, mode=0o644)
        return Identity(pem, key, self.certificate_pem)


def create_authority(folder: Path, *, name: str, days: int = 3650) -> Authority:
    """Found a federation: write ``ca.pem`` and ``ca.key`` (mode 0600).

    Raises:
        CertificateError: There is an authority in the folder already, the name is not allowed, or
            a file cannot be written.
    """
    check_name(name)
    if (folder / "ca.key").exists() or (folder / "ca.pem").exists():
        raise CertificateError(f"{folder} holds an authority already")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(name, None, key, days=days, start=None)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_AUTHORITY_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    pem = _pem(builder.sign(key, hashes.SHA256()))
    _write(folder / "ca.key", _key_pem(key), mode=0o600)
    _write(folder / "ca.pem", pem, mode=0o644)
    return Authority(pem, key)


def verify_signature(certificate_pem: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the key of this certificate made ``signature`` over ``data``.

    Raises:
        CertificateError: The certificate cannot be read.
    """
    try:
        key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    except ValueError as error:
        raise CertificateError(f"cannot read a certificate: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _builder(
    name: str,
    issuer: x509.Name | None,
    key: ec.EllipticCurvePrivateKey,
    *,
    days: int,
    start: datetime | None,
) -> x509.CertificateBuilder:
    if days < 1:
        raise CertificateError(f"a certificate of {days} days; allowed: 1 or more")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = start or datetime.now(UTC) - _CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
    )


def _key_id(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    """Which key signed; strict verifiers want it named."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9*]([A-Za-z0-9.-]{0,252})", host):
        raise CertificateError(f"{host!r} is neither an address nor a host name")
    return x509.DNSName(host)


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _check_dates(path: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise CertificateError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    if now < certificate.not_valid_before_utc:
        raise CertificateError(
            f"{path} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: "
            "is this machine's clock right?"
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_certificate(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise CertificateError(f"{path} is not a PEM certificate") from None


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        raise CertificateError(f"{path} is not an unencrypted PEM private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} is not an elliptic-curve key")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}") from None


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Write atomically; nobody but the owner can read the bytes of a key at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CertificateError(f"cannot write {path}: {error.strerror}") from None
