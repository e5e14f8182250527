"""One device's certificate and key: in files, and what is shown, signed and opened with them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nmoe_flower.errors import CertificateError

__all__ = [
    "BAD_CERTIFICATE",
    "Identity",
    "Signer",
    "check_name",
    "is_name",
    "key_pem",
    "load_certificate",
    "load_key",
    "read_pem",
    "verify_signature",
]

# What reading and checking a certificate may raise that somebody else made.
BAD_CERTIFICATE = (
    InvalidSignature,
    TypeError,
    UnsupportedAlgorithm,
    ValueError,
    x509.InvalidVersion,
)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def is_name(name: object) -> bool:
    """Whether a device may be called so: 1 to 63 of a-z, 0-9 and "-", no "-" first.

    >>> is_name("camera-3"), is_name("Camera 3"), is_name(3)
    (True, False, False)
    """
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return ``name`` if a device may be called so.

    Raises:
        CertificateError: It is not made of 1 to 63 of a-z, 0-9 and "-", or begins with "-".

    >>> check_name("camera-3")
    'camera-3'
    """
    if not is_name(name):
        raise CertificateError(
            f"the name {name!r} is not allowed: 1 to 63 of a-z, 0-9 and '-', no '-' first"
        )
    return name


@dataclass(frozen=True, repr=False)
class Signer:
    """A certificate and its private key.

    Attributes:
        certificate_pem: The certificate, PEM.
    """

    certificate_pem: bytes
    _key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate_pem)

    @property
    def name(self) -> str:
        """The common name."""
        names = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else ""

    @property
    def expires(self) -> datetime:
        """When the certificate ends, in UTC."""
        return self.certificate.not_valid_after_utc

    def sign(self, data: bytes) -> bytes:
        """A signature (ECDSA, SHA-256) that `verify_signature` checks."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))


@dataclass(frozen=True, repr=False)
class Identity(Signer):
    """What one device shows and signs with.

    Attributes:
        authority_pem: The certificate of the authority whose devices it trusts, PEM.
    """

    authority_pem: bytes = field()

    @classmethod
    def load(cls, certificate: Path, key: Path, authority: Path) -> Self:
        """Read three PEM files: the device's certificate and key, the authority's certificate.

        Raises:
            CertificateError: A file cannot be read, the key belongs to another certificate,
                another authority issued it, its name is not allowed, or it is out of date.
        """
        own_pem, authority_pem = read_pem(certificate), read_pem(authority)
        own = load_certificate(certificate, own_pem)
        identity = cls(own_pem, load_key(key), authority_pem)
        if own.public_key() != identity._key.public_key():
            raise CertificateError(f"{key} is not the key of {certificate}")
        try:
            own.verify_directly_issued_by(load_certificate(authority, authority_pem))
        except BAD_CERTIFICATE:
            raise CertificateError(f"{certificate} was not issued by {authority}") from None
        check_name(identity.name)
        _check_dates(certificate, own)
        return identity

    def server_credentials(self, *, on_handshake: "Callable[[], Identity] | None" = None) -> Any:
        """GRPC credentials of a server that lets in only devices of the authority.

        Args:
            on_handshake: Called at every handshake, from any thread; returns the identity to show.
                So a certificate is renewed without a restart. None: always this one.
        """
        import grpc

        if on_handshake is None:
            return grpc.ssl_server_credentials(
                [(key_pem(self._key), self.certificate_pem)],
                root_certificates=self.authority_pem,
                require_client_auth=True,
            )
        shown = self

        def fetch() -> Any:
            nonlocal shown
            identity = on_handshake()
            if identity is shown:
                return None
            shown = identity
            return identity._configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), fetch, require_client_authentication=True
        )

    def channel_credentials(self) -> Any:
        """GRPC credentials of a caller; it must name whom it calls.

        Pass ``("grpc.ssl_target_name_override", name)`` among the channel's options.
        """
        import grpc

        return grpc.ssl_channel_credentials(
            root_certificates=self.authority_pem,
            private_key=key_pem(self._key),
            certificate_chain=self.certificate_pem,
        )

    def _configuration(self) -> Any:
        import grpc

        return grpc.ssl_server_certificate_configuration(
            [(key_pem(self._key), self.certificate_pem)], root_certificates=self.authority_pem
        )


def verify_signature(certificate_pem: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the key of this certificate made ``signature`` over ``data``.

    Raises:
        CertificateError: The certificate cannot be read.
    """
    try:
        key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    except BAD_CERTIFICATE as error:
        raise CertificateError(f"cannot read a certificate: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _check_dates(path: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise CertificateError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    if now < certificate.not_valid_before_utc:
        raise CertificateError(
            f"{path} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: "
            "is this machine's clock right?"
        )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_certificate(path: Path, pem: bytes) -> x509.Certificate:
    """Parse what was read from ``path``.

    Raises:
        CertificateError: It is no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except BAD_CERTIFICATE:
        raise CertificateError(f"{path} is not a PEM certificate") from None


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        CertificateError: The file cannot be read, or is no unencrypted elliptic-curve key.
    """
    try:
        key = serialization.load_pem_private_key(read_pem(path), password=None)
    except (ValueError, TypeError):
        raise CertificateError(f"{path} is not an unencrypted PEM private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} is not an elliptic-curve key")
    return key


def read_pem(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        CertificateError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}") from None
