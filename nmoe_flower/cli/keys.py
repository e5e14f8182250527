"""The options with which a device shows who it is."""

import argparse
from pathlib import Path

__all__ = ["add_keys", "check_keys"]


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
