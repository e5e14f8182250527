"""``nmoe systems``: what can be trained, ours and other people's."""

import argparse
import json

from nmoe_flower.catalogue import BASELINES

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "list the published systems that run.system knows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.epilog = (
        "nmoe run --set run.system=NAME runs one. Systems of the league global are compared by the "
        "test iid, those of personal by local, never with each other."
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="text, or JSON for scripts"
    )
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    if args.format == "json":
        print(
            json.dumps(
                {
                    name: {
                        "label": one.label,
                        "citation": one.citation,
                        "league": one.league,
                        "assumes": one.assumes,
                    }
                    for name, one in BASELINES.items()
                },
                indent=2,
            )
        )
        return 0
    width = max(map(len, BASELINES))
    for name, one in BASELINES.items():
        print(f"{name:{width}}  {one.league:8}  {one.citation}")
        print(f"{'':{width}}  assumes {one.assumes}")
    return 0
