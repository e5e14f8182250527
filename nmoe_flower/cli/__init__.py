"""The ``nmoe`` command. Heavy imports wait until a command needs them."""

import argparse
import difflib
import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from nmoe_flower import __version__
from nmoe_flower.arguments import SEED, Number, OutputFile, Whole
from nmoe_flower.cli import (
    bench,
    bundle,
    deploy,
    doctor,
    infer,
    peers,
    privacy,
    recipes,
    serve,
    short_forms,
)
from nmoe_flower.errors import NMoEError
from nmoe_flower.recipes import recipe_argument

__all__ = ["main"]

_INTERRUPTED = 130
_ALIGN_POLICIES = ("joint", "balanced", "sequential", "greedy", "random")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it finished and produced its results, 1 if it failed, 130 after Ctrl-C. Wrong usage
        leaves through ``SystemExit(2)``, as argparse does it.
    """
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        code = command(args)
        sys.stdout.flush()
        return code
    except NMoEError as error:
        print(f"nmoe: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("nmoe: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # the reader has left; nothing more can be told
    except Exception:
        traceback.print_exc()
    return 1


class _Command(argparse.ArgumentParser):
    """One command, which names a misspelt option before its value is taken for something else."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        passes_on = any(a.nargs in (argparse.REMAINDER, argparse.PARSER) for a in self._actions)
        known = [option for action in self._actions for option in action.option_strings]
        for word in [] if passes_on else itertools.takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.error(f"unknown option {name}{hint}")
        return super().parse_known_args(words, namespace)


class _Parser(argparse.ArgumentParser):
    """The whole command line, whose short forms are spelled out before they are read."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = short_forms.spelled_out(sys.argv[1:] if args is None else args, verbs=deploy.VERBS)
        return super().parse_known_args(words, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nmoe",
        description="Federated learning of Networked Mixture-of-Experts on Flower.",
    )
    parser.add_argument("--version", action="version", version=f"nmoe-flower {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)
    _add_run(commands.add_parser("run", help="train and evaluate: all stages of a recipe"))
    _add_partition(commands.add_parser("partition", help="show which client holds what"))
    _add_report(commands.add_parser("report", help="tables and figures from finished runs"))
    _add_config(commands.add_parser("config", help="print the resolved configuration"))
    recipes.add_arguments(commands.add_parser("recipes", help="list what comes along to run"))
    _add_align(commands.add_parser("align", help="assign experts to clients, no training"))
    privacy.add_arguments(commands.add_parser("privacy", help="what a privacy budget leaves"))
    bundle.add_arguments(commands.add_parser("bundle", help="a finished run as devices serve it"))
    serve.add_arguments(commands.add_parser("serve", help="answer peers with this device's expert"))
    infer.add_arguments(commands.add_parser("infer", help="classify images with the peers' help"))
    peers.add_arguments(commands.add_parser("peers", help="how the peers are; sign their list"))
    deploy.add_arguments(commands.add_parser("deploy", help="prepare, check, try a federation"))
    doctor.add_arguments(commands.add_parser("doctor", help="what is here, and what would fail"))
    bench.add_arguments(commands.add_parser("bench", help="where the benchmarks are"))
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        nargs="?",
        type=recipe_argument,
        metavar="RECIPE",
        help="a TOML file, or the name of one that comes along (nmoe recipes)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override configuration keys, as in --set data.num-clients=20 gate.top-k=2",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--engine", choices=("inprocess", "ray"), default="inprocess")
    parser.add_argument(
        "--workers",
        type=Whole(0, 4096),
        metavar="N",
        help="client processes (default: one per core); 0: clients run in this process",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where run folders go (./runs)")
    parser.add_argument("--name", help="the run folder's name (run.name)")
    parser.add_argument("--seed", type=SEED, help="of every random choice (run.seed)")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue a stopped run")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that is there")
    parser.add_argument("--format", choices=("auto", "text", "json"), default="auto")
    parser.add_argument("--no-figures", action="store_true")
    parser.add_argument("--tensorboard", action="store_true", help="also write RUN_DIR/tensorboard")

    def command(args: argparse.Namespace) -> int:
        if args.resume and (args.recipe or args.out or args.name or args.overwrite):
            parser.error(
                "--resume takes the configuration and the folder from RUN_DIR: "
                "leave out the recipe, --out, --name and --overwrite"
            )
        if args.engine == "ray" and args.workers == 0:
            parser.error("--workers 0 is for --engine inprocess; ray needs at least 1")
        from nmoe_flower.cli.run import run

        return run(args)

    parser.set_defaults(command=command)


def _add_partition(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="(partition.png)")

    def command(args: argparse.Namespace) -> int:
        from nmoe_flower.cli.inspect import partition

        return partition(args.recipe, args.overrides, args.out)

    parser.set_defaults(command=command)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR")

    def command(args: argparse.Namespace) -> int:
        from nmoe_flower.cli.inspect import report

        return report(args.runs, args.out)

    parser.set_defaults(command=command)


def _add_config(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)

    def command(args: argparse.Namespace) -> int:
        from nmoe_flower.cli.inspect import config

        return config(args.recipe, args.overrides)

    parser.set_defaults(command=command)


def _add_align(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clients", type=Path, metavar="CLIENTS.csv|json")
    parser.add_argument("--experts", type=Path, metavar="EXPERTS.csv", help="usage, lo, hi of each")
    parser.add_argument("--policy", choices=_ALIGN_POLICIES, default="joint")
    parser.add_argument("--lo", type=Whole(), help="least clients per expert (joint)")
    parser.add_argument("--hi", type=Whole(), help="most clients per expert (joint)")
    parser.add_argument("--usage-weight", type=Number(0, 1e6), default=1.0, metavar="W")
    parser.add_argument("--scale", choices=("z", "rank", "none"), default="z", help="of fitness")
    parser.add_argument("--seed", type=SEED, default=0, help="of the ties")
    parser.add_argument("--out", type=OutputFile((".csv", ".json")), metavar="FILE.csv|json")

    def command(args: argparse.Namespace) -> int:
        for name in ("lo", "hi"):
            if getattr(args, name) is not None and args.policy != "joint":
                parser.error(f"--{name} is for --policy joint")
        from nmoe_flower.cli.align import run

        return run(args)

    parser.set_defaults(command=command)
