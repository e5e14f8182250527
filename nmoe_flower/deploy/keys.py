"""The keys with which SuperNodes show themselves to the SuperLink: ECDSA P-384, OpenSSH."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nmoe_flower.errors import CertificateError
from nmoe_flower.files import write_bytes

__all__ = ["create_node_key", "public_half"]


def create_node_key(private: Path, *public: Path) -> None:
    """Write a new private key (mode 0600), and its public half to every ``public`` path.

    Raises:
        CertificateError: A file cannot be written.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    write_bytes(
        private,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
        mode=0o600,
        raises=CertificateError,
    )
    for path in public:
        write_bytes(path, _public(key), raises=CertificateError)


def public_half(private: Path) -> bytes:
    """The public key, OpenSSH, that belongs to a private key.

    Raises:
        CertificateError: The file cannot be read, or is no such key.
    """
    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), password=None)
    except OSError as error:
        raise CertificateError(f"cannot read {private}: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError(f"{private} is no unencrypted OpenSSH private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{private} is no elliptic-curve key")
    return _public(key)


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
