import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from nmoe_flower.certificates import (
    Authority,
    Identity,
    check_name,
    create_authority,
    verify_signature,
)
from nmoe_flower.errors import CertificateError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path, name="federation")


def load(folder: Path, name: str, *, key: str = "", authority: str = "ca") -> Identity:
    return Identity.load(
        folder / f"{name}.pem", folder / f"{key or name}.key", folder / f"{authority}.pem"
    )


def test_an_identity_comes_back_from_its_files(authority: Authority, tmp_path: Path) -> None:
    issued = authority.issue(tmp_path, "camera-3", hosts=["10.0.0.3", "camera.local"], days=30)
    loaded = load(tmp_path, "camera-3")
    assert loaded.name == issued.name == "camera-3"
    assert loaded.certificate_pem == issued.certificate_pem
    assert loaded.authority_pem == authority.certificate_pem
    # Valid from five minutes ago, for clocks that are behind.
    assert timedelta(days=29.9) < loaded.expires - datetime.now(UTC) < timedelta(days=30)
    names = loaded.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["camera-3", "camera.local"]
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["10.0.0.3"]


def test_only_the_owner_can_read_a_key(authority: Authority, tmp_path: Path) -> None:
    authority.issue(tmp_path, "a")
    for name in ("a.key", "ca.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert b"PRIVATE" not in (tmp_path / "a.pem").read_bytes()


def test_a_device_cannot_issue(authority: Authority, tmp_path: Path) -> None:
    """A certificate signed by a device's key is not one of the federation."""
    device = authority.issue(tmp_path, "device")
    false = Authority(device.certificate_pem, device._key)
    false.issue(tmp_path, "friend")
    with pytest.raises(CertificateError, match=r"friend\.pem was not issued by .*ca\.pem"):
        load(tmp_path, "friend")
    constraints = device.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca is False


def test_nothing_outlives_its_authority(tmp_path: Path) -> None:
    """Made a moment later for as many days, a certificate ends with the authority."""
    authority = create_authority(tmp_path / "ca", name="lab", days=30)
    own = authority.issue(tmp_path / "cat", "cat", days=30)
    assert own.expires <= authority.certificate.not_valid_after_utc
    with pytest.raises(CertificateError, match=r"would outlive .* allowed: up to (29|30) days"):
        authority.issue(tmp_path / "dog", "dog", days=32)
    assert not (tmp_path / "dog").exists()


def test_signatures(authority: Authority, tmp_path: Path) -> None:
    one, two = (authority.issue(tmp_path, name) for name in ("one", "two"))
    signature = one.sign(b"data")
    assert verify_signature(one.certificate_pem, b"data", signature)
    assert not verify_signature(one.certificate_pem, b"Data", signature)
    assert not verify_signature(two.certificate_pem, b"data", signature)
    assert not verify_signature(one.certificate_pem, b"data", b"")
    assert verify_signature(authority.certificate_pem, b"x", Authority.load(tmp_path).sign(b"x"))
    with pytest.raises(CertificateError, match="cannot read a certificate"):
        verify_signature(b"garbage", b"data", signature)


@pytest.mark.parametrize(
    "name", ["", "A", "a b", "-a", "a" * 64, "../a", "a.b", "a\n", "a/b", "é", "a\0"]
)
def test_names_that_are_not_allowed(authority: Authority, tmp_path: Path, name: str) -> None:
    with pytest.raises(CertificateError, match="is not allowed"):
        check_name(name)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CertificateError, match="is not allowed"):
        authority.issue(tmp_path, name)
    assert sorted(tmp_path.iterdir()) == before


def test_the_authoritys_own_files_are_safe(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="'ca' is taken"):
        authority.issue(tmp_path, "ca")
    with pytest.raises(CertificateError, match="holds an authority already"):
        create_authority(tmp_path, name="again")
    assert Authority.load(tmp_path).certificate_pem == authority.certificate_pem


@pytest.mark.parametrize("host", ["", "a b", "-x", "a/b", "x\n", "host:80"])
def test_hosts_that_are_not_allowed(authority: Authority, tmp_path: Path, host: str) -> None:
    with pytest.raises(CertificateError, match="neither an address nor a host name"):
        authority.issue(tmp_path, "a", hosts=[host])
    with pytest.raises(CertificateError, match="for 0 days"):
        authority.issue(tmp_path, "a", days=0)


def test_what_cannot_be_loaded_is_named(authority: Authority, tmp_path: Path) -> None:
    authority.issue(tmp_path, "a")
    authority.issue(tmp_path, "b")
    create_authority(tmp_path / "other", name="other").issue(tmp_path / "other", "a")
    now = datetime.now(UTC)
    authority.issue(tmp_path, "old", days=1, start=now - timedelta(days=3))
    authority.issue(tmp_path, "new", start=now + timedelta(days=3))
    with pytest.raises(CertificateError, match=r"b\.key is not the key of .*a\.pem"):
        load(tmp_path, "a", key="b")
    with pytest.raises(CertificateError, match=r"was not issued by"):
        load(tmp_path, "a", authority="other/ca")
    with pytest.raises(CertificateError, match=r"old\.pem expired on"):
        load(tmp_path, "old")
    with pytest.raises(CertificateError, match=r"is valid only from .* clock right"):
        load(tmp_path, "new")
    with pytest.raises(CertificateError, match=r"cannot read .*none\.pem: No such file"):
        load(tmp_path, "none")
    (tmp_path / "b.key").write_text("no key")
    with pytest.raises(CertificateError, match=r"b\.key is not an unencrypted PEM private key"):
        load(tmp_path, "b")
    (tmp_path / "b.pem").write_text("no certificate")
    with pytest.raises(CertificateError, match=r"b\.pem is not a PEM certificate"):
        load(tmp_path, "b")
    (tmp_path / "ca.key").write_bytes((tmp_path / "a.key").read_bytes())
    with pytest.raises(CertificateError, match=r"ca\.key is not the key of .*ca\.pem"):
        Authority.load(tmp_path)


def test_no_secret_is_shown_when_printed(authority: Authority, tmp_path: Path) -> None:
    identity = authority.issue(tmp_path, "a")
    assert repr(identity) == "Identity('a')"
    assert repr(authority) == "Authority('federation')"
