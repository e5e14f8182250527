"""Keep a federation up: new certificates and keys, more nodes, the list of peers signed again."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nmoe_flower.addresses import Address
from nmoe_flower.certificates import Authority
from nmoe_flower.config import Config
from nmoe_flower.deploy.folder import (
    FederationPlan,
    add_wheel,
    parties,
    peer_list,
    write_node,
    write_node_config,
    write_overview,
    write_party,
    write_peers,
    write_run,
    write_scripts,
)
from nmoe_flower.deploy.keys import create_node_key
from nmoe_flower.deploy.party import RUN, SETTINGS, Party, check_written
from nmoe_flower.deploy.places import peer_places, runtime_ports
from nmoe_flower.deploy.scripts import node_scripts
from nmoe_flower.deploy.wheel import WHEEL, copy_wheel, write_wheel
from nmoe_flower.engine import write_app
from nmoe_flower.errors import ConfigError, did_you_mean
from nmoe_flower.files import all_or_none, read_toml
from nmoe_flower.inference.bundle import MANIFEST
from nmoe_flower.inference.protocol import PeerList, next_serial

__all__ = ["add_nodes", "renew", "sign_peers"]

_NAMED = 8  # that errors list


def renew(folder: Path, *names: str, node_key: bool = False, days: int = 365) -> list[Path]:
    """Issue certificates of parties anew, with new keys; return the files that changed.

    All of them change, or none.

    Args:
        folder: The whole folder of the federation, with ``authority/``.
        names: Names of the parties: ``superlink``, or a node's.
        node_key: Whether to make a new key for each node's SuperNode.
        days: How many days the certificates are valid.

    Raises:
        ConfigError: There is no such party.
        CertificateError: The authority's key is not there, or a file cannot be written.
    """
    authority = _authority(folder)
    owned = {name: _own(folder, name) for name in names}
    changed: list[Path] = []
    with all_or_none(folder) as new:
        for name, own in owned.items():
            party = Party.load(folder / own)
            place = party.superlink if party.kind == "server" else party.peer
            authority.issue(new / own, name, hosts=[Address.parse(place).host], days=days)
            changed += [folder / own / f"{name}.pem", folder / own / f"{name}.key"]
            if node_key and party.kind == "node":
                files = [own / "supernode.key", own / "supernode.pub"]
                files.append(Path("server", "keys", f"{name}.pub"))
                create_node_key(*(new / file for file in files))
                changed += [folder / file for file in files]
    return changed


def add_nodes(folder: Path, hosts: Sequence[str], *, days: int = 365) -> list[Path]:
    """Write folders for more nodes; tell the others how many there are now.

    The gate knows as many experts as there are nodes, so the next run trains everything anew. All
    of it is written, or nothing.

    Args:
        folder: The whole folder of the federation, with ``authority/``.
        hosts: Where the new nodes are, ``host`` or ``host:port``.
        days: How many days their certificates and the new list of peers are valid.

    Returns:
        What changed, and must be copied to its machine.

    Raises:
        ConfigError: The folder is not whole, or a place is taken.
        CertificateError: The authority's key is not there.
    """
    authority = _authority(folder)
    before = _plan(folder, days)
    old = len(before.peers)
    taken = (before.server, *before.peers, *_client_places(_nodes(folder, old)))
    peers = (*before.peers, *peer_places(hosts, taken=taken))
    config = Config.parse({**before.config.flat(), "data.num-clients": len(peers)})
    plan = replace(before, peers=peers, config=config)
    server, nodes = parties(plan, config)
    nodes = [*_nodes(folder, old), *nodes[old:]]
    changed = [folder / "server" / "app"]
    with all_or_none(folder) as new:
        _bring_wheel(folder, new)
        for node in nodes[old:]:
            write_node(new, node, authority, plan, config)
            add_wheel(new, new / "nodes" / node.name)
            changed += [folder / "nodes" / node.name]
            changed += [folder / "server" / "keys" / f"{node.name}.pub"]
        for node in nodes[:old]:
            own = Path("nodes", node.name)
            values = read_toml(folder / own / "node.toml") | {"num-partitions": len(nodes)}
            write_node_config(new / own, node.name, values)
            write_run(new / own, config)
            changed += [folder / own / name for name in ("node.toml", "peers.json", RUN)]
        write_peers(new, _listed(folder, nodes, days), authority, nodes)
        write_app(new / "server" / "app", config.flat())
        write_overview(new, server, nodes, plan, config)
    return changed


def sign_peers(
    folder: Path,
    *,
    moves: Mapping[str, str] | None = None,
    days: int = 365,
    bundles: Sequence[Path] = (),
) -> list[Path]:
    """Sign the list of peers again, for every node's folder; return the files that changed.

    What the last list says of experts, their versions and embeddings, is in the new one, unless
    a bundle says otherwise: one of ``bundles``, or one with an embedding in a node's folder.

    Args:
        folder: The whole folder of the federation, with ``authority/``.
        moves: New hosts of nodes by their names, ``host`` or ``host:port`` (the port stays). Their
            certificates, with new keys, and their scripts are for the new host.
        days: How many days the list, and the certificates of those that moved, are valid.
        bundles: Folders of bundles of some of the nodes, which have their devices' embeddings.

    Raises:
        ConfigError: The folder is not whole, there is no such node, or a place is taken.
        CertificateError: The authority's key is not there.
        BundleError: A bundle is not there, or damaged.
        WireError: A bundle is of a device that is no node.
    """
    authority = _authority(folder)
    before = _plan(folder, days)
    nodes = _nodes(folder, len(before.peers))
    moved = dict(moves or {})
    known = [node.name for node in nodes]
    if unknown := [name for name in moved if name not in known]:
        raise ConfigError(f"{folder} has no node {unknown[0]!r}{_meant(unknown[0], known)}")
    nodes = [
        replace(node, peer=str(Address.parse(moved[node.name], port=Address.parse(node.peer).port)))
        if node.name in moved
        else node
        for node in nodes
    ]
    stay = [node for node in nodes if node.name not in moved]
    taken = [before.server, *_client_places(stay)]
    peers = peer_places([node.peer for node in nodes], taken=taken)
    nodes = _with_free_ports(before.server, nodes, moved)
    changed: list[Path] = []
    with all_or_none(folder) as new:
        for node in nodes:
            own = new / "nodes" / node.name
            if node.name in moved:
                write_party(own, node, authority, days=days)
                write_scripts(own, node_scripts(node))
        listed = _with_experts(folder, _listed(folder, nodes, days), bundles)
        write_peers(new, listed, authority, nodes)
        changed += _below(new, new / "nodes", folder)
        if moved:
            server = Party.load(folder / "server")
            write_overview(new, server, nodes, replace(before, peers=peers), before.config)
    return changed


def _with_free_ports(server: Address, nodes: Sequence[Party], moved: Container[str]) -> list[Party]:
    """Nodes that moved leave the port of their client processes to who is there already."""
    order = sorted(nodes, key=lambda node: node.name in moved)
    places = [Address.parse(node.peer) for node in order]
    ports = runtime_ports(server, places, [node.runtime_port for node in order])
    free = {node.name: port for node, port in zip(order, ports, strict=True)}
    return [replace(node, runtime_port=free[node.name]) for node in nodes]


def _nodes(folder: Path, count: int) -> list[Party]:
    return [Party.load(folder / "nodes" / f"node-{i}") for i in range(count)]


def _client_places(nodes: Iterable[Party]) -> list[Address]:
    """Where the client processes of nodes find their SuperNodes."""
    return [Address(Address.parse(node.peer).host, node.runtime_port) for node in nodes]


def _own(folder: Path, name: str) -> Path:
    """Where a party's files are, within the folder of the federation."""
    if name == "superlink":
        return Path("server")
    known = sorted(path.name for path in (folder / "nodes").glob("*"))
    if name not in known:
        told = _meant(name, ["superlink", *known])
        raise ConfigError(f"{folder} has no party {name!r}{told}")
    return Path("nodes", name)


def _meant(name: str, known: Sequence[str]) -> str:
    """The end of an error about a name that nobody has."""
    more = ", ..." if len(known) > _NAMED else ""
    return did_you_mean(name, known) or f"; it has {', '.join(known[:_NAMED])}{more}"


def _below(new: Path, part: Path, folder: Path) -> list[Path]:
    files = sorted(path for path in part.rglob("*") if path.is_file())
    return [folder / path.relative_to(new) for path in files]


def _bring_wheel(folder: Path, new: Path) -> None:
    """What the nodes that are there have installed; a folder of old may have none."""
    if (folder / WHEEL).is_dir():
        copy_wheel(folder, new)
    else:
        write_wheel(new / WHEEL)


def _listed(folder: Path, nodes: Iterable[Party], days: int) -> PeerList:
    """The next list, not signed yet: its serial number is above all that were signed before."""
    known = [PeerList.load(path).serial for path in (folder / "nodes").glob("*/peers.json")]
    return peer_list(list(nodes), days, serial=next_serial(folder / "authority", *known))


def _with_experts(folder: Path, listed: PeerList, bundles: Sequence[Path]) -> PeerList:
    """The list with what the last one, then bundles, say of its experts."""
    lists = map(PeerList.load, (folder / "nodes").glob("*/peers.json"))
    last = max(lists, key=lambda one: one.serial, default=listed)
    told = {peer.name: peer for peer in last.peers}
    peers = [
        replace(told[peer.name], partition=peer.partition, address=peer.address)
        if peer.name in told
        else peer
        for peer in listed.peers
    ]
    after = replace(listed, peers=tuple(peers))
    own = sorted(path.parent for path in (folder / "nodes").glob(f"*/bundle/{MANIFEST}"))
    if not own and not bundles:
        return after
    from nmoe_flower.inference.ask import with_embeddings
    from nmoe_flower.inference.bundle import open_bundle

    found = [one for one in map(open_bundle, own) if one.config.has_embeddings]
    return with_embeddings(after, [*found, *map(open_bundle, bundles)])


def _authority(folder: Path) -> Authority:
    """Who signs for the federation that a folder is of."""
    check_written(folder / "server" / SETTINGS)
    return Authority.load(folder / "authority")


def _plan(folder: Path, days: int) -> FederationPlan:
    """The plan that a folder was written by."""
    server = Party.load(folder / "server")
    count = len(list((folder / "nodes").glob("*/settings.toml")))
    nodes = _nodes(folder, count)
    told = read_toml(folder / "nodes" / "node-0" / "node.toml")
    app = read_toml(folder / "server" / "app" / "pyproject.toml")
    return FederationPlan(
        server=Address.parse(server.superlink),
        peers=tuple(Address.parse(node.peer) for node in nodes),
        config=Config.parse(app["tool"]["flwr"]["app"]["config"]),
        name=server.federation,
        data=str(told.get("data-path", "")),
        runtime_ports=tuple(node.runtime_port for node in nodes),
        classes=tuple(name for name in str(told.get("classes", "")).split(",") if name),
        days=days,
    )
