"""The check before the start: what is wrong, in words, before anything hangs or fails half way."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nmoe_flower.addresses import Address
from nmoe_flower.deploy import node_checks, server_checks
from nmoe_flower.deploy.common_checks import Problem, clock, identity, private, same_versions, wheel
from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.probes import Answer, ask_superlink
from nmoe_flower.deploy.wheel import FOLDER as WHEEL
from nmoe_flower.errors import ConfigError, NMoEError

__all__ = ["Finding", "check"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        party: Whose.
        what: Which thing.
        problem: What is wrong with it; empty: nothing.
        note: What could not be looked at, and why.
    """

    party: str
    what: str
    problem: str = ""
    note: str = ""


def check(folder: Path, *, now: Callable[[], float] = time.time) -> list[Finding]:
    """Look at one party's folder, or at the whole folder of a federation.

    Args:
        folder: Written by ``write_federation``; a node's or the server's may stand alone.
        now: This machine's clock, seconds since 1970.

    Raises:
        ConfigError: The folder is not such a folder.
    """
    if (folder / "settings.toml").is_file():
        return list(_party(folder, now, whole=False))
    parties = [folder / "server", *sorted((folder / "nodes").glob("*"))]
    if not any((party / "settings.toml").is_file() for party in parties):
        raise ConfigError(f"{folder} has no settings.toml: nmoe deploy did not write this folder")
    findings = [found for party in parties for found in _party(party, now, whole=True)]
    return [*findings, *_together(folder)]


def _party(folder: Path, now: Callable[[], float], *, whole: bool) -> Iterator[Finding]:
    try:
        party = Party.load(folder)
    except ConfigError as error:
        yield Finding(folder.name, "settings", str(error))
        return
    yield Finding(party.name, "settings")
    try:
        place = Address.parse(party.superlink)
    except ConfigError as error:
        yield Finding(party.name, "address", f"superlink: {error}")
        return
    answer = ask_superlink(place, folder / "ca.pem")
    looks: dict[str, Callable[[], None]] = {
        "versions": lambda: same_versions(party),
        "clock": lambda: clock(party, answer, now()),
        "certificate": lambda: identity(folder, party, now()),
        "secrets": lambda: private(folder, party),
    }
    if (folder / WHEEL).is_dir() or (folder / "install.sh").is_file():
        looks["wheel"] = lambda: wheel(folder)
    if party.kind == "server":
        looks |= server_checks.looks(folder, party, answer)
    else:
        looks |= node_checks.looks(folder, party, now())
        yield _reached(party, answer, whole=whole)
    for what, look in looks.items():
        yield _found(party.name, what, look)


def _found(party: str, what: str, look: Callable[[], None]) -> Finding:
    try:
        look()
    except (Problem, NMoEError) as error:
        return Finding(party, what, problem=str(error))
    except OSError as error:
        return Finding(party, what, problem=f"cannot read {error.filename}: {error.strerror}")
    return Finding(party, what)


def _reached(party: Party, answer: Answer, *, whole: bool) -> Finding:
    """On the machine that prepares everything, the SuperLink need not run yet."""
    if whole and not answer.reached:
        return Finding(party.name, "superlink", note=f"not reached from here: {answer.problem}")
    problem = f"{party.superlink}: {answer.problem}" if answer.problem else ""
    return Finding(party.name, "superlink", problem)


def _together(folder: Path) -> Iterator[Finding]:
    """What only the whole folder shows: partitions without gaps, keys that the server knows."""
    nodes = [path for path in sorted((folder / "nodes").glob("*")) if path.is_dir()]
    yield _found("all", "partitions", lambda: node_checks.partitions(nodes))
    yield _found("all", "keys", lambda: server_checks.known_keys(folder / "server", nodes))
    yield _found("all", "authority", lambda: server_checks.one_authority(folder / "server", nodes))
