"""``nmoe peers``: how the peers are, a signed list of them, and who was asked."""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmoe_flower.arguments import Number, OutputFile
from nmoe_flower.cli.options import add_format, add_keys, check_keys, needs_serve, take_node
from nmoe_flower.errors import ConfigError
from nmoe_flower.plurals import how_many

if TYPE_CHECKING:
    from rich.table import Table

    from nmoe_flower.inference import PeerStatus, Survey

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "how the peers are; sign their list"

_HEADER = [
    "peer", "expert", "address", "health", "version", "extractor",
    "waiting", "served", "share", "ms",
]  # fmt: skip
_EXAMPLES = """\
examples:
  nmoe peers --peers peers.json --certificate camera-0.pem --key camera-0.key --authority ca.pem
  nmoe peers --node node-0
  nmoe peers --peers peers.json --insecure --once --format json
  nmoe peers --peers draft.json --sign authority/ --out peers.json --days 30
  nmoe peers --peers draft.json --sign authority/ --out peers.json --bundles bundles/*
  nmoe peers --heat-map traffic.png traffic.jsonl

The table shows what every peer says of itself: versions, health, rows that wait, the time of a
question and its answer, and its share of all answers. With --once the exit code is 1 if a peer does
not serve.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe peers``."""
    parser.description = "Show how the peers are, sign their list, or draw who was asked."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--peers", type=Path, metavar="FILE", help="peers.json")
    add_keys(parser)
    parser.add_argument("--once", action="store_true", help="print one table and leave")
    add_format(parser, live=True)
    seconds = Number(0, 86_400, open=True)
    parser.add_argument(
        "--interval",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="between tables (%(default)s)",
    )
    parser.add_argument(
        "--timeout", type=seconds, default=2.0, metavar="SECONDS", help="of an answer (%(default)s)"
    )
    parser.add_argument(
        "--sign", type=Path, metavar="FOLDER", help="sign the list with ca.key, or directory.key"
    )
    parser.add_argument(
        "--bundles",
        type=Path,
        nargs="+",
        metavar="BUNDLE",
        help="of --sign: put versions and embeddings of these bundles into the list",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="of --sign (the list itself)")
    parser.add_argument(
        "--days",
        type=Number(0, 36_500, open=True),
        default=30.0,
        metavar="N",
        help="a signed list holds (%(default)s)",
    )
    parser.add_argument(
        "--heat-map",
        type=OutputFile((".png", ".pdf", ".svg")),
        metavar="FILE.png",
        help="draw who was asked",
    )
    parser.add_argument(
        "records",
        nargs="*",
        type=Path,
        metavar="RECORDS.jsonl",
        help="of --heat-map: what nmoe infer --records wrote",
    )

    def command(args: argparse.Namespace) -> int:
        if args.heat_map is not None:
            if not args.records:
                parser.error("--heat-map needs files of records, written by nmoe infer --records")
            return _draw(args)
        if (args.peers is None and args.node is None) or args.records:
            parser.error(
                "give --peers FILE, --node FOLDER, or --heat-map FILE.png and files of records"
            )
        with needs_serve("nmoe peers"):
            import nmoe_flower.inference.ask  # noqa: F401

        if args.sign is not None:
            if args.peers is None:
                parser.error("--sign needs --peers FILE, the list to sign")
            return _sign(
                args.peers, args.sign, out=args.out, days=args.days, bundles=args.bundles or []
            )
        if args.bundles:
            parser.error("--bundles needs --sign FOLDER: the list is signed anew")
        check_keys(parser, args)
        take_node(args)
        return _show(args)

    parser.set_defaults(command=command)


def _draw(args: argparse.Namespace) -> int:
    """Draw who was asked in real traffic, from files of records."""
    from nmoe_flower.report import draw_traffic, read_traffic

    draw_traffic(read_traffic(args.records), args.heat_map)
    print(f"drawn to {args.heat_map}")
    return 0


def _show(args: argparse.Namespace) -> int:
    """Print how the peers are, once or until Ctrl-C; with ``--once``, 1 if one does not serve."""
    from nmoe_flower.inference.ask import SERVING, Survey, identity_of
    from nmoe_flower.inference.protocol import PeerList, verify_list

    identity = identity_of(args.certificate, args.key, args.authority, insecure=args.insecure)
    peers = PeerList.load(args.peers)
    if identity is not None:
        verify_list(peers, identity.authority_pem, now=time.time())
    with Survey(peers, identity, timeout=args.timeout) as survey:
        if args.once:
            found = survey.take()
            _print(found, as_json=args.format == "json")
            return 0 if all(one.health == SERVING for one in found) else 1
        with contextlib.suppress(KeyboardInterrupt):
            _show_for_ever(survey, args)
    return 0


def _show_for_ever(survey: "Survey", args: argparse.Namespace) -> None:
    if args.format == "auto" and sys.stdout.isatty():
        from rich.live import Live

        with Live(_table(survey.take()), auto_refresh=False) as live:
            while True:
                time.sleep(args.interval)
                live.update(_table(survey.take()), refresh=True)
    while True:
        _print(survey.take(), as_json=args.format == "json")
        time.sleep(args.interval)


def _print(found: "Sequence[PeerStatus]", *, as_json: bool) -> None:
    from nmoe_flower.files import to_json
    from nmoe_flower.summary import padded

    if as_json:
        for one in found:
            print(to_json(asdict(one)), flush=True)
    else:
        print(padded([_HEADER, *map(_cells, found)]), flush=True)


def _table(found: "Sequence[PeerStatus]") -> "Table":
    """The table for a terminal, whatever stands in it; peers that do not serve are red."""
    from rich.table import Table
    from rich.text import Text

    from nmoe_flower.inference.ask import SERVING

    table = Table(*_HEADER, box=None, pad_edge=False)
    for one in found:
        table.add_row(*map(Text, _cells(one)), style=None if one.health == SERVING else "red")
    return table


def _cells(one: "PeerStatus") -> list[str]:
    """One row of the table.

    >>> from nmoe_flower.inference import PeerStatus
    >>> _cells(PeerStatus("fox", 0, "h:1", "serving", "", 1.234, "e7", "g5", "f1", 0, 3, 0.25))
    ['fox', '0', 'h:1', 'serving', 'e7', 'f1', '0', '3', '25 %', '1.2']
    """

    def known(value: Any, text: str) -> str:
        return "-" if value is None else text

    return [
        one.name,
        str(one.partition),
        one.address,
        one.health,
        one.expert_version,
        one.extractor_version,
        known(one.queue, str(one.queue)),
        known(one.served, str(one.served)),
        known(one.share, f"{one.share or 0:.0%}".replace("%", " %")),
        known(one.ms, f"{one.ms or 0:.1f}"),
    ]


def _sign(
    peers: Path, folder: Path, *, out: Path | None, days: float, bundles: Sequence[Path]
) -> int:
    """Sign a list as the authority, or as the directory, in ``folder``.

    The serial number is above that of every list this folder has signed.
    """
    from nmoe_flower.certificates import Authority, Identity
    from nmoe_flower.files import write_text
    from nmoe_flower.inference.protocol import (
        DIRECTORY,
        SERIAL,
        PeerList,
        next_serial,
        sign_list,
    )

    if not 0 < days < 36_500:
        raise ConfigError(f"--days {days}; allowed: above 0, below 36500")
    now, draft = int(time.time()), PeerList.load(peers)
    if bundles:
        from nmoe_flower.inference import open_bundle
        from nmoe_flower.inference.ask import with_embeddings

        draft = with_embeddings(draft, [open_bundle(bundle) for bundle in bundles])
    signer: Authority | Identity
    if (folder / "ca.key").exists():
        signer = Authority.load(folder)
    else:
        certificate, key = (folder / f"{DIRECTORY}{end}" for end in (".pem", ".key"))
        if not key.exists():
            raise ConfigError(
                f"--sign {folder} holds neither ca.key nor {key.name}; allowed: the authority's "
                f"folder, or that of a device named {DIRECTORY!r}"
            )
        signer = Identity.load(certificate, key, folder / "ca.pem")
    end = now + max(1, round(86_400 * days))
    serial = next_serial(folder, draft.serial, *_serials(folder.parent))
    renewed = replace(draft, serial=serial, issued_unix=now, expires_unix=end)
    signed = sign_list(renewed, signer)
    target = peers if out is None else out
    write_text(folder / SERIAL, f"{serial}\n")
    signed.write(target)
    print(
        f"{target}: {how_many(len(signed.peers), 'peer')}, serial {signed.serial}, for {days:g} "
        "days"
    )
    return 0


def _serials(federation: Path) -> list[int]:
    """Serial numbers of the lists in the nodes' folders, if the key lies in a federation's."""
    from nmoe_flower.inference import PeerList

    return [PeerList.load(path).serial for path in sorted(federation.glob("nodes/*/peers.json"))]
