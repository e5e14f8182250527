"""Paired comparisons: what one variant has more than another, seed by seed.

Two variants that were run with the same seeds share splits and first weights, so their difference
is known better than either mean. A difference counts as noise unless its 95 % interval (Student's
t, n - 1 degrees of freedom) lies on one side of 0. Of one seed, or of several that differ by the
same, there is no interval.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nmoe_flower.errors import NMoEError
from nmoe_flower.report import Estimate, differences, estimate
from nmoe_flower.study.declared import NUMBER, ComparisonSpec
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.product import Coordinates, StudyRun, in_words, selects
from nmoe_flower.study.rows import Row
from nmoe_flower.study.tables import absent_in_words

__all__ = ["Comparison", "Pair", "compare"]

Verdict = Literal["higher", "lower", "within the noise", "no estimate of the noise", "failed",
                  "missing", "unmeasured", "skipped"]  # fmt: skip
_SKIPPED = "Skipped: the study has no such run."
"""Below the lines, where a partner is one that no run of the study would be."""
_UNMEASURED = "Unmeasured: the run does not measure this."


@dataclass(frozen=True)
class Pair:
    """One number of two variants, compared seed by seed.

    Attributes:
        labels: What tells the pair from the others of its table: gate, test, metric, axes.
        of: Mean over the seeds that both have, of the first; None if there is no such seed.
        against: The same of the second.
        each: By seed, what the first has more.
        difference: Mean of that with its standard error; None if there is no such seed.
        absent: By seed that one of both lacks: ``failed``, ``missing``, ``unmeasured`` where its
            run does not measure that, or ``skipped`` where the study has no such run.
    """

    labels: tuple[str, ...]
    of: Estimate | None
    against: Estimate | None
    each: Mapping[int, float]
    difference: Estimate | None
    absent: Mapping[int, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """What the difference is: more, less, within the noise, or nothing that tells the noise."""
        if self.difference is None:
            told: tuple[Verdict, ...] = ("failed", "missing", "unmeasured", "skipped")
            return next((word for word in told if word in self.absent.values()), "missing")
        if self.difference.within_noise is None:
            return "no estimate of the noise"
        if self.difference.within_noise:
            return "within the noise"
        return "higher" if self.difference.mean > 0 else "lower"


@dataclass(frozen=True)
class Comparison:
    """A comparison as plain data.

    Attributes:
        name: The name of the files.
        title: What stands above it.
        of: What the first is called.
        against: What the second is called.
        heads: Above the labels of the pairs, one for each.
        seeds: The seeds, each a column if there are several.
        pairs: The lines.
        notes: Sentences below.
        digits: Decimals.
    """

    name: str
    title: str
    of: str
    against: str
    heads: tuple[str, ...]
    seeds: tuple[int, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    digits: int = 4

    @property
    def header(self) -> tuple[str, ...]:
        """What stands above every column."""
        seeds = (f"seed {seed}" for seed in self.seeds) if len(self.seeds) > 1 else ()
        return (*self.heads, f"{self.against}, mean", f"{self.of}, mean", *seeds,
                "mean difference", "95 % interval", "verdict")  # fmt: skip

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """Every line in words, as wide as the header."""
        return tuple(self._line(pair) for pair in self.pairs)

    def _line(self, pair: Pair) -> tuple[str, ...]:
        def number(value: float | None, sign: str = "") -> str:
            return "-" if value is None else f"{value:{sign}.{self.digits}f}"

        found = pair.difference
        means = [number(None if e is None else e.mean) for e in (pair.against, pair.of)]
        each = [
            pair.absent.get(seed) or number(pair.each.get(seed), "+")
            for seed in (self.seeds if len(self.seeds) > 1 else ())
        ]
        if found is None:
            return (*pair.labels, *means, *each, "-", "-", pair.verdict)
        error = "" if found.se is None else f" ± {number(found.se)}"
        ends = found.interval
        interval = "-" if ends is None else " to ".join(number(end, "+") for end in ends)
        return (*pair.labels, *means, *each, number(found.mean, "+") + error, interval,
                pair.verdict)  # fmt: skip


def compare(
    comparison: ComparisonSpec,
    rows: Sequence[Row],
    labels: Labels,
    *,
    runs: Sequence[StudyRun] | None = None,
    hidden: bool = False,
) -> Comparison:
    """Pair the rows of both sides that differ in nothing but what is compared.

    Args:
        comparison: What is compared.
        rows: The study's numbers.
        labels: What tables call them.
        runs: The study's runs; of a partner that has no row they tell whether it was skipped, or
            does not measure this. None: a seed counts as either only where the partner has a row.
        hidden: Rows may be kept back, so that what has none may well measure this.

    Raises:
        NMoEError: A pair would have two rows of one side.
    """
    told = {*comparison.of, *comparison.against}
    axes = dict.fromkeys(axis for row in rows for axis in row.values)
    inner = (NUMBER,) if comparison.numbers else ("gate", "test", "metric")
    beside = [d for d in ("variant", *axes, *inner) if d not in told]
    sides: list[dict[tuple[Any, ...], Row]] = []
    both = (comparison.of, comparison.against)
    for at in both:
        side: dict[tuple[Any, ...], Row] = {}
        for row, number in _side(comparison, rows, at):
            key = tuple(number if d == NUMBER else row.at(d) for d in beside)
            if side.setdefault(key, row) is not row:
                raise NMoEError(
                    f"comparison {comparison.name}: {side[key].folder} and {row.folder} would both "
                    f"be the partner at {in_words(*key)}"
                )
        sides.append(side)
    keys = list(dict.fromkeys((*sides[0], *sides[1])))
    listed = {"gate": comparison.gates, "test": comparison.tests, "metric": comparison.metrics}
    listed |= {NUMBER: tuple(number.label for number in comparison.numbers)}
    keys.sort(
        key=lambda key: [
            labels.order(d, value, listed.get(d, ())) for d, value in zip(beside, key, strict=True)
        ]
    )
    shown = [place for place in range(len(beside)) if len({key[place] for key in keys}) > 1]
    if not shown and keys:
        shown = [len(beside) - 1]
    pairs = tuple(
        _pair(
            tuple(labels.of_value(beside[place], key[place]) for place in shown),
            sides[0].get(key),
            sides[1].get(key),
            no_row=_why_no_row(
                runs, [_has_run(runs or (), at, beside, key) for at in both], hidden
            ),
        )
        for key in keys
    )
    names = [
        ", ".join(labels.of_value(d, v, alone=True) for d, values in side.items() for v in values)
        for side in (comparison.of, comparison.against)
    ]
    same = [
        labels.of_value(d, keys[0][place], alone=True)
        for place, d in enumerate(beside)
        if keys and place not in shown and labels.of_value(d, keys[0][place])
    ]
    seeds = tuple(sorted({seed for pair in pairs for seed in (*pair.each, *pair.absent)}))
    heads = tuple(labels.of_dimension(beside[place]) for place in shown)
    return Comparison(
        comparison.name, comparison.heading, names[0], names[1], heads, seeds, pairs,
        tuple(_notes(pairs, same, seeds, [row for side in sides for row in side.values()])),
    )  # fmt: skip


def _side(
    comparison: ComparisonSpec, rows: Sequence[Row], at: Coordinates
) -> Iterator[tuple[Row, str]]:
    """The rows of one side, each with the name of its number, if numbers have names."""
    asked = {"gate": comparison.gates, "test": comparison.tests, "metric": comparison.metrics}
    for row in rows:
        if not all(row.stands(d, values) for d, values in at.items()):
            continue
        for number in comparison.numbers:
            if (row.gate, row.test, row.metric) == (number.gate, number.test, number.metric):
                yield row, number.label
        if not comparison.numbers and all(
            row.stands(d, values) for d, values in asked.items() if values and d not in at
        ):
            yield row, ""


def _has_run(
    runs: Sequence[StudyRun], where: Coordinates, beside: Sequence[str], key: Sequence[Any]
) -> bool:
    """Whether the study has a run of a side, ``where``, that shares ``key`` in ``beside``."""
    shared = {d: (value,) for d, value in zip(beside, key, strict=True)}
    return any(selects(where, run) and selects(shared, run) for run in runs)


def _why_no_row(runs: object, have: Sequence[bool], hidden: bool) -> str:
    """What a side without a row is called; ``have``: of which sides the study has runs."""
    if runs is None:
        return "missing"
    return "skipped" if not all(have) else "missing" if hidden else "unmeasured"


def _pair(labels: tuple[str, ...], of: Row | None, against: Row | None, *, no_row: str) -> Pair:
    """Two rows as a pair; ``no_row``: how a side is called that has none."""
    first, second = (row.numbers if row else {} for row in (of, against))
    each = dict(sorted(differences(first, second).items()))
    rows = [row for row in (of, against) if row]
    otherwise = "missing" if len(rows) == 2 else no_row
    absent = {
        seed: _why_absent(seed, rows, otherwise)
        for row in rows
        for seed in row.asked
        if seed not in each
    }
    if not each:
        return Pair(labels, None, None, {}, None, absent)
    means = [estimate([side[seed] for seed in each]) for side in (first, second)]
    return Pair(labels, means[0], means[1], each, estimate(list(each.values())), absent)


def _why_absent(seed: int, rows: Sequence[Row], otherwise: str) -> str:
    if any(seed in row.failed for row in rows):
        return "failed"
    if any(seed not in row.asked for row in rows):
        return "skipped"
    return "unmeasured" if any(seed in row.unmeasured for row in rows) else otherwise


def _notes(
    pairs: Sequence[Pair], same: Sequence[str], seeds: Sequence[int], rows: Sequence[Row]
) -> Iterator[str]:
    if same:
        text = ", ".join(same)
        yield f"{text[0].upper()}{text[1:]}."
    if len(seeds) > 1:
        yield (
            f"Paired by seed ({', '.join(map(str, seeds))}): mean difference ± its standard error; "
            "the 95 % interval is Student's t with n - 1 degrees of freedom. Within the noise: the "
            "interval holds 0."
        )
    elif seeds:
        yield f"Seed {seeds[0]} alone: there is no estimate of the noise."
    found = [pair.difference for pair in pairs if pair.difference is not None]
    if any(one.n > 1 and one.interval is None for one in found):
        yield "Where all seeds differ by the same there is no estimate of the noise."
    if any(pair.absent for pair in pairs):
        yield "A seed that one side lacks counts on neither."
        yield from absent_in_words(rows)
    for word, note in (("unmeasured", _UNMEASURED), ("skipped", _SKIPPED)):
        if any(word in pair.absent.values() for pair in pairs):
            yield note
