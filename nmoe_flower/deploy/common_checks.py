"""Checks of any party: versions, clock, certificate, secrets."""

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from nmoe_flower.addresses import Address
from nmoe_flower.certificates import Identity
from nmoe_flower.deploy.party import Party, versions
from nmoe_flower.deploy.probes import Answer
from nmoe_flower.deploy.wheel import wheel_problem

__all__ = ["Problem", "clock", "identity", "private", "same_versions", "wheel"]

_MOST_DRIFT = 60.0  # seconds; certificates and signatures forgive five minutes
_SOON = 14  # days


class Problem(Exception):  # noqa: N818 - never leaves this package: it becomes a finding
    """Something is not as it must be; the text says what."""


def same_versions(party: Party) -> None:
    """The packages here are those the folder was written with."""
    here = versions()
    for name, wanted in party.versions.items():
        found = here.get(name, "")
        if found != wanted:
            raise Problem(
                f"{name} is {found or 'not installed'} here and {wanted} where the folder was "
                "written: sh install.sh, in this folder"
            )


def clock(party: Party, answer: Answer, now: float) -> None:
    """The clock is not behind the folder's birth, and agrees with the SuperLink's."""
    try:
        created = party.created_at.timestamp()
    except ValueError:
        raise Problem(f"created is {party.created!r}, which is no time") from None
    if now < created - _MOST_DRIFT:
        here = datetime.fromtimestamp(now, UTC)
        raise Problem(
            f"this machine's clock says {here:%Y-%m-%d %H:%M} UTC, before the folder was written "
            f"({party.created}): set the clock"
        )
    if answer.clock and abs(now - answer.clock) > _MOST_DRIFT:
        raise Problem(
            f"this machine's clock is {abs(now - answer.clock):.0f} s "
            f"{'ahead of' if now > answer.clock else 'behind'} the SuperLink's: set both by NTP"
        )


def identity(folder: Path, party: Party, now: float) -> None:
    """The certificate is this party's, of this federation, valid now and for a while."""
    own = Identity.load(
        folder / f"{party.name}.pem", folder / f"{party.name}.key", folder / "ca.pem"
    )
    if own.name != party.name:
        raise Problem(f"{party.name}.pem is the certificate of {own.name!r}, not of {party.name!r}")
    place = party.superlink if party.kind == "server" else party.peer
    host = Address.parse(place).host
    extension = own.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    names = [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]
    addresses = [str(a) for a in extension.value.get_values_for_type(x509.IPAddress)]
    if host not in (*names, *addresses):
        raise Problem(
            f"{party.name}.pem is not for {host}, where {party.name} is found; it is for "
            f"{', '.join([*names, *addresses])}"
        )
    days = (own.expires.timestamp() - now) / 86_400
    if days < _SOON:
        raise Problem(f"{party.name}.pem expires in {days:.1f} days: renew it now")


def private(folder: Path, party: Party) -> None:
    """Nobody else on this machine can read the keys."""
    names = [f"{party.name}.key", *(["supernode.key"] if party.kind == "node" else [])]
    for name in names:
        path = folder / name
        if not path.is_file():
            raise Problem(f"{path} is missing")
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise Problem(f"{path} can be read by others (mode {mode:o}): chmod 600 {path}")


def wheel(folder: Path) -> None:
    """What the folder installs is what was written into it."""
    if problem := wheel_problem(folder):
        raise Problem(problem)
