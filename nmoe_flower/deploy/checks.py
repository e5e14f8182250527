"""The check before the start: what is wrong, in words, before anything hangs or fails half way.

First of a folder and of any party, then of a node, then of the server.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from nmoe_flower.addresses import Address
from nmoe_flower.certificates import Identity
from nmoe_flower.commands import command_line
from nmoe_flower.config import Config
from nmoe_flower.data import own_images
from nmoe_flower.data.text import own_text
from nmoe_flower.deploy.keys import public_half
from nmoe_flower.deploy.party import RUN, SETTINGS, Party, check_written, versions
from nmoe_flower.deploy.places import listening
from nmoe_flower.deploy.probes import ProbeResult, ask_superlink, is_free, name_shown
from nmoe_flower.deploy.wheel import WHEEL, wheel_problem
from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.files import read_toml
from nmoe_flower.inference.protocol import PeerList, verify_list

__all__ = ["Finding", "check_folder"]

_MOST_DRIFT = 60.0  # seconds; certificates and signatures forgive five minutes
_SOON = 14  # days


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        party: The name of the party whose it is; "all" for what only the whole folder shows.
        what: The thing, in a word.
        problem: What is wrong with it; empty: nothing.
        note: What could not be looked at, and why; empty: all was.
    """

    party: str
    what: str
    problem: str = ""
    note: str = ""


def check_folder(folder: Path, *, now: Callable[[], float] = time.time) -> list[Finding]:
    """Look at one party's folder, or at the whole folder of a federation.

    Args:
        folder: A folder that ``write_federation`` wrote; a node's or the server's may stand alone.
        now: Gives this machine's time, in seconds since 1970.

    Raises:
        ConfigError: The folder is not such a folder.
    """
    if (folder / SETTINGS).is_file():
        return list(_party(folder, now, whole=False))
    parties = [folder / "server", *sorted((folder / "nodes").glob("*"))]
    check_written(folder / SETTINGS, *(party / SETTINGS for party in parties))
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
        "versions": lambda: _same_versions(party),
        "clock": lambda: _clock(party, answer, now()),
        "certificate": lambda: _identity(folder, party, now()),
        "secrets": lambda: _private(folder, party),
    }
    if (folder / WHEEL).is_dir() or (folder / "install.sh").is_file():
        looks["wheel"] = lambda: _wheel(folder)
    if party.kind == "server":
        looks |= _server_looks(folder, party, answer)
    else:
        looks |= _node_looks(folder, party, now())
        yield _reached(folder, party, answer, whole=whole)
    for what, look in looks.items():
        yield _found(party.name, what, look)


def _found(party: str, what: str, look: Callable[[], None]) -> Finding:
    try:
        look()
    except (_Problem, NMoEError) as error:
        return Finding(party, what, problem=str(error))
    except _Unseen as reason:
        return Finding(party, what, note=str(reason))
    except OSError as error:
        return Finding(party, what, problem=f"cannot read {error.filename}: {error.strerror}")
    return Finding(party, what)


def _serves(folder: Path, party: Party) -> bool:
    """Whether this node's own peer service runs already."""
    own = [folder / f"{party.name}.pem", folder / f"{party.name}.key", folder / "ca.pem"]
    try:
        return name_shown(Address.parse(party.peer), *own) == party.name
    except ConfigError:  # another finding names the address
        return False


def _reached(folder: Path, party: Party, answer: ProbeResult, *, whole: bool) -> Finding:
    """Where everything is prepared, the SuperLink need not run yet; nor where a node serves."""
    if not answer.reached and (whole or _serves(folder, party)):
        return Finding(party.name, "superlink", note=f"not reached from here: {answer.problem}")
    problem = f"{party.superlink}: {answer.problem}" if answer.problem else ""
    return Finding(party.name, "superlink", problem)


def _together(folder: Path) -> Iterator[Finding]:
    """What only the whole folder shows: partitions without gaps, keys that the server knows."""
    nodes = [path for path in sorted((folder / "nodes").glob("*")) if path.is_dir()]
    yield _found("all", "partitions", lambda: _partitions(nodes))
    yield _found("all", "keys", lambda: _known_keys(folder / "server", nodes))
    yield _found("all", "authority", lambda: _one_authority(folder / "server", nodes))


class _Problem(Exception):  # noqa: N818 - never leaves this package: it becomes a finding
    """Something is not as it must be; the text says what."""


class _Unseen(Exception):  # noqa: N818 - as _Problem
    """Something cannot be looked at; the text says why."""


def _same_versions(party: Party) -> None:
    """The packages here are those the folder was written with."""
    here = versions()
    for name, wanted in party.versions.items():
        found = here.get(name, "")
        if found != wanted:
            raise _Problem(
                f"{name} is {found or 'not installed'} here and {wanted} where the folder was "
                "written: sh install.sh, in this folder"
            )


def _clock(party: Party, answer: ProbeResult, now: float) -> None:
    """The clock is not behind the folder's birth, and agrees with the SuperLink's."""
    try:
        created = party.created_at.timestamp()
    except ValueError:
        raise _Problem(f"created is {party.created!r}, which is no time") from None
    if now < created - _MOST_DRIFT:
        here = datetime.fromtimestamp(now, UTC)
        raise _Problem(
            f"this machine's clock says {here:%Y-%m-%d %H:%M} UTC, before the folder was written "
            f"({party.created}): set the clock"
        )
    if answer.clock and abs(now - answer.clock) > _MOST_DRIFT:
        raise _Problem(
            f"this machine's clock is {abs(now - answer.clock):.0f} s "
            f"{'ahead of' if now > answer.clock else 'behind'} the SuperLink's: set both by NTP"
        )


def _identity(folder: Path, party: Party, now: float) -> None:
    """The certificate is this party's, of this federation, valid now and for a while."""
    own = Identity.load(
        folder / f"{party.name}.pem", folder / f"{party.name}.key", folder / "ca.pem"
    )
    if own.name != party.name:
        raise _Problem(
            f"{party.name}.pem is the certificate of {own.name!r}, not of {party.name!r}"
        )
    place = party.superlink if party.kind == "server" else party.peer
    host = Address.parse(place).host
    extension = own.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    names = [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]
    addresses = [str(a) for a in extension.value.get_values_for_type(x509.IPAddress)]
    if host not in (*names, *addresses):
        raise _Problem(
            f"{party.name}.pem is not for {host}, where {party.name} is found; it is for "
            f"{', '.join([*names, *addresses])}"
        )
    days = (own.expires.timestamp() - now) / 86_400
    if days < _SOON:
        raise _Problem(f"{party.name}.pem expires in {days:.1f} days: renew it now")


def _private(folder: Path, party: Party) -> None:
    """Nobody else on this machine can read the keys."""
    names = [f"{party.name}.key", *(["supernode.key"] if party.kind == "node" else [])]
    for name in names:
        path = folder / name
        if not path.is_file():
            raise _Problem(f"{path} is missing")
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            mend = command_line("chmod", "600", path)
            raise _Problem(f"{path} can be read by others (mode {mode:o}): {mend}")


def _wheel(folder: Path) -> None:
    """What the folder installs is what was written into it."""
    if problem := wheel_problem(folder):
        raise _Problem(problem)


def _node_looks(folder: Path, party: Party, now: float) -> dict[str, Callable[[], None]]:
    """What is looked at on a node, by name."""
    return {
        "node": lambda: _partitions([folder], alone=True),
        "key": lambda: _node_key(folder),
        "store": lambda: _store(folder),
        "data": lambda: _data(folder),
        "ports": lambda: _ports(folder, party),
        "peers": lambda: _peers(folder, party, now),
    }


def _partitions(nodes: Sequence[Path], *, alone: bool = False) -> None:
    """The nodes hold partitions 0, 1, ... without gaps and doubles; or one node a possible one."""
    held: dict[int, str] = {}
    for node in nodes:
        partition, count = _node_numbers(node)
        if partition in held:
            raise _Problem(f"{held[partition]} and {node.name} both hold partition {partition}")
        if count != len(nodes) and not alone:
            raise _Problem(f"{node.name} has num-partitions {count}, but there are {len(nodes)}")
        held[partition] = node.name


def _node_numbers(folder: Path) -> tuple[int, int]:
    values = read_toml(folder / "node.toml")
    pair = values.get("partition-id"), values.get("num-partitions")
    partition, count = pair
    if not isinstance(partition, int) or not isinstance(count, int):
        raise _Problem(f"{folder / 'node.toml'}: partition-id and num-partitions are {pair}")
    if not 0 <= partition < count:
        raise _Problem(f"{folder / 'node.toml'}: partition-id {partition} of {count} partitions")
    if not values.get("store"):
        raise _Problem(f"{folder / 'node.toml'} names no store: the expert would not be kept")
    return partition, count


def _node_key(folder: Path) -> None:
    own = folder / "supernode.pub"
    if not own.is_file():
        raise _Problem(f"{own} is missing")
    if own.read_bytes().split()[:2] != public_half(folder / "supernode.key").split()[:2]:
        raise _Problem(f"{own} is not the public half of supernode.key")


def _store(folder: Path) -> None:
    store = _inside(folder, read_toml(folder / "node.toml"), "store")
    place = store
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise _Problem(f"the store {store} cannot be written: {place} is not writable")


def _data(folder: Path) -> None:
    """The node's own data can be opened as the run will, and has the federation's classes."""
    values = read_toml(folder / "node.toml")
    if "data-path" not in values:
        return
    own = _inside(folder, values, "data-path")
    if not own.exists():
        raise _Problem(f"the data folder {own} is missing: put this node's images there")
    if not (folder / RUN).is_file():
        raise _Unseen(f"{folder / RUN}, which says how the run reads it, is missing")
    changes = {"data.cache-dir": str(folder / "cache")}
    if "extractor-weights" in values:  # whose tokenizer text may need
        changes["extractor.weights"] = str(_inside(folder, values, "extractor-weights"))
    config = Config.load(folder / RUN, changes.items())
    if config.run.system == "language":
        own_text(config, str(own))
        return
    names = [name.strip() for name in str(values.get("classes", "")).split(",") if name.strip()]
    own_images(config, str(own), classes=names)


def _ports(folder: Path, party: Party) -> None:
    """The node's ports are free, or its own service has them."""
    if not is_free(Address("127.0.0.1", party.runtime_port)):
        raise _Problem(
            f"port {party.runtime_port} of the SuperNode is taken: by one that runs already?"
        )
    place = listening(Address.parse(party.peer))
    if not is_free(place) and not _serves(folder, party):
        raise _Problem(f"port {place.port} of the peer service is taken by another program")


def _peers(folder: Path, party: Party, now: float) -> None:
    listed = PeerList.load(folder / "peers.json")
    verify_list(listed, (folder / "ca.pem").read_bytes(), now=now)
    own = {entry.name: entry for entry in listed.peers}.get(party.name)
    if own is None:
        raise _Problem(f"peers.json does not list {party.name}")
    partition, _ = _node_numbers(folder)
    if (own.partition, own.address) != (partition, party.peer):
        raise _Problem(
            f"peers.json has {party.name} as partition {own.partition} at {own.address}; it is "
            f"partition {partition} at {party.peer}"
        )


def _inside(folder: Path, values: dict[str, Any], key: str) -> Path:
    """A path of node.toml, seen from the node's folder."""
    return folder / Path(str(values.get(key, ""))).expanduser()


def _server_looks(folder: Path, party: Party, answer: ProbeResult) -> dict[str, Callable[[], None]]:
    """What is looked at on the server, by name."""
    return {
        "address": lambda: _address(party, answer),
        "run": lambda: _run(folder),
        "keys": lambda: _server_keys(folder),
    }


def _known_keys(server: Path, nodes: Sequence[Path]) -> None:
    """Every node's key is the one the server will let in under its name."""
    for node in nodes:
        known = server / "keys" / f"{node.name}.pub"
        if not known.is_file():
            raise _Problem(f"{known} is missing: the server would not let {node.name} in")
        if known.read_bytes().split()[:2] != public_half(node / "supernode.key").split()[:2]:
            raise _Problem(f"{known} is not the public half of {node / 'supernode.key'}")


def _one_authority(server: Path, nodes: Sequence[Path]) -> None:
    """All parties trust the same authority."""
    for node in nodes:
        if (node / "ca.pem").read_bytes() != (server / "ca.pem").read_bytes():
            raise _Problem(f"{node / 'ca.pem'} is of another authority than {server / 'ca.pem'}")


def _address(party: Party, answer: ProbeResult) -> None:
    """Our SuperLink answers there already, or the port is free for it."""
    place = listening(Address.parse(party.superlink))
    if answer.reached and not answer.problem:
        return
    if not is_free(place):
        raise _Problem(f"port {place.port} is taken by another program ({answer.problem})")


def _run(folder: Path) -> None:
    values = read_toml(folder / "app" / "pyproject.toml")
    try:
        config = Config.parse(values["tool"]["flwr"]["app"]["config"])
    except KeyError as error:
        raise _Problem(f"{folder / 'app' / 'pyproject.toml'} has no {error}") from None
    known = len(list((folder / "keys").glob("*.pub")))
    if config.data.num_clients != known:
        raise _Problem(
            f"data.num-clients is {config.data.num_clients}, but keys/ holds the keys of {known} "
            "nodes"
        )


def _server_keys(folder: Path) -> None:
    seen: dict[tuple[bytes, ...], str] = {}
    for path in sorted((folder / "keys").glob("*.pub")):
        words = tuple(path.read_bytes().split()[:2])
        if len(words) != 2 or not words[0].startswith(b"ecdsa-sha2-nistp"):
            raise _Problem(f"{path} is no public key of a SuperNode (ECDSA, OpenSSH)")
        if words in seen:
            raise _Problem(f"{path.name} and {seen[words]} hold the same key")
        seen[words] = path.name
