"""What a node's folder holds for whoever asks and answers on the node."""

from dataclasses import dataclass
from pathlib import Path

from nmoe_flower.addresses import Address
from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.places import listening
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import read_json, read_toml

__all__ = ["NodeFiles", "node_files"]


@dataclass(frozen=True)
class NodeFiles:
    """Where a node's files are.

    Attributes:
        bundle: What it serves and asks with, after the training.
        certificate: The node's.
        key: Of the certificate.
        authority: The federation's certificate.
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
        folder: The node's.
        trained: Its bundle must be there.

    Raises:
        ConfigError: It is not the folder of a node, holds no bundle yet, or that of another node.
    """
    party = Party.load(folder)
    if party.kind != "node":
        raise ConfigError(f"{folder} is the folder of the server; allowed: that of a node")
    if trained and not (folder / "bundle" / "bundle.json").is_file():
        raise ConfigError(
            f"{folder} has no bundle yet: after the training, sh serve.sh makes it, or "
            f"nmoe bundle --store {folder / 'store' / party.run} --out {folder / 'bundle'}"
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
    path = folder / "bundle" / "bundle.json"
    bundle = read_json(path)
    held = bundle.get("partition") if isinstance(bundle, dict) else None
    own = read_toml(folder / "node.toml").get("partition-id")
    if held != own:
        raise ConfigError(
            f"{path} is of partition {held}, {folder / 'node.toml'} says {own}: the bundle is "
            "another node's"
        )
