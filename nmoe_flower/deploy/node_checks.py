"""Checks of a node's folder."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nmoe_flower.addresses import Address
from nmoe_flower.config import Config
from nmoe_flower.data import own_images
from nmoe_flower.deploy.common_checks import Problem
from nmoe_flower.deploy.keys import public_half
from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.places import listening
from nmoe_flower.deploy.probes import is_free
from nmoe_flower.files import read_toml
from nmoe_flower.inference.protocol import PeerList, verify_list

__all__ = ["looks", "partitions"]


def looks(folder: Path, party: Party, now: float) -> dict[str, Callable[[], None]]:
    """What is looked at on a node, by name."""
    return {
        "node": lambda: partitions([folder], alone=True),
        "key": lambda: _key(folder),
        "store": lambda: _store(folder),
        "data": lambda: _data(folder),
        "ports": lambda: _ports(party),
        "peers": lambda: _peers(folder, party, now),
    }


def partitions(nodes: Sequence[Path], *, alone: bool = False) -> None:
    """The nodes hold partitions 0, 1, ... without gaps and doubles; or one node a possible one."""
    held: dict[int, str] = {}
    for node in nodes:
        partition, count = _node(node)
        if partition in held:
            raise Problem(f"{held[partition]} and {node.name} both hold partition {partition}")
        if count != len(nodes) and not alone:
            raise Problem(f"{node.name} has num-partitions {count}, but there are {len(nodes)}")
        held[partition] = node.name


def _node(folder: Path) -> tuple[int, int]:
    values = read_toml(folder / "node.toml")
    pair = values.get("partition-id"), values.get("num-partitions")
    partition, count = pair
    if not isinstance(partition, int) or not isinstance(count, int):
        raise Problem(f"{folder / 'node.toml'}: partition-id and num-partitions are {pair}")
    if not 0 <= partition < count:
        raise Problem(f"{folder / 'node.toml'}: partition-id {partition} of {count} partitions")
    if not values.get("store"):
        raise Problem(f"{folder / 'node.toml'} names no store: the expert would not be kept")
    return partition, count


def _key(folder: Path) -> None:
    own = folder / "supernode.pub"
    if not own.is_file():
        raise Problem(f"{own} is missing")
    if own.read_bytes().split()[:2] != public_half(folder / "supernode.key").split()[:2]:
        raise Problem(f"{own} is not the public half of supernode.key")


def _store(folder: Path) -> None:
    store = _inside(folder, read_toml(folder / "node.toml"), "store")
    place = store
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise Problem(f"the store {store} cannot be written: {place} is not writable")


def _data(folder: Path) -> None:
    """The node's own images can be opened, and their classes are the federation's."""
    values = read_toml(folder / "node.toml")
    if "data-path" not in values:
        return
    own = _inside(folder, values, "data-path")
    if not own.is_dir():
        raise Problem(f"the data folder {own} is missing: put this node's images there")
    names = [name.strip() for name in str(values.get("classes", "")).split(",") if name.strip()]
    config = Config.parse({"data.cache-dir": str(folder / "cache")})
    own_images(config, str(own), classes=names)


def _ports(party: Party) -> None:
    if not is_free(Address("127.0.0.1", party.runtime_port)):
        raise Problem(
            f"port {party.runtime_port} of the SuperNode is taken: by one that runs already?"
        )
    place = listening(Address.parse(party.peer))
    if not is_free(place):
        raise Problem(f"port {place.port} of the peer service is taken: does one run already?")


def _peers(folder: Path, party: Party, now: float) -> None:
    listed = PeerList.load(folder / "peers.json")
    verify_list(listed, (folder / "ca.pem").read_bytes(), now=now)
    own = {entry.name: entry for entry in listed.peers}.get(party.name)
    if own is None:
        raise Problem(f"peers.json does not list {party.name}")
    partition, _ = _node(folder)
    if (own.partition, own.address) != (partition, party.peer):
        raise Problem(
            f"peers.json has {party.name} as partition {own.partition} at {own.address}; it is "
            f"partition {partition} at {party.peer}"
        )


def _inside(folder: Path, values: dict[str, Any], key: str) -> Path:
    """A path of node.toml, seen from the node's folder."""
    return folder / Path(str(values.get(key, ""))).expanduser()
