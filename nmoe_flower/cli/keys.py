"""The options with which a device shows who it is."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nmoe_flower.errors import ConfigError

__all__ = ["add_keys", "check_keys", "needs_serve"]


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Certificate, key and authority, or ``--insecure``."""
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="this device's")
    parser.add_argument("--key", type=Path, metavar="FILE", help="of the certificate")
    parser.add_argument("--authority", type=Path, metavar="FILE", help="ca.pem of the federation")
    parser.add_argument("--insecure", action="store_true", help="no encryption, anybody answers")


def check_keys(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Leave with a usage error unless it is all three, or ``--insecure`` alone."""
    given = (args.certificate, args.key, args.authority)
    if args.insecure == (None not in given) or (args.insecure and any(given)):
        parser.error("give --certificate, --key and --authority, or --insecure alone")


@contextmanager
def needs_serve(command: str) -> Iterator[None]:
    """Around an import: a package of the extra ``serve`` that is missing is an error in words.

    Raises:
        ConfigError: Names what is missing, and how to get it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{command} needs {error.name}: pip install 'nmoe-flower[serve]'"
        ) from None
