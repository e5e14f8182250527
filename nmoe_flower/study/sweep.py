"""Which value of an axis wins, on validation data alone; and what that choice scores in a test.

Whoever looks at the test of every value and takes the best has trained on the test: the best of
many is partly luck, and luck does not come again. So the choice is made on images that nobody
trains on, and of the tests only that of the choice is told.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.report import Estimate
from nmoe_flower.study.declared import CHOICE, SweepSpec
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.measured import TEXT_LOSSES
from nmoe_flower.study.rows import Row

__all__ = [
    "Candidate",
    "Choice",
    "SweepTable",
    "choose",
    "hide_the_others",
    "is_chosen",
    "may_be_told",
]


@dataclass(frozen=True)
class Candidate:
    """One value of the swept axes, and how it does on validation data.

    Attributes:
        values: By swept axis, the value.
        score: Mean and standard error over the seeds; None if no seed has finished.
        note: Why it cannot be judged; empty if it can.
        failed: All its runs have failed, so it cannot win, but others can.
    """

    values: Mapping[str, Any]
    score: Estimate | None
    note: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Choice:
    """What a sweep has chosen, for one variant and one set of values of the other axes.

    Attributes:
        rest: By dimension, variant and the other axes.
        candidates: Every value that was tried, in the order of the file.
        winner: The one that won; None as long as a seed of any other is missing.
        note: Why nothing has won; empty otherwise.
        close: Values that lie within one standard error of the winner's.
        tests: The tests of the winner, and of no other: by test, at the gate and metric looked at.
    """

    rest: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    winner: Candidate | None
    note: str
    close: tuple[Candidate, ...]
    tests: Mapping[str, Estimate]


@dataclass(frozen=True)
class SweepTable:
    """A sweep as plain data.

    Attributes:
        name: The name of the files.
        title: What stands above it.
        header: What stands above every column.
        words: How many columns hold words, from the left; all others hold numbers.
        lines: Every value that was tried, in words, as wide as the header.
        notes: Sentences below.
        choices: What was chosen, one for each variant and set of values of the other axes.
    """

    name: str
    title: str
    header: tuple[str, ...]
    words: int
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    choices: tuple[Choice, ...]


class _Placed(Protocol):
    """What stands at a variant and a value of each axis."""

    @property
    def values(self) -> Mapping[str, Any]: ...

    def at(self, dimension: str) -> Any:
        """Where it stands in a dimension."""


class _Tested(_Placed, Protocol):
    """What stands at a test besides."""

    @property
    def test(self) -> str: ...


def choose(sweep: SweepSpec, rows: Sequence[Row]) -> list[Choice]:
    """Choose for every variant and every set of values of the other axes.

    A value whose runs have all failed cannot win. As long as a run is missing, or some of a value's
    seeds have failed, nothing wins: the one that cannot be judged might have.
    """
    judged = list(_judged(sweep, rows))
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in judged:
        if row.test == VALIDATION:
            groups.setdefault(_rest(sweep, row), []).append(row)
    choices = []
    for rest, of in groups.items():
        candidates = tuple(_candidate(sweep, row) for row in of)
        winner, note = _winner(sweep, candidates)
        tests = {
            row.test: row.estimate
            for row in judged
            if winner is not None
            and row.test != VALIDATION
            and (sweep.tests is None or row.test in sweep.tests)
            and _rest(sweep, row) == rest
            and _swept(sweep, row) == winner.values
            and row.estimate is not None
        }
        choices.append(
            Choice(dict(rest), candidates, winner, note, _close(sweep, candidates, winner), tests)
        )
    return choices


def _judged(sweep: SweepSpec, rows: Sequence[Row]) -> Iterator[Row]:
    """What is looked at: of the runs of a folder the first of their gates that they have."""
    found = [row for row in rows if row.metric == sweep.metric and row.gate in sweep.gates]
    told = {(row.folder, row.gate) for row in found if row.each or row.failed}
    awaited = {(row.folder, row.gate) for row in found}
    judges = {}
    for folder, variant in {(row.folder, row.variant) for row in found}:
        gates = sweep.gates_of(variant)
        there = (gate for known in (told, awaited) for gate in gates if (folder, gate) in known)
        judges[folder] = next(there, gates[0])
    return (row for row in found if row.gate == judges[row.folder])


def _rest(sweep: SweepSpec, row: _Placed) -> tuple[Any, ...]:
    return tuple((d, row.at(d)) for d in ("variant", *row.values) if d not in sweep.over)


def _swept(sweep: SweepSpec, row: _Placed) -> dict[str, Any]:
    return {axis: row.at(axis) for axis in sweep.over}


def _candidate(sweep: SweepSpec, row: Row) -> Candidate:
    found = row.estimate
    told = [f"seed {seed} failed ({why})" for seed, why in sorted(row.failed.items())]
    told += [f"seed {seed} is missing" for seed in row.missing]
    return Candidate(
        _swept(sweep, row), found, ", ".join(told), failed=len(row.failed) == len(row.asked)
    )


def _winner(sweep: SweepSpec, candidates: Sequence[Candidate]) -> tuple[Candidate | None, str]:
    open_ones = [c for c in candidates if c.note and not c.failed]
    if open_ones:
        told = "; ".join(f"{values_in_words(c.values)}: {c.note}" for c in open_ones)
        return None, f"no choice yet: {told}"
    judged = [c for c in candidates if c.score is not None]
    if not judged:
        return None, "no choice: every value has failed"
    # The first of equals wins: the file's order is the order of preference.
    sign = 1 if sweep.wins == "highest" else -1
    return max(judged, key=lambda c: sign * c.score.mean if c.score else 0.0), ""


def _close(
    sweep: SweepSpec, candidates: Sequence[Candidate], winner: Candidate | None
) -> tuple[Candidate, ...]:
    if winner is None or winner.score is None or winner.score.se is None:
        return ()
    reach, best = winner.score.se, winner.score.mean
    return tuple(
        c for c in candidates if c is not winner and c.score and abs(c.score.mean - best) <= reach
    )


def values_in_words(values: Mapping[str, Any]) -> str:
    """Values of axes as one reads them: ``learning-rate = 0.1``."""
    return ", ".join(f"{axis.rpartition('.')[2]} = {value}" for axis, value in values.items())


def hide_the_others(sweep: SweepSpec, rows: Sequence[Row], choices: Sequence[Choice]) -> list[Row]:
    """The rows without what may not be looked at: all but validation of what has not won.

    Settings and costs stay.
    """
    return [row for row in rows if not row.scores or may_be_told(sweep, row, choices)]


def may_be_told(sweep: SweepSpec, one: _Tested, choices: Sequence[Choice]) -> bool:
    """Whether it is of validation data, or a test that is told of what a sweep has chosen."""
    told = sweep.tests is None or one.test in sweep.tests
    return one.test == VALIDATION or (told and is_chosen(sweep, one, choices))


def is_chosen(sweep: SweepSpec, one: _Placed, choices: Sequence[Choice]) -> bool:
    """Whether it is of what a sweep has chosen."""
    return any(
        choice.winner is not None
        and dict(_rest(sweep, one)) == choice.rest
        and _swept(sweep, one) == choice.winner.values
        for choice in choices
    )


def sweep_table(
    sweep: SweepSpec, choices: Sequence[Choice], labels: Labels, *, digits: int = 3
) -> SweepTable:
    """Every value with its validation result, the winner marked, and the winner's test alone.

    A line for each value; where no tests are told of one axis, one for each choice.
    """
    rest = list(dict.fromkeys(d for choice in choices for d in choice.rest))
    shown = [d for d in rest if len({str(choice.rest.get(d)) for choice in choices}) > 1]
    tests = list(dict.fromkeys(test for choice in choices for test in choice.tests))
    metric = labels.of_value("metric", sweep.metric)
    if not tests and len(sweep.over) == 1 and shown:
        return _wide(sweep, choices, labels, shown, digits=digits)
    header = [labels.of_dimension(d) for d in (*shown, *sweep.over)]
    header += [f"{metric}, validation", "chosen"]
    header += [f"{metric}, {labels.of_value('test', test)}" for test in tests]
    lines, notes = [], []
    for choice in choices:
        for one in choice.candidates:
            won = one is choice.winner
            cells = [labels.of_value(d, choice.rest.get(d)) for d in shown]
            cells += [labels.of_value(axis, one.values[axis]) for axis in sweep.over]
            cells += [_number(one.score, digits) if not one.failed else "failed"]
            cells.append("yes" if won else "")
            cells += [_number(choice.tests.get(test), digits) if won else "" for test in tests]
            lines.append(tuple(cells))
        notes += list(_notes(choice, shown, labels))
    notes.append(f"Chosen: {_rule(sweep, labels)} Of the tests, only that of the choice is told.")
    return _table(sweep, choices, labels, header, lines, notes, len(shown) + len(sweep.over))


def _wide(
    sweep: SweepSpec,
    choices: Sequence[Choice],
    labels: Labels,
    shown: Sequence[str],
    *,
    digits: int,
) -> SweepTable:
    """A column for each value of the one axis."""
    (axis,) = sweep.over
    tried = list(dict.fromkeys(one.values[axis] for c in choices for one in c.candidates))
    header = [*map(labels.of_dimension, shown), *(labels.of_value(axis, value) for value in tried)]
    lines, notes = [], []
    for choice in choices:
        cells = dict.fromkeys(tried, "-")
        for one in choice.candidates:
            found = "failed" if one.failed else _number(one.score, digits)
            cells[one.values[axis]] = found + (" *" if one is choice.winner else "")
        lines.append((*(labels.of_value(d, choice.rest.get(d)) for d in shown), *cells.values()))
        notes += list(_notes(choice, shown, labels))
    notes.append(f"*: chosen, {_rule(sweep, labels)}")
    return _table(sweep, choices, labels, header, lines, notes, len(shown))


def _table(
    sweep: SweepSpec,
    choices: Sequence[Choice],
    labels: Labels,
    header: Iterable[str],
    lines: Iterable[tuple[str, ...]],
    notes: Iterable[str],
    words: int,
) -> SweepTable:
    title = f"Chosen on validation data: {', '.join(labels.of_dimension(d) for d in sweep.over)}"
    return SweepTable(
        CHOICE, title, tuple(header), words, tuple(lines), tuple(notes), tuple(choices)
    )


def _rule(sweep: SweepSpec, labels: Labels) -> str:
    metric = labels.of_value("metric", sweep.metric)
    gates = ", ".join(labels.of_value("gate", gate) for gate in sweep.gate)
    others = "".join(
        f"; {labels.of_value('variant', variant)}: of {labels.of_value('gate', gate)}"
        for variant, gate in sweep.judged_by.items()
    )
    what = "text" if sweep.metric in TEXT_LOSSES else "images"
    where = f"validation {what}, which nobody trains on"
    return f"the {sweep.wins} {metric} of {gates} on {where}{others}."


def _number(found: Estimate | None, digits: int) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.{digits}f}" + ("" if found.se is None else f" ± {found.se:.{digits}f}")


def _notes(choice: Choice, shown: Sequence[str], labels: Labels) -> Iterator[str]:
    where = ", ".join(labels.of_value(d, choice.rest.get(d), alone=True) for d in shown)
    place = f"{where}: " if where else ""
    if choice.note:
        yield f"{place}{choice.note}."
    for one in choice.candidates:
        if one.failed:
            yield f"{place}{values_in_words(one.values)}: {one.note}."
    if choice.close:
        near = "; ".join(values_in_words(one.values) for one in choice.close)
        yield f"{place}within one standard error of the choice: {near}."
