"""``nmoe systems``: what can be trained, ours and other people's, and what each costs a device."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from nmoe_flower.arguments import ImageShape, Whole
from nmoe_flower.catalogue import BASELINES
from nmoe_flower.cli.options import add_format, add_recipe
from nmoe_flower.errors import ConfigError, NMoEError

if TYPE_CHECKING:
    from nmoe_flower.baselines import SystemCost
    from nmoe_flower.config import Config

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "list the published systems, and what each costs a device"
_DIGITS = (1, 8, 8), 10  # what the default settings read; told without opening them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.epilog = (
        "nmoe run --set run.system=NAME runs one. Systems of the league global are compared by the "
        "test iid, those of personal by local, never with each other. What a device holds and what "
        "travels in a round is told of the recipe's data; without a RECIPE, --set or --shape, of "
        "the digits and the default settings."
    )
    add_recipe(parser)
    parser.add_argument(
        "--shape",
        type=ImageShape(),
        metavar="C,H,W",
        help="of images, in place of opening the recipe's data; needs --classes",
    )
    parser.add_argument(
        "--classes", type=Whole(2, 1 << 20), metavar="N", help="how many there are; needs --shape"
    )
    add_format(parser)
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    """Print the systems, and what they cost a device."""
    if (args.shape is None) != (args.classes is None):
        raise ConfigError("--shape and --classes belong together: give both, or none")
    costs = _costs(args)
    if args.format == "json":
        print(json.dumps({name: _in_json(name, costs) for name in BASELINES}, indent=2))
        return 0
    width = max(map(len, BASELINES))
    for name, one in BASELINES.items():
        print(f"{name:{width}}  {one.league:8}  {one.citation}")
        print(f"{'':{width}}  assumes {one.assumes}")
    print(f"\n{_table(costs)}")
    for name, cost in costs.items():
        if isinstance(cost, str):
            print(f"{name}: {cost}")
    return 0


def _costs(args: argparse.Namespace) -> "dict[str, SystemCost | str]":
    """By system: what it costs with these settings, or why it refuses them."""
    from nmoe_flower.baselines import system_cost
    from nmoe_flower.config import Config

    shape, classes = args.shape, args.classes
    if shape is None:
        given = args.recipe is not None or args.overrides
        shape, classes = _of_data(Config.load(args.recipe, args.overrides)) if given else _DIGITS
    found: dict[str, SystemCost | str] = {}
    for name in BASELINES:
        try:
            config = Config.load(args.recipe, [*args.overrides, f"run.system={name}"])
            found[name] = system_cost(config, shape, classes)
        except NMoEError as error:
            found[name] = str(error)
    (one, *others) = set(found.values())
    if isinstance(one, str) and not others:  # it is the settings, not a system
        raise ConfigError(one)
    return found


def _of_data(config: "Config") -> tuple[tuple[int, int, int], int]:
    """Shape and number of classes of the data that a configuration names."""
    from nmoe_flower.progress import make_progress
    from nmoe_flower.running_data import open_data

    progress = make_progress("text", sys.stderr)
    try:
        data, _ = open_data(config, progress)
    finally:
        progress.close()
    return data.image_shape, data.num_classes


def _in_json(name: str, costs: "dict[str, SystemCost | str]") -> dict[str, Any]:
    one = BASELINES[name]
    told: dict[str, Any] = {
        "label": one.label,
        "citation": one.citation,
        "league": one.league,
        "assumes": one.assumes,
    }
    cost = costs[name]
    if isinstance(cost, str):
        told["refused"] = cost
    else:
        told["cost"] = {
            "parameters": cost.sent + cost.at_home,
            "at_home": cost.at_home,
            "bytes_down": cost.down[-1] / cost.clients,
            "bytes_up": cost.up[-1] / cost.clients,
        }
    return told


def _table(costs: "dict[str, SystemCost | str]") -> str:
    """What a device holds, in numbers, and what it receives and sends in a round, in bytes."""
    from nmoe_flower.summary import padded

    rows = [["a device", "numbers held", "of them at home", "bytes down a round", "bytes up"]]
    for name, cost in costs.items():
        if not isinstance(cost, str):
            held, down, up = cost.sent + cost.at_home, cost.down[-1], cost.up[-1]
            told = (held, cost.at_home, down / cost.clients, up / cost.clients)
            rows.append([name, *(f"{value:,.0f}" for value in told)])
    return padded(rows)
