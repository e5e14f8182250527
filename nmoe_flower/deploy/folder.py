"""Write the folder of a federation: one sub-folder per machine, ready to be copied there."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from nmoe_flower.addresses import Address
from nmoe_flower.catalogue import CONTROLS, GATES
from nmoe_flower.certificates import Authority, check_name, create_authority
from nmoe_flower.config import Config
from nmoe_flower.deploy.keys import create_node_key
from nmoe_flower.deploy.party import RUN, Party, versions
from nmoe_flower.deploy.places import runtime_ports
from nmoe_flower.deploy.scripts import (
    compose,
    dockerfile,
    install_script,
    node_scripts,
    readme,
    server_scripts,
    unit,
)
from nmoe_flower.deploy.wheel import WHEEL, copy_wheel, wheel_name, write_wheel
from nmoe_flower.engine import write_app
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import all_or_none, to_toml, write_text
from nmoe_flower.inference.protocol import SERIAL, PeerEntry, PeerList, sign_list
from nmoe_flower.pipeline import SECONDS_PER_EXCHANGE, exchanges
from nmoe_flower.plurals import how_many

__all__ = [
    "FederationPlan",
    "add_wheel",
    "for_deployment",
    "parties",
    "peer_list",
    "write_federation",
    "write_node",
    "write_node_config",
    "write_overview",
    "write_party",
    "write_peers",
    "write_run",
    "write_scripts",
]

_SERVER = "superlink"
_AUTHORITY_DAYS = 3650


@dataclass(frozen=True)
class FederationPlan:
    """What ``write_federation`` writes.

    Attributes:
        server: Where the nodes find the SuperLink.
        peers: Where each node answers its peers; their number is the number of nodes.
        config: The run's configuration, for ``for_deployment`` to adapt.
        name: What the federation is called; its nodes are ``node-0``, ``node-1``, ...
        data: Folder of a node's own images, as the node sees it; empty: a part of the data set.
        classes: Names of all classes, for nodes that hold only some of them.
        runtime_ports: Ports on loopback of the first nodes' SuperNodes; others get what is free.
        days: How many days certificates and the list of peers are valid.
    """

    server: Address
    peers: tuple[Address, ...]
    config: Config
    name: str = "federation"
    data: str = ""
    classes: tuple[str, ...] = ()
    runtime_ports: tuple[int, ...] = ()
    days: int = 365

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.peers) < 2:
            raise ConfigError(f"{how_many(len(self.peers), 'node')}; allowed: 2 or more")
        if odd := [n for n in self.classes if n != n.strip() or not n.isprintable() or "," in n]:
            raise ConfigError(
                f"the class {odd[0]!r}; allowed: names without commas, line breaks, and spaces "
                "around them"
            )
        if not all(self.classes):
            raise ConfigError("a class has no name")
        if len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"a class is named twice: {', '.join(self.classes)}")
        if self.data and len(self.classes) < 2:
            raise ConfigError(
                "nodes with their own images (--data) must agree on the classes: name all of them "
                f"(--classes), got {', '.join(self.classes) or 'none'}"
            )


def write_federation(
    folder: Path, plan: FederationPlan, *, wheel: Path | None = None
) -> list[Path]:
    """Write certificates, keys, settings and scripts of every party; return the parties' folders.

    All of it is written, or nothing.

    Args:
        folder: Where to write: new, or empty.
        plan: What to write there.
        wheel: The wheel of this package for the parties to install; None: made of what runs here.

    Raises:
        ConfigError: The folder is not empty, the plan cannot be, or there is no wheel.
        CertificateError: A certificate or a key cannot be written.
        NMoEError: Another file cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not {'empty' if folder.is_dir() else 'a folder'}")
    config = for_deployment(plan.config, len(plan.peers))
    server, nodes = parties(plan, config)
    with all_or_none(folder) as new:
        write_wheel(new / WHEEL, given=wheel)
        authority = create_authority(
            new / "authority", name=plan.name, days=max(_AUTHORITY_DAYS, plan.days)
        )
        _write_server(new / "server", server, authority, plan, config)
        for node in nodes:
            write_node(new, node, authority, plan, config)
        for party in (new / "server", *(new / "nodes" / node.name for node in nodes)):
            add_wheel(new, party)
        write_peers(new, peer_list(nodes, plan.days, serial=1), authority, nodes)
        write_overview(new, server, nodes, plan, config)
        write_text(new / "Dockerfile", dockerfile(wheel_name(new)))
        write_text(new / ".dockerignore", f"# Keys stay out of images.\n*\n!{WHEEL}\n")
    return [folder / "server", *(folder / "nodes" / node.name for node in nodes)]


def for_deployment(config: Config, nodes: int) -> Config:
    """The same run on real nodes: all of them, nothing pooled, results in the server's folder."""
    values = config.flat()
    values |= {"data.num-clients": nodes, "run.out": "runs", "run.wait-for-all": True}
    if config.run.system == "networked":  # the gates and controls of others pool nothing
        methods = [n for n in config.gate.methods if n not in GATES or not GATES[n].pools]
        controls = [n for n in config.run.controls if not CONTROLS[n].pools]
        shared = any(name in GATES and GATES[name].trainer for name in methods)
        if config.expert.sharing != "none" and not shared:
            methods.append("federated")
        values |= {"gate.methods": ",".join(methods), "run.controls": ",".join(controls)}
    return Config.parse(values)


def parties(plan: FederationPlan, config: Config) -> tuple[Party, list[Party]]:
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
    ports = runtime_ports(plan.server, plan.peers, plan.runtime_ports)
    nodes = [
        replace(server, kind="node", name=f"node-{i}", peer=str(place), runtime_port=port)
        for i, (place, port) in enumerate(zip(plan.peers, ports, strict=True))
    ]
    return server, nodes


def write_peers(
    folder: Path, peers: PeerList, authority: Authority, nodes: Sequence[Party]
) -> None:
    """Sign the list and give it to every node; write its serial number down beside the key."""
    listed = sign_list(peers, authority)
    write_text(folder / "authority" / SERIAL, f"{peers.serial}\n")
    for node in nodes:
        listed.write(folder / "nodes" / node.name / "peers.json")


def add_wheel(whole: Path, party: Path) -> None:
    """Let a party install what the federation's folder brings."""
    copy_wheel(whole, party)
    write_scripts(party, {"install.sh": install_script(wheel_name(whole))})


def peer_list(nodes: Sequence[Party], days: int, *, serial: int) -> PeerList:
    """The nodes as each other's peers; not signed yet."""
    now = int(time.time())
    entries = tuple(PeerEntry(node.name, i, node.peer) for i, node in enumerate(nodes))
    return PeerList(entries, serial=serial, issued_unix=now, expires_unix=now + days * 86_400)


def _write_server(
    folder: Path, party: Party, authority: Authority, plan: FederationPlan, config: Config
) -> None:
    write_party(folder, party, authority, days=plan.days)
    write_app(folder / "app", config.flat())
    write_scripts(folder, server_scripts(party))
    write_text(
        folder / "nmoe-superlink.service", unit(party, what="SuperLink", script="superlink.sh")
    )


def write_overview(
    folder: Path, server: Party, nodes: Sequence[Party], plan: FederationPlan, config: Config
) -> None:
    """Write what is about all parties: the README and the compose file."""
    needed = sum(exchanges(config).values())
    minutes = max(1, round(needed * SECONDS_PER_EXCHANGE / 60))
    text = readme(server, nodes, data=plan.data, exchanges=needed, minutes=minutes)
    write_text(folder / "README.md", text)
    write_text(folder / "compose.yaml", compose(server, nodes))


def write_node(
    whole: Path, party: Party, authority: Authority, plan: FederationPlan, config: Config
) -> None:
    """Write the folder of a node, all but the list of peers; its public key for the server."""
    folder = whole / "nodes" / party.name
    public = whole / "server" / "keys" / f"{party.name}.pub"
    create_node_key(folder / "supernode.key", folder / "supernode.pub", public)
    write_party(folder, party, authority, days=plan.days)
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
    write_node_config(folder, party.name, values)
    write_run(folder, config)
    write_scripts(folder, node_scripts(party))
    for name, what, script in (
        ("supernode", "SuperNode", "supernode.sh"),
        ("peer", "peer service", "serve.sh"),
    ):
        write_text(folder / f"nmoe-{name}.service", unit(party, what=what, script=script))


def write_node_config(folder: Path, name: str, values: Mapping[str, object]) -> None:
    """Write ``node.toml``."""
    text = f"# What {name} tells its client app. Its store outlives runs and restarts.\n"
    write_text(folder / "node.toml", text + to_toml(values))


def write_run(folder: Path, config: Config) -> None:
    """Write the run's settings for a node's own check; in training the server tells them."""
    text = "# The run's settings, with which nmoe deploy check opens this node's data.\n"
    write_text(folder / RUN, text + config.to_toml())


def write_party(folder: Path, party: Party, authority: Authority, *, days: int) -> None:
    """Write the settings of a party, its certificate with a new key, and the authority's."""
    party.write(folder)
    place = party.superlink if party.kind == "server" else party.peer
    authority.issue(folder, party.name, hosts=[Address.parse(place).host], days=days)
    (folder / "ca.pem").write_bytes(authority.certificate_pem)


def write_scripts(folder: Path, scripts: Mapping[str, str]) -> None:
    """Write shell scripts that may be executed."""
    for name, text in scripts.items():
        write_text(folder / name, text)
        (folder / name).chmod(0o755)
