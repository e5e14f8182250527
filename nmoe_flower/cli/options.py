"""Options that several commands share: a recipe, a device's keys, a port for Prometheus."""

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from nmoe_flower.arguments import PORT, NameList, recipe_argument
from nmoe_flower.catalogue import TRACKERS
from nmoe_flower.errors import ConfigError

__all__ = [
    "add_command",
    "add_finished",
    "add_format",
    "add_keys",
    "add_metrics_port",
    "add_recipe",
    "add_set",
    "add_track",
    "check_finished",
    "check_keys",
    "check_places",
    "needs_serve",
    "serve_metrics",
    "take_node",
]


class Subparsers(Protocol):
    """What `argparse.ArgumentParser.add_subparsers` returns."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """A command's parser."""


def add_command(
    commands: Subparsers, name: str, about: str, description: str = ""
) -> argparse.ArgumentParser:
    """A command, whose own ``--help`` begins with what it does.

    Args:
        commands: Where it goes.
        name: What is typed.
        about: What it does, for the list of all.
        description: What it does, for its own help; empty: as in the list.
    """
    said = description or f"{about[0].upper()}{about[1:]}."
    return commands.add_parser(name, help=about, description=said)


def add_finished(parser: argparse.ArgumentParser) -> None:
    """``--finished``: where else runs of a study have finished."""
    parser.add_argument(
        "--finished",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of runs that finished elsewhere, as results of a checkout: those of the "
        "same settings count; may be given again",
    )


def check_finished(folders: Iterable[Path]) -> None:
    """Refuse folders of ``--finished`` that are not there.

    Raises:
        ConfigError: Names the first.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--finished {folder}: no such folder")


def add_format(parser: argparse.ArgumentParser, *, live: bool = False) -> None:
    """``--format``: text for people, or JSON for scripts.

    Args:
        parser: Gets it.
        live: The text may be a display that renews itself: ``auto``, the default, where one can be.
    """
    choices = ("auto", "text", "json") if live else ("text", "json")
    parser.add_argument(
        "--format",
        choices=choices,
        default=choices[0],
        help=f"text, or JSON for scripts ({choices[0]}"
        + (": renewed in place on a terminal)" if live else ")"),
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """``RECIPE`` and ``--set``."""
    parser.add_argument(
        "recipe",
        nargs="?",
        type=recipe_argument,
        metavar="RECIPE",
        help="a TOML file, or the name of one that comes along (nmoe recipes)",
    )
    add_set(parser)


_SET = "override configuration keys, as in --set data.num-clients=20 gate.top-k=2"


def add_set(parser: argparse.ArgumentParser, help: str = _SET) -> None:
    """``--set``, whose settings are ``overrides``."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help=help,
    )


def add_track(parser: argparse.ArgumentParser) -> None:
    """``--track``."""
    parser.add_argument(
        "--track",
        type=NameList(tuple(TRACKERS)),
        default=[],
        metavar="NAMES",
        help=f"tell trackers, too: {', '.join(TRACKERS)}",
    )


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Certificate, key and authority, or ``--insecure``, or ``--node``."""
    parser.add_argument(
        "--node", type=Path, metavar="FOLDER", help="a node's, by nmoe deploy: takes all from there"
    )
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="this device's")
    parser.add_argument("--key", type=Path, metavar="FILE", help="of the certificate")
    parser.add_argument("--authority", type=Path, metavar="FILE", help="ca.pem of the federation")
    parser.add_argument("--insecure", action="store_true", help="no encryption, anybody answers")


def check_keys(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Leave with a usage error unless it is all three, or ``--insecure`` or ``--node`` alone."""
    given = (args.certificate, args.key, args.authority)
    if args.node is not None:
        if any(given) or args.insecure or args.peers is not None:
            parser.error(
                "--node FOLDER takes certificate, key, authority and list of peers from the "
                "folder: leave out --certificate, --key, --authority, --peers and --insecure"
            )
    elif args.insecure == (None not in given) or (args.insecure and any(given)):
        parser.error("give --certificate, --key and --authority, or --insecure alone, or --node")


def take_node(args: argparse.Namespace) -> None:
    """Fill in what ``--node`` stands for; nothing without it.

    Raises:
        ConfigError: The folder is not that of a node.
    """
    if args.node is None:
        return
    from nmoe_flower.deploy import node_files

    files = node_files(args.node, trained=hasattr(args, "bundle"))
    for name in ("certificate", "key", "authority", "peers"):
        setattr(args, name, getattr(files, name))
    for name in ("bundle", "listen"):
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, getattr(files, name))


def check_places(args: argparse.Namespace) -> None:
    """Refuse a bundle, a key or a list of peers that cannot be read, before torch is loaded.

    Args:
        args: With ``--node`` taken in, and all other options checked.

    Raises:
        NMoEError: As what reads them later.
    """
    from nmoe_flower.inference.ask import identity_of
    from nmoe_flower.inference.bundle import read_manifest
    from nmoe_flower.inference.protocol import PeerList

    if args.bundle is not None:
        read_manifest(args.bundle)
    if args.peers is not None:
        PeerList.load(args.peers)
    if args.certificate is not None:
        identity_of(args.certificate, args.key, args.authority, insecure=args.insecure)


@contextlib.contextmanager
def needs_serve(command: str) -> Iterator[None]:
    """Around an import: a package of the extra ``serve`` that is missing is an error in words.

    Raises:
        ConfigError: Names what is missing, and how to get it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        from nmoe_flower.installation import install_hint

        raise ConfigError(f"{command} needs {error.name}: {install_hint('serve')}") from None


def add_metrics_port(parser: argparse.ArgumentParser) -> None:
    """The option."""
    parser.add_argument("--metrics-port", type=PORT, metavar="PORT", help="Prometheus, on loopback")


@contextlib.contextmanager
def serve_metrics(registry: object, port: int | None) -> Iterator[None]:
    """Let Prometheus read ``http://127.0.0.1:port/metrics`` meanwhile; no port, nothing.

    Args:
        registry: Counters to serve, a ``prometheus_client.CollectorRegistry``.
        port: 1 to 65535, or None.

    Raises:
        ConfigError: The port cannot be used.
    """
    if port is None:
        yield
        return
    from prometheus_client import CollectorRegistry, start_http_server

    assert isinstance(registry, CollectorRegistry)
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on metrics port {port}: {reason}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
