"""``nmoe forget``: a finished run without one of its clients, as if it had never been there."""

import argparse
from pathlib import Path

from nmoe_flower.arguments import Whole
from nmoe_flower.commands import command_line

__all__ = ["ABOUT", "add_arguments", "add_change", "finish"]

ABOUT = "take a client out of a finished run"
_MOST_CLIENTS = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe forget``."""
    parser.description = (
        "Begin OUT, a run with the other clients alone: what sums gave is solved again without "
        "the client's, its expert and its row of the gate are gone, and what was trained is "
        "trained again. Where experts carry embeddings (gate.form = metric) nothing is trained. "
        "RUN_DIR stays as it is: delete it if nothing of the client may be kept."
    )
    parser.epilog = "example: nmoe forget runs/digits --client 3 --out runs/without-3"
    add_change(parser, "--client", "the client's number in RUN_DIR")

    def command(args: argparse.Namespace) -> int:
        from nmoe_flower.membership import forget

        change = forget(args.run, args.client, args.out)
        print(f"forgot client {args.client} of {args.run}: {change.folder.path}")
        print(*change.lines(), sep="\n")
        return finish(args, change.folder.path)

    parser.set_defaults(command=command)


def add_change(parser: argparse.ArgumentParser, who: str, which: str) -> None:
    """What ``nmoe forget`` and ``nmoe join`` both take.

    Args:
        parser: The command's.
        who: The option that names the client who leaves or joins.
        which: The help of that option.
    """
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN_DIR",
        help="a run with head.method = sums or gate.form = metric, or of run.system = language",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new run folder")
    parser.add_argument(
        "--solve-only", action="store_true", help="stop before anything is trained or asked again"
    )
    parser.add_argument(who, type=Whole(0, _MOST_CLIENTS), required=True, metavar="N", help=which)


def finish(args: argparse.Namespace, path: Path) -> int:
    """Let the new run go on to its end, unless only the sums are wanted."""
    if args.solve_only:
        print(f"go on with  {command_line('nmoe', 'run', '--resume', path)}")
        return 0
    from nmoe_flower.running import run

    print("", run(resume=path, figures=False), sep="\n")
    return 0
