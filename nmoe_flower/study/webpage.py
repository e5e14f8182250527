"""The page of a study: who wins in words, its tables to sort, its figures to point at.

Everything is made of `Findings`, so what is published needs no run folder. Where there are run
folders, the page also says who holds what, what is private, and what the stages cost.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nmoe_flower.catalogue import BASELINES, VALIDATION
from nmoe_flower.config import Config
from nmoe_flower.files import write_text
from nmoe_flower.plurals import how_many, one_or_many
from nmoe_flower.report import (
    Estimate,
    FinishedRun,
    differences,
    estimate,
    gate_kind,
    read_rounds,
)
from nmoe_flower.report.html import (
    COLOURS,
    MINUS,
    MISSING,
    AxisChoice,
    Charts,
    Command,
    DotRow,
    Dots,
    Fact,
    FormattedText,
    LineSeries,
    Maps,
    Page,
    PagePart,
    PageSection,
    Prose,
    Said,
    SortableTable,
    TableCell,
    TableColumn,
    dot_chart,
    heat_map,
    line_chart,
    markdown,
    number_cell,
    plain_gates,
    run_sections,
    shares_in_words,
    summary,
    test_in_sentence,
    to_html,
)
from nmoe_flower.study.comparisons import Comparison, Pair
from nmoe_flower.study.figures import Figure, Series
from nmoe_flower.study.findings import Findings
from nmoe_flower.study.product import BASE
from nmoe_flower.study.rows import Row, RunOutcome
from nmoe_flower.study.sweep import SweepTable
from nmoe_flower.study.tables import (
    IN_THE_NOISE,
    Cell,
    Column,
    StudyTable,
    beside_paper_in_words,
    without_absent,
)
from nmoe_flower.study.untold import rounds_without_tests, without_tests
from nmoe_flower.study.writing import again, from_where, own_settings, sentence

__all__ = ["page_of_study", "write_webpage"]

# Of runs, what the study's own tables and figures do not say.
_OF_RUNS = ("rounds", "routing", "partition", "features", "privacy", "cost")
_MOST_VARIANTS = 16  # whose routing and rounds are shown, beside what figures are declared
_NO_NUMBER = ("-", "", "failed", "missing")
_DIGITS = 3  # of accuracies, and of their differences if these show anything in them
_SHOWN = 1 / 10**_DIGITS  # the least difference of accuracies that is shown
_TOLD = 3  # settings that are told in words, each on its own; more make a table


def write_webpage(findings: Findings, path: Path) -> Path:
    """Write the report of a study as one HTML file that needs nothing else.

    Args:
        findings: What the study has found.
        path: The file; its folder is made if missing.

    Returns:
        The file.

    Raises:
        NMoEError: Jinja is missing, or the file cannot be written.
    """
    write_text(path, to_html(page_of_study(findings)))
    return path


def page_of_study(findings: Findings) -> Page:
    """The page of a study that `findings_of` or `read_findings` read."""
    study = findings.study
    about: list[PagePart] = [FormattedText(markdown(study.about))] if study.about.strip() else []
    verdicts = sorted(_verdicts(findings), key=lambda one: one.weight)
    tables: list[PagePart] = [_of_verdicts(verdicts)] if len(verdicts) > _TOLD else []
    tables += [_table(table) for table in findings.tables]
    tables += [_words(comparison) for comparison in findings.comparisons]
    if findings.sweep is not None:
        tables.append(_words(findings.sweep))
    figures = [part for figure in findings.figures for part in _figure(figure)]
    sections = [
        PageSection("about", "What this is", about),
        PageSection("tables", "Tables", tables),
        PageSection("figures", "Figures", figures),
        *_of_runs(findings),
        PageSection("provenance", "Provenance", [_provenance(findings)]),
        PageSection("reproduce", "Run it again", _commands(findings)),
    ]
    return Page(
        title=study.title,
        under=from_where(findings),
        lead=list(_lead(findings, verdicts)),
        facts=list(_facts(findings)),
        sections=[section for section in sections if section.parts],
    )


# --- words ---


@dataclass(frozen=True)
class _Verdict:
    """The best gate and the best plain baseline of one setting and test."""

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
        return 0 if self.reached < self.plain else 2

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


def _lead(findings: Findings, verdicts: Sequence[_Verdict]) -> Iterator[Said]:
    """What matters most first: what is not there, baselines that win, then the rest."""
    for gone in findings.failed:
        yield Said("", gone, "warning")
    count, named = findings.missing
    if count:
        yield Said(count, more=named)
    if own := own_settings(findings):
        yield Said(own)
    if rung := findings.alarms:
        count = how_many(len(rung), "answer is", "answers are")
        told = f"{count} behind a gate that does not look, or ahead of the oracle."
        yield Said("", told, "warning", more=" ".join(rung))
    if verdicts:
        yield from _counted(verdicts)
    elif groups := _groups(findings):
        yield from summary(groups, ())[1:]
    yield from _beside_paper(findings.tables)
    yield from _paired([pair for comparison in findings.comparisons for pair in comparison.pairs])
    for choice in findings.choices:
        if choice.winner is not None and choice.winner.score is not None:
            values = ", ".join(f"{key} = {value}" for key, value in choice.winner.values.items())
            yield Said(
                f"Chosen on validation data alone: {values} ({choice.winner.score.mean:.3f} there)."
            )


def _beside_paper(tables: Sequence[StudyTable]) -> Iterator[Said]:
    """How many cells reach what was published; one that stands in two tables counts once."""
    cells: dict[tuple[str, ...], Cell] = {}
    for table in tables:
        for line in table.lines:
            for cell, column in zip(line.cells, table.columns, strict=True):
                row = cell.row
                if column.shows and cell.paper is not None and row is not None:
                    place = (row.folder, row.gate, row.test, row.metric)
                    if cell.n >= cells.get(place, Cell("none")).n:
                        cells[place] = cell
    compared = [cell.difference for cell in cells.values() if cell.difference is not None]
    missing = len(cells) - len(compared)
    gone = f" {how_many(missing, 'more is', 'more are')} not measured yet." if missing else ""
    below = sum(more < 0 for more in compared)
    which = "measured " if missing else ""
    if len(compared) == 1:
        told = "below it" if below else "at or above it"
        told = f"The one {which}cell that has a published value beside it is {told}."
    elif compared and not below:
        told = f"All {len(compared)} {which}cells that have a published value beside them are at "
        told += "or above it."
    elif compared:
        told = f"Of {len(compared)} {which}cells that have a published value beside them, "
        reached = len(compared) - below
        told += f"{reached} {one_or_many(reached, 'is', 'are')} at or above it and {below} below."
    elif cells:
        told = "No cell that has a published value beside it is measured yet."
        gone = ""
    else:
        return
    yield Said(" ".join([f"{told}{gone}", *beside_paper_in_words(list(cells.values()))]))


def _paired(pairs: Sequence[Pair]) -> Iterator[Said]:
    """How many paired comparisons say anything, and why others do not."""
    if not pairs:
        return
    verdicts = [pair.verdict for pair in pairs]
    counts = {
        "beyond the noise": verdicts.count("higher") + verdicts.count("lower"),
        "within the noise": verdicts.count("within the noise"),
        "with no estimate of the noise": verdicts.count("no estimate of the noise"),
        "without a pair of finished runs": verdicts.count("failed") + verdicts.count("missing"),
    }
    told = [f"{count} {what}" for what, count in counts.items() if count]
    yield Said(f"{how_many(len(pairs), 'paired comparison')}: {'; '.join(told)}.")


def _counted(verdicts: Sequence[_Verdict]) -> Iterator[Said]:
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


def _verdicts(findings: Findings) -> Iterator[_Verdict]:
    """For each setting and test the best gate against the best plain baseline, by accuracy.

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
    for (values, shares, test), rows in groups.items():
        pairs = [pair for prior in (False, True) if (pair := _best(rows, prior=prior))]
        if not pairs:
            continue
        gate, baseline = max(pairs, key=lambda pair: _mean(pair[0]))
        more = differences(gate.numbers, baseline.numbers)
        found = estimate(list(more.values()) or [_mean(gate) - _mean(baseline)])
        settings = [_setting(axis, value, findings) for axis, value in values]
        yield _Verdict(
            ", ".join([*settings, *([shares] if several else [])]), test_in_sentence(test),
            _called(gate, findings), _mean(gate), _called(baseline, findings), _mean(baseline),
            found,
        )  # fmt: skip


def _data(config: Config) -> str:
    """What the clients of a run hold, in words."""
    return f"{how_many(config.data.num_clients, 'client')}, {shares_in_words(config)}"


def _best(rows: Sequence[Row], *, prior: bool) -> tuple[Row, Row] | None:
    """The best gate and the best plain baseline, both with prior correction or both without."""
    alike = [row for row in rows if row.gate.endswith("+prior") == prior]
    plain = [row for row in alike if row.gate.removesuffix("+prior") in plain_gates()]
    gates = [row for row in alike if gate_kind(row.gate) == "gate" and row not in plain]
    return (max(gates, key=_mean), max(plain, key=_mean)) if gates and plain else None


def _setting(axis: str, value: Any, findings: Findings) -> str:
    """A value of an axis, with the axis where the value alone says nothing."""
    text = findings.labels.of_value(axis, value, alone=True)
    return f"{text} {findings.labels.of_dimension(axis)}" if _is_number(text) else text


def _mean(row: Row) -> float:
    found = row.estimate
    return -math.inf if found is None else found.mean


def _called(row: Row, findings: Findings) -> str:
    """A gate, with its variant where there are several."""
    several = len({one.variant for one in findings.rows}) > 1
    of = f" of {findings.labels.of_value('variant', row.variant)}" if several else ""
    return f"{findings.labels.of_value('gate', row.gate)}{of}".replace("`", "")


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)


def _facts(findings: Findings) -> Iterator[Fact]:
    told = findings.provenance
    settings = len({run.variant for run in findings.study.runs})
    variants = len({run.named for run in findings.study.runs} - {BASE})
    what = one_or_many(settings, "variant" if variants == settings else "setting")
    of = f" of {how_many(variants, 'variant')}" if 0 < variants < settings else ""
    seeds = len(findings.study.seeds)
    yield Fact("runs finished", f"{told['finished']} of {told['runs']}")
    yield Fact(
        f"{what}{of}",
        str(settings),
        f"{how_many(seeds, 'seed')}",
    )
    yield Fact("of training and tests", _time(float(told["minutes"])))


def _time(minutes: float) -> str:
    """Minutes as one number for people.

    >>> _time(0.3), _time(12.4), _time(95)
    ('18 s', '12 min', '1.6 h')
    """
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"


# --- tables ---


def _of_verdicts(verdicts: Sequence[_Verdict]) -> SortableTable:
    """Who wins each setting and test, those first where a baseline does."""
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
    return SortableTable("Does a gate beat a plain baseline?", columns, rows, [note])


def _table(table: StudyTable) -> SortableTable:
    """A table of the study: ours, and beside it the published value and the difference."""
    columns = [TableColumn(_head(head), words=True) for head in table.heads]
    for column in table.columns:
        columns += _columns(column)
    rows = [
        [
            *(TableCell(label.replace("`", "")) for label in line.labels),
            *(
                cell
                for one, column in zip(line.cells, table.columns, strict=True)
                for cell in _cells(one, column)
            ),
        ]
        for line in table.lines
    ]
    return SortableTable(table.title, columns, rows, _beneath(table.notes))


def _beneath(notes: Sequence[str]) -> list[str]:
    """Notes as the page has them: its head says which runs are not there, and a dash is longer."""
    dashes = (f"{MISSING}{note[1:]}" if note.startswith("-:") else note for note in notes)
    return without_absent(dashes)


def _head(text: str) -> str:
    """What stands above a column: never nothing, for it can be sorted by."""
    plain = text.replace("`", "") or "number"
    return plain[0].upper() + plain[1:]


def _columns(column: Column) -> list[TableColumn]:
    *above, last = column.labels or ("",)
    if not column.shows:
        return [TableColumn(last.replace("`", "") or "Value", group=", ".join(above))]
    group = ", ".join(filter(None, column.labels))
    return [TableColumn("ours", group=group), TableColumn("paper", group=group)]


def _cells(cell: Cell, column: Column) -> list[TableCell]:
    """Ours and, where the table shows it, the published value with what ours has more."""
    if not column.shows:
        return [_ours(cell)]
    more = cell.difference
    if cell.paper is None or more is None:
        return [_ours(cell), TableCell(cell.paper_text.replace("-", MISSING), tone="p")]
    tone = "same" if cell.within_noise else "better" if more >= 0 else "worse"
    tone = "" if cell.within_noise is None else tone
    shown = number_cell(more, digits=cell.decimals, signed=True).text
    shown += f" {IN_THE_NOISE}" if cell.within_noise else ""
    return [_ours(cell), TableCell(cell.paper_text, shown, tone=f"p {tone}".strip())]


def _ours(cell: Cell) -> TableCell:
    text = cell.text.removesuffix(cell.counted).rstrip()
    if text in ("failed", "missing"):
        return TableCell(text, tone="failed", about=cell.note)
    if text == "-":
        return TableCell(MISSING, about=cell.note)
    mean, _, spread = text.partition(" ± ")
    mean = mean if cell.words else mean.replace("-", MINUS)
    beside = f"± {spread} {cell.counted}".rstrip() if spread else cell.counted
    return TableCell(mean, beside, about=cell.note)


def _words(table: Comparison | SweepTable) -> SortableTable:
    """A table that is words already."""
    lines = table.lines
    numbers = [_is_numbers([line[at] for line in lines]) for at in range(len(table.header))]
    columns = [
        TableColumn(_head(head), words=not number)
        for head, number in zip(table.header, numbers, strict=True)
    ]
    rows = [
        [
            _from_words(text, verdict=at == len(line) - 1, number=number)
            for at, (text, number) in enumerate(zip(line, numbers, strict=True))
        ]
        for line in lines
    ]
    return SortableTable(table.title, columns, rows, _beneath(table.notes))


def _is_numbers(texts: Sequence[str]) -> bool:
    """Whether a column is of numbers, some of which may not be there."""
    words = [text.partition(" ")[0].replace(",", "") for text in texts if text not in _NO_NUMBER]
    return bool(words) and all(map(_is_number, words))


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _from_words(text: str, *, verdict: bool, number: bool) -> TableCell:
    if text in ("-", ""):
        return TableCell(MISSING)
    if text in _NO_NUMBER:
        return TableCell(text, tone="failed")
    if number:
        mean, _, spread = text.partition(" ± ")
        key = mean.partition(" ")[0] if " " in mean else None
        return TableCell(mean.replace("-", MINUS), f"± {spread}" if spread else "", key=key)
    tones = {"higher": "better", "lower": "worse", "within the noise": "same"}
    return TableCell(text, tone=tones.get(text, "") if verdict else "")


# --- figures ---


def _figure(figure: Figure) -> list[PagePart]:
    notes = [sentence("; ".join(figure.notes))] if figure.notes else []
    if figure.kind == "routing":
        maps = [
            heat_map(
                panel.shares,
                title=panel.label or figure.title,
                said=sentence(
                    ", ".join(
                        [f"local ratio {100 * panel.local_ratio:.1f} %"]
                        + [f"{name} {value:.3f}" for name, value in panel.scores]
                    )
                ),
                say="Client {r} asks expert {c} for {v} of its samples.",
                row_title="Client",
                column_title="Expert",
                own=len(panel.shares) == len(panel.shares[0]) > 1,
            )
            for panel in figure.panels
        ]
        if not maps:
            return _nothing(figure, notes)
        return [Maps(maps, f"{figure.title}: share of a client's samples", notes)]
    drawn = [series for series in figure.series if series.points]
    if not drawn:
        return _nothing(figure, notes)
    if figure.kind == "scatter":
        told = [(f"{one.label}: {p.x:.3g} {figure.x}", p) for one in drawn for p in one.points]
        drawn = [Series("", tuple(replace(point, x=label) for label, point in told))]
    if figure.kind in ("dots", "scatter"):
        return [Dots([_dots(figure, drawn)], notes)]
    return [Charts([AxisChoice(figure.x, [_lines(figure, drawn)])], notes)]


def _nothing(figure: Figure, notes: Sequence[str]) -> list[PagePart]:
    """In place of a figure: why there is nothing in it."""
    return [Prose([Said(" ".join(notes), f"{figure.title}.")])]


def _lines(figure: Figure, drawn: Sequence[Series]) -> Any:
    """Lines over numbers or names; where numbers lie far apart, evenly by their logarithms."""
    names = list(figure.categories)

    def place(x: float | str) -> float:
        if names:
            return float(names.index(str(x)))
        return math.log10(float(x)) if figure.log else float(x)

    known = dict.fromkeys(point.x for series in drawn for point in series.points)
    stops = sorted((place(x), x if isinstance(x, str) else f"{x:g}") for x in known)
    series = []
    for one in drawn:
        errors = [point.se or 0.0 for point in one.points]
        means = [point.mean for point in one.points]
        spread = any(errors)
        series.append(
            LineSeries(
                one.label or figure.y,
                [place(point.x) for point in one.points],
                means,
                [m - e for m, e in zip(means, errors, strict=True)] if spread else (),
                [m + e for m, e in zip(means, errors, strict=True)] if spread else (),
            )
        )
    share = all(0 <= point.mean <= 1 for one in drawn for point in one.points)
    across = f"{figure.x} (log scale)" if figure.log else figure.x
    return line_chart(
        f"{figure.title}: {figure.y}",
        series,
        x_title=across,
        share=share,
        stops=() if figure.kind == "rounds" else stops,
    )


def _dots(figure: Figure, drawn: Sequence[Series]) -> Any:
    """A row for each name and series; below a head for each name where there are several series."""
    names = list(figure.categories)
    if not names:
        places = dict.fromkeys(point.x for one in drawn for point in one.points)
        named = all(isinstance(place, str) for place in places)
        names = [str(p) for p in places] if named else sorted({f"{p:g}" for p in places}, key=float)
    several, coloured = len(drawn) > 1, len(drawn) <= COLOURS
    rows = []
    for name in names:
        rows += [DotRow(name, "head", (), math.nan)] if several else []
        for at, one in enumerate(drawn):
            for point in one.points:
                if (point.x if isinstance(point.x, str) else f"{point.x:g}") == name:
                    e = point.se
                    ends = [] if e is None else [point.mean - e, point.mean + e]
                    kind = f"k{at if coloured else 0}"
                    rows.append(DotRow(one.label if several else name, kind, ends, point.mean))
    return dot_chart(f"{figure.title}: {figure.y}", rows, what="end of the error bar")


# --- runs ---


def _of_runs(findings: Findings) -> list[PageSection]:
    """What the finished runs say of themselves; nothing where only their numbers are kept."""
    groups = _groups(findings)
    if not groups:
        return []
    left_out = {"rounds", "routing"} if len(groups) > _MOST_VARIANTS else set()
    left_out |= {"routing"} if any(f.kind == "routing" for f in findings.figures) else set()
    left_out |= {"rounds"} if any(f.kind == "rounds" for f in findings.figures) else set()
    wanted = set(_OF_RUNS) - left_out
    return [section for section in run_sections(groups, ()) if section.anchor in wanted]


def _groups(findings: Findings) -> dict[str, list[FinishedRun]]:
    """The finished runs by variant; nothing where only their numbers are kept."""
    runs = [one for one in findings.outcomes if one.results is not None and one.path is not None]
    names = {one.run.variant: _of_run(one, findings) for one in runs}
    told = names if len(set(names.values())) == len(names) else {name: name for name in names}
    groups: dict[str, list[FinishedRun]] = {told[one.run.variant]: [] for one in runs}
    for one in runs:
        tests = findings.tells_tests_of(one.run)
        groups[told[one.run.variant]].append(_finished(one, tests=tests))
    return groups


def _of_run(one: RunOutcome, findings: Findings) -> str:
    """What a run's variant is called, with the values of its axes."""
    run, labels = one.run, findings.labels
    several = len(findings.study.variants) > 1
    variant = [labels.of_value("variant", run.named)] if several else []
    settings = [_setting(axis, value, findings) for axis, value in run.values.items()]
    return ", ".join([*variant, *settings]).replace("`", "") or run.variant


def _finished(one: RunOutcome, *, tests: bool) -> FinishedRun:
    """A run as the pages of runs read it; without its tests where these may not be told."""
    assert one.path is not None
    assert one.results is not None
    rounds = read_rounds(one.path / "rounds.jsonl")
    return FinishedRun(
        one.path,
        one.run.config,
        dict(one.results) if tests else without_tests(one.results),
        dict(one.provenance),
        rounds if tests else rounds_without_tests(rounds),
        configuration=one.run.variant,
        label=one.run.variant,
    )


def _provenance(findings: Findings) -> SortableTable:
    """Everything that the numbers come from, and how far the runs are."""
    told: Mapping[str, Any] = findings.provenance
    versions = [", ".join(f"{k} {v}" for k, v in one.items()) for one in told["versions"]]
    lines = {
        "Runs finished": f"{told['finished']} of {told['runs']}",
        "Seeds": ", ".join(map(str, findings.study.seeds)),
        "Minutes of training and tests": f"{told['minutes']:,.1f}",
        "Started": " to ".join(dict.fromkeys((*told["dates"][:1], *told["dates"][-1:]))),
        "Machines": "; ".join(told["machine"]),
        "Versions": "; ".join(versions),
        "Revisions": ", ".join(told["revisions"]),
    }
    columns = [TableColumn("Of", words=True), TableColumn("Recorded", words=True)]
    rows = [[TableCell(name), TableCell(text)] for name, text in lines.items() if text]
    return SortableTable("Where the numbers come from", columns, rows)


def _commands(findings: Findings) -> list[PagePart]:
    """How to run the study and make this page again."""
    run, report = again(findings)
    report += ["--html", f"{findings.study.name}.html"]
    return [
        Command("All runs that are missing", shlex.join(run)),
        Command("This page", shlex.join(report)),
    ]
