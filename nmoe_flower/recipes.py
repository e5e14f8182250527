"""Recipes and studies that come with the package: found by name, in a wheel or in a checkout.

A study is told from a recipe by its top-level ``title``.
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nmoe_flower.errors import ConfigError, did_you_mean

__all__ = [
    "Recipe",
    "find_recipe",
    "find_study",
    "packaged_recipes",
    "packaged_studies",
    "typed_name",
]

_HERE = Path(__file__).resolve().parent
_PLACES = (_HERE / "experiments", _HERE.parent / "experiments")  # of a wheel, of a checkout
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Recipe:
    """A recipe or a study that comes with the package.

    Attributes:
        name: What ``nmoe run NAME`` or ``nmoe study run NAME`` finds it by.
        title: What it is: a recipe's first line, a study's ``title``.
        path: The file.
    """

    name: str
    title: str
    path: Path


def packaged_recipes() -> list[Recipe]:
    """All recipes that come with the package, by name."""
    plain = [path for path in _files() if _study_title(path) is None]
    return [Recipe(path.stem, _first_line(path), path) for path in plain]


def packaged_studies() -> list[Recipe]:
    """All studies that come with the package, by name."""
    titled = [(path, _study_title(path)) for path in _files()]
    return [Recipe(path.stem, title, path) for path, title in titled if title is not None]


def find_recipe(name: str) -> Path:
    """The file that a recipe's name means: a path, or the name of one that comes with the package.

    A file of that name goes before a recipe of that name; a folder, of data perhaps, does not.

    Raises:
        ConfigError: It is a bare name, and there is neither; or it is a study's; or there is no
            such file, and a recipe has almost its name.
    """
    return _found(name, "recipe", packaged_recipes, packaged_studies, "a study: nmoe study run")


def find_study(name: str) -> Path:
    """The file that a study's name means, as `find_recipe` does for recipes.

    Raises:
        ConfigError: It is a bare name, and there is neither; or it is a recipe's.
    """
    return _found(name, "study", packaged_studies, packaged_recipes, "a recipe: nmoe run")


def typed_name(path: Path) -> str:
    """What to type for a file: its name alone if it comes with the package."""
    return path.stem if path in _files() else str(path)


def _found(
    name: str,
    kind: str,
    wanted: Callable[[], list[Recipe]],
    others: Callable[[], list[Recipe]],
    otherwise: str,
) -> Path:
    path = Path(name)
    known = {recipe.name: recipe.path for recipe in wanted()}
    if not path.exists() and not _NAME.fullmatch(name):
        meant = did_you_mean(path.name.removesuffix(".toml").lower().replace(" ", "-"), known)
        if meant:
            raise ConfigError(f"there is no file {name!r}{meant}")
    if not _NAME.fullmatch(name) or (path.exists() and not path.is_dir()):
        return path
    if name in known:
        return known[name]
    if any(recipe.name == name for recipe in others()):
        raise ConfigError(f"{name} is {otherwise} {name}")
    plural = {"recipe": "recipes", "study": "studies"}[kind]
    names = did_you_mean(name, known) or (
        f"; {plural}: {', '.join(known) or 'none, in this installation'}"
    )
    raise ConfigError(f"there is no file {name!r} and no {kind} of that name{names}")


def _files() -> list[Path]:
    folder = next((place for place in _PLACES if place.is_dir()), None)
    return sorted(folder.glob("*.toml"), key=lambda path: path.stem) if folder is not None else []


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        return file.readline().removeprefix("#").strip().rstrip(".")


def _study_title(path: Path) -> str | None:
    """The title of a study; None if the file is none."""
    try:
        title = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("title")
    except (OSError, ValueError):
        return None
    return title if isinstance(title, str) else None
