"""Who may state who the peers are."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nmoe_flower.certificates import Authority, create_authority
from nmoe_flower.errors import CertificateError, WireError
from nmoe_flower.inference.protocol.peers import PeerEntry, PeerList
from nmoe_flower.inference.protocol.signing import (
    DIRECTORY,
    canonical,
    newest_list,
    sign_list,
    verify_list,
)

NOW = 1_800_000_000
PEERS = PeerList(
    (PeerEntry("fox", 0, "127.0.0.1:7001"), PeerEntry("owl", 1, "127.0.0.1:7002")),
    serial=3,
    issued_unix=NOW - 10,
    expires_unix=NOW + 3600,
)
START = datetime.fromtimestamp(NOW, UTC) - timedelta(days=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return create_authority(folder, name="forest")


def test_the_authority_signs(authority: Authority) -> None:
    signed = sign_list(PEERS, authority)
    assert signed == replace(PEERS, signature=signed.signature)
    assert verify_list(signed, authority.certificate_pem, now=NOW) is signed


def test_the_directory_signs_for_the_authority(authority: Authority, folder: Path) -> None:
    directory = authority.issue(folder, DIRECTORY, start=START)
    signed = sign_list(PEERS, directory)
    assert verify_list(signed, authority.certificate_pem, now=NOW) is signed


def test_a_directory_with_an_old_certificate_signs_no_more(
    authority: Authority, folder: Path
) -> None:
    directory = authority.issue(folder / "old", DIRECTORY, start=START, days=2)
    later = replace(PEERS, expires_unix=NOW + 10**6)
    with pytest.raises(WireError, match="not valid now"):
        verify_list(sign_list(later, directory), authority.certificate_pem, now=NOW + 3 * 86400)


def test_another_member_may_not_sign(authority: Authority, folder: Path) -> None:
    fox = authority.issue(folder, "fox", start=START)
    with pytest.raises(CertificateError, match="'fox' may not sign peer lists"):
        sign_list(PEERS, fox)
    forged = replace(PEERS, signature=fox.certificate_pem + fox.sign(canonical(PEERS)))
    with pytest.raises(WireError, match="may not sign") as refused:
        verify_list(forged, authority.certificate_pem, now=NOW)
    assert refused.value.reason == "signature"


def test_a_directory_of_another_federation_may_not_sign(
    authority: Authority, tmp_path: Path
) -> None:
    stranger = create_authority(tmp_path, name="forest")  # the same name, another key
    for signer in (stranger, stranger.issue(tmp_path, DIRECTORY, start=START)):
        with pytest.raises(WireError, match=r"not signed by|not of this federation"):
            verify_list(sign_list(PEERS, signer), authority.certificate_pem, now=NOW)


def test_every_fact_is_signed(authority: Authority) -> None:
    """Whatever is changed after the signature, the list is refused."""
    signed = sign_list(PEERS, authority)
    fox, owl = signed.peers
    changed = [
        replace(signed, serial=4),
        replace(signed, issued_unix=NOW),
        replace(signed, expires_unix=NOW + 10**9),
        replace(signed, peers=(fox,)),
        *(
            replace(signed, peers=(replace(fox, **change), owl))
            for change in (
                {"name": "fix"},
                {"partition": 2},
                {"address": "127.0.0.1:7003"},
                {"expert_version": "1"},
                {"extractor_version": "1"},
            )
        ),
    ]
    for peers in changed:
        with pytest.raises(WireError, match="is not signed by"):
            verify_list(peers, authority.certificate_pem, now=NOW)


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"garbage",
        b"-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\nrest",
    ],
)
def test_what_is_no_signature_is_refused(authority: Authority, signature: bytes) -> None:
    with pytest.raises(WireError) as refused:
        verify_list(replace(PEERS, signature=signature), authority.certificate_pem, now=NOW)
    assert refused.value.reason == "signature"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("a003020102", "a003020106"),  # X.509 of version 7, which there is not
        ("06082a8648ce3d040302", "06082a8648ce3d040309"),  # signed with an unknown algorithm
        ("06082a8648ce3d030107", "06082a8648ce3d030163"),  # a key on an unknown curve
    ],
)
def test_a_certificate_of_an_unknown_kind_is_refused(
    authority: Authority, folder: Path, right: str, wrong: str
) -> None:
    directory = authority.issue(folder / "odd", DIRECTORY, start=START)
    signed = sign_list(PEERS, directory)
    made = x509.load_pem_x509_certificate(directory.certificate_pem).public_bytes(Encoding.DER)
    odd = made.replace(bytes.fromhex(right), bytes.fromhex(wrong))
    assert odd != made
    pem = directory.certificate_pem.splitlines(keepends=True)
    shown = pem[0] + base64.encodebytes(odd) + pem[-1]
    bare = signed.signature.removeprefix(directory.certificate_pem)
    with pytest.raises(WireError) as refused:
        verify_list(replace(signed, signature=shown + bare), authority.certificate_pem, now=NOW)
    assert refused.value.reason == "signature"


def test_a_cut_signature_is_refused(authority: Authority, folder: Path) -> None:
    directory = authority.issue(folder / "cut", DIRECTORY, start=START)
    for signed in (sign_list(PEERS, authority), sign_list(PEERS, directory)):
        for end in (1, len(signed.signature) // 2, len(signed.signature) - 1):
            cut = replace(signed, signature=signed.signature[:end])
            with pytest.raises(WireError):
                verify_list(cut, authority.certificate_pem, now=NOW)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (PEERS.expires_unix, "expired on 2027-01-15: sign it again"),
        (PEERS.issued_unix - 301, "from the future"),
    ],
)
def test_a_list_has_its_time(authority: Authority, now: int, text: str) -> None:
    signed = sign_list(PEERS, authority)
    with pytest.raises(WireError, match=text) as refused:
        verify_list(signed, authority.certificate_pem, now=now)
    assert refused.value.reason == "expired"


@pytest.mark.parametrize("now", [PEERS.expires_unix - 1, PEERS.issued_unix - 299])
def test_clocks_may_differ_a_little(authority: Authority, now: int) -> None:
    assert verify_list(sign_list(PEERS, authority), authority.certificate_pem, now=now)


def test_the_higher_serial_holds() -> None:
    newer = replace(PEERS, serial=4)
    assert newest_list(PEERS, newer) is newer
    assert newest_list(PEERS, replace(PEERS, signature=b"by another signer")) is PEERS
    for old in (replace(PEERS, serial=2), replace(PEERS, peers=())):
        with pytest.raises(WireError, match="not newer than the known 3") as refused:
            newest_list(PEERS, old)
        assert refused.value.reason == "replayed"
