"""What a sweep has chosen, as settings for the file of the study that runs at them."""

from collections.abc import Mapping, Sequence
from typing import Any

from nmoe_flower.files import to_toml
from nmoe_flower.study.product import BASE, Axis
from nmoe_flower.study.sweep import Choice

__all__ = ["choices_to_toml"]

Place = tuple[tuple[str, Any], ...]
"""Values of the axes that were not swept."""


def choices_to_toml(name: str, axes: Mapping[str, Axis], choices: Sequence[Choice]) -> str:
    """Every choice as ``[[exceptions]]``, or as ``[set]`` where there is nothing to tell apart.

    Variants of one place that have chosen alike share an exception. A choice that sets nothing is
    the study as it comes, and is left out.

    Args:
        name: The study that has chosen.
        axes: The study's axes by name.
        choices: What was chosen; what has no winner is left out.
    """
    found: dict[tuple[Place, tuple[str, ...]], list[str]] = {}
    for choice in choices:
        if choice.winner is None:
            continue
        place = tuple((d, value) for d, value in choice.rest.items() if d != "variant")
        settings = tuple(
            _assigned(key, value)
            for axis, wanted in choice.winner.values.items()
            for at, sets in axes[axis].choices
            if at == wanted
            for key, value in sets
        )
        if settings:
            found.setdefault((place, settings), []).append(choice.rest["variant"])
    lines = [f"# Chosen on validation data by {name}."]
    for (place, settings), variants in found.items():
        named = {} if variants == [BASE] else {"variant": variants}
        where = [_assigned(d, value) for d, value in {**named, **dict(place)}.items()]
        if where:
            lines += ["", "[[exceptions]]", *where, f"set = {{ {', '.join(settings)} }}"]
        else:
            lines += ["", "[set]", *settings]
    return "\n".join(lines) + "\n"


def _assigned(key: str, value: Any) -> str:
    """A key, dotted perhaps, and its value in TOML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = to_toml({"key": plain}).strip().removeprefix("key = ")
    if isinstance(plain, list):  # over several lines, with a comma after the last
        text = " ".join(text.split()).replace("[ ", "[").replace(", ]", "]")
    return f"{key} = {text}"
