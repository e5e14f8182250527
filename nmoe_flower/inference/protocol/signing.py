"""Who may say who the peers are: signatures of peer lists.

The federation's authority may, and the device whose certificate carries the name ``directory``:
the authority gives that name to one device only, so its own key can stay offline. A list signed by
the directory brings the directory's certificate along: the signature field then holds that
certificate (PEM) followed by the signature.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from nmoe_flower.certificates import BAD_CERTIFICATE, Authority, Identity, verify_signature
from nmoe_flower.errors import CertificateError, WireError
from nmoe_flower.files import read_text
from nmoe_flower.inference.protocol.peers import PeerList

__all__ = [
    "DIRECTORY",
    "SERIAL",
    "canonical",
    "newest_list",
    "next_serial",
    "sign_list",
    "verify_list",
]

DIRECTORY = "directory"
SERIAL = "peers-serial"

_PURPOSE = b"nmoe.v1.PeerList\n"
_END = b"-----END CERTIFICATE-----\n"
_CLOCK_SKEW = 300


def canonical(peers: PeerList) -> bytes:
    """The bytes that are signed: a purpose line, then JSON with sorted keys and no spaces.

    Protobuf promises no canonical form, JSON of whole numbers and short texts has one.

    >>> canonical(PeerList((), serial=1, expires_unix=9)).splitlines()
    [b'nmoe.v1.PeerList', b'{"expires_unix":9,"issued_unix":0,"peers":[],"serial":1}']
    """
    text = json.dumps(peers.facts(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return _PURPOSE + text.encode("ascii")


def sign_list(peers: PeerList, signer: Authority | Identity) -> PeerList:
    """The list with a signature.

    Raises:
        CertificateError: The signer is a device that is not the directory.
    """
    data = canonical(peers)
    if isinstance(signer, Authority):
        return replace(peers, signature=signer.sign(data))
    if signer.name != DIRECTORY:
        raise CertificateError(
            f"{signer.name!r} may not sign peer lists; allowed: the authority, {DIRECTORY!r}"
        )
    return replace(peers, signature=signer.certificate_pem + signer.sign(data))


def next_serial(folder: Path, *known: int) -> int:
    """The serial number of the next list of a signer: above all that were ever given.

    Whoever takes the number writes it to ``folder / SERIAL``, before or with the list.

    Args:
        folder: The folder of the signer's key.
        known: Serial numbers of lists that are known from elsewhere.

    Raises:
        WireError: What stands in the file is no number.
    """
    path = folder / SERIAL
    if not path.exists():
        return 1 + max(known, default=0)
    text = read_text(path, what="the last serial number in").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise WireError("peers", f"{path} holds {text[:40]!r}; allowed: a whole number")
    return 1 + max(int(text), *known)


def verify_list(peers: PeerList, authority_pem: bytes, *, now: float) -> PeerList:
    """Return the list if somebody who may do so signed it and it is valid at ``now``.

    Args:
        peers: Any list, of any origin.
        authority_pem: The certificate of the federation's authority, PEM.
        now: Seconds since 1970; five minutes of difference between clocks are forgiven.

    Raises:
        WireError: Reason ``signature`` or ``expired``.
    """
    certificate, signature = _signer(peers.signature, authority_pem, now)
    if not signature or not verify_signature(certificate, canonical(peers), signature):
        raise WireError(
            "signature",
            f"the peer list with serial {peers.serial} is not signed by the authority or by "
            f"{DIRECTORY!r}",
        )
    if now >= peers.expires_unix:
        ended = datetime.fromtimestamp(peers.expires_unix, UTC)
        raise WireError(
            "expired",
            f"the peer list with serial {peers.serial} has expired on {ended:%Y-%m-%d}: sign it "
            "again, with nmoe deploy sign or nmoe peers --sign",
        )
    if now < peers.issued_unix - _CLOCK_SKEW:
        raise WireError(
            "expired",
            f"the peer list with serial {peers.serial} is from the future: are the clocks right?",
        )
    return peers


def newest_list(known: PeerList, offered: PeerList) -> PeerList:
    """The list that holds: the one with the higher serial number.

    Raises:
        WireError: Reason ``replayed``: the offered list is older, or is another list with the same
            serial number.
    """
    if offered.serial > known.serial:
        return offered
    if offered.serial == known.serial and canonical(offered) == canonical(known):
        return known
    raise WireError(
        "replayed",
        f"the peer list with serial {offered.serial} is not newer than the known {known.serial}",
    )


def _signer(signature: bytes, authority_pem: bytes, now: float) -> tuple[bytes, bytes]:
    """The certificate to check with, and the bare signature."""
    pem, end, bare = signature.partition(_END)
    if not end:
        return authority_pem, signature
    pem += end
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_pem))
        names = [n.value for n in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except BAD_CERTIFICATE:
        raise WireError("signature", "the signer's certificate is not of this federation") from None
    if names != [DIRECTORY]:
        raise WireError("signature", f"{names} may not sign peer lists; allowed: {DIRECTORY!r}")
    moment = datetime.fromtimestamp(now, UTC)
    if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
        raise WireError("signature", f"the certificate of {DIRECTORY!r} is not valid now")
    return pem, bare
