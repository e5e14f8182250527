"""Change a federation that is there: new certificates and keys, more nodes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nmoe_flower.certificates import Authority
from nmoe_flower.config import Config
from nmoe_flower.deploy.folder import Plan, parties, peer_list, write_node, write_readme
from nmoe_flower.deploy.keys import create_node_key
from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.places import PEER_PORT, Place
from nmoe_flower.deploy.units import compose
from nmoe_flower.engine import write_app
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import read_toml, to_toml, write_text
from nmoe_flower.inference.peers import PeerList
from nmoe_flower.inference.signing import sign

__all__ = ["add_nodes", "renew"]


def renew(folder: Path, name: str, *, node_key: bool = False, days: int = 365) -> list[Path]:
    """Issue a party's certificate anew, with a new key; return the files that changed.

    Args:
        folder: The whole folder of the federation, with ``authority/``.
        name: ``superlink``, or a node's.
        node_key: Also a new key for the node's SuperNode.
        days: How long the certificate is valid.

    Raises:
        ConfigError: There is no such party.
        CertificateError: The authority's key is not there, or a file cannot be written.
    """
    own = folder / "server" if name == "superlink" else folder / "nodes" / name
    if name not in ("superlink", *(path.name for path in (folder / "nodes").glob("*"))):
        raise ConfigError(f"{folder} has no party {name!r}")
    party = Party.load(own)
    place = party.superlink if party.kind == "server" else party.peer
    authority = Authority.load(folder / "authority")
    authority.issue(own, name, hosts=[place.rpartition(":")[0]], days=days)
    changed = [own / f"{name}.pem", own / f"{name}.key"]
    if node_key and party.kind == "node":
        public = folder / "server" / "keys" / f"{name}.pub"
        create_node_key(own / "supernode.key", own / "supernode.pub", public)
        changed += [own / "supernode.key", own / "supernode.pub", public]
    return changed


def add_nodes(folder: Path, hosts: Sequence[str], *, days: int = 365) -> list[Path]:
    """Write folders for more nodes; tell the others how many there are now.

    The gate knows as many experts as there are nodes, so the next run trains everything anew.

    Args:
        folder: The whole folder of the federation, with ``authority/``.
        hosts: Of the new nodes, ``host`` or ``host:port``.
        days: How long their certificates and the new list of peers are valid.

    Returns:
        What changed, and must be copied to its machine.

    Raises:
        ConfigError: The folder is not whole, or a place is taken.
        CertificateError: The authority's key is not there.
    """
    authority = Authority.load(folder / "authority")
    before = _plan(folder, days)
    old = len(before.peers)
    taken = [place.host for place in before.peers]
    added: list[Place] = []
    for text in hosts:
        added.append(Place.parse(text, port=PEER_PORT + taken.count(text)))
        taken.append(text)
    places = (*before.peers, *added)
    if len(set(places)) != len(places):
        raise ConfigError("two nodes cannot listen at one place; give host:port")
    config = Config.parse({**before.config.flat(), "data.num-clients": len(places)})
    plan = replace(before, peers=places, config=config)
    server, nodes = parties(plan, config)
    changed = [folder / "server" / "app"]
    for node in nodes[old:]:
        write_node(folder, node, authority, plan)
        changed += [folder / "nodes" / node.name, folder / "server" / "keys" / f"{node.name}.pub"]
    serial = PeerList.load(folder / "nodes" / nodes[0].name / "peers.json").serial + 1
    listed = sign(peer_list(nodes, days, serial=serial), authority)
    for node in nodes:
        own = folder / "nodes" / node.name
        listed.write(own / "peers.json")
        values = read_toml(own / "node.toml") | {"num-partitions": len(nodes)}
        write_text(own / "node.toml", to_toml(values))
    changed += [f for n in nodes[:old] for f in _told(folder / "nodes" / n.name)]
    write_app(folder / "server" / "app", config.flat())
    write_readme(folder, server, nodes, plan, config)
    write_text(folder / "compose.yaml", compose(server, nodes))
    return changed


def _told(own: Path) -> list[Path]:
    return [own / "node.toml", own / "peers.json"]


def _plan(folder: Path, days: int) -> Plan:
    """The plan that a folder was written by."""
    server = Party.load(folder / "server")
    count = len(list((folder / "nodes").glob("*/settings.toml")))
    nodes = [Party.load(folder / "nodes" / f"node-{i}") for i in range(count)]
    told = read_toml(folder / "nodes" / "node-0" / "node.toml")
    app = read_toml(folder / "server" / "app" / "pyproject.toml")
    return Plan(
        server=Place.parse(server.superlink, port=1),
        peers=tuple(Place.parse(node.peer, port=1) for node in nodes),
        config=Config.parse(app["tool"]["flwr"]["app"]["config"]),
        name=server.federation,
        data=str(told.get("data-path", "")),
        classes=tuple(name for name in str(told.get("classes", "")).split(",") if name),
        days=days,
    )
