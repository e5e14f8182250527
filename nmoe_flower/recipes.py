"""The recipes that come with the package: found by name, from a wheel or from a checkout."""

import re
from dataclasses import dataclass
from pathlib import Path

from nmoe_flower.errors import ConfigError

__all__ = ["Recipe", "find_recipe", "packaged_recipes"]

_HERE = Path(__file__).resolve().parent
_PLACES = (_HERE / "experiments", _HERE.parent / "experiments")  # of a wheel, of a checkout
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Recipe:
    """A recipe that comes with the package.

    Attributes:
        name: What ``nmoe run NAME`` finds it by.
        title: The first line of the file, which says what it is.
        path: The file.
    """

    name: str
    title: str
    path: Path


def packaged_recipes() -> list[Recipe]:
    """All recipes that come with the package, by name."""
    folder = next((place for place in _PLACES if place.is_dir()), None)
    paths = sorted(folder.glob("*.toml"), key=lambda path: path.stem) if folder is not None else []
    return [Recipe(path.stem, _title(path), path) for path in paths]


def find_recipe(name: str) -> Path:
    """The file that a recipe's name means: a path, or the name of one that comes with the package.

    A file of that name goes before a recipe of that name.

    Raises:
        ConfigError: It is a bare name, and there is neither.
    """
    path = Path(name)
    if path.exists() or not _NAME.fullmatch(name):
        return path
    known = {recipe.name: recipe.path for recipe in packaged_recipes()}
    if name not in known:
        raise ConfigError(
            f"there is no file {name!r} and no recipe of that name; recipes: "
            f"{', '.join(known) or 'none, in this installation'}"
        )
    return known[name]


def _title(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        return file.readline().removeprefix("#").strip().rstrip(".")
