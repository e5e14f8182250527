"""``nmoe peers``: how the peers are, and a signed list of them."""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nmoe_flower.certificates import Authority, Identity
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import to_json, write_text
from nmoe_flower.inference.ask import SERVING, PeerStatus, Survey, identity_of
from nmoe_flower.inference.protocol import (
    DIRECTORY,
    SERIAL,
    PeerList,
    next_serial,
    sign_list,
    verify_list,
)
from nmoe_flower.summary import padded

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["show", "sign"]

_HEADER = ("peer", "expert", "address", "health", "version", "waiting", "served", "share", "ms")


def show(args: argparse.Namespace) -> int:
    """Print how the peers are, once or until Ctrl-C.

    Returns:
        With ``--once``, 1 if a peer does not serve.

    Raises:
        NMoEError: The list or a certificate cannot be used.
    """
    identity = identity_of(args.certificate, args.key, args.authority, insecure=args.insecure)
    peers = PeerList.load(args.peers)
    if identity is not None:
        verify_list(peers, identity.authority_pem, now=time.time())
    with Survey(peers, identity, timeout=args.timeout) as survey:
        if args.once:
            found = survey.take()
            _print(found, sys.stdout, as_json=args.format == "json")
            return 0 if all(one.health == SERVING for one in found) else 1
        with contextlib.suppress(KeyboardInterrupt):
            _show_for_ever(survey, args)
    return 0


def _show_for_ever(survey: Survey, args: argparse.Namespace) -> None:
    if args.format == "auto" and sys.stdout.isatty():
        from rich.live import Live

        with Live(table_of(survey.take()), auto_refresh=False) as live:
            while True:
                time.sleep(args.interval)
                live.update(table_of(survey.take()), refresh=True)
    while True:
        _print(survey.take(), sys.stdout, as_json=args.format == "json")
        time.sleep(args.interval)


def _print(found: Sequence[PeerStatus], stream: TextIO, *, as_json: bool) -> None:
    if as_json:
        for one in found:
            print(to_json(asdict(one)), file=stream, flush=True)
    else:
        print(padded([list(_HEADER), *map(cells, found)]), file=stream, flush=True)


def table_of(found: Sequence[PeerStatus]) -> "Table":
    """The table for a terminal; peers that do not serve are red."""
    from rich.table import Table

    table = Table(*_HEADER, box=None, pad_edge=False)
    for one in found:
        table.add_row(*cells(one), style=None if one.health == SERVING else "red")
    return table


def cells(one: PeerStatus) -> list[str]:
    """One row of the table.

    >>> cells(PeerStatus("fox", 0, "h:1", "serving", served=3, share=0.25, queue=0, ms=1.234))
    ['fox', '0', 'h:1', 'serving', '', '0', '3', '25 %', '1.2']
    """

    def known(value: Any, text: str) -> str:
        return "-" if value is None else text

    return [
        one.name,
        str(one.partition),
        one.address,
        one.health,
        one.expert_version,
        known(one.queue, str(one.queue)),
        known(one.served, str(one.served)),
        known(one.share, f"{one.share or 0:.0%}".replace("%", " %")),
        known(one.ms, f"{one.ms or 0:.1f}"),
    ]


def sign(peers: Path, folder: Path, *, out: Path | None, days: float) -> int:
    """Sign a list as the authority, or as the directory, in ``folder``.

    The serial number is above that of every list this folder has signed.

    Raises:
        NMoEError: The list or the keys cannot be used, or the days are not positive.
    """
    if not 0 < days < 36_500:
        raise ConfigError(f"--days {days}; allowed: above 0, below 36500")
    now, draft = int(time.time()), PeerList.load(peers)
    signer: Authority | Identity
    if (folder / "ca.key").exists():
        signer = Authority.load(folder)
    else:
        certificate, key = (folder / f"{DIRECTORY}{end}" for end in (".pem", ".key"))
        signer = Identity.load(certificate, key, folder / "ca.pem")
    end = now + max(1, round(86_400 * days))
    serial = next_serial(folder, draft.serial, *_serials(folder.parent))
    renewed = replace(draft, serial=serial, issued_unix=now, expires_unix=end)
    signed = sign_list(renewed, signer)
    target = peers if out is None else out
    write_text(folder / SERIAL, f"{serial}\n")
    signed.write(target)
    print(f"{target}: {len(signed.peers)} peers, serial {signed.serial}, for {days:g} days")
    return 0


def _serials(federation: Path) -> list[int]:
    """Of the lists in the nodes' folders, if the key lies in the folder of a federation."""
    return [PeerList.load(path).serial for path in sorted(federation.glob("nodes/*/peers.json"))]
