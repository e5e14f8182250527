"""``nmoe run``: one recipe from data to results, on the engine of choice."""

import argparse
import sys
from pathlib import Path

from nmoe_flower.arguments import SEED, Whole
from nmoe_flower.cli.options import add_format, add_recipe, add_track

__all__ = ["ABOUT", "add_arguments"]

_INTERRUPTED = 130
ABOUT = "train and evaluate: all stages of a recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe run``."""
    add_recipe(parser)
    parser.add_argument(
        "--engine",
        choices=("inprocess", "ray"),
        default="inprocess",
        help="who runs the clients: processes of this machine, or Flower's simulation (inprocess)",
    )
    parser.add_argument(
        "--workers",
        type=Whole(0, 4096),
        metavar="N",
        help="client processes (default: one per core, or 0 with engine.stack); 0: clients run in "
        "this process",
    )
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="the Ray cluster that runs the clients: auto, HOST:PORT of its head, or local "
        "(default: $RAY_ADDRESS, else local)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where run folders go (./runs)")
    parser.add_argument("--name", metavar="NAME", help="the run folder's name (run.name)")
    parser.add_argument("--seed", type=SEED, metavar="N", help="of every random choice (run.seed)")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue a stopped run")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that is there")
    add_format(parser, live=True)
    parser.add_argument("--no-figures", action="store_true", help="draw nothing at the end")
    add_track(parser)
    parser.add_argument("--tensorboard", action="store_true", help="as --track tensorboard")

    def command(args: argparse.Namespace) -> int:
        if args.resume and (args.recipe or args.out or args.name or args.overwrite):
            parser.error(
                "--resume takes the configuration and the folder from RUN_DIR: "
                "leave out the recipe, --out, --name and --overwrite"
            )
        if args.engine == "ray" and args.workers == 0:
            parser.error("--workers 0 is for --engine inprocess; ray needs at least 1")
        if args.engine != "ray" and args.ray_address is not None:
            parser.error("--ray-address needs --engine ray")
        return _run(args)

    parser.set_defaults(command=command)


def _run(args: argparse.Namespace) -> int:
    """Run or resume; returns the exit code."""
    from nmoe_flower.running import run
    from nmoe_flower.summary import summary_json, summary_lines

    try:
        done = run(
            args.recipe,
            set=args.overrides,
            seed=args.seed,
            name=args.name,
            out=args.out,
            engine=args.engine,
            workers=args.workers,
            ray_address=args.ray_address,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=args.format,
            figures=not args.no_figures,
            track=args.track,
            tensorboard=args.tensorboard,
        )
    except KeyboardInterrupt as stop:
        print(f"nmoe: {str(stop) or 'interrupted'}", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as stop:
        for note in getattr(stop, "__notes__", ["interrupted"]):
            print(f"nmoe: {note}", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else _INTERRUPTED
    for note in done.notes:
        print(f"nmoe: {note}", file=sys.stderr)
    if args.format == "json":
        print(summary_json(done.folder, done.seconds))
    else:
        print("", *summary_lines(done.folder, done.figures, done.seconds), sep="\n")
    return 0
