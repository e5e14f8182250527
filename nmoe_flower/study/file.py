"""A study's file: what runs, and what comes out. Read whole and held against itself at once."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from nmoe_flower.commands import command_line
from nmoe_flower.config import Config, Override, kebab
from nmoe_flower.errors import ConfigError, within
from nmoe_flower.files import read_toml
from nmoe_flower.recipes import find_recipe, find_study
from nmoe_flower.study.declared import (
    MEASURED,
    NUMBER,
    ComparisonSpec,
    FigureSpec,
    Measurable,
    PaperValue,
    SweepSpec,
    TableSpec,
    read_declared,
)
from nmoe_flower.study.include import Part
from nmoe_flower.study.product import (
    BASE,
    COLUMNS,
    FIXED,
    Axis,
    StudyRun,
    Variant,
    as_dotted,
    coordinates,
    dotted,
    frozen,
    in_words,
    is_folder_name,
    own_label,
    product,
    refuse_twins,
    refuse_unknown,
    same,
    selects,
    value_name,
)

__all__ = ["Study"]

_KEYS = (
    "title",
    "about",
    "like",
    "recipe",
    "seeds",
    "paper-tables",
    "set",
    "axes",
    "variants",
    "skip",
    "exceptions",
    "include",
    "labels",
    "tables",
    "paper",
    "comparisons",
    "sweep",
    "figures",
)
_DIMENSIONS = ("variant", "seed", *MEASURED, NUMBER)
_NO_AXES = {*_DIMENSIONS, *COLUMNS}
_TOLD = ("variant", "gate", "test")  # dimensions whose values an error lists
_LARGEST_SEED = 2**32 - 1  # as run.seed


@dataclass(frozen=True)
class Study:
    """What a study's file says, checked: its runs, and what is made of them.

    Attributes:
        path: The file.
        name: The file's stem, which names the study's folder.
        title: One line.
        about: Markdown for the report; may be empty.
        seeds: The seeds, distinct.
        paper_tables: Whether the cells of the NMoE paper stand beside ours.
        variants: The variants by name; one called ``base`` if the file names none.
        axes: The axes by name, in order.
        runs: The runs: those of included studies; then variants, then axes, then seeds, less what
            is skipped.
        tables: The tables; what they leave out (gates, tests) is filled in.
        paper: The published values.
        comparisons: The paired comparisons.
        sweep: What is chosen on validation data; None: nothing.
        figures: The pictures.
        labels: What tables and figures call a value of any dimension, or a dimension.
        overrides: Settings that went before the file's, ``key=value``.
    """

    path: Path
    name: str
    title: str
    about: str
    seeds: tuple[int, ...]
    paper_tables: bool
    variants: Mapping[str, Variant]
    axes: Mapping[str, Axis]
    runs: list[StudyRun] = field(repr=False)
    tables: tuple[TableSpec, ...] = ()
    paper: tuple[PaperValue, ...] = ()
    comparisons: tuple[ComparisonSpec, ...] = ()
    sweep: SweepSpec | None = None
    figures: tuple[FigureSpec, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    @property
    def measured(self) -> Measurable:
        """All that its runs measure."""
        return Measurable(self.runs, tuple(self.axes))

    @property
    def exceptions(self) -> tuple[str, ...]:
        """Which runs have other settings than their variant, a sentence each.

        Those of an included study begin with its name.
        """
        told = ((run.place.parts[0], one) for run in self.runs for one in run.exceptions)
        named = (one if study == self.name else f"{study}, {one}" for study, one in told)
        return tuple(dict.fromkeys(named))

    @classmethod
    def load(
        cls,
        path: str | Path,
        overrides: Iterable[Override] = (),
        *,
        above: tuple[Path, ...] = (),
    ) -> Self:
        """Read a study's file, and refuse all that could not run or come out of it.

        Args:
            path: The file.
            overrides: Settings that go before the file's, for every run: pairs of a dotted key
                and its value, or texts ``key=value``.
            above: The studies that include this one, resolved.

        Raises:
            ConfigError: The file is missing, is not TOML or is a recipe; a key, an axis, a variant
                or a value is not allowed; two variants are the same; or something is asked for
                that no run has. The text names the file and the key.
        """
        path = Path(path)
        if path.resolve() in above:
            raise ConfigError(f"the study {path} includes itself")
        given = read_toml(path, what="the study")
        changes = list(overrides)
        _refuse_unknown_changes(changes)
        try:
            with within(f"the study {path}"):
                named = {kebab(key): value for key, value in given.items()}
                found = cls._read(path, named, changes, (*above, path.resolve()))
                return replace(found, overrides=tuple(map(_in_words_of_set, changes)))
        except ConfigError as error:
            if above or not changes or "--set" in str(error) or not cls._is_sound(path):
                raise
            words = " ".join(map(_in_words_of_set, changes))
            raise ConfigError(f"--set {words}: {error}") from None

    @classmethod
    def _is_sound(cls, path: Path) -> bool:
        """Whether the file alone has no fault."""
        try:
            cls.load(path)
        except ConfigError:
            return False
        return True

    @classmethod
    def _read(
        cls,
        path: Path,
        given: Mapping[str, Any],
        changes: Sequence[Override],
        above: tuple[Path, ...],
    ) -> Self:
        _refuse_recipe(given, path)
        _refuse_other_keys(given)
        given = _after_its_like(given, path, above)
        if not is_folder_name(path.stem):
            raise ConfigError(
                f"{path.stem!r} names its folder; allowed: letters, digits, '.', '_' and '-'"
            )
        included = list(_included(given.get("include", []), path, changes, above))
        seeds = _seeds(given.get("seeds", [0])) if "seeds" in given or not included else ()
        seeds = seeds or tuple(dict.fromkeys(run.seed for part in included for run in part.runs))
        own = not included or any(key in given for key in ("recipe", "variants", "axes"))
        if not own and "set" in given:
            raise ConfigError(
                "set: all runs are those of other studies, and nothing can be set for them; leave "
                "it out, or name runs of this study's own: variants, axes or a recipe"
            )
        variants = _variants(given, path) if own else []
        axes = _axes(_table(given, "axes"))
        _refuse_undone(given, axes)
        _refuse_fixed(changes, axes)
        runs = list(product(path.stem, variants, axes, seeds, changes))
        runs = _kept(runs, given.get("skip", []), variants, axes, seeds)
        known = _dimensions_of_runs(variants, axes, seeds)
        runs = _excepted(runs, given.get("exceptions", []), known, changes)
        for part in reversed(included):
            with within(f"include {part.name}"):
                theirs = Part(list(part.variants.values()), list(part.axes.values()), part.runs)
                whole = theirs.joined(Part(variants, axes, runs), seeds)
            variants, axes, runs = whole.variants, whole.axes, whole.runs
        refuse_twins(runs)
        measured = Measurable(runs, tuple(axis.name for axis in axes))
        tables, paper, comparisons, sweep, figures = read_declared(given, measured)
        if not (paper or given.get("paper-tables")):
            for table in tables:
                if "paper" in table.show or "difference" in table.show:
                    raise ConfigError(
                        f"tables ({table.name}): show = {in_words(*table.show)}, and nothing "
                        "published is here: give [[paper]], or paper-tables = true"
                    )
        return cls(
            path,
            path.stem,
            _of_kind(given, "title", str, ""),
            _of_kind(given, "about", str, ""),
            seeds,
            _of_kind(given, "paper-tables", bool, False),
            {variant.name: variant for variant in variants},
            {axis.name: axis for axis in axes},
            runs,
            tables,
            paper,
            comparisons,
            sweep,
            figures,
            _labels(_table(given, "labels"), measured),
        )


def _after_its_like(
    given: Mapping[str, Any], path: Path, above: tuple[Path, ...]
) -> Mapping[str, Any]:
    """A file's content after what it takes over from the study that it is like.

    That is its recipe and all settings, axes and variants that the file does not name itself; of
    settings, a variant's too, those that no axis of the file sets.
    """
    if "like" not in given:
        return given
    name = _of_kind(given, "like", str, "")
    if not name.strip():
        raise ConfigError("like is empty; allowed: the name of a study, or the path of its file")
    swept = {key for axis in _axes(_table(given, "axes")) for key in axis.keys}
    with within(f"like {name}"):
        place = _place_of(name, path.parent)
        if place.resolve() in above:
            raise ConfigError(f"the study {place} is like itself")
        theirs = {kebab(k): v for k, v in read_toml(place, what="the study").items()}
        _refuse_recipe(theirs, place)
        _refuse_other_keys(theirs)
        theirs = dict(_after_its_like(theirs, place, (*above, place.resolve())))
        variants = {
            name: {**one, **_recipe_from(one, place.parent), "set": _unswept(one, swept)}
            for name, one in _table(theirs, "variants").items()
            if isinstance(one, Mapping)
        }
        tables = {
            "set": _unswept(theirs, swept) | dict(dotted(_table(given, "set"))),
            "axes": dict(_by_name(_table(theirs, "axes"))) | dict(_by_name(_table(given, "axes"))),
            "variants": {**variants, **_table(given, "variants")},
        }
        recipe = _recipe_from(theirs, place.parent)
    return recipe | dict(given) | {key: table for key, table in tables.items() if table}


def _recipe_from(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe that a file in a folder names, for a file that may be in another; empty: none."""
    name = _of_kind(table, "recipe", str, "")
    beside = folder / Path(name).expanduser()
    return {"recipe": str(beside) if beside.is_file() else name} if name else {}


def _unswept(table: Mapping[str, Any], swept: Collection[str]) -> dict[str, Any]:
    """What a table's ``set`` holds, less the keys that an axis sets."""
    return {key: value for key, value in dotted(_table(table, "set")) if key not in swept}


def _place_of(name: str, folder: Path) -> Path:
    """The file of a study that another names: beside that, or one that comes along."""
    beside = folder / Path(name).expanduser()
    if beside.suffix != ".toml":
        beside = beside.parent / f"{beside.name}.toml"
    return beside if beside.is_file() else find_study(name)


def _labels(table: Mapping[str, Any], measured: Measurable) -> dict[str, str]:
    """What things are called here, each of them there."""
    found = {}
    names = {d: [value_name(value) for value in values] for d, values in measured.values.items()}
    known = {
        as_dotted(name): name
        for dimension, values in names.items()
        for value in values
        for name in (value, f"{dimension}.{value}")
    }
    told = [*measured.dimensions, *(name for d in _TOLD for name in names[d])]
    for key, label in dotted(table):
        with within("labels"):
            if key not in known:
                refuse_unknown(key, told, "dimension or value here")
            if not isinstance(label, str) or not label:
                raise ConfigError(f"{key}: text is wanted, got {in_words(label)}")
            found[known.get(key, key)] = label
    for dimension, values in measured.values.items():
        called: dict[str, Any] = {}
        for value in values:
            label = own_label(found, dimension, value_name(value))
            if label and called.setdefault(label, value) != value:
                raise ConfigError(
                    f"labels: {label!r} names two values of {dimension}: "
                    f"{in_words(called[label], value)}"
                )
    return found


def _refuse_recipe(given: Mapping[str, Any], path: Path) -> None:
    if "title" not in given:
        raise ConfigError(
            f"it has no title, so it is a recipe: {command_line('nmoe', 'run', path)} runs it; a "
            'study has a top-level title = "..."'
        )


def _refuse_other_keys(given: Mapping[str, Any]) -> None:
    for key in given:
        if key in Config.model_fields:
            raise ConfigError(f"{key}: settings of every run stand in [set]: [set.{key}]")
        refuse_unknown(key, _KEYS, "key of a study")
    title = _of_kind(given, "title", str, "")
    if len(title.strip().splitlines()) != 1:
        told = "is empty" if not title.strip() else "has several lines"
        raise ConfigError(f"title {told}; allowed: one line of text")


def _of_kind(given: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = given.get(key, default)
    if not isinstance(value, kind):
        wanted = {str: "text", bool: "true or false"}[kind]
        raise ConfigError(f"{key}: {wanted} is wanted, got {in_words(value)}")
    return value


def _table(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is a table; write [{key}], got {in_words(value)}")
    return value


def _seeds(given: Any) -> tuple[int, ...]:
    allowed = f"allowed: a list of whole numbers from 0 to {_LARGEST_SEED}, each once"
    if not isinstance(given, list) or not given:
        raise ConfigError(f"seeds = {in_words(given)}; {allowed}")
    for seed in given:
        if type(seed) is not int or not 0 <= seed <= _LARGEST_SEED:
            raise ConfigError(f"seeds: {in_words(seed)} is no seed; {allowed}")
        if given.count(seed) > 1:
            raise ConfigError(f"seeds: {seed} stands there twice; {allowed}")
    return tuple(given)


def _variants(given: Mapping[str, Any], path: Path) -> list[Variant]:
    """The named variants, or the one without a name."""
    common = _settings(_table(given, "set"), "set")
    base = _of_kind(given, "recipe", str, "")
    read: dict[str, Mapping[str, Any]] = {"": {}}

    def recipe(name: str) -> Mapping[str, Any]:
        if name not in read:
            read[name] = _recipe(name, path.parent)
        return read[name]

    named = _table(given, "variants")
    if "variants" in given and not named:
        raise ConfigError("variants is empty; leave it out, or name one: [variants.NAME]")
    if not named:
        with within("recipe"):
            return [Variant(BASE, BASE, recipe(base), common)]
    found = []
    for name, about in named.items():
        with within(f"variants.{name}"):
            if not is_folder_name(name) or name == BASE:
                raise ConfigError(
                    "a variant names a folder; allowed: letters, digits, '.', '_' and '-', and "
                    f"not {BASE}"
                )
            if not isinstance(about, Mapping):
                raise ConfigError(f"a table is wanted, got {in_words(about)}")
            for key in about:
                refuse_unknown(key, ("label", "recipe", "set"), "key of a variant")
            label = _of_kind(about, "label", str, name)
            own = _settings(_table(about, "set"), "set")
            with within("recipe"):
                start = recipe(_of_kind(about, "recipe", str, base))
            found.append(Variant(name, label, start, (*common, *own)))
    labels = [variant.label for variant in found]
    for variant in found:
        if labels.count(variant.label) > 1:
            raise ConfigError(f"variants: the label {variant.label!r} stands there twice")
    return found


def _recipe(name: str, folder: Path) -> Mapping[str, Any]:
    """A recipe's settings: of a path relative to the study, or of one that comes along."""
    beside = folder / Path(name).expanduser()
    place = beside if beside.is_file() else find_recipe(name)
    settings = Config.load(place).model_dump(by_alias=True, exclude_unset=True)
    for key in FIXED:
        section, _, leaf = key.partition(".")
        settings.get(section, {}).pop(leaf, None)
    return settings


def _settings(table: Mapping[str, Any], place: str) -> tuple[tuple[str, Any], ...]:
    """Settings as pairs of a dotted key and its value, all of them known."""
    pairs = tuple(dotted(table))
    with within(place):
        for key, _ in pairs:
            _require_key(key)
            if [name for name, _ in pairs].count(key) > 1:
                raise ConfigError(f"{key} stands there twice, in two spellings")
    return pairs


def _require_key(key: str) -> None:
    """Refuse what is no key of the configuration, or is a study's own affair."""
    if key in FIXED:
        raise ConfigError(f"{key} is not for a study to set; {FIXED[key]}")
    section, _, leaf = key.partition(".")
    model = Config.model_fields.get(section)
    if model is None:
        refuse_unknown(section, Config.model_fields, "section of the configuration")
    if not leaf:
        raise ConfigError(f"{key} is a section; set its keys: {key}.KEY = VALUE")
    refuse_unknown(key, Config().flat(), "key of the configuration")


def _axes(table: Mapping[str, Any]) -> list[Axis]:
    """The axes, in the order of the file: keys with their values, names with what each sets."""
    found: list[Axis] = []
    for name, given in _by_name(table):
        with within("axes"):
            found.append((_axis_of_key if "." in name else _axis_of_name)(name, given))
    for axis in found:
        if [one.name for one in found].count(axis.name) > 1:
            raise ConfigError(f"axes: {axis.name} stands there twice, in two spellings")
    set_by: dict[str, str] = {}
    for axis in found:
        for key in axis.keys:
            other = set_by.setdefault(key, axis.name)
            if other != axis.name:
                raise ConfigError(
                    f"axes: {other} and {axis.name} both set {key}, and one would undo the other"
                )
    return found


def _by_name(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a file says of each axis; those of configuration keys by their dotted ones."""
    for name, given in table.items():
        if isinstance(given, Mapping) and name in Config.model_fields:
            yield from dotted({name: given})
        else:
            yield (kebab(name) if "." in name else name), given


def _axis_of_key(key: str, given: Any) -> Axis:
    _require_key(key)
    if not isinstance(given, list):
        raise ConfigError(f"{key}: a list of its values is wanted, got {in_words(given)}")
    if not given:
        raise ConfigError(f"{key} is empty, and no run would be left; allowed: one value or more")
    values = [frozen(value) for value in given]
    usual = Config().flat()[key]
    for at, value in enumerate(values):
        if isinstance(value, str) and isinstance(usual, int | float):
            allowed = "true and false" if isinstance(usual, bool) else "numbers"
            raise ConfigError(f'{key}: "{value}" is a text; allowed: {allowed}, without quotes')
        if any(same(value, other) for other in values[:at]):
            raise ConfigError(f"{key}: {in_words(value)} stands there twice")
    return Axis(key, tuple((value, ((key, value),)) for value in values))


def _axis_of_name(name: str, given: Any) -> Axis:
    sections = in_words(*Config.model_fields)
    if name in _NO_AXES:
        raise ConfigError(
            f"{name} is a dimension or a column of every study: call the axis something else"
        )
    if not is_folder_name(name) or not isinstance(given, Mapping):
        raise ConfigError(
            f"{name} is neither a configuration key ({sections}, such as data.tau = [0.5, 0.2]) "
            f"nor a table of values: [axes.{name}]"
        )
    if not given:
        raise ConfigError(f"{name} is empty, and no run would be left; allowed: one value or more")
    choices = []
    for value, settings in given.items():
        with within(f"{name}.{value}"):
            if not isinstance(settings, Mapping):
                raise ConfigError(
                    f"a table of settings is wanted, got {in_words(settings)}; {name} is no "
                    f"section of the configuration: those are {sections}"
                )
            if not is_folder_name(value):
                raise ConfigError(
                    "a value names a folder; allowed: letters, digits, '.', '_' and '-'"
                )
        choices.append((value, _settings(settings, f"{name}.{value}")))
    return Axis(name, tuple(choices))


def _in_words_of_set(change: Override) -> str:
    return change if isinstance(change, str) else f"{change[0]}={in_words(change[1])}"


def _key_of(change: Override) -> str:
    text = change.partition("=")[0] if isinstance(change, str) else str(change[0])
    return kebab(text.strip())


def _refuse_unknown_changes(changes: Sequence[Override]) -> None:
    """Refuse settings of the command line that are none, whatever the study says."""
    for change in changes:
        key, equals, _ = _in_words_of_set(change).partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {change}: KEY=VALUE is wanted, as in --set gate.rounds=5")
        if kebab(key.strip()) not in FIXED:  # these are refused with the study
            with within("--set"):
                _require_key(kebab(key.strip()))


def _refuse_undone(given: Mapping[str, Any], axes: Sequence[Axis]) -> None:
    """Refuse settings of the file that an axis would undo; what it leaves to some runs may be."""
    by_key = {key: axis for axis in axes for key in axis.keys}
    for key, _ in dotted(_table(given, "set")):
        if key in by_key and all(key in dict(sets) for _, sets in by_key[key].choices):
            raise ConfigError(f"set: {key}: the axis {by_key[key].name} sets it in every run")
    for name, about in _table(given, "variants").items():
        for key, _ in dotted(_table(about, "set")):
            if key in by_key:
                raise ConfigError(
                    f"variants.{name}: set: {key}: the axis {by_key[key].name} sets it, and would "
                    "undo what the variant says; leave one of them out"
                )


def _refuse_fixed(overrides: Sequence[Override], axes: Sequence[Axis]) -> None:
    """Refuse overrides that would undo an axis or what a study gives each run."""
    on_axes = {key: axis.name for axis in axes for key in axis.keys}
    for key in map(_key_of, overrides):
        if key in FIXED:
            raise ConfigError(f"--set {key}: it is not for a study to set; {FIXED[key]}")
        if key in on_axes:
            raise ConfigError(
                f"--set {key}: the axis {on_axes[key]} sets it; choose some of its runs with --only"
            )


def _kept(
    runs: Sequence[StudyRun],
    skips: Any,
    variants: Sequence[Variant],
    axes: Sequence[Axis],
    seeds: Sequence[int],
) -> list[StudyRun]:
    """The runs that no ``[[skip]]`` leaves out."""
    if not isinstance(skips, list):
        raise ConfigError(f"skip is wanted as tables: write [[skip]], got {in_words(skips)}")
    known = _dimensions_of_runs(variants, axes, seeds)
    left_out = []
    for number, skip in enumerate(skips, start=1):
        with within(f"skip {number}"):
            if not isinstance(skip, Mapping) or not skip:
                raise ConfigError(f"names no dimension; allowed: {in_words(*known)}")
            left_out.append(coordinates(skip, known))
            if not any(selects(left_out[-1], run) for run in runs):
                raise ConfigError("no run is like that")
    kept = [run for run in runs if not any(selects(where, run) for where in left_out)]
    if runs and not kept:
        raise ConfigError("skip: every run is left out")
    return kept


def _dimensions_of_runs(
    variants: Sequence[Variant], axes: Sequence[Axis], seeds: Sequence[int]
) -> dict[str, list[Any]]:
    """The values that tell runs apart, by dimension."""
    return {
        "variant": [variant.name for variant in variants],
        **{axis.name: axis.values for axis in axes},
        "seed": list(seeds),
    }


def _excepted(
    runs: Sequence[StudyRun],
    exceptions: Any,
    known: Mapping[str, Sequence[Any]],
    changes: Sequence[Override],
) -> list[StudyRun]:
    """The runs, some with settings of their own."""
    if not isinstance(exceptions, list):
        raise ConfigError(
            f"exceptions is wanted as tables: write [[exceptions]], got {in_words(exceptions)}"
        )
    found, changed = list(runs), {*map(_key_of, changes)}
    set_by: dict[tuple[str, str], int] = {}
    for number, exception in enumerate(exceptions, start=1):
        with within(f"exceptions {number}"):
            if not isinstance(exception, Mapping):
                raise ConfigError(f"a table is wanted, got {in_words(exception)}")
            settings = _settings(_table(exception, "set"), "set")
            where = coordinates({k: v for k, v in exception.items() if k != "set"}, known)
            if not settings or not where:
                raise ConfigError(f"names {'no run' if settings else 'no setting: set = {...}'}")
            meant = [run for run in found if selects(where, run)]
            if not meant:
                raise ConfigError("no run is like that")
            for key, _ in settings:
                if key in changed:
                    raise ConfigError(
                        f"set: {key}: --set {key} would undo it; leave one of them out"
                    )
            for name, key in ((run.name, key) for run in meant for key, _ in settings):
                if (first := set_by.setdefault((name, key), number)) != number:
                    raise ConfigError(f"set: {key}: exceptions {first} sets it for {name} already")
            which = ", ".join(f"{key} {in_words(*values)}" for key, values in where.items())
            what = ", ".join(f"{key} = {in_words(value)}" for key, value in settings)
            told = f"{which}: {what}"
            found = [_but_for(run, settings, told) if run in meant else run for run in found]
    return found


def _but_for(run: StudyRun, settings: Sequence[tuple[str, Any]], told: str) -> StudyRun:
    """A run with settings of its own, told unless it has them anyway: a sweep may choose them."""
    config = Config.load(run.config, settings)
    if config == run.config:
        return run
    return replace(run, config=config, exceptions=(*run.exceptions, told))


def _included(
    parts: Any, path: Path, overrides: Sequence[Override], above: tuple[Path, ...]
) -> Iterator[Study]:
    """The studies whose runs this one takes, each with those runs only that it takes."""
    if not isinstance(parts, list):
        raise ConfigError(f"include is wanted as tables: write [[include]], got {in_words(parts)}")
    for number, part in enumerate(parts, start=1):
        with within(f"include {number}"):
            if not isinstance(part, Mapping):
                raise ConfigError(f"a table is wanted, got {in_words(part)}")
            for key in part:
                refuse_unknown(key, ("study", "where"), "key of an include")
            name = _of_kind(part, "study", str, "")
            if not name.strip():
                raise ConfigError("study is missing: the name of a study, or the path of its file")
            other = Study.load(_place_of(name, path.parent), overrides, above=above)
            known = {name: other.measured.values[name] for name in ("variant", *other.axes, "seed")}
            where = coordinates(_table(part, "where"), known)
            yield replace(other, runs=[run for run in other.runs if selects(where, run)])
