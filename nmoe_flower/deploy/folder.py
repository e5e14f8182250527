"""Write the folder of a federation: one sub-folder per machine, ready to be copied there."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from nmoe_flower.certificates import Authority, check_name, create_authority
from nmoe_flower.config import Config
from nmoe_flower.deploy.keys import create_node_key
from nmoe_flower.deploy.party import Party, versions
from nmoe_flower.deploy.places import RUNTIME_PORT, Place
from nmoe_flower.deploy.readme import readme
from nmoe_flower.deploy.scripts import node_scripts, server_scripts
from nmoe_flower.deploy.units import compose, dockerfile, unit
from nmoe_flower.engine import write_app
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import to_toml, write_text
from nmoe_flower.inference.peers import PeerEntry, PeerList
from nmoe_flower.inference.signing import sign
from nmoe_flower.pipeline.exchanges import SECONDS_PER_EXCHANGE, exchanges

__all__ = [
    "Plan",
    "for_deployment",
    "parties",
    "peer_list",
    "write_federation",
    "write_node",
    "write_readme",
]

_SERVER = "superlink"


@dataclass(frozen=True)
class Plan:
    """What ``write_federation`` writes.

    Attributes:
        server: Where the SuperLink listens.
        peers: Where each node answers its peers; their number is the number of nodes.
        config: Of the run; see ``for_deployment``.
        name: Of the federation; nodes are called ``node-0``, ``node-1``, ...
        data: Folder of a node's own images, as the node sees it; empty: a part of the data set.
        classes: Names of all classes, for nodes that hold only some of them.
        runtime_ports: Of the SuperNodes, on loopback; empty: in a row.
        days: How long certificates and the list of peers are valid.
    """

    server: Place
    peers: tuple[Place, ...]
    config: Config
    name: str = "federation"
    data: str = ""
    classes: tuple[str, ...] = ()
    runtime_ports: tuple[int, ...] = ()
    days: int = 365

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.peers) < 2:
            raise ConfigError(f"{len(self.peers)} nodes; allowed: 2 or more")
        if self.data and len(self.classes) < 2:
            raise ConfigError(
                "nodes with their own images must agree on the classes: name all of them"
            )


def write_federation(folder: Path, plan: Plan) -> list[Path]:
    """Write certificates, keys, settings and scripts of every party; return the parties' folders.

    Raises:
        ConfigError: The folder is not empty, or the plan cannot be.
        CertificateError: A certificate or a key cannot be written.
        NMoEError: Another file cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty")
    config = for_deployment(plan.config, len(plan.peers))
    authority = create_authority(folder / "authority", name=plan.name)
    server, nodes = parties(plan, config)
    listed = sign(peer_list(nodes, plan.days), authority)
    _write_server(folder / "server", server, authority, plan, config)
    for node in nodes:
        write_node(folder, node, authority, plan)
        listed.write(folder / "nodes" / node.name / "peers.json")
    write_readme(folder, server, nodes, plan, config)
    write_text(folder / "compose.yaml", compose(server, nodes))
    write_text(folder / "Dockerfile", dockerfile())
    return [folder / "server", *(folder / "nodes" / node.name for node in nodes)]


def for_deployment(config: Config, nodes: int) -> Config:
    """The same run on real nodes: all of them, nothing pooled, results in the server's folder."""
    values = config.flat()
    values |= {"data.num-clients": nodes, "run.out": "runs", "run.wait-for-all": True}
    methods = [name for name in config.gate.methods if name != "global"]
    controls = [name for name in config.run.controls if name != "centralized"]
    if config.expert.sharing != "none" and "federated" not in methods:
        methods.append("federated")
    values |= {"gate.methods": ",".join(methods), "run.controls": ",".join(controls)}
    return Config.parse(values)


def parties(plan: Plan, config: Config) -> tuple[Party, list[Party]]:
    """What the server and the nodes of a plan are told of themselves."""
    server = Party(
        kind="server",
        name=_SERVER,
        federation=plan.name,
        superlink=str(plan.server),
        run=config.run.name,
        peer="",
        runtime_port=0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
    )
    hosts = [place.host for place in plan.peers]
    ports = plan.runtime_ports or tuple(
        RUNTIME_PORT + hosts[:i].count(host) for i, host in enumerate(hosts)
    )
    nodes = [
        replace(server, kind="node", name=f"node-{i}", peer=str(place), runtime_port=port)
        for i, (place, port) in enumerate(zip(plan.peers, ports, strict=True))
    ]
    return server, nodes


def peer_list(nodes: Sequence[Party], days: int, *, serial: int = 1) -> PeerList:
    """The nodes as each other's peers; not signed yet."""
    now = int(time.time())
    entries = tuple(PeerEntry(node.name, i, node.peer) for i, node in enumerate(nodes))
    return PeerList(entries, serial=serial, issued_unix=now, expires_unix=now + days * 86_400)


def _write_server(
    folder: Path, party: Party, authority: Authority, plan: Plan, config: Config
) -> None:
    _write_party(folder, party, authority, hosts=[plan.server.host], days=plan.days)
    write_app(folder / "app", config.flat())
    _write_scripts(folder, server_scripts(party))
    write_text(
        folder / "nmoe-superlink.service", unit(party, what="SuperLink", script="superlink.sh")
    )


def write_readme(
    folder: Path, server: Party, nodes: Sequence[Party], plan: Plan, config: Config
) -> None:
    """Write the README of the whole folder."""
    needed = sum(exchanges(config).values())
    minutes = max(1, round(needed * SECONDS_PER_EXCHANGE / 60))
    text = readme(server, nodes, data=plan.data, exchanges=needed, minutes=minutes)
    write_text(folder / "README.md", text)


def write_node(whole: Path, party: Party, authority: Authority, plan: Plan) -> None:
    """Write the folder of a node, all but the list of peers; its public key for the server."""
    folder = whole / "nodes" / party.name
    public = whole / "server" / "keys" / f"{party.name}.pub"
    create_node_key(folder / "supernode.key", folder / "supernode.pub", public)
    host = party.peer.rpartition(":")[0]
    _write_party(folder, party, authority, hosts=[host], days=plan.days)
    values: dict[str, object] = {
        "node-name": party.name,
        "partition-id": int(party.name.rpartition("-")[2]),
        "num-partitions": len(plan.peers),
        "store": "store",
    }
    if plan.data:
        values["data-path"] = plan.data
    if plan.classes:
        values["classes"] = ",".join(plan.classes)
    text = f"# What {party.name} tells its client app. Its store outlives runs and restarts.\n"
    write_text(folder / "node.toml", text + to_toml(values))
    _write_scripts(folder, node_scripts(party))
    for name, what, script in (
        ("supernode", "SuperNode", "supernode.sh"),
        ("peer", "peer service", "serve.sh"),
    ):
        write_text(folder / f"nmoe-{name}.service", unit(party, what=what, script=script))


def _write_party(
    folder: Path, party: Party, authority: Authority, *, hosts: Sequence[str], days: int
) -> None:
    party.write(folder)
    authority.issue(folder, party.name, hosts=hosts, days=days)
    (folder / "ca.pem").write_bytes(authority.certificate_pem)


def _write_scripts(folder: Path, scripts: dict[str, str]) -> None:
    for name, text in scripts.items():
        write_text(folder / name, text)
        (folder / name).chmod(0o755)
