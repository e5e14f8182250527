"""What a party's folder says of itself (``settings.toml``), and what a node's folder holds."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Self

from nmoe_flower import __version__
from nmoe_flower.addresses import MAX_PORT, Address
from nmoe_flower.commands import command_line
from nmoe_flower.deploy.places import listening
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import read_json, read_toml, to_toml, write_text
from nmoe_flower.inference.bundle import MANIFEST

__all__ = ["RUN", "SETTINGS", "NodeFiles", "Party", "check_written", "node_files", "versions"]

SETTINGS = "settings.toml"
RUN = "run.toml"  # the settings of the run, in a node's folder


@dataclass(frozen=True)
class Party:
    """The server, or one node.

    Attributes:
        kind: "server" or "node".
        name: The name in its certificate.
        federation: What the federation is called.
        superlink: ``host:port`` at which the nodes find the SuperLink.
        run: The name of the run, and of its folder.
        peer: ``host:port`` at which peers find this node; empty for the server.
        runtime_port: Port of the node's SuperNode, on loopback; 0 for the server.
        created: When the folder was written, ISO 8601.
        versions: Versions by name of the packages that must be the same everywhere.
    """

    kind: Literal["server", "node"]
    name: str
    federation: str
    superlink: str
    run: str
    peer: str
    runtime_port: int
    created: str
    versions: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write ``settings.toml``."""
        values = {f.name.replace("_", "-"): getattr(self, f.name) for f in fields(self)}
        own = values.pop("versions")
        text = f"# The folder of {self.name}. Written by nmoe deploy; read by nmoe deploy check.\n"
        write_text(folder / SETTINGS, text + to_toml({**values, "versions": own}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``settings.toml``.

        Raises:
            ConfigError: It is missing, no TOML, or lacks a key.
        """
        path = folder / SETTINGS
        check_written(path)
        values = {key.replace("-", "_"): value for key, value in read_toml(path).items()}
        names = [f.name for f in fields(cls)]
        if odd := sorted(set(names) ^ set(values)):
            state = "is missing" if odd[0] in names else "is not known"
            raise ConfigError(f"{path}: the key {odd[0].replace('_', '-')!r} {state}")
        for name in names:
            wanted: type = {"runtime_port": int, "versions": dict}.get(name, str)
            if not isinstance(values[name], wanted):
                raise ConfigError(f"{path}: {name.replace('_', '-')} is {values[name]!r}")
        if not 0 <= values["runtime_port"] <= MAX_PORT:
            port = values["runtime_port"]
            raise ConfigError(f"{path}: runtime-port is {port}; allowed: 0 to {MAX_PORT}")
        if values["kind"] not in ("server", "node"):
            raise ConfigError(f"{path}: kind is {values['kind']!r}; allowed: server, node")
        return cls(**values)

    @property
    def created_at(self) -> datetime:
        """When the folder was written, in UTC."""
        return datetime.fromisoformat(self.created).astimezone(UTC)


def check_written(*settings: Path) -> None:
    """Refuse a folder that ``nmoe deploy`` did not write.

    Args:
        settings: Where ``settings.toml`` must be, in one place at least.

    Raises:
        ConfigError: It is in none; the folder of the first is named.
    """
    if not any(path.is_file() for path in settings):
        folder = settings[0].parent
        lacks = f"has no {SETTINGS}" if folder.is_dir() else "is not a folder"
        raise ConfigError(f"{folder} {lacks}: nmoe deploy did not write it")


def versions() -> dict[str, str]:
    """Versions of the packages that must be the same on all machines; empty if one is missing."""
    found = {"nmoe-flower": __version__}
    for name in ("flwr", "torch"):
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = ""
    return found


@dataclass(frozen=True)
class NodeFiles:
    """Where a node's files are.

    Attributes:
        bundle: The folder of what the node serves and asks with, after the training.
        certificate: The node's certificate, PEM.
        key: The private key of that certificate, PEM.
        authority: The federation's certificate, PEM.
        peers: The signed list of peers.
        listen: ``host:port`` at which it answers its peers.
    """

    bundle: Path
    certificate: Path
    key: Path
    authority: Path
    peers: Path
    listen: str


def node_files(folder: Path, *, trained: bool = True) -> NodeFiles:
    """The files of a node's folder, written by ``write_federation``.

    Args:
        folder: The folder of the node.
        trained: Whether the node's bundle must be there.

    Raises:
        ConfigError: It is not the folder of a node, holds no bundle yet, or that of another node.
    """
    party = Party.load(folder)
    if party.kind != "node":
        raise ConfigError(f"{folder} is the folder of the server; allowed: that of a node")
    if trained and not (folder / "bundle" / MANIFEST).is_file():
        store, out = folder / "store" / party.run, folder / "bundle"
        raise ConfigError(
            f"{folder} has no bundle yet: after the training, sh serve.sh makes it, or "
            f"{command_line('nmoe', 'bundle', '--store', store, '--out', out)}"
        )
    if trained:
        _check_own(folder)
    return NodeFiles(
        bundle=folder / "bundle",
        certificate=folder / f"{party.name}.pem",
        key=folder / f"{party.name}.key",
        authority=folder / "ca.pem",
        peers=folder / "peers.json",
        listen=str(listening(Address.parse(party.peer))),
    )


def _check_own(folder: Path) -> None:
    """Peers ask this node for its own expert, and could not tell that another one answers."""
    path = folder / "bundle" / MANIFEST
    bundle = read_json(path)
    held = bundle.get("partition") if isinstance(bundle, dict) else None
    own = read_toml(folder / "node.toml").get("partition-id")
    if held != own:
        raise ConfigError(
            f"{path} is of partition {held}, {folder / 'node.toml'} says {own}: the bundle is "
            "another node's"
        )
