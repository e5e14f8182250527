"""What ``nmoe deploy`` does."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nmoe_flower.cli.deploy import DEMO, FEW_EXCHANGES
from nmoe_flower.cli.options import needs_serve
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError

with needs_serve("nmoe deploy"):
    from nmoe_flower.deploy import (
        FederationPlan,
        add_nodes,
        check,
        demonstrate,
        places,
        renew,
        sign_peers,
        write_federation,
    )

__all__ = ["VERBS"]


def _write(args: argparse.Namespace) -> int:
    """Write a federation's folder."""
    plan = replace(_plan(args, args.hosts, FEW_EXCHANGES), days=args.days)
    _print(write_federation(args.folder, plan, wheel=args.wheel))
    print(f"read {args.folder / 'README.md'}: it says where each folder goes")
    return 0


def _demo(args: argparse.Namespace) -> int:
    """Play a federation on this machine."""
    plan = _plan(args, [], (*FEW_EXCHANGES, *DEMO))
    demonstrate(
        plan, say=lambda line: print(line, flush=True), folder=args.folder, wheel=args.wheel
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    """Print what was looked at; 1 if something is wrong."""
    findings = check(args.folder)
    width = max(len(found.party) for found in findings)
    for found in findings:
        state = "PROBLEM" if found.problem else "skipped" if found.note else "ok"
        text = found.problem or found.note
        print(f"{state:7}  {found.party:{width}}  {found.what}{f': {text}' if text else ''}")
    problems = sum(bool(found.problem) for found in findings)
    print(f"{problems} problem{'' if problems == 1 else 's'} in {len(findings)} checks")
    return 1 if problems else 0


def _renew(args: argparse.Namespace) -> int:
    _print(renew(args.folder, *args.names, node_key=args.node_key, days=args.days))
    return 0


def _add(args: argparse.Namespace) -> int:
    _print(add_nodes(args.folder, args.hosts, days=args.days))
    return 0


def _sign(args: argparse.Namespace) -> int:
    moves: dict[str, str] = {}
    for text in args.move:
        name, sign, host = text.partition("=")
        if not sign or name in moves:
            raise ConfigError(f"--move {text!r}; allowed: NAME=HOST[:PORT], each name once")
        moves[name] = host
    _print(sign_peers(args.folder, moves=moves, days=args.days))
    return 0


VERBS = {
    "write": _write,
    "check": _check,
    "renew": _renew,
    "add": _add,
    "sign": _sign,
    "demo": _demo,
}


def _print(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)


def _plan(
    args: argparse.Namespace, hosts: Sequence[str], settings: Sequence[str]
) -> FederationPlan:
    """A recipe stands as it is; without one, the settings for few exchanges are the base."""
    base = () if args.recipe else settings
    own = [*base, f"data.num-clients={args.nodes}", *args.overrides]
    server, peers = places(hosts, args.nodes)
    config = Config.load(args.recipe, own)
    if config.data.num_clients != args.nodes:
        raise ConfigError(
            f"data.num-clients is {config.data.num_clients}, but there are {args.nodes} nodes: "
            "leave it out"
        )
    return FederationPlan(
        server=server,
        peers=peers,
        config=config,
        name=args.name,
        data=args.data,
        classes=tuple(args.classes),
    )
