"""``nmoe config``: a recipe with all its settings, each with what it may be."""

import argparse
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from nmoe_flower.cli.options import add_recipe

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "print the resolved configuration"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe config``."""
    add_recipe(parser)
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    """Print the resolved recipe; every key has a comment that says what it may be."""
    from nmoe_flower.config import Config
    from nmoe_flower.files import to_toml

    settings = Config.load(args.recipe, args.overrides)
    for name, section in Config.model_fields.items():
        model: Any = section.annotation
        print(f"[{name}]")
        for key, field in model.model_fields.items():
            value = getattr(getattr(settings, name), key)
            print(f"# {_comment(field)}")
            print(to_toml({field.alias or key.replace("_", "-"): value}), end="")
        print()
    return 0


def _comment(field: "FieldInfo") -> str:
    """The description, and what is allowed.

    >>> from nmoe_flower.config import DataConfig
    >>> _comment(DataConfig.model_fields["tau"])
    'dominant share is 1 / (1 + tau) (number > 0)'
    """
    allowed = _allowed(field)
    if not field.description:
        return allowed
    return field.description if allowed == "text" else f"{field.description} ({allowed})"


def _allowed(field: "FieldInfo") -> str:
    from nmoe_flower.config import NamesOrOwn
    from nmoe_flower.own_code import FORM

    kind = field.annotation
    own = next((m for m in field.metadata if isinstance(m, NamesOrOwn)), None)
    if own is not None:
        return f"one of {', '.join(own.names)}, or {FORM}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if get_origin(inner) is Literal:
            return f"list of {', '.join(map(str, get_args(inner)))}"
        if get_origin(inner) is Annotated:
            return f"list of {', '.join(get_args(inner)[1].names)}, or {FORM}"
        kinds = {int: "whole numbers", str: "names"}
        return f"list of {kinds.get(inner, 'numbers')}"
    if kind is bool:
        return "true or false"
    if kind is str:
        return "text"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in signs.items()
        if hasattr(bound, name)
    ]
    return " ".join(["whole number" if kind is int else "number", " and ".join(bounds)]).strip()
