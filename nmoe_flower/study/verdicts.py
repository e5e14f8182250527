"""Does a gate beat a plain baseline? The best of either, for each setting and test of a study."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nmoe_flower.catalogue import BASELINES, VALIDATION
from nmoe_flower.config import Config
from nmoe_flower.plurals import how_many
from nmoe_flower.report import Estimate, differences, estimate, gate_kind
from nmoe_flower.report.html import (
    MINUS,
    Said,
    SortableTable,
    TableCell,
    TableColumn,
    number_cell,
    plain_gates,
    shares_in_words,
    test_in_sentence,
)
from nmoe_flower.study.findings import Findings
from nmoe_flower.study.rows import Row

__all__ = ["Verdict", "verdicts_in_words", "verdicts_of", "verdicts_tables"]

_DIGITS = 3  # of accuracies, and of their differences if these show anything in them
_SHOWN = 1 / 10**_DIGITS  # the least difference of accuracies that is shown
_TOLD = 3  # settings that are told in words, each on its own; more make a table


@dataclass(frozen=True)
class Verdict:
    """The best gate and the best plain baseline of one setting and test.

    Attributes:
        where: The setting in words; empty where there is but one.
        test: The test in words.
        gate: What the best gate is called.
        reached: Mean accuracy of the best gate, over the seeds that both have.
        baseline: What the best plain baseline is called.
        plain: Mean accuracy of the best plain baseline, over the same seeds.
        more: What the gate has more, paired by seed.
    """

    where: str
    test: str
    gate: str
    reached: float
    baseline: str
    plain: float
    more: Estimate

    @property
    def equal(self) -> bool:
        """Whether there is next to no difference, and no estimate of the noise."""
        return self.more.within_noise is None and abs(self.more.mean) < _SHOWN / 2

    @property
    def digits(self) -> int:
        """As many decimals as tell both apart."""
        enough = (n for n in range(_DIGITS, 7) if abs(self.more.mean) >= 0.5 / 10**n)
        return next(enough, _DIGITS)

    @property
    def weight(self) -> int:
        """0 where a baseline wins, 1 in the noise, 2 where a gate wins."""
        if self.more.within_noise or self.equal:
            return 1
        return 0 if self.more.mean < 0 else 2

    @property
    def words(self) -> str:
        """Who wins, in words."""
        if self.equal:
            return "neither?"
        known = ("baseline", "within the noise", "gate")[self.weight]
        return known + "?" * (self.more.within_noise is None)

    @property
    def sentence(self) -> str:
        """Where, and who wins there."""
        place = f"{self.where}, {self.test}" if self.where else self.test
        told = (
            "a plain baseline wins",
            "no gate beats a plain baseline beyond the noise",
            "the best gate beats every plain baseline",
        )[self.weight]
        if self.equal:
            told = f"the best gate and the best plain baseline are within {_SHOWN:g} of each other"
        what = "one seed" if self.more.n == 1 else "seeds that all say the same"
        unsure = f", as far as {what} can tell" if self.more.within_noise is None else ""
        return f"{place[0].upper()}{place[1:]}: {told}{unsure}."

    @property
    def numbers(self) -> str:
        """What both reach, and the interval of the difference."""
        n = self.digits
        ends = " to ".join(_signed(end, n) for end in self.more.interval or ())
        more = f", 95 % interval {ends}" if ends else ""
        return (
            f"The best gate, {self.gate}, reaches {self.reached:.{n}f}, the best plain baseline, "
            f"{self.baseline}, {self.plain:.{n}f} ({_signed(self.more.mean, n)}{more})."
        )


def verdicts_of(findings: Findings) -> list[Verdict]:
    """For each setting and test the best gate against the best plain baseline, by accuracy.

    Those come first where a baseline wins.

    What is compared has the same data. With prior correction a gate is compared with baselines
    that have it, too. What a published system answers is neither: it is a rival.
    """
    data = {run.variant: _data(run.config) for run in findings.study.runs}
    rivals = {run.variant for run in findings.study.runs if run.config.run.system in BASELINES}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in findings.shown:
        measured = row.metric == "accuracy" and row.gate and row.test != VALIDATION and row.numbers
        if measured and row.folder not in rivals:
            place = (tuple(row.values.items()), data.get(row.folder, ""), row.test)
            groups.setdefault(place, []).append(row)
    several = len({(values, shares) for values, shares, _ in groups}) > len(
        {values for values, _, _ in groups}
    )
    verdicts = []
    for (values, shares, test), rows in groups.items():
        pairs = [pair for prior in (False, True) if (pair := _best(rows, prior=prior))]
        if not pairs:
            continue
        gate, baseline = max(pairs, key=lambda pair: _mean(pair[0]))
        more = differences(gate.numbers, baseline.numbers)
        reached, plain = (_over(row, more or row.numbers) for row in (gate, baseline))
        found = estimate(list(more.values()) or [reached - plain])
        settings = [findings.labels.of_setting(axis, value) for axis, value in values]
        verdicts.append(Verdict(
            ", ".join([*settings, *([shares] if several else [])]), test_in_sentence(test),
            _called(gate, findings), reached, _called(baseline, findings), plain, found,
        ))  # fmt: skip
    return sorted(verdicts, key=lambda one: one.weight)


def verdicts_in_words(verdicts: Sequence[Verdict]) -> Iterator[Said]:
    """A few settings one by one; of many a count."""
    if len(verdicts) <= _TOLD:
        yield from (Said(one.numbers, one.sentence) for one in verdicts)
        return
    weights = [one.weight for one in verdicts]
    wins, equal = weights.count(0), sum(one.equal for one in verdicts)
    noise = weights.count(1) - equal
    alone = sum(one.more.within_noise is None for one in verdicts)
    told = [
        f"the best gate is above every plain baseline in {weights.count(2)}",
        f"in {noise} none does beyond the noise" if noise else "",
        f"in {equal} both are within {_SHOWN:g} of each other" if equal else "",
    ]
    unsure = f" In {alone} of them there is no estimate of the noise."
    yield Said(
        f"Of {how_many(len(verdicts), 'pair')} of setting and test, "
        f"{', '.join(filter(None, told))}."
        f"{unsure * bool(alone)} The first table has them all.",
        f"A plain baseline wins in {wins} of {len(verdicts)}." if wins else "",
    )


def verdicts_tables(verdicts: Sequence[Verdict]) -> Iterator[SortableTable]:
    """Who wins each setting and test; nothing where these are so few that words tell each."""
    if len(verdicts) <= _TOLD:
        return
    settings = any(one.where for one in verdicts)
    columns = [TableColumn("Setting", words=True)] if settings else []
    columns += [TableColumn("Test", words=True), TableColumn("Best gate", words=True)]
    columns += [TableColumn("Accuracy"), TableColumn("Best plain baseline", words=True)]
    columns += [
        TableColumn("Accuracy"),
        TableColumn("Difference"),
        TableColumn("Who wins", words=True),
    ]
    tones = ("worse", "same", "better")
    rows = []
    for one in verdicts:
        ends = one.more.interval
        reach = None if ends is None else (ends[1] - ends[0]) / 2
        cells = [TableCell(one.where)] if settings else []
        n = one.digits
        cells += [TableCell(one.test), TableCell(one.gate), number_cell(one.reached, digits=n)]
        cells += [TableCell(one.baseline), number_cell(one.plain, digits=n)]
        cells += [number_cell(one.more.mean, reach, digits=n, signed=True)]
        rows.append([*cells, TableCell(one.words, tone=tones[one.weight])])
    note = (
        "The same data; with prior correction on both sides or on neither. Paired by seed; ± is "
        "half of the 95 % interval (Student's t). Plain baselines: every client's own expert, an "
        "expert drawn at random, one averaged model, a classifier of every client's own."
    )
    if any(one.words.endswith("?") for one in verdicts):
        note += " ?: no estimate of the noise, for there is one seed, or all say the same."
    yield SortableTable("Does a gate beat a plain baseline?", columns, rows, [note])


def _data(config: Config) -> str:
    """What the clients of a run hold, in words."""
    return f"{how_many(config.data.num_clients, 'client')}, {shares_in_words(config)}"


def _best(rows: Sequence[Row], *, prior: bool) -> tuple[Row, Row] | None:
    """The best gate and the best plain baseline, both with prior correction or both without."""
    alike = [row for row in rows if row.gate.endswith("+prior") == prior]
    plain = [row for row in alike if row.gate.removesuffix("+prior") in plain_gates()]
    gates = [row for row in alike if gate_kind(row.gate) == "gate" and row not in plain]
    return (max(gates, key=_mean), max(plain, key=_mean)) if gates and plain else None


def _mean(row: Row) -> float:
    found = row.estimate
    return -math.inf if found is None else found.mean


def _over(row: Row, seeds: Collection[int]) -> float:
    """The mean over some of its seeds."""
    return estimate([row.numbers[seed] for seed in seeds]).mean


def _called(row: Row, findings: Findings) -> str:
    """A gate, with its variant where there are several."""
    several = len({one.variant for one in findings.rows}) > 1
    of = f" of {findings.labels.of_value('variant', row.variant)}" if several else ""
    return f"{findings.labels.of_value('gate', row.gate)}{of}".replace("`", "")


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)
