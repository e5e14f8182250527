"""From variants, axes and seeds to runs: the cross product of a study, less what it skips."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmoe_flower.catalogue import GATES, SCHEMES
from nmoe_flower.config import Config, Override, kebab, shown
from nmoe_flower.errors import ConfigError, did_you_mean
from nmoe_flower.results import FREE_KEYS

__all__ = [
    "BASE",
    "COLUMNS",
    "FIXED",
    "Axis",
    "Coordinates",
    "StudyRun",
    "Variant",
    "as_dotted",
    "coordinates",
    "dotted",
    "folder_name",
    "frozen",
    "in_words",
    "is_folder_name",
    "own_label",
    "product",
    "refuse_twins",
    "refuse_unknown",
    "same",
    "selects",
    "value_name",
    "variant_in_words",
]

BASE = "base"  # what the one variant is called where none has a name
COLUMNS = (  # of table.json, but for the axes, which stand after the first
    "variant", "folder", "gate", "test", "metric", "mean", "se", "n", "seeds", "each",
    "bytes_per_device", "exchanges", "paper", "missing", "unmeasured", "failed", "reasons",
)  # fmt: skip
FIXED = {  # keys that a study gives each of its runs
    "run.seed": "name them in seeds",
    "run.name": "a run's folder is <study>/<variant>/seed-N",
    "run.out": "use --out",
}
_WORKPLACES = frozenset({"stage-1", "report"})  # beside the variants in a study's folder
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST = 160  # letters of a variant's folder
_MOST_NAMED, _MOST_ALLOWED = 12, 40

Coordinates = Mapping[str, tuple[Any, ...]]
"""By dimension: the values that are meant, any of them."""


@dataclass(frozen=True)
class Variant:
    """One of the named variants of a study, or the one without a name.

    Attributes:
        name: What the file calls it; ``base`` if it names none.
        label: What tables call it.
        recipe: The settings it starts from: its own recipe's, or the study's.
        settings: What goes before the recipe: pairs of a dotted key and its value.
    """

    name: str
    label: str
    recipe: Mapping[str, Any]
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Axis:
    """One axis of a study.

    Attributes:
        name: A configuration key, or a name of its own.
        choices: Each of its values with what it sets: pairs of a dotted key and its value. A
            value that is a list is a tuple here.
    """

    name: str
    choices: tuple[tuple[Any, tuple[tuple[str, Any], ...]], ...]

    @property
    def values(self) -> list[Any]:
        """All values, in order."""
        return [value for value, _ in self.choices]

    @property
    def keys(self) -> set[str]:
        """All configuration keys that it sets."""
        return {key for _, sets in self.choices for key, _ in sets}


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        variant: Name of its folder: the variant and the values of all axes.
        named: The variant alone, as ``[variants]`` calls it; ``base`` if there is none.
        values: The run's value on each axis, by the axis' name.
        seed: The run's seed.
        config: The resolved configuration. ``run.name`` and ``run.out`` say nothing in it.
        place: The run's folder below the folder of all studies: ``<study>/<variant>/seed-N``.
        exceptions: Which runs have the settings that this one has and its variant has not, and
            what these are, a sentence each.
    """

    variant: str
    named: str
    values: Mapping[str, Any]
    seed: int
    config: Config = field(repr=False)
    place: Path
    exceptions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in its study: ``variant/seed-N``."""
        return f"{self.variant}/seed-{self.seed}"

    def at(self, dimension: str) -> Any:
        """Where the run stands on a dimension: variant, seed, or an axis.

        Raises:
            KeyError: The study has no such axis.
        """
        if dimension == "variant":
            return self.named
        return self.seed if dimension == "seed" else self.values[dimension]


def product(
    study: str,
    variants: Sequence[Variant],
    axes: Sequence[Axis],
    seeds: Sequence[int],
    overrides: Sequence[Override] = (),
) -> Iterator[StudyRun]:
    """Every variant with every value of every axis and every seed, in this order.

    Args:
        study: The study's name, for the runs' places.
        variants: At least one; without a name there is only one.
        axes: May be none.
        seeds: At least one, distinct.
        overrides: What goes before all else.

    Raises:
        ConfigError: A variant does not resolve; it is named, with the values of its axes.
    """
    for variant in variants:
        yield from _of_variant(study, variant, axes, seeds, overrides)


def _of_variant(
    study: str,
    variant: Variant,
    axes: Sequence[Axis],
    seeds: Sequence[int],
    overrides: Sequence[Override],
) -> Iterator[StudyRun]:
    for chosen in itertools.product(*(axis.choices for axis in axes)):
        values = {axis.name: value for axis, (value, _) in zip(axes, chosen, strict=True)}
        folder = folder_name(variant.name, values)
        settings: list[Override] = [*variant.settings]
        for _, sets in chosen:
            settings += sets
        try:
            config = Config.load(variant.recipe, [*settings, *overrides])
        except ConfigError as error:
            raise ConfigError(f"{variant_in_words(variant.name, values)}: {error}") from None
        for seed in seeds:
            own = config.run.model_copy(update={"seed": seed, "name": Config().run.name, "out": ""})
            yield StudyRun(
                folder,
                variant.name,
                values,
                seed,
                config.model_copy(update={"run": own}),
                Path(study, folder, f"seed-{seed}"),
            )


def folder_name(named: str, values: Mapping[str, Any]) -> str:
    """What tells a variant from the others, as a file system takes it.

    Args:
        named: The variant, as ``[variants]`` calls it; ``base`` if it has no name.
        values: By axis, in their order, the value; a dotted axis is a configuration key.

    >>> folder_name("fedsc", {"data.tau": 0.2, "setting": "iid"}), folder_name("base", {})
    ('fedsc-tau-0.2-iid', 'base')
    """
    ends = [name.rpartition(".")[2] for name in values]
    parts = [named] if named != BASE else []
    for (name, value), end in zip(values.items(), ends, strict=True):
        short = end if ends.count(end) == 1 else name.replace(".", "-")
        parts.append(f"{short}-{_word(value)}" if "." in name else _word(value))
    folder = "-".join(parts) or BASE
    if len(folder) > _LONGEST:
        digest = hashlib.sha256(folder.encode()).hexdigest()[:12]
        folder = f"{folder[: _LONGEST - 13]}-{digest}"
    return folder


def _word(value: Any) -> str:
    """A value in letters that every file system takes.

    >>> [_word(value) for value in (0.2, 1e-05, -1, True, (8, 16), "", "a:b/c")]
    ['0.2', '1e-05', '-1', 'true', '8-16', 'none', 'a-b-c']
    """
    text = "-".join(map(_word, value)) if isinstance(value, tuple) else value_name(value)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".") or "none"


def refuse_twins(runs: Sequence[StudyRun]) -> None:
    """Refuse two variants that go to one folder, or that would compute the same.

    Raises:
        ConfigError: Both are named, and why they are the same.
    """
    places: dict[str, StudyRun] = {}
    outcomes: dict[tuple[Any, ...], StudyRun] = {}
    for run in runs:
        if run.variant in _WORKPLACES:
            raise ConfigError(f"the name {run.variant!r} is taken in a study's folder: rename it")
        other = places.setdefault(run.variant.lower(), run)
        if (other.named, other.values) != (run.named, run.values):
            raise ConfigError(
                f"two variants would go to the folder {run.variant!r}: rename one of their values "
                "or variants"
            )
        if run.seed != runs[0].seed:
            continue
        settings = run.config.flat()
        idle = [e.key for name, e in SCHEMES.items() if e.key and name != run.config.data.scheme]
        told = tuple(
            value for key, value in settings.items() if key not in FREE_KEYS and key not in idle
        )
        twin = outcomes.setdefault(told, run)
        if twin is not run:
            before = twin.config.flat()
            idle = [key for key in idle if settings[key] != before[key]]
            why = (
                f" ({', '.join(idle)} has no effect with data.scheme = {run.config.data.scheme})"
                if idle
                else ""
            )
            raise ConfigError(
                f"{twin.variant} and {run.variant} are the same configuration{why}: leave one out, "
                "or let a [[skip]] do it"
            )


def dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables by their dotted keys, in order; lists are leaves.

    >>> list(dotted({"data": {"tau": 0.2}, "gate.top_k": 2}))
    [('data.tau', 0.2), ('gate.top-k', 2)]
    """
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted(value, f"{name}.")
        else:
            yield as_dotted(name), value


def as_dotted(name: str) -> str:
    """A dotted key as the configuration spells it; a name that is none stays as it is.

    >>> as_dotted("gate.top_k"), as_dotted("my_axis")
    ('gate.top-k', 'my_axis')
    """
    return kebab(name) if "." in name else name


def coordinates(table: Mapping[str, Any], known: Mapping[str, Sequence[Any]]) -> Coordinates:
    """Read which values of which dimensions are meant; a list means any of its values.

    Args:
        table: Dimensions with a value or a list of values, dotted or in tables.
        known: The values there are, by dimension.

    Raises:
        ConfigError: A dimension or a value is not there; tells those that are.
    """
    found = {}
    for key, given in dotted(table):
        refuse_unknown(key, known, "dimension")
        value = frozen(given)
        if any(same(value, one) for one in known[key]):
            found[key] = (value,)
            continue
        several = value if isinstance(value, tuple) else (value,)
        if not several:
            raise ConfigError(f"{key} is empty; allowed: {in_words(*known[key])}")
        for one in several:
            if not any(same(one, other) for other in known[key]):
                alike = isinstance(one, str) and one in map(in_words, known[key])
                told = f'"{one}", a text,' if alike else in_words(one)
                raise ConfigError(
                    f"{key} = {told} is what no run has; allowed: {in_words(*known[key])}"
                )
        found[key] = several
    return found


def selects(where: Coordinates, run: StudyRun) -> bool:
    """Whether a run is among those that are meant; other than the dimensions of runs is ignored."""
    return all(
        any(same(run.at(dimension), value) for value in values)
        for dimension, values in where.items()
        if dimension in ("variant", "seed") or dimension in run.values
    )


def same(one: Any, other: Any) -> bool:
    """Whether two values are one: 1 and 1.0 are, 1 and true are not.

    >>> same(1, 1.0), same(1, True), same((1, 2), (1, 2))
    (True, False, True)
    """
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def frozen(value: Any) -> Any:
    """A value that can be a key: of a list a tuple."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def value_name(value: Any) -> str:
    """A value as tables show it, and as ``[labels]`` names it.

    >>> [value_name(value) for value in (0.2, True, (1, 2), "iid")]
    ['0.2', 'true', '1,2', 'iid']
    """
    if isinstance(value, list | tuple):
        return ",".join(map(value_name, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def own_label(labels: Mapping[str, str], dimension: str, text: str) -> str | None:
    """What a study calls a value of a dimension, if it has a word for it.

    Args:
        labels: What it calls values, by the value or by ``dimension.value``.
        dimension: The dimension.
        text: The value's name. ``local``, a gate and a test, means the gate.

    >>> labels = {"local": "own expert", "test.iid": "all classes"}
    >>> own_label(labels, "gate", "local"), own_label(labels, "test", "iid")
    ('own expert', 'all classes')
    >>> own_label(labels, "test", "local") is None
    True
    """
    others = dimension == "test" and text in GATES
    return labels.get(f"{dimension}.{text}", None if others else labels.get(text))


def refuse_unknown(name: str, known: Iterable[str], what: str) -> None:
    """Refuse a name that is none of those known.

    Raises:
        ConfigError: With the one that was probably meant, or all of them.
    """
    names = list(dict.fromkeys(known))
    if name in names:
        return
    ends = [one for one in names if one.endswith(f".{name}")]
    hint = f"; did you mean {ends[0]}?" if ends else did_you_mean(name, names)
    raise ConfigError(
        f"{name} is no {what}{hint or f'; allowed: {in_words(*names, most=_MOST_ALLOWED)}'}"
    )


def in_words(*values: Any, most: int = _MOST_NAMED) -> str:
    """Values for an error, separated by commas; those after the first ``most`` are counted.

    >>> in_words(0.5, True, "iid", (1, 2))
    '0.5, true, iid, [1, 2]'
    """
    texts = [_text(value) for value in values[:most]]
    more = len(values) - len(texts)
    return ", ".join([*texts, *([f"and {more} more"] if more else [])]) or "none"


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool):
        return value_name(value)
    return value if isinstance(value, str) and value and len(value) < 80 else shown(value)


def variant_in_words(name: str, values: Mapping[str, Any]) -> str:
    """A variant, and where on the axes, for errors.

    >>> variant_in_words("base", {"gate.top-k": 1})
    'variant base (gate.top-k = 1)'
    """
    where = ", ".join(f"{axis} = {in_words(value)}" for axis, value in values.items())
    return f"variant {name} ({where})" if where else f"variant {name}"


def is_folder_name(text: str) -> bool:
    """Whether a name of a variant or a value can be that of a folder."""
    return _NAME.fullmatch(text) is not None and len(text) <= _LONGEST
