"""What ``nmoe deploy`` does."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nmoe_flower.cli.keys import needs_serve
from nmoe_flower.config import Config

with needs_serve("nmoe deploy"):
    from nmoe_flower.deploy import (
        Plan,
        add_nodes,
        check,
        demonstrate,
        places,
        renew,
        write_federation,
    )

__all__ = ["VERBS", "demo", "write"]


def write(args: argparse.Namespace, settings: Sequence[str]) -> int:
    """Write a federation's folder."""
    plan = _plan(args, args.nodes, settings)
    for path in write_federation(Path(args.target[0]), plan):
        print(path)
    print(f"read {Path(args.target[0]) / 'README.md'}: it says where each folder goes")
    return 0


def _check(args: argparse.Namespace) -> int:
    """Print what was looked at; 1 if something is wrong."""
    findings = check(Path(args.target[1]))
    width = max(len(found.party) for found in findings)
    for found in findings:
        state = "PROBLEM" if found.problem else "skipped" if found.note else "ok"
        text = found.problem or found.note
        print(f"{state:7}  {found.party:{width}}  {found.what}{f': {text}' if text else ''}")
    problems = sum(bool(found.problem) for found in findings)
    print(f"{problems} problem{'' if problems == 1 else 's'} in {len(findings)} checks")
    return 1 if problems else 0


def _renew(args: argparse.Namespace) -> int:
    for name in args.target[2:]:
        for path in renew(Path(args.target[1]), name, node_key=args.node_key, days=args.days):
            print(path)
    return 0


def _add(args: argparse.Namespace) -> int:
    for path in add_nodes(Path(args.target[1]), args.hosts, days=args.days):
        print(path)
    return 0


VERBS = {"check": _check, "renew": _renew, "add": _add}


def demo(args: argparse.Namespace, settings: Sequence[str]) -> int:
    """Play a federation on this machine."""
    folder = Path(args.target[0]) if args.target else None
    demonstrate(
        _plan(args, args.demo, settings), say=lambda line: print(line, flush=True), folder=folder
    )
    return 0


def _plan(args: argparse.Namespace, nodes: int, settings: Sequence[str]) -> Plan:
    """A recipe stands as it is; without one, the settings for few exchanges are the base."""
    base = () if args.recipe else settings
    own = [*base, f"data.num-clients={nodes}", *args.overrides]
    server, peers = places(args.hosts, nodes)
    return Plan(
        server=server,
        peers=peers,
        config=Config.load(args.recipe, own),
        name=args.name,
        data=args.data,
        classes=tuple(args.classes),
        days=args.days,
    )
