"""``nmoe recipes``: what comes with the package to run."""

import argparse

from nmoe_flower.recipes import packaged_recipes, packaged_studies

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "list what comes along to run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.epilog = (
        "nmoe run NAME runs a recipe, nmoe config NAME prints all its settings; nmoe study run "
        "NAME runs a study."
    )
    parser.add_argument("--paths", action="store_true", help="print the files instead")
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    recipes, studies = packaged_recipes(), packaged_studies()
    width = max((len(one.name) for one in [*recipes, *studies]), default=0)
    for heading, found in (("", recipes), ("studies (nmoe study run NAME):", studies)):
        if found and heading and not args.paths:
            print("", heading, sep="\n")
        for one in found:
            print(one.path if args.paths else f"{one.name:{width}}  {one.title}")
    return 0
