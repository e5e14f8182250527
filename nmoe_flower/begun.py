"""What a run began with: its settings, and where it comes from.

A run's own folder has both, as ``config.toml`` and ``provenance.json``. The runs that are published
of a study differ in little, so what they began with stands in one file beside their folders,
``<study>/runs.json``: what is usual under ``every-run``, what is usual among several seeds of a
variant and differs from that under ``every-seed``, and what differs from both under ``runs``, by
``<variant>/seed-N``.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.files import lines_of_json, read_json, read_toml, write_text

__all__ = [
    "RUNS",
    "begun_together",
    "is_run",
    "keep_begun",
    "read_origin",
    "read_settings",
    "run_folders",
]

RUNS = "runs.json"
"""The file of a published study that says what its runs began with."""

_CONFIG, _PROVENANCE = "config", "provenance"
_EVERY_RUN, _EVERY_SEED, _EACH = "every-run", "every-seed", "runs"
_Tree = Mapping[str, Any]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, or of one that is published."""
    return (folder / "config.toml").is_file() or _name(folder) in begun_together(_study(folder))


def read_settings(
    folder: Path, *, what: str = "the file", raises: type[NMoEError] = ConfigError
) -> dict[str, Any]:
    """The settings of a run, as tables; of a published one those that are not as they come.

    Args:
        folder: The run's folder.
        what: What the file is called in errors.
        raises: Class of the errors.

    Raises:
        NMoEError: The file cannot be read, or is not TOML.
    """
    if not (folder / "config.toml").is_file() and (kept := _published(folder, raises)) is not None:
        return deepcopy(dict(kept[_CONFIG]))
    return read_toml(folder / "config.toml", what=what, raises=raises)


def read_origin(folder: Path, *, raises: type[NMoEError] = ConfigError) -> dict[str, Any]:
    """Where a run comes from: what its provenance.json says.

    Args:
        folder: The run's folder.
        raises: Class of the errors.

    Raises:
        NMoEError: The file cannot be read, or holds no JSON object.
    """
    if not (folder / "config.toml").is_file() and (kept := _published(folder, raises)) is not None:
        return deepcopy(dict(kept[_PROVENANCE]))
    return _read_object(folder / "provenance.json", raises)


def run_folders(root: Path) -> list[Path]:
    """The folders of all runs below a folder of studies, ``<study>/<variant>/seed-N``, by name.

    Args:
        root: The folder of runs, or of published ones.
    """
    own = {file.parent for file in root.glob("*/*/seed-*/config.toml")}
    published = {study / name for study in root.glob("*") for name in begun_together(study)}
    return sorted(own | published)


def begun_together(study: Path, *, raises: type[NMoEError] = ConfigError) -> dict[str, _Tree]:
    """What the runs that are published of a study began with, by ``<variant>/seed-N``.

    Args:
        study: The study's folder; without a ``runs.json`` nothing is published there.
        raises: Class of the errors.

    Raises:
        NMoEError: The file cannot be read, or is of another shape.
    """
    file = study / RUNS
    if not file.is_file():
        return {}
    now = file.stat()
    try:
        return dict(_whole(file, (now.st_ino, now.st_mtime_ns, now.st_size)))
    except NMoEError as error:
        raise raises(str(error)) from error


def keep_begun(folder: Path, settings: _Tree, origin: _Tree) -> None:
    """Say in the ``runs.json`` of its study what a published run began with.

    Args:
        folder: The published run's folder; of what the file says already of it nothing stays.
        settings: The settings, as tables.
        origin: Where it comes from.

    Raises:
        NMoEError: The file that is there cannot be read, or none can be written.
    """
    study = _study(folder)
    kept = begun_together(study) | {_name(folder): {_CONFIG: settings, _PROVENANCE: origin}}
    every = _usual(list(kept.values()))
    rest = {name: _without(one, every) for name, one in sorted(kept.items())}
    seeds: dict[str, list[_Tree]] = defaultdict(list)
    for name, one in rest.items():
        seeds[_variant(name)].append(one)
    variants = {variant: _usual(ones) for variant, ones in seeds.items() if len(ones) > 1}
    each = {name: _without(one, variants.get(_variant(name), {})) for name, one in rest.items()}
    told = {_EVERY_RUN: every, _EVERY_SEED: variants, _EACH: each}
    write_text(study / RUNS, lines_of_json(told))


@lru_cache(maxsize=64)
def _whole(file: Path, state: tuple[int, ...]) -> dict[str, _Tree]:
    """All runs of a file, which is read once as long as its state is the same.

    What runs have in common they share here, too: nobody may change it.
    """
    kept = _read_object(file, NMoEError)
    every, variants, each = (kept.get(key, {}) for key in (_EVERY_RUN, _EVERY_SEED, _EACH))
    whole: dict[str, _Tree] = {}
    with suppress(AttributeError, TypeError):
        for name, rest in each.items():
            whole[name] = _joined(_joined(every, variants.get(_variant(name), {})), rest)
        parts = [one.get(part) for one in whole.values() for part in (_CONFIG, _PROVENANCE)]
        if all(isinstance(part, Mapping) for part in parts):
            return whole
    raise NMoEError(f"{file} does not tell of each run its {_CONFIG} and its {_PROVENANCE}")


def _published(folder: Path, raises: type[NMoEError]) -> _Tree | None:
    return begun_together(_study(folder), raises=raises).get(_name(folder))


def _study(folder: Path) -> Path:
    return folder.absolute().parent.parent


def _name(folder: Path) -> str:
    place = folder.absolute()
    return f"{place.parent.name}/{place.name}"


def _variant(name: str) -> str:
    return name.rpartition("/")[0]


def _usual(trees: Sequence[_Tree]) -> dict[str, Any]:
    """What trees have in common: of a key that all have, the value that most of them have.

    >>> _usual([{"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "d": 3}, {"a": {"b": 5}}])
    {'a': {'b': 1}}
    """
    first, *others = trees
    found: dict[str, Any] = {}
    for key, value in first.items():
        if all(key in one for one in others):
            values = [value, *(one[key] for one in others)]
            if all(isinstance(one, Mapping) for one in values):
                if inner := _usual(values):
                    found[key] = inner
            elif not any(isinstance(one, Mapping) for one in values):
                most = max(values, key=values.count)
                if values.count(most) > 1 or not others:
                    found[key] = most
    return found


def _without(tree: _Tree, usual: _Tree) -> dict[str, Any]:
    """Where a tree differs from what is usual, which has no key that it lacks.

    >>> _without({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1}, "d": 4})
    {'a': {'c': 2}, 'd': 3}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in usual:
            found[key] = value
        elif isinstance(value, Mapping):
            if inner := _without(value, usual[key]):
                found[key] = inner
        elif usual[key] != value:
            found[key] = value
    return found


def _joined(usual: _Tree, rest: _Tree) -> dict[str, Any]:
    """A tree again, from what is usual and where it differs.

    >>> _joined({"a": {"b": 1}, "d": 4}, {"a": {"c": 2}, "d": 3})
    {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    both = {key: _joined(usual[key], rest[key])
            for key in usual.keys() & rest.keys() if isinstance(rest[key], Mapping)}  # fmt: skip
    return {**usual, **rest, **both}


def _read_object(path: Path, raises: type[NMoEError]) -> dict[str, Any]:
    value = read_json(path, raises=raises)
    if not isinstance(value, dict):
        raise raises(f"{path} does not hold a JSON object")
    return value
