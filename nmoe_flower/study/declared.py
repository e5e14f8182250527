"""What a study declares to come out: tables, published values, comparisons, a sweep, figures.

Each is held against what the runs measure: nothing may be asked for that nobody runs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import isfinite
from typing import Any, Literal, TypeVar, cast

from pydantic import Field, ValidationError

from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.config import OF_A_FILE, Names, Section, explain, kebab
from nmoe_flower.errors import ConfigError, within
from nmoe_flower.study.measured import (
    SHARES,
    TEXT_LOSSES,
    asking_gates_of,
    gates_of,
    measured_by,
    numbers_of,
    tests_of,
)
from nmoe_flower.study.product import (
    Coordinates,
    StudyRun,
    coordinates,
    dotted,
    in_words,
    refuse_unknown,
    same,
    selects,
)

__all__ = [
    "ComparisonSpec",
    "FigureSpec",
    "Measurable",
    "PaperValue",
    "SweepSpec",
    "TableSpec",
    "read_declared",
]

MEASURED = ("gate", "test", "metric")  # dimensions within a run
CHOICE = "choice"  # the name of the files of what a sweep chooses
NUMBER = "number"  # the dimension of numbers with names of their own
Where = Mapping[str, tuple[Any, ...]]


class _Output(Section):
    """What becomes files of a name."""

    name: str = Field(
        **OF_A_FILE,
        max_length=100,
        description="of its files",
    )
    title: str = Field("", description="above it; empty: the name")

    @property
    def heading(self) -> str:
        """What stands above it."""
        return self.title or self.name


class NumberSpec(Section):
    """One number of a run, with a name of its own, where a product of dimensions has too many."""

    label: str = Field(min_length=1, description="what the table calls it")
    metric: str = Field("accuracy", description="of a row, a path in results.json, or a key")
    gate: str = Field("", description="as results name it; empty: it is not that of a gate")
    test: str = Field("", description="empty: it is not that of a test")
    digits: int | None = Field(None, ge=0, le=12, description="after the point; left out: as all")


class TableSpec(_Output):
    """A table: a cell for each value of its rows and columns, each the mean over the seeds."""

    kind: Literal["cells", "policies"] = Field(
        "cells", description="policies: those of the second system side by side, in fixed columns"
    )
    rows: Names = Field((), description="dimensions")
    columns: Names = Field((), description="dimensions")
    gates: Names = Field((), description="as results name them; empty: all")
    tests: Names = Field((), description="empty: all")
    metrics: Names = Field(("accuracy",), description="of a row, a path in results.json, or a key")
    numbers: tuple[NumberSpec, ...] = Field(
        (), description="in place of gates, tests and metrics: the values of the dimension number"
    )
    show: tuple[Literal["paper", "difference"], ...] = Field((), description="beside each cell")
    where: Where = Field({}, description="which values of other dimensions")
    digits: int = Field(3, ge=0, le=12, description="after the point")


class ComparisonSpec(_Output):
    """Two kinds of runs, paired by seed and by all that neither of them names."""

    of: Where = Field(description="what is looked at")
    against: Where = Field(description="what it is measured against")
    gates: Names = Field((), description="empty: all of both")
    tests: Names = Field((), description="empty: all")
    metrics: Names = Field(("accuracy",), description="of a row, or a path in results.json")
    numbers: tuple[NumberSpec, ...] = Field(
        (), description="in place of gates, tests and metrics: a line each"
    )


class SweepSpec(Section):
    """Which value of its axes wins, by validation data alone."""

    over: Names = Field(min_length=1, description="axes")
    metric: str = Field("accuracy", description="what it is chosen by")
    gate: Names = Field(
        min_length=1, description="of which gate; of several, of the first that a variant has"
    )
    judged_by: Mapping[str, str] = Field(
        {}, description="variants that are judged by another gate of theirs, and which"
    )
    test: Literal["validation"] = Field(VALIDATION, description="never a test set")
    best: Literal["highest", "lowest"] | None = Field(
        None, description="what wins: of text the lowest, of all else the highest, unless said"
    )
    tests: Names | None = Field(
        None, description="which tests of the choice are told: all, unless said; []: none"
    )

    @property
    def wins(self) -> Literal["highest", "lowest"]:
        """What wins of the metric."""
        return self.best or ("lowest" if self.metric in TEXT_LOSSES else "highest")

    def gates_of(self, variant: str) -> Names:
        """The gates that may judge a variant; the first that it has does."""
        return (self.judged_by[variant],) if variant in self.judged_by else self.gate

    @property
    def gates(self) -> Names:
        """All that judge a variant."""
        return tuple(dict.fromkeys((*self.gate, *self.judged_by.values())))


class FigureSpec(_Output):
    """A picture."""

    kind: Literal["lines", "dots", "routing", "rounds", "scatter"] = Field(
        description="what is drawn"
    )
    x: str = Field(
        "",
        description="lines, dots: a dimension; rounds: round, bytes or seconds; scatter: bytes or "
        "exchanges, of a device",
    )
    since: str = Field(
        "",
        description="scatter: the variant at which the others begin; what it cost is not counted",
    )
    y: str = Field("accuracy", description="a metric")
    series: Names = Field((), description="dimensions: a line, colour or panel each")
    gate: str = Field("", description="empty: gate is a series, or x")
    test: str = Field("", description="empty: test is a series, or x")
    where: Where = Field({}, description="which values of other dimensions")


@dataclass(frozen=True)
class PaperValue:
    """What somebody published.

    Attributes:
        at: The cell, or cells: values by dimension.
        values: The published values by metric.
    """

    at: Coordinates
    values: Mapping[str, float]

    def is_of(self, run: StudyRun, *, gate: str, test: str) -> bool:
        """Whether it was published for what a run measured by a gate in a test."""
        return selects(self.at, run) and gate in self.at["gate"] and test in self.at["test"]


@dataclass(frozen=True)
class Measurable:
    """All that the runs of a study measure.

    Attributes:
        runs: At least one.
        axes: Names of the axes.
    """

    runs: Sequence[StudyRun]
    axes: tuple[str, ...]

    @property
    def dimensions(self) -> tuple[str, ...]:
        """All there are."""
        return ("variant", *self.axes, "seed", *MEASURED)

    @cached_property
    def values(self) -> dict[str, list[Any]]:
        """The values that occur, by dimension, in order."""
        found = {
            name: _distinct(run.at(name) for run in self.runs)
            for name in ("variant", *self.axes, "seed")
        }
        told = {"gate": gates_of, "test": tests_of, "metric": numbers_of}
        return found | {
            name: [*dict.fromkeys(chain(*dict.fromkeys(of(run.config) for run in self.runs)))]
            for name, of in told.items()  # runs that differ elsewhere have the same hundreds
        }

    def within(self, where: Coordinates) -> "Measurable":
        """What the runs measure that are meant.

        Raises:
            ConfigError: No run is.
        """
        runs = [run for run in self.runs if selects(where, run)]
        if not runs:
            told = ", ".join(f"{key} = {in_words(*values)}" for key, values in where.items())
            raise ConfigError(f"no run has {told}: [[skip]] leaves it out, or it was never there")
        return Measurable(runs, self.axes)

    def require(self, dimension: str, names: Iterable[str]) -> None:
        """Refuse a gate, test or metric that nobody runs."""
        for name in names:
            refuse_unknown(name, self.values[dimension], f"{dimension} that a run here has")

    def refuse_open(self, fixed: Iterable[str], open_to: Mapping[str, Sequence[Any]]) -> None:
        """Refuse a cell in which more than one kind of run would stand.

        Args:
            fixed: Dimensions that tell cells apart.
            open_to: By gate, test or metric: the values that are asked for.
        """
        fixed = list(fixed)
        for name, values in open_to.items():
            if name not in fixed and len(values) > 1:
                raise ConfigError(
                    f"{name} is no dimension of a cell, and there are several "
                    f"({in_words(*values)}): add it, or choose one"
                )
        cells: dict[tuple[Any, ...], StudyRun] = {}
        for run in self.runs:
            cell = tuple(run.at(name) for name in fixed if name not in (*MEASURED, NUMBER))
            other = cells.setdefault(cell, run)
            for name in ("variant", *self.axes):
                if not same(other.at(name), run.at(name)):
                    raise ConfigError(
                        f"{name} is no dimension of a cell, and there are several "
                        f"({in_words(other.at(name), run.at(name))}): add it, or choose one in "
                        "where"
                    )


def read_declared(
    tables: Mapping[str, Any], measured: Measurable
) -> tuple[
    tuple[TableSpec, ...],
    tuple[PaperValue, ...],
    tuple[ComparisonSpec, ...],
    SweepSpec | None,
    tuple[FigureSpec, ...],
]:
    """Read tables, published values, comparisons, sweep and figures of a study's file.

    Raises:
        ConfigError: One asks for what no run has, or a key of it is not allowed; the text names
            the table of the file and the key.
    """
    found = tuple(_each(tables, "tables", lambda one: _table(one, measured)))
    paper = tuple(_each(tables, "paper", lambda one: _paper(one, measured, found)))
    _refuse_twice(paper, measured)
    compared = tuple(_each(tables, "comparisons", lambda one: _comparison(one, measured)))
    sweep = None
    if "sweep" in tables:
        with within("sweep"):
            sweep = _sweep(_is_table(tables["sweep"]), measured)
    figures = tuple(_each(tables, "figures", lambda one: _figure(one, measured)))
    names = {} if sweep is None else {CHOICE: "sweep"}
    for kind, outputs in (("tables", found), ("comparisons", compared), ("figures", figures)):
        for output in cast(Sequence[_Output], outputs):
            if output.name.lower() in names:
                raise ConfigError(
                    f"{kind}: the name {output.name!r} stands in {names[output.name.lower()]} "
                    "already: their files would replace each other"
                )
            names[output.name.lower()] = kind
    return found, paper, compared, sweep, figures


def _table(given: Mapping[str, Any], measured: Measurable) -> TableSpec:
    outer = _known(measured, "variant", "seed", *measured.axes)
    table = _read(TableSpec, given, where=outer)
    inner = measured.within(table.where)
    if table.kind == "policies":
        for run in inner.runs:
            if (system := run.config.run.system) != "aligned":
                raise ConfigError(
                    f"kind = policies: {run.variant} has run.system = {system}; allowed: aligned"
                )
        return table
    if not table.rows:
        raise ConfigError(f"rows: none is named; allowed: {in_words(*measured.dimensions)}")
    if len(set(table.show)) < len(table.show):
        raise ConfigError(f"show = {in_words(*table.show)}; allowed: each once")
    fixed = (*table.rows, *table.columns)
    for name in fixed:
        known = (*measured.dimensions, *([NUMBER] if table.numbers else []))
        refuse_unknown(name, known, "dimension")
        if fixed.count(name) > 1:
            raise ConfigError(f"{name} stands in rows and in columns; allowed: once")
    if table.numbers:
        _check_numbers(inner, table, given)
        if NUMBER not in fixed:
            raise ConfigError("numbers are given, and number stands neither in rows nor in columns")
        inner.refuse_open(fixed, {})
        return table
    table = table.model_copy(update=_asked(inner, table))
    asked = {"gate": table.gates, "test": table.tests, "metric": table.metrics}
    inner.refuse_open(fixed, asked)
    return table


def _comparison(given: Mapping[str, Any], measured: Measurable) -> ComparisonSpec:
    known = _known(measured, "variant", *measured.axes, "gate", "test")
    one = _read(ComparisonSpec, given, of=known, against=known)
    sides = {"of": one.of, "against": one.against}
    found: dict[str, Measurable] = {}
    for name, side in sides.items():
        with within(name):
            if not side:
                raise ConfigError(f"names no dimension; allowed: {in_words(*known)}")
            found[name] = measured.within(side)
    if one.of == one.against:
        raise ConfigError("of and against are the same")
    named = {*one.of, *one.against}
    left = {name: _distinct_pairs(inner, named) for name, inner in found.items()}
    if not any(pair in left["against"] for pair in left["of"]):
        raise ConfigError(
            "no run of one has a partner of the other, with the same seed and the same of "
            f"{in_words(*(n for n in measured.axes if n not in named)) or 'all else'}"
        )
    for name, side in sides.items():
        for dimension, values in side.items():
            if len(values) > 1:
                raise ConfigError(
                    f"{name}: {dimension} has several values ({in_words(*values)}), and a run "
                    "would have several partners; allowed: one"
                )
    for dimension, plural in (("gate", "gates"), ("test", "tests")):
        for key in (plural, "numbers"):
            if dimension in named and getattr(one, key):
                raise ConfigError(f"{key} and a {dimension} in of or against: choose one of both")
    for name, inner in found.items():
        for dimension in known:
            several = inner.values[dimension]
            if dimension in named and dimension not in sides[name] and len(several) > 1:
                raise ConfigError(
                    f"{name} leaves {dimension} open, and a run would have several partners: name "
                    f"one of {in_words(*several)}"
                )
    if one.numbers:
        for inner in found.values():
            _check_numbers(inner, one, given)
        return one
    asked = [_asked(inner, one) for inner in found.values()]
    common = {
        key: tuple(value for value in asked[0][key] if value in asked[1][key]) for key in asked[0]
    }
    for dimension, plural in (("gate", "gates"), ("test", "tests")):
        for name, inner in found.items() if dimension in named else ():
            meant = sides[name].get(dimension, inner.values[dimension])
            common[plural] = tuple(_distinct((*common[plural], *meant)))
    return one.model_copy(update=common)


def _check_numbers(
    inner: Measurable, one: TableSpec | ComparisonSpec, given: Mapping[str, Any]
) -> None:
    """Refuse numbers that nobody measures, that have one name, or what they take the place of."""
    for plural in ("gates", "tests", "metrics"):
        if plural in given:
            raise ConfigError(f"numbers and {plural}: choose one of both")
    labels = [number.label for number in one.numbers]
    for number in one.numbers:
        with within(f"numbers ({number.label})"):
            if labels.count(number.label) > 1:
                raise ConfigError("the label stands there twice")
            inner.require("metric", [number.metric])
            inner.require("gate", [number.gate] if number.gate else [])
            inner.require("test", [number.test] if number.test else [])
            kinds = measured_by(number.metric)
            given_for = {"gate": number.gate, "test": number.test}
            if not all(given_for[kind] for kind in kinds):
                told = "by a gate in a test: name both" if "test" in kinds else "by gate: name one"
                raise ConfigError(f"{number.metric} is measured {told}")
            for kind, value in given_for.items():
                if value and kind not in kinds:
                    raise ConfigError(f"{number.metric} is not that of a {kind}: name none")


def _sweep(given: Mapping[str, Any], measured: Measurable) -> SweepSpec:
    if "test" in given and given["test"] != VALIDATION:
        raise ConfigError(
            f"test = {in_words(given['test'])}: a value is chosen by test images never; allowed: "
            f"{VALIDATION}"
        )
    sweep = _read(SweepSpec, given)
    with within("tests"):
        measured.require("test", sweep.tests or ())
    if not measured.axes:
        raise ConfigError("over: there is no axis, and nothing is to be chosen")
    for name in sweep.over:
        refuse_unknown(name, measured.axes, "axis")
        if len(measured.values[name]) < 2:
            raise ConfigError(f"over: {name} has one value only: nothing is to be chosen")
    with within("judged-by"):
        for variant in sweep.judged_by:
            refuse_unknown(variant, measured.values["variant"], "variant")
    for run in measured.runs:
        one = Measurable([run], measured.axes)
        if VALIDATION not in one.values["test"]:
            raise ConfigError(
                f"{run.variant} has no validation data: set data.validation-per-client above 0"
            )
        gates = sweep.gates_of(run.variant)
        if len(gates) == 1:
            one.require("gate", gates)
        elif not {*gates} & {*one.values["gate"]}:
            raise ConfigError(
                f"gate = {in_words(*gates)}: {run.variant} has none of them; it has "
                f"{in_words(*one.values['gate'])}"
            )
        one.require("metric", [sweep.metric])
    return sweep


def _figure(given: Mapping[str, Any], measured: Measurable) -> FigureSpec:
    outer = _known(measured, "variant", "seed", *measured.axes, "gate", "test")
    figure = _read(FigureSpec, given, where=outer)
    inner = measured.within(figure.where)
    for name in figure.series:
        refuse_unknown(name, measured.dimensions, "dimension")
    if figure.since and figure.kind != "scatter":
        raise ConfigError(f"since = {figure.since}: kind = {figure.kind} counts no costs")
    fixed = list(figure.series)
    if figure.kind == "rounds":
        figure = figure.model_copy(update={"x": figure.x or "round"})
        refuse_unknown(figure.x, ("round", "bytes", "seconds"), "x of kind = rounds")
        _check_rounds(figure)
    elif figure.kind == "scatter":
        figure = figure.model_copy(update={"x": figure.x or "bytes"})
        refuse_unknown(figure.x, ("bytes", "exchanges"), "x of kind = scatter")
        if figure.since:
            with within("since"):
                refuse_unknown(figure.since, measured.values["variant"], "variant")
    elif figure.kind == "routing":
        _check_routing(figure, inner)
    else:
        if not figure.x:
            raise ConfigError(f"x is missing; allowed: {in_words(*measured.dimensions)}")
        with within("x"):
            refuse_unknown(figure.x, (n for n in measured.dimensions if n != "metric"), "dimension")
        fixed.append(figure.x)
    if figure.kind != "routing":
        with within("y"):
            inner.require("metric", [figure.y])
    for name in ("test",) if figure.kind == "rounds" else ("gate", "test"):
        value = getattr(figure, name)
        if value:
            with within(name):
                inner.require(name, [value])
        chosen = [value] if value else figure.where.get(name, inner.values[name])
        if name not in fixed and len(chosen) > 1:
            raise ConfigError(
                f"{name} is left open; allowed: one of {in_words(*inner.values[name])}, or as a "
                "series"
            )
    if figure.kind != "routing":
        inner.refuse_open(fixed, {})
    return figure


def _check_rounds(figure: FigureSpec) -> None:
    """Refuse what is not known while a run trains: of a test, accuracy alone is."""
    with within("y"):
        refuse_unknown(figure.y, ("accuracy",), "y of kind = rounds")
    named = {"gate": bool(figure.gate), "series": "gate" in figure.series,
             "where": "gate" in figure.where}  # fmt: skip
    for key in [key for key, has_gate in named.items() if has_gate]:
        told = f" = {figure.gate}" if key == "gate" else ": gate"
        raise ConfigError(f"{key}{told}: what is tested in rounds has no gate; leave it out")


def _check_routing(figure: FigureSpec, inner: Measurable) -> None:
    """Refuse gates that ask nobody, and what a mean over the seeds cannot tell apart."""
    asking = _distinct(gate for run in inner.runs for gate in asking_gates_of(run.config))
    for gate in [figure.gate] if figure.gate else figure.where.get("gate", ()):
        if gate in inner.values["gate"] and gate not in asking:
            raise ConfigError(
                f"gate = {gate}: it asks nobody, and has no routing; allowed: {in_words(*asking)}"
            )
    if not asking:
        raise ConfigError("kind = routing: no run here has a gate that asks anybody")
    for key, dimensions in (("series", figure.series), ("where", figure.where)):
        if "seed" in dimensions:
            raise ConfigError(
                f"{key}: seed: kind = routing shows the mean over the seeds; leave it out"
            )


def _paper(
    given: Mapping[str, Any], measured: Measurable, tables: Sequence[TableSpec]
) -> PaperValue:
    names = ("variant", *measured.axes, "gate", "test")
    leaves = dict(dotted(given))
    where = {key: value for key, value in leaves.items() if key in names}
    values = {key: value for key, value in leaves.items() if key not in names}
    at = coordinates(where, _known(measured, *names))
    inner = measured.within(at)
    for name in ("gate", "test"):
        if name not in at:
            raise ConfigError(f"{name} is missing; allowed: {in_words(*inner.values[name])}")
        inner.require(name, at[name])
    for name in ("variant", *measured.axes):
        several = inner.values[name]
        if name not in at and len(several) > 1:
            raise ConfigError(
                f"{name} is missing, and the value would stand in several cells; allowed: "
                f"{in_words(*several)}, or a list of them"
            )
    if not values:
        raise ConfigError("holds no value; name a metric: accuracy = 0.5")
    for metric, value in values.items():
        refuse_unknown(metric, (*inner.values["metric"], *names), "metric or dimension")
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise ConfigError(f"{metric}: a number is wanted, got {in_words(value)}")
        if metric in SHARES and not 0 <= value <= 1:
            raise ConfigError(f"{metric}: a share from 0 to 1 is wanted, got {in_words(value)}")
    found = PaperValue(at, {metric: float(value) for metric, value in values.items()})
    for metric in values:
        if not tables:
            raise ConfigError(f"{metric}: no table has its cell: the study declares no [[tables]]")
        if not any(_shows(table, found, metric, inner.runs) for table in tables):
            raise ConfigError(f"{metric}: no table has its cell")
    return found


def _refuse_twice(paper: Sequence[PaperValue], measured: Measurable) -> None:
    """Refuse two published values of one cell."""
    known: dict[tuple[str, str, str, str], tuple[int, float]] = {}
    for number, value in enumerate(paper, start=1):
        for run in measured.runs:
            for gate in value.at["gate"] if selects(value.at, run) else ():
                for test in value.at["test"]:
                    for metric, told in value.values.items():
                        cell = (run.variant, gate, test, metric)
                        first, other = known.setdefault(cell, (number, told))
                        if first != number:
                            raise ConfigError(
                                f"paper {number}: {metric} = {told:g} of {run.variant}, {gate}, "
                                f"{test} stands in paper {first} already ({other:g}); allowed: once"
                            )


def _shows(table: TableSpec, value: PaperValue, metric: str, runs: Sequence[StudyRun]) -> bool:
    if not any(selects(table.where, run) for run in runs):
        return False
    if table.numbers:
        return any(
            number.metric == metric
            and number.gate in value.at["gate"]
            and number.test in value.at["test"]
            for number in table.numbers
        )
    return (
        metric in table.metrics
        and any(gate in table.gates for gate in value.at["gate"])
        and any(test in table.tests for test in value.at["test"])
    )


def _asked(inner: Measurable, one: TableSpec | ComparisonSpec) -> dict[str, tuple[str, ...]]:
    """Gates, tests and metrics that are asked for, all of them if none is named."""
    found = {}
    for plural, dimension in (("gates", "gate"), ("tests", "test"), ("metrics", "metric")):
        with within(plural):
            inner.require(dimension, getattr(one, plural))
        found[plural] = getattr(one, plural) or tuple(inner.values[dimension])
    return found


def _known(measured: Measurable, *names: str) -> dict[str, list[Any]]:
    return {name: measured.values[name] for name in names}


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    seen: set[Any] = set()
    for value in values:
        key = (isinstance(value, bool), value)
        if key not in seen:
            seen.add(key)
            found.append(value)
    return found


def _distinct_pairs(inner: Measurable, named: set[str]) -> list[tuple[Any, ...]]:
    """What of each run must be that of its partner."""
    names = [name for name in ("variant", *inner.axes, "seed") if name not in named]
    return _distinct(tuple(run.at(name) for name in names) for run in inner.runs)


_Read = TypeVar("_Read", bound=Section)


def _read(kind: type[_Read], given: Mapping[str, Any], **where: Mapping[str, Any]) -> _Read:
    """A table of the file as its model; keys named in ``where`` hold coordinates."""
    values = {kebab(key): value for key, value in given.items()}
    for key, known in where.items():
        if key in values:
            with within(key):
                values[key] = coordinates(_is_table(values[key]), known)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told = explain(error, kind.model_fields)
        raise ConfigError(told.replace("\n", "; ")) from None


_Made = TypeVar("_Made")


def _each(
    tables: Mapping[str, Any], key: str, make: Callable[[Mapping[str, Any]], _Made]
) -> Iterator[_Made]:
    given = tables.get(key, [])
    if not isinstance(given, list):
        raise ConfigError(f"{key} is wanted as tables: write [[{key}]], got {in_words(given)}")
    for number, one in enumerate(given, start=1):
        name = one.get("name") if isinstance(one, Mapping) else None
        with within(f"{key} {number}" + (f" ({name})" if isinstance(name, str) else "")):
            yield make(_is_table(one))


def _is_table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"a table is wanted, got {in_words(value)}")
    return value
