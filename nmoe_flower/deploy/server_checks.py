"""Checks of the server's folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from nmoe_flower.addresses import Address
from nmoe_flower.config import Config
from nmoe_flower.deploy.common_checks import Problem
from nmoe_flower.deploy.keys import public_half
from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.places import listening
from nmoe_flower.deploy.probes import Answer, is_free
from nmoe_flower.files import read_toml

__all__ = ["known_keys", "looks", "one_authority"]


def looks(folder: Path, party: Party, answer: Answer) -> dict[str, Callable[[], None]]:
    """What is looked at on the server, by name."""
    return {
        "address": lambda: _address(party, answer),
        "run": lambda: _run(folder),
        "keys": lambda: _keys(folder),
    }


def known_keys(server: Path, nodes: Sequence[Path]) -> None:
    """Every node's key is the one the server will let in under its name."""
    for node in nodes:
        known = server / "keys" / f"{node.name}.pub"
        if not known.is_file():
            raise Problem(f"{known} is missing: the server would not let {node.name} in")
        if known.read_bytes().split()[:2] != public_half(node / "supernode.key").split()[:2]:
            raise Problem(f"{known} is not the public half of {node / 'supernode.key'}")


def one_authority(server: Path, nodes: Sequence[Path]) -> None:
    """All parties trust the same authority."""
    for node in nodes:
        if (node / "ca.pem").read_bytes() != (server / "ca.pem").read_bytes():
            raise Problem(f"{node / 'ca.pem'} is of another authority than {server / 'ca.pem'}")


def _address(party: Party, answer: Answer) -> None:
    """Our SuperLink answers there already, or the port is free for it."""
    place = listening(Address.parse(party.superlink))
    if answer.reached and not answer.problem:
        return
    if not is_free(place):
        raise Problem(f"port {place.port} is taken by another program ({answer.problem})")


def _run(folder: Path) -> None:
    values = read_toml(folder / "app" / "pyproject.toml")
    try:
        config = Config.parse(values["tool"]["flwr"]["app"]["config"])
    except KeyError as error:
        raise Problem(f"{folder / 'app' / 'pyproject.toml'} has no {error}") from None
    known = len(list((folder / "keys").glob("*.pub")))
    if config.data.num_clients != known:
        raise Problem(
            f"data.num-clients is {config.data.num_clients}, but keys/ holds the keys of {known} "
            "nodes"
        )


def _keys(folder: Path) -> None:
    seen: dict[tuple[bytes, ...], str] = {}
    for path in sorted((folder / "keys").glob("*.pub")):
        words = tuple(path.read_bytes().split()[:2])
        if len(words) != 2 or not words[0].startswith(b"ecdsa-sha2-nistp"):
            raise Problem(f"{path} is no public key of a SuperNode (ECDSA, OpenSSH)")
        if words in seen:
            raise Problem(f"{path.name} and {seen[words]} hold the same key")
        seen[words] = path.name
