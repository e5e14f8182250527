"""``nmoe deploy``: prepare, check and demonstrate a federation of real machines."""

import argparse
from pathlib import Path

__all__ = ["add_arguments"]

_EXAMPLES = """\
examples:
  nmoe deploy --demo 3                                  all of it on this machine, then gone
  nmoe deploy lab --nodes 3 --hosts server.lab cam0.lab cam1.lab cam2.lab \\
              --data data --classes cat dog fox         folders for four machines
  nmoe deploy check lab                                 before the start; also per machine:
  nmoe deploy check node-0
  nmoe deploy renew lab node-0 --node-key               new certificate and keys
  nmoe deploy add lab --hosts cam3.lab                  one more node

A folder is written once and never overwritten. The exit code of a check is 1 if there is a problem.
"""

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
_DEMO = ("extractor.rounds=3", "extractor.local-steps=200", "gate.rounds=3", "run.name=demo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe deploy``."""
    parser.description = (
        "Write the folders of a federation: certificates, keys, configuration and start scripts "
        "of a server and N nodes; check them; or play all of it on this machine."
    )
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", nargs="*", metavar="[check|renew|add] FOLDER")
    parser.add_argument("--nodes", type=int, metavar="N", help="how many devices")
    parser.add_argument(
        "--hosts", nargs="+", default=[], metavar="HOST[:PORT]",
        help="the server's, then one per node (all on this machine)",
    )  # fmt: skip
    parser.add_argument("--name", default="federation", help="of the federation (%(default)s)")
    parser.add_argument("--data", default="", metavar="DIR", help="a node's images, in its folder")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="all there are")
    parser.add_argument("--days", type=int, default=365, help="of the certificates (%(default)s)")
    parser.add_argument("--recipe", type=Path, metavar="RECIPE.toml")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="overrides", metavar="KEY=VALUE"
    )
    parser.add_argument("--node-key", action="store_true", help="renew: the SuperNode's, too")
    parser.add_argument("--demo", type=int, metavar="N", help="play it here with N nodes")

    def command(args: argparse.Namespace) -> int:
        verb, least = _verb(args.target)
        if args.demo is not None:
            if args.nodes or args.hosts or verb or len(args.target) > 1:
                parser.error("--demo N takes no --nodes and no --hosts, and at most one FOLDER")
        elif len(args.target) < least or (verb != "renew" and len(args.target) > least):
            parser.error("give FOLDER --nodes N, check FOLDER, renew FOLDER NAME ... or add FOLDER")
        elif (not verb and args.nodes is None) or (verb == "add" and not args.hosts):
            parser.error("a new folder needs --nodes N, add needs --hosts HOST ...")
        from nmoe_flower.cli import deploying

        if args.demo is not None:
            return deploying.demo(args, (*FEW_EXCHANGES, *_DEMO))
        if verb:
            return deploying.VERBS[verb](args)
        return deploying.write(args, FEW_EXCHANGES)

    parser.set_defaults(command=command)


def _verb(target: list[str]) -> tuple[str, int]:
    """What is to be done with the folder, and how many words that takes."""
    least = {"check": 2, "renew": 3, "add": 2}
    if len(target) > 1 and target[0] in least:
        return target[0], least[target[0]]
    return "", 1
