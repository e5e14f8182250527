"""Dotted keys to tables, text to values, and a validation error to words."""

import difflib
import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nmoe_flower.config.section import kebab, shown
from nmoe_flower.errors import ConfigError

__all__ = ["explain", "kind_of", "literal", "merge"]


def merge(tree: dict[str, Any], path: list[str], value: Any, *, once: bool = False) -> None:
    """Set ``tree[a][b]... = value``, entering tables on the way.

    Args:
        tree: Gets the value; its keys are in kebab-case, whichever way they are given.
        path: The parts of the key.
        value: What it is set to; a table is merged into the one that is there.
        once: Refuse a key that is set already.

    Raises:
        ConfigError: A part of the path is a value; or the key is set, in another spelling.
    """
    *tables, leaf = [kebab(part) for part in path]
    for table in tables:
        branch = tree.setdefault(table, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"{'.'.join(path)}: {table} is a value, not a table")
        tree = branch
    if isinstance(value, Mapping):
        for key, inner in value.items():
            merge(tree, [leaf, *str(key).split(".")], inner, once=once)
        tree.setdefault(leaf, {})
    elif once and leaf in tree:
        raise ConfigError(f"the key {'.'.join(path)} stands there twice, in two spellings")
    else:
        tree[leaf] = value


def literal(text: str, kind: object = None) -> Any:
    """Read the value of ``--set``: TOML where it is, plain text otherwise.

    Args:
        text: As it was typed.
        kind: The type of the key; for ``str`` only a quoted text is TOML, so that a data set may
            be called 2024 or true.

    >>> literal("[8, 9]"), literal("8,9"), literal("2024"), literal("2024", str)
    ([8, 9], '8,9', 2024, '2024')
    """
    try:
        tables = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # of TOML, and of numbers with too many digits
        return text
    value = tables["value"]
    if len(tables) > 1 or not isinstance(value, bool | int | float | str | list):
        return text
    return value if kind is not str or isinstance(value, str) else text


def kind_of(key: str, fields: Mapping[str, Any]) -> object:
    """The type of a dotted key; None if there is no such key."""
    kind: object = None
    for part in key.split("."):
        field = next((f for name, f in fields.items() if part in (name, kebab(name))), None)
        kind = getattr(field, "annotation", None)
        fields = getattr(kind, "model_fields", {})
    return kind


def explain(error: ValidationError, fields: Mapping[str, Any]) -> str:
    """One line per problem: the key, the value, what is allowed."""
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or "configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key{_suggest(problem['loc'], fields)}"
        elif problem["type"] in {"model_type", "model_attributes_type"}:
            message = (
                f"is a section; set its keys, as in {key}.KEY=VALUE, got {shown(problem['input'])}"
            )
        elif problem["type"] not in {"value_error", "missing"}:
            message = f"{message[0].lower()}{message[1:]}, got {shown(problem['input'])}"
        lines.append(f"{key}: {message}")
    return "\n".join(lines)


def _suggest(location: tuple[int | str, ...], fields: Mapping[str, Any]) -> str:
    """Name the closest known key, or all of them."""
    for part in location[:-1]:
        section = fields[str(part)].annotation
        fields = section.model_fields
    known = sorted(kebab(name) for name in fields)
    close = difflib.get_close_matches(kebab(str(location[-1])), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(known)}"
