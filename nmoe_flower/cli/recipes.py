"""``nmoe recipes``: what comes with the package to run."""

import argparse

from nmoe_flower.recipes import packaged_recipes

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "list what comes along to run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.epilog = "nmoe run NAME runs one; nmoe config NAME prints all its settings."
    parser.add_argument("--paths", action="store_true", help="print the files instead")
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    recipes = packaged_recipes()
    width = max((len(recipe.name) for recipe in recipes), default=0)
    for recipe in recipes:
        print(recipe.path if args.paths else f"{recipe.name:{width}}  {recipe.title}")
    return 0
