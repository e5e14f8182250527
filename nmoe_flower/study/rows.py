"""The rows of ``table.json``: every number that a study asks for, over its seeds.

A row is one variant, one set of values of the axes, one gate, one test and one metric. It keeps the
value of every seed, so that tables, paired comparisons and figures need nothing else.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nmoe_flower.config import Config
from nmoe_flower.errors import NMoEError
from nmoe_flower.files import rounded
from nmoe_flower.report import Estimate, estimate
from nmoe_flower.results import worst_client
from nmoe_flower.study.costs import COSTS, cost_of
from nmoe_flower.study.measured import gates_of, measured_by, tests_of
from nmoe_flower.study.product import COLUMNS, StudyRun, folder_name, frozen, same

__all__ = [
    "KEPT_DIGITS",
    "Quantity",
    "Row",
    "RunOutcome",
    "records_of",
    "rows_from_json",
    "rows_of",
    "rows_to_json",
    "value_of",
]

Value = float | str | bool | None
KEPT_DIGITS = 6  # significant ones: published runs, which keep them, give the same tables
_OF_WHAT_IS_PRIVATE = ("privacy.epsilon", "privacy.delta", "privacy.releases")


@dataclass(frozen=True)
class RunOutcome:
    """What one run of a study has come to.

    Attributes:
        run: The run.
        results: What its results.json holds; None if it has not finished.
        stage_1: What the results.json of the run holds that trained its extractor, if that was
            another one.
        failed: Why it failed; empty if it did not.
        path: The run's folder; None if there is none.
        provenance: What its provenance.json holds.
    """

    run: StudyRun
    results: Mapping[str, Any] | None = None
    stage_1: Mapping[str, Any] | None = None
    failed: str = ""
    path: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, order=True)
class Quantity:
    """A number that a study asks of its runs; ``gate`` and ``test`` are "" where it has none."""

    gate: str
    test: str
    metric: str


@dataclass(frozen=True)
class Row:
    """One row of ``table.json``.

    Attributes:
        variant: Name of the variant; ``base`` in a study without named variants.
        folder: Name of the runs' folder below the study.
        values: By axis, the value.
        gate: Who routed, or which control answered; "" if the number is not that of a gate.
        test: ``local``, ``iid`` or ``validation``; "" likewise.
        metric: A metric of results, a path in results.json, a cost, or a key of the configuration.
        asked: Seeds of the study that this variant has.
        each: By seed, the value; seeds that have none are left out. Of a key of the configuration
            it may be text.
        failed: By seed, why that run failed.
        unmeasured: Seeds whose runs have finished without it.
        bytes_per_device: Bytes up and down that training it cost a device, mean over the seeds;
            None if that cannot be told.
        exchanges: Round trips that it took, mean over the seeds; None likewise.
        paper: The published value that stands beside it; None if there is none.
    """

    variant: str
    folder: str
    values: Mapping[str, Any]
    gate: str
    test: str
    metric: str
    asked: tuple[int, ...]
    each: Mapping[int, Value]
    failed: Mapping[int, str] = field(default_factory=dict)
    unmeasured: tuple[int, ...] = ()
    bytes_per_device: int | None = None
    exchanges: float | None = None
    paper: float | None = None

    @property
    def numbers(self) -> dict[int, float]:
        """By seed, the value, where it is a number."""
        return {seed: float(v) for seed, v in self.each.items() if isinstance(v, int | float)}

    @property
    def estimate(self) -> Estimate | None:
        """Mean and standard error of the seeds that have a number; None if none has."""
        values = self.numbers
        return estimate([values[seed] for seed in sorted(values)]) if values else None

    @property
    def text(self) -> str:
        """What the seeds say, if it is text; those that differ one after the other."""
        texts = [str(self.each[s]) for s in sorted(self.each) if isinstance(self.each[s], str)]
        return ", ".join(dict.fromkeys(texts))

    @property
    def missing(self) -> tuple[int, ...]:
        """Seeds whose runs are not there yet."""
        known = {*self.each, *self.failed, *self.unmeasured}
        return tuple(seed for seed in self.asked if seed not in known)

    @property
    def failed_in_words(self) -> str:
        """Which seeds failed, and why; empty if none has."""
        told = (f"{self.folder} seed {seed} ({why})" for seed, why in sorted(self.failed.items()))
        return "; ".join(told)

    @property
    def missing_in_words(self) -> str:
        """Which seeds are missing; empty if none is."""
        if not self.missing:
            return ""
        word = "seeds" if len(self.missing) > 1 else "seed"
        return f"{self.folder} {word} {', '.join(map(str, self.missing))}"

    @property
    def scores(self) -> bool:
        """Whether it says how good something is, which settings and costs do not."""
        plain = self.metric in COSTS or self.metric.startswith(("stages.", "privacy."))
        return not plain and self.metric not in Config().flat()

    def of_seeds(self, seeds: Collection[int]) -> "Row":
        """The row of some of its seeds alone."""
        return replace(
            self,
            asked=tuple(seed for seed in self.asked if seed in seeds),
            each={seed: value for seed, value in self.each.items() if seed in seeds},
            failed={seed: why for seed, why in self.failed.items() if seed in seeds},
            unmeasured=tuple(seed for seed in self.unmeasured if seed in seeds),
        )

    def at(self, dimension: str) -> Any:
        """Where the row stands in a dimension: variant, gate, test, metric, or an axis."""
        if dimension in ("variant", "gate", "test", "metric"):
            return getattr(self, dimension)
        return self.values.get(dimension)

    def stands(self, dimension: str, values: Collection[Any]) -> bool:
        """Whether it stands at one of these; what has no gate or test stands at all of them."""
        at = self.at(dimension)
        return (at == "" and dimension in ("gate", "test")) or any(same(at, v) for v in values)


def rows_of(
    outcomes: Sequence[RunOutcome],
    wanted: Iterable[Quantity],
    *,
    paper: Mapping[tuple[str, Quantity], float] | None = None,
) -> list[Row]:
    """Every number that is wanted of every variant, in their order.

    A number that no run of a variant measures (a gate it does not train) has no row there; one
    that waits for a run that is missing or has failed has one, without values.

    Args:
        outcomes: The study's runs, finished or not.
        wanted: Which numbers.
        paper: Published values, by folder and number.
    """
    numbers, rows = list(dict.fromkeys(wanted)), []
    for folder in dict.fromkeys(one.run.variant for one in outcomes):
        seeds = [one for one in outcomes if one.run.variant == folder]
        for number in numbers:
            row = _row(seeds, number, (paper or {}).get((folder, number)))
            if row is not None:
                rows.append(row)
    return rows


def _row(outcomes: Sequence[RunOutcome], number: Quantity, paper: float | None) -> Row | None:
    finished = [one for one in outcomes if one.results is not None]
    found = {one.run.seed: value_of(one, number) for one in finished}
    each = {seed: value for seed, value in found.items() if value is not None}
    first = outcomes[0].run
    if not each and (len(finished) == len(outcomes) or not _measures(first.config, number)):
        return None
    costs = [
        cost_of(one.results, one.run.config, number.gate, one.stage_1)
        for one in finished
        if number.gate
    ]
    moved = _mean([cost.bytes_per_device for cost in costs])
    return Row(
        first.named,
        first.variant,
        first.values,
        number.gate,
        number.test,
        number.metric,
        asked=tuple(sorted(one.run.seed for one in outcomes)),
        each=each,
        failed={one.run.seed: one.failed for one in outcomes if one.failed},
        unmeasured=tuple(sorted(seed for seed, value in found.items() if value is None)),
        bytes_per_device=None if moved is None else round(moved),
        exchanges=_mean([cost.exchanges for cost in costs]),
        paper=paper,
    )


def _measures(config: Config, number: Quantity) -> bool:
    """Whether a run with these settings will measure a number."""
    gate, test = number.gate, number.test
    return not gate or (gate in gates_of(config) and test in tests_of(config))


def value_of(one: RunOutcome, number: Quantity) -> Value:
    """What a finished run says of a number; None if it has not measured that."""
    assert one.results is not None
    config, metric = one.run.config, number.metric
    if "test" in measured_by(metric):
        for row in one.results["rows"]:
            if (row["gate"], row["test"]) == (number.gate, number.test):
                return _kept(worst_client(row) if metric == "worst_client" else row.get(metric))
        return None
    if "gate" in measured_by(metric) and number.gate not in gates_of(config):
        return None  # nobody paid for what this run does not do
    if metric in COSTS:
        return _kept(COSTS[metric](one.results, config, number.gate, one.stage_1))
    for results in (one.results, one.stage_1 or {}):
        if (found := _kept(_at(results, metric))) is not None:
            return found
    private = config.privacy.enabled or config.privacy.weights
    if metric in _OF_WHAT_IS_PRIVATE and not private:
        return None  # a budget that nobody has asked to keep
    return _kept(config.flat().get(metric))


def _at(results: Mapping[str, Any], path: str) -> Any:
    """What stands at a path; names in it may hold dots themselves."""
    if path in results:
        return results[path]
    for name, inner in results.items():
        if path.startswith(f"{name}.") and isinstance(inner, Mapping):
            return _at(inner, path[len(name) + 1 :])
    return None


def _kept(value: Any) -> Value:
    """A value as it stands in ``table.json``; None for what JSON has no number for."""
    if isinstance(value, bool | str | int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def rows_to_json(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as they stand in ``table.json``: ``columns``, the names, and ``rows``, their values.

    Which columns are those of an axis is said under ``axes``. A column that no row has anything in
    is left out; in the others, null is what a row has none of.
    """
    axes = list(dict.fromkeys(axis for row in rows for axis in row.values))
    told = [_told(row) for row in rows]
    columns = (*COLUMNS[:1], *axes, *COLUMNS[1:])
    names = [name for name in columns if any(one.get(name) is not None for one in told)]
    return {
        "axes": axes,
        "columns": names,
        "rows": [[one.get(name) for name in names] for one in told],
    }


def _told(row: Row) -> dict[str, Any]:
    """By column, what a row has; a folder that is called as any of its kind is none."""
    found, seeds = row.estimate, sorted(row.each)
    failed = sorted(row.failed.items())
    usual = folder_name(row.variant, row.values)
    return {
        "variant": row.variant,
        **row.values,
        "folder": None if row.folder == usual else row.folder,
        "gate": row.gate,
        "test": row.test,
        "metric": row.metric,
        "mean": rounded(found.mean, KEPT_DIGITS) if found else row.text or None,
        "se": rounded(found.se, KEPT_DIGITS) if found else None,
        "n": len(seeds),
        "seeds": seeds,
        "each": [row.each[seed] for seed in seeds],
        "bytes_per_device": row.bytes_per_device,
        "exchanges": row.exchanges,
        "paper": row.paper,
        "missing": list(row.missing) or None,
        "unmeasured": list(row.unmeasured) or None,
        "failed": "; ".join(f"seed {seed}: {why}" for seed, why in failed) or None,
        "reasons": {str(seed): why for seed, why in failed} or None,
    }


def records_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a ``table.json`` by name, each without what it has none of.

    >>> records_of({"columns": ["gate", "mean", "se"], "rows": [["local", 0.5, None]]})
    [{'gate': 'local', 'mean': 0.5}]
    """
    named = [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]
    return [{name: value for name, value in row.items() if value is not None} for row in named]


def rows_from_json(content: Mapping[str, Any], name: str) -> list[Row]:
    """The rows of a ``table.json``, read back.

    Args:
        content: What the file holds.
        name: The file, for errors.

    Raises:
        NMoEError: A row lacks a value, or has one of another kind.
    """
    try:
        records = records_of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise NMoEError(f"{name} cannot be read: {error!r}") from None
    axes = content.get("axes", [])
    return [
        _read(row, axes, f"{name}, row {number}") for number, row in enumerate(records, start=1)
    ]


def _read(row: Mapping[str, Any], axes: Sequence[str], name: str) -> Row:
    try:
        variant = str(row["variant"])
        values = {axis: frozen(row[axis]) for axis in axes if axis in row}
        failed = {int(seed): str(why) for seed, why in row.get("reasons", {}).items()}
        seeds = [int(seed) for seed in row["seeds"]]
        unmeasured = tuple(row.get("unmeasured", ()))
        return Row(
            variant=variant,
            folder=str(row.get("folder", folder_name(variant, values))),
            values=values,
            gate=str(row["gate"]),
            test=str(row["test"]),
            metric=str(row["metric"]),
            asked=tuple(sorted({*seeds, *failed, *unmeasured, *row.get("missing", ())})),
            each=dict(zip(seeds, row["each"], strict=True)),
            failed=failed,
            unmeasured=unmeasured,
            bytes_per_device=row.get("bytes_per_device"),
            exchanges=row.get("exchanges"),
            paper=row.get("paper"),
        )
    except KeyError as error:
        raise NMoEError(f"{name}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise NMoEError(f"{name} cannot be read: {error}") from None
