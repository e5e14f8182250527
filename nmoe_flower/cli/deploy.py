"""``nmoe deploy``: prepare, check, change and demonstrate a federation of real machines."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nmoe_flower.arguments import Whole, recipe_argument
from nmoe_flower.cli.options import add_command, add_set, needs_serve
from nmoe_flower.errors import ConfigError
from nmoe_flower.plurals import how_many, one_or_many

if TYPE_CHECKING:
    from nmoe_flower.deploy import FederationPlan

__all__ = ["ABOUT", "VERBS", "add_arguments"]

ABOUT = "prepare, check, try a federation"

_EXAMPLES = """\
examples:
  nmoe deploy --demo 3                                  all of it on this machine, then gone
  nmoe deploy lab --nodes 3 --hosts server.lab cam0.lab cam1.lab cam2.lab \\
              --data data --classes cat dog fox         folders for four machines
  nmoe deploy check lab                                 before the start; also per machine:
  nmoe deploy check node-0
  nmoe deploy renew lab node-0 --node-key               new certificate and keys
  nmoe deploy add lab --hosts cam3.lab                  one more node
  nmoe deploy sign lab --move node-1=10.0.0.9           a new list of peers

"nmoe deploy FOLDER ..." is short for "nmoe deploy write FOLDER ...", "nmoe deploy --demo N" for
"nmoe deploy demo --nodes N". "nmoe deploy VERB --help" has the options of each.
"""
_MOST_NODES = 10_000
_MOST_DAYS = 36_500

# Few exchanges of much work: each costs seconds, whatever the model's size.
FEW_EXCHANGES = (
    "extractor.rounds=10",
    "extractor.local-steps=60",
    "extractor.momentum-at=client",
    "extractor.learning-rate=0.05",
    "gate.rounds=10",
    "gate.local-steps=20",
    "gate.methods=federated,local",
    "run.controls=",
    "run.evaluate-every=10",
    "run.connect-timeout=300",
    "run.round-timeout=900",
)
DEMO = (
    "extractor.rounds=2",
    "extractor.local-steps=300",
    "gate.rounds=1",
    "gate.local-steps=60",
    "run.name=demo",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs of ``nmoe deploy``, and the options of each."""
    parser.description = (
        "The folders of a federation: certificates, keys, configuration and start scripts of a "
        "server and N nodes."
    )
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, (about, add, act) in VERBS.items():
        verb = add_command(verbs, name, about)
        add(verb)
        verb.set_defaults(command=_command(act))


def _command(act: "Act") -> "Act":
    def command(args: argparse.Namespace) -> int:
        with needs_serve("nmoe deploy"):
            import nmoe_flower.deploy  # noqa: F401

        return act(args)

    return command


def _add_write(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser, "new, or empty")
    _add_nodes(parser)
    parser.add_argument(
        "--hosts", nargs="+", default=[], metavar="HOST[:PORT]",
        help="the server's, then one per node; IPv6 in brackets (all on this machine)",
    )  # fmt: skip
    _add_plan(parser)
    _add_days(parser, "certificates and the list of peers hold")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="keep everything there (nothing)"
    )
    _add_nodes(parser, "--demo")
    _add_plan(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser, "of one machine, or of the whole federation")
    parser.epilog = "The exit code is 1 if there is a problem."


def _add_renew(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser, "of the whole federation, with authority/")
    parser.add_argument("names", nargs="+", metavar="NAME", help="superlink, node-0, ...")
    parser.add_argument("--node-key", action="store_true", help="the SuperNode's key, too")
    _add_days(parser, "the certificates hold")


def _add_add(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser, "of the whole federation, with authority/")
    parser.add_argument(
        "--hosts", nargs="+", required=True, metavar="HOST[:PORT]", help="one per new node"
    )
    _add_days(parser, "the new certificates and the list of peers hold")


def _add_sign(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser, "of the whole federation, with authority/")
    parser.add_argument(
        "--move", nargs="+", default=[], metavar="NAME=HOST[:PORT]", help="where nodes are now"
    )
    parser.add_argument(
        "--bundles", nargs="+", type=Path, default=[], metavar="BUNDLE",
        help="put versions and embeddings of these bundles into the list, as those of "
        "FOLDER/nodes/*/bundle are",
    )  # fmt: skip
    _add_days(parser, "the list of peers holds")


def _add_folder(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=about)


def _add_nodes(parser: argparse.ArgumentParser, *short: str) -> None:
    parser.add_argument(
        "--nodes", *short, dest="nodes", type=Whole(2, _MOST_NODES), required=True, metavar="N",
        help="how many devices",
    )  # fmt: skip


def _add_days(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--days", type=Whole(1, _MOST_DAYS), default=365, metavar="N", help=f"{what} (%(default)s)"
    )


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", default="federation", metavar="NAME", help="of the federation (%(default)s)"
    )
    parser.add_argument("--data", default="", metavar="DIR", help="a node's images, in its folder")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="all there are")
    parser.add_argument(
        "--recipe",
        type=recipe_argument,
        metavar="RECIPE",
        help="what they train, as nmoe run takes it (the digits, in few exchanges)",
    )
    add_set(parser)
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE.whl",
        help="of nmoe-flower, for the machines to install (made of what runs here)",
    )  # fmt: skip


def _write(args: argparse.Namespace) -> int:
    """Write a federation's folder."""
    from nmoe_flower.deploy import write_federation

    plan = replace(_plan(args, args.hosts, FEW_EXCHANGES), days=args.days)
    _print(write_federation(args.folder, plan, wheel=args.wheel))
    print(f"read {args.folder / 'README.md'}: it says where each folder goes")
    return 0


def _demo(args: argparse.Namespace) -> int:
    """Play a federation on this machine."""
    from nmoe_flower.deploy import demonstrate

    plan = _plan(args, [], (*FEW_EXCHANGES, *DEMO))
    demonstrate(
        plan, say=lambda line: print(line, flush=True), folder=args.folder, wheel=args.wheel
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    """Print what was looked at; 1 if something is wrong."""
    from nmoe_flower.deploy import check_folder

    findings = check_folder(args.folder)
    width = max(len(found.party) for found in findings)
    for found in findings:
        state = "PROBLEM" if found.problem else "skipped" if found.note else "ok"
        text = found.problem or found.note
        print(f"{state:7}  {found.party:{width}}  {found.what}{f': {text}' if text else ''}")
    problems = sum(bool(found.problem) for found in findings)
    print(f"{how_many(problems, 'problem')} in {how_many(len(findings), 'check')}")
    return 1 if problems else 0


def _renew(args: argparse.Namespace) -> int:
    from nmoe_flower.deploy import renew

    _print(renew(args.folder, *args.names, node_key=args.node_key, days=args.days))
    return 0


def _add(args: argparse.Namespace) -> int:
    from nmoe_flower.deploy import add_nodes

    _print(add_nodes(args.folder, args.hosts, days=args.days))
    return 0


def _sign(args: argparse.Namespace) -> int:
    from nmoe_flower.deploy import sign_peers

    moves: dict[str, str] = {}
    for text in args.move:
        name, sign, host = text.partition("=")
        if not sign or name in moves:
            raise ConfigError(f"--move {text!r}; allowed: NAME=HOST[:PORT], each name once")
        moves[name] = host
    _print(sign_peers(args.folder, moves=moves, days=args.days, bundles=args.bundles))
    return 0


def _print(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)


def _plan(
    args: argparse.Namespace, hosts: Sequence[str], settings: Sequence[str]
) -> "FederationPlan":
    """A recipe stands as it is; without one, the settings for few exchanges are the base."""
    from nmoe_flower.config import Config
    from nmoe_flower.deploy import FederationPlan, places

    base = () if args.recipe else settings
    own = [*base, f"data.num-clients={args.nodes}", *args.overrides]
    server, peers = places(hosts, args.nodes)
    config = Config.load(args.recipe, own)
    if config.data.num_clients != args.nodes:
        raise ConfigError(
            f"data.num-clients is {config.data.num_clients}, but there "
            f"{one_or_many(args.nodes, 'is', 'are')} {how_many(args.nodes, 'node')}: "
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


Act = Callable[[argparse.Namespace], int]
# What each does, its options, and the doing.
VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Act]] = {
    "write": ("write the folders of a federation", _add_write, _write),
    "check": ("look at a folder and say in words what is wrong", _add_check, _check),
    "renew": ("issue certificates and keys anew", _add_renew, _renew),
    "add": ("add nodes, and tell the others", _add_add, _add),
    "sign": ("sign the list of peers again, also after a node has moved", _add_sign, _sign),
    "demo": ("play all of it on this machine, then take it down", _add_demo, _demo),
}
